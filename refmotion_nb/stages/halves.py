"""The half sets on their way through the job: what was written must give every particle the half set it came with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from refmotion_nb.data.cryosparc.csfile import read_cs
from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.data.star import read_star, table


def check_split(out: Path, data: Dataset, written: xr.Dataset) -> None:
    """Compare the half sets in the particle tables in ``out`` with those of the input; ``written``: the ``particles`` group.

    Raises
    ------
    InputError
        A table does not hold the particles that were written, or one of them is in the other half set.
    """
    several = len(data.references) > 1
    row, reference, half = (data.particles[name].values for name in ("row", "reference", "half"))
    for number in range(len(data.references)):
        chosen = written["written"].values & (written["reference"].values == number)
        if not chosen.any():
            continue
        rows = np.sort(written["row"].values[chosen])
        mine = reference == number
        order = np.argsort(row[mine])
        expected = half[mine][order][np.searchsorted(row[mine][order], rows)]
        stem = out / f"particles{f'_{number + 1}' * several}"
        if data.tables:
            star = stem.with_suffix(".star")
            found = table(read_star(star, ["particles"]), "particles")["rlnRandomSubset"].to_numpy(int)
            _compare(star, "rlnRandomSubset", found, expected)
        if (cs := stem.with_suffix(".cs")).exists():
            _compare(cs, "alignments3D/split", read_cs(cs)["alignments3D/split"].astype(int) + 1, expected)


def _compare(path: Path, column: str, found: np.ndarray, expected: np.ndarray) -> None:
    if len(found) != len(expected):
        raise InputError(
            f"{path} holds {len(found)} particles, {len(expected)} were written; something else changed it, run again "
            "into an empty folder"
        )
    if wrong := int((found != expected).sum()):
        first = int(np.flatnonzero(found != expected)[0])
        raise InputError(
            f"{path}: {wrong} particles are not in the half set of the input (the first in row {first}, {column}); do not "
            "refine them, run again into an empty folder"
        )
