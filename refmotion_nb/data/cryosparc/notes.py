"""What CryoSPARC's tables say that may be a mistake, or that is not followed, a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from refmotion_nb.data.cryosparc.csfile import names, text
from refmotion_nb.data.cryosparc.exposures import DEFECT_MAPS
from refmotion_nb.data.cryosparc.files import job_of, later_iteration
from refmotion_nb.data.relion.micrographs import MovieSet

Tables = Sequence[tuple[Path, np.ndarray]]
_SAME = 2e-3  # relative; shapes of Fourier-cropped micrographs are whole
_WHOLE_PX = 0.02  # pixel sizes are written with so many digits


def of_particles(particles: Tables, jobs: Sequence[str]) -> list[str]:
    """Say whether particles are of another job than their volume (``jobs``), and whether their scales were refined."""
    notes = []
    for i, (path, rows) in enumerate(particles):
        job, of_volume = job_of(path.absolute()), jobs[i] if i < len(jobs) else ""
        if job and of_volume and job != of_volume:
            notes.append(f"{path} is of job {job}, its volume of {of_volume}; poses and half sets should be those "
                         "of the refinement that made the volume")  # fmt: skip
        alpha = rows["alignments3D/alpha"] if "alignments3D/alpha" in names(rows) else np.ones(1)
        if np.ptp(alpha) == 0:
            notes.append(f"{path}: all particles have the same scale; refine with per-particle scales minimised")
        if (lost := np.count_nonzero(alpha <= 0)) and np.ptp(alpha) > 0:
            notes.append(
                f"{path}: {lost} particles have a scale (alignments3D/alpha) of 0 or below, taken as 1; take them out"
            )
    return notes


def earlier_iterations(files: Sequence[Path]) -> list[str]:
    """Name results beside which their job has left the same of a later iteration."""
    return [f"{path} is of an earlier iteration than {later.name} beside it; give particles and volume of the last one"
            for path in files if (later := later_iteration(path))]  # fmt: skip


def other_pixel_sizes(particles: Tables, movies: MovieSet) -> list[str]:
    """Say where particles have pixels that cannot be of their movies: calibrated for the ones and not for the others."""
    notes = []
    for path, rows in particles:
        which, uids = pd.factorize(rows["location/micrograph_uid"])
        at = np.array([movies.find.get(str(uid), -1) for uid in uids])[which]
        rows, at = rows[at >= 0], at[at >= 0]
        pixel, width = np.array([(m.pixel_size_A, m.width) for m in movies.movies]).reshape(-1, 2)[at].T
        n_micrograph = rows["location/micrograph_shape"][:, 1].astype(float)
        own = (
            rows["location/micrograph_psize_A"] if "location/micrograph_psize_A" in names(rows) else np.zeros(len(rows))
        )
        known = (own > 0) & (n_micrograph > 0)
        if (off := known & ~np.isclose(own * n_micrograph, pixel * width, rtol=_SAME, atol=0)).any():
            i = int(np.argmax(off))
            made = pixel[i] * width[i] / n_micrograph[i]
            notes.append(f"{path}: its micrographs have {own[i]:.5g} Å/px, those of its movies {made:.5g}; give particles, "
                         "volume and exposures the same pixel size")  # fmt: skip
            continue
        n_box, psize = rows["blob/shape"][:, 0].astype(float), rows["blob/psize_A"].astype(float)
        boxes = np.stack([n_box * psize / pixel, n_box * psize / (pixel * width / np.maximum(n_micrograph, 1))])
        if (off := (np.abs(boxes - np.rint(boxes)) > _WHOLE_PX).all(0)).any():
            i = int(np.argmax(off))
            notes.append(f"{path}: its box of {n_box[i]:.0f} px of {psize[i]:.5g} Å is {boxes[0, i]:.2f} pixels of its movies "
                         f"({pixel[i]:.5g} Å) wide, as if the pixel size had been changed after extraction; give particles, "
                         "volume and exposures the same one")  # fmt: skip
    return notes


def defect_lists(exposures: Tables) -> list[str]:
    """Name defect files that are not read: how CryoSPARC lays its lists (``.txt``) on a movie is not public."""
    count = Counter(name for _, rows in exposures for name in text(rows, "mscope_params/defect_path"))
    return [f"{name}, the defect file of {n} movies, is not followed; hot pixels are found in the movies instead"
            for name, n in count.items() if name and Path(name).suffix.lower() not in DEFECT_MAPS]  # fmt: skip
