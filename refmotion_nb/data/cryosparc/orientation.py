"""Which way up CryoSPARC's tables lie on a movie: particles compared with their reference in each possible way.

A wrong y-axis fails silently: nothing is where the tables say, and a map at 3.7 Å becomes one at 10.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from refmotion_nb.data.maps import load_reference
from refmotion_nb.data.movies.detector import load_gain
from refmotion_nb.data.movies.eer import is_eer
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.motion import initial_displacement
from refmotion_nb.data.schema import Dataset, InputError, Movie
from refmotion_nb.numerics.ctf import ctf, frequencies
from refmotion_nb.numerics.fourier import band_indices, band_of, shell_round
from refmotion_nb.numerics.patches import movie_box
from refmotion_nb.numerics.projection import FourierVolume, euler_to_matrix, prepare_volume, slices

_LOW_A, _HIGH_A = 60.0, 8.0  # the band compared
_DOSE_E_A2 = 30.0  # early frames hold most of the signal
_PARTICLES, _MOVIES = 60, 3
_SURE, _AHEAD = 5.0, 3.0  # standard errors


def best_orientation(datasets: Mapping[str, Dataset]) -> tuple[str, str]:
    """Return the name of the data set in which particles look most like their reference, and a note that says so.

    The first is returned where the data do not tell.
    """
    names = list(datasets)
    first = datasets[names[0]]
    if len({name: None for name in names if _distinct(datasets[name], first)}) == 0:
        return names[0], f"orientation {names[0]}: all are the same for these movies"
    try:
        scores = orientation_scores(datasets)
    except InputError as error:
        return names[0], f"orientation {names[0]} is taken, for it cannot be found out: {error}"
    ranked = sorted(names, key=lambda name: -scores[name])
    listed = ", ".join(f"{name} {scores[name]:.1f}" for name in ranked)
    about = f"particles resemble their reference by this many standard errors: {listed}"
    best = ranked[0]
    if scores[best] < _SURE or scores[best] - scores[ranked[1]] < _AHEAD:
        return names[
            0
        ], f"orientation {names[0]} is taken, but not confirmed: {about}; say orientation if it is another"
    return best, f"orientation {best}: {about}"


def orientation_scores(datasets: Mapping[str, Dataset]) -> dict[str, float]:
    """Mean correlation of particles with their reference in units of its standard error, for each data set.

    Raises
    ------
    InputError
        A movie or a map cannot be used.
    """
    some = next(iter(datasets.values()))
    reference = load_reference(some.references[0])
    extent = reference.box_size * reference.pixel_size_A
    k_max = min(reference.box_size // 2 - 1, int(extent / _HIGH_A))
    volume = prepare_volume(0.5 * (reference.half1 + reference.half2), reference.mask, k_max)
    scores = {}
    for name, dataset in datasets.items():
        movies = sorted(dataset.micrographs(), key=lambda pair: -pair[1].sizes["particle"])
        found: list[np.ndarray] = []
        for movie, particles in movies[:_MOVIES]:
            mine = np.flatnonzero(particles["reference"].values == 0)[:_PARTICLES]
            if len(mine) and sum(map(len, found)) < _PARTICLES:
                found.append(_correlations(movie, particles.isel(particle=mine), dataset, volume, extent, k_max))
        values = np.concatenate(found) if found else np.zeros(0)
        spread = values.std(ddof=1) if len(values) > 2 else 0.0
        scores[name] = float(values.mean() / spread * np.sqrt(len(values))) if spread > 0 else 0.0
    return scores


def _distinct(one: Dataset, other: Dataset) -> bool:
    rows = one.movies[:1] and other.movies[:1] and one.movies[0].path.suffix.lower() in (".tif", ".tiff")
    same = np.array_equal(one.particles["coordinate"].values, other.particles["coordinate"].values)
    return not same or bool(rows and one.movies[0].rows_as_stored != other.movies[0].rows_as_stored)


def _correlations(
    movie: Movie, particles: xr.Dataset, dataset: Dataset, volume: FourierVolume, extent_A: float, k: int
) -> np.ndarray:
    """Correlation (particle,) of frame averages with the reference; particles at the edge are left out."""
    box = movie_box(extent_A, movie.pixel_size_A)
    k = min(k, box // 2 - 1)
    images, inside = _averages(movie, particles, box)
    if not inside.any():
        return np.zeros(0)
    particles, images = particles.isel(particle=np.flatnonzero(inside)), images[inside]
    observed = -band_of(np.fft.rfft2(images, norm="forward"), k)
    ky, kx = band_indices(k)
    shell = shell_round(ky, kx)
    band = (shell >= max(1, int(extent_A / _LOW_A))) & (shell <= k)
    power = (np.abs(observed) ** 2).mean(0)
    noise = np.bincount(shell.ravel(), power.ravel()) / np.maximum(np.bincount(shell.ravel()), 1)
    weight = np.where(band, 1 / np.maximum(noise[shell], 1e-30), 0)
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
    view = slices(volume, euler_to_matrix(particles["euler"].values), origin, k, 1.0, None, box // 2, box) * transfer
    cross = (weight * (observed * view.conj()).real).sum((1, 2))
    return cross / np.sqrt((weight * np.abs(observed) ** 2).sum((1, 2)) * (weight * np.abs(view) ** 2).sum((1, 2)))


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
