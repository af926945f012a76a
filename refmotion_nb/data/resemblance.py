"""Whether particles, cut out of movies as tables say, look like their reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from refmotion_nb.data.maps import load_reference
from refmotion_nb.data.movies.detector import load_gain
from refmotion_nb.data.movies.eer import is_eer
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.motion import initial_displacement
from refmotion_nb.data.schema import Dataset, Movie
from refmotion_nb.numerics.ctf import ctf, frequencies
from refmotion_nb.numerics.fourier import band_of
from refmotion_nb.numerics.half_sets import resemblance, shell_products, standard_errors
from refmotion_nb.numerics.patches import movie_box
from refmotion_nb.numerics.projection import FourierVolume, euler_to_matrix, prepare_volume, slices

LOW_A, HIGH_A = 60.0, 8.0  # the band compared
SURE, AHEAD = 5.0, 3.0  # standard errors
VIEWS = ("opposite", "mirrored", "exchanged")  # the image as it is, mirrored in y, with x and y exchanged
_DOSE_E_A2 = 30.0  # early frames hold most of the signal
_PARTICLES, _MOVIES = 60, 3


def resemblance_scores(datasets: Mapping[str, Dataset]) -> dict[tuple[str, str], float]:
    """Mean correlation of particles with their reference in units of its standard error, for each data set and view.

    Raises
    ------
    InputError
        A movie or a map cannot be used.
    """
    some = next(iter(datasets.values()))
    reference = load_reference(some.references[0])
    extent = reference.box_size * reference.pixel_size_A
    k_max = min(reference.box_size // 2 - 1, int(extent / HIGH_A))
    volume = prepare_volume(0.5 * (reference.half1 + reference.half2), reference.mask, k_max)
    scores: dict[tuple[str, str], float] = {}
    for name, dataset in datasets.items():
        movies = sorted(dataset.micrographs(), key=lambda pair: -pair[1].sizes["particle"])
        found: list[np.ndarray] = []
        for movie, particles in movies[:_MOVIES]:
            mine = np.flatnonzero(particles["reference"].values == 0)[:_PARTICLES]
            if len(mine) and sum(one.shape[1] for one in found) < _PARTICLES:
                found.append(_correlations(movie, particles.isel(particle=mine), dataset, volume, extent, k_max))
        values = np.concatenate(found, 1) if found else np.zeros((len(VIEWS), 0))
        scores |= {(name, view): standard_errors(values[i]) for i, view in enumerate(VIEWS)}
    return scores


def _correlations(
    movie: Movie, particles: xr.Dataset, dataset: Dataset, volume: FourierVolume, extent_A: float, k: int
) -> np.ndarray:
    """Correlation (view, particle) of frame averages with the reference; particles at the edge are left out."""
    box = movie_box(extent_A, movie.pixel_size_A)
    k = min(k, box // 2 - 1)
    images, inside = _averages(movie, particles, box)
    if not inside.any():
        return np.zeros((len(VIEWS), 0))
    particles, images = particles.isel(particle=np.flatnonzero(inside)), images[inside]
    observed = -band_of(np.fft.rfft2(images, norm="forward"), k).astype(np.complex64)
    optics = dataset.optics[int(particles["optics"].values[0])]
    y, x = frequencies(k, extent_A)
    of = {name: particles[name].values.astype(float) for name in
          ("defocus_u", "defocus_v", "defocus_angle", "phase_shift", "ctf_b_factor", "ctf_scale")}  # fmt: skip
    transfer = ctf(
        x, y, defocus_u_A=of["defocus_u"], defocus_v_A=of["defocus_v"], defocus_angle_deg=of["defocus_angle"],
        phase_shift_deg=of["phase_shift"], b_factor_A2=of["ctf_b_factor"], scale=of["ctf_scale"],
        voltage_kV=optics.voltage_kV, spherical_aberration_mm=optics.spherical_aberration_mm,
        amplitude_contrast=optics.amplitude_contrast,
    )  # fmt: skip
    origin = particles["origin"].values / movie.pixel_size_A
    seen = slices(volume, euler_to_matrix(particles["euler"].values), origin, k, 1.0, None, box // 2, box) * transfer
    products = shell_products(observed, seen, seen)
    return np.stack([resemblance(products, view, max(1, int(extent_A / LOW_A)), k) for view in VIEWS])


def _averages(movie: Movie, particles: xr.Dataset, box: int) -> tuple[np.ndarray, np.ndarray]:
    """Aligned averages (particle, box, box) of early frames, and which particles (particle,) lie wholly inside."""
    coordinate = particles["coordinate"].values
    centre = np.floor(coordinate / movie.pixel_size_A + 1e-4)
    moved = np.rint(initial_displacement(movie, coordinate) / movie.pixel_size_A)
    corner = (centre[:, None] + moved - box // 2).astype(int)  # (particle, frame, 2)
    inside = np.all((corner >= 0) & (corner + box <= [movie.width, movie.height]), axis=(1, 2)).reshape(-1)
    eer = is_eer(movie.path)
    gain = load_gain(movie.gain, (movie.height, movie.width), eer) if movie.gain else None
    images = np.zeros((len(corner), box, box), np.float32)
    n = min(movie.n_frames, max(1, int(np.ceil(_DOSE_E_A2 / movie.dose_per_frame_e_A2))))
    with open_movie(movie) as reader:
        for f in range(n):
            frame = reader.frame(f).astype(np.float32)
            if gain is not None:
                frame *= gain
            frame = np.minimum(frame, frame.mean() + 8 * frame.std())  # hot pixels
            for p in np.flatnonzero(inside):
                x, y = corner[p, f]
                images[p] += frame[y : y + box, x : x + box]
    return images, inside
