"""Whether particles, cut out of movies as tables say, look like their reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from refmotion_nb.data.maps import load_reference
from refmotion_nb.data.movies.look import Look, look_at
from refmotion_nb.data.movies.reader import MovieReader, open_movie
from refmotion_nb.data.relion.motion import initial_displacement
from refmotion_nb.data.schema import Dataset, Movie, Optics
from refmotion_nb.data.transfer import Transfer
from refmotion_nb.numerics.fourier import band_indices, band_of
from refmotion_nb.numerics.half_sets import resemblance, shell_products, standard_errors
from refmotion_nb.numerics.patches import cut_patches, integer_coordinate, mean_count, movie_box, patch_corners
from refmotion_nb.numerics.projection import FourierVolume, euler_to_matrix, prepare_volume, slices

LOW_A, HIGH_A = 60.0, 8.0  # the band compared
SURE, AHEAD = 5.0, 3.0  # standard errors
VIEWS = ("opposite", "mirrored", "exchanged")  # the image as it is, mirrored in y, with x and y exchanged
_DOSE_E_A2 = 30.0  # early frames hold most of the signal
_PARTICLES, _MOVIES = 60, 3


@dataclass(frozen=True)
class _Boxes:
    """Particles of a movie in one placement that lie wholly inside it."""

    movie: Movie
    particles: xr.Dataset
    optics: tuple[Optics, ...]
    box: int
    corners: np.ndarray  # (particle, frame, 2) x y movie px

    @property
    def frames(self) -> tuple[Any, ...]:
        """What decides which frames are decoded."""
        m = self.movie
        return m.path, m.first_frame, m.n_frames, m.height, m.width, m.eer_upsampling, m.eer_grouping, self.n_early

    @property
    def camera(self) -> tuple[Any, ...]:
        """What decides how they are made ready."""
        m = self.movie
        made_from = m.gain, m.defects, m.background, m.estimate_background, m.hot_pixel_threshold
        return m.rows_as_stored, *made_from, np.asarray(m.hot_pixels).tobytes()

    @property
    def n_early(self) -> int:
        """Number of frames that are added up."""
        return min(self.movie.n_frames, max(1, int(np.ceil(_DOSE_E_A2 / self.movie.dose_per_frame_e_A2))))


def resemblance_scores(datasets: Mapping[str, Dataset]) -> dict[tuple[str, str], float]:
    """Mean correlation of particles with their reference in units of its standard error, for each data set and view.

    Each movie is read once for all data sets, whichever way they take its rows.

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
    together: dict[tuple[Any, ...], list[tuple[str, _Boxes]]] = {}
    for name, dataset in datasets.items():
        for boxes in _chosen(dataset, extent):
            together.setdefault(boxes.frames, []).append((name, boxes))
    found: dict[str, list[np.ndarray]] = {name: [np.zeros((len(VIEWS), 0))] for name in datasets}
    for group in together.values():
        for (name, boxes), images in zip(group, _averages([boxes for _, boxes in group])):
            found[name].append(_correlations(boxes, images, volume, extent, k_max))
    scores: dict[tuple[str, str], float] = {}
    for name, parts in found.items():
        values = np.concatenate(parts, 1)
        scores |= {(name, view): standard_errors(values[i]) for i, view in enumerate(VIEWS)}
    return scores


def _chosen(dataset: Dataset, extent_A: float) -> list[_Boxes]:
    """Return the boxes of enough particles of the first reference, from the fewest movies."""
    found: list[_Boxes] = []
    for movie, particles in sorted(dataset.micrographs(), key=lambda pair: -pair[1].sizes["particle"])[:_MOVIES]:
        mine = np.flatnonzero(particles["reference"].values == 0)[:_PARTICLES]
        if len(mine) and sum(len(one.corners) for one in found) < _PARTICLES:
            boxes = _boxes(
                movie, particles.isel(particle=mine), dataset.optics, movie_box(extent_A, movie.pixel_size_A)
            )
            if len(boxes.corners):
                found.append(boxes)
    return found


def _boxes(movie: Movie, particles: xr.Dataset, optics: tuple[Optics, ...], box: int) -> _Boxes:
    coordinate = particles["coordinate"].values
    centre = np.rint(integer_coordinate(coordinate, movie.pixel_size_A * movie.binning) * movie.binning).astype(int)
    moved = np.rint(initial_displacement(movie, coordinate) / movie.pixel_size_A).astype(int)
    corners = patch_corners(centre[:, None], box, moved)
    inside = np.all((corners >= 0) & (corners + box <= [movie.width, movie.height]), axis=(1, 2)).reshape(-1)
    return _Boxes(movie, particles.isel(particle=np.flatnonzero(inside)), optics, box, corners[inside])


def _correlations(
    boxes: _Boxes, images: np.ndarray, volume: FourierVolume, reference_extent_A: float, k: int
) -> np.ndarray:
    """Correlation (view, particle) of frame averages with the reference."""
    movie, particles, box = boxes.movie, boxes.particles, boxes.box
    k, extent_A = min(k, box // 2 - 1), box * movie.pixel_size_A
    observed = band_of(np.fft.rfft2(images, norm="forward"), k).astype(np.complex64)
    seen = np.empty_like(observed)
    matrices = euler_to_matrix(particles["euler"].values)
    origin = particles["origin"].values / movie.pixel_size_A
    group = particles["optics"].values
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        transfer = Transfer.of(boxes.optics[g], *band_indices(k), extent_A)
        view = slices(
            volume, matrices[rows], origin[rows], k, reference_extent_A / extent_A, transfer.magnification, box // 2, box
        )  # fmt: skip
        view *= transfer.ctf(particles, rows)
        seen[rows] = view if transfer.response is None else view * transfer.response
    products = shell_products(observed, seen, seen)
    return np.stack([resemblance(products, view, max(1, int(extent_A / LOW_A)), k) for view in VIEWS])


class _Rows:
    """The frames of an open movie, with rows ``turned`` or not; decoded once for all that share ``kept``."""

    def __init__(self, reader: MovieReader, kept: dict[int, np.ndarray], turned: bool):
        self.n_frames, self.height, self.width, self.dtype = reader.n_frames, reader.height, reader.width, reader.dtype
        self._reader, self._kept, self._turned = reader, kept, turned

    def frame(self, f: int) -> np.ndarray:
        if f not in self._kept:
            self._kept[f] = self._reader.frame(f)
        return (self._kept[f][::-1] if self._turned else self._kept[f]).copy()


def _averages(group: list[_Boxes]) -> list[np.ndarray]:
    """Aligned averages (particle, box, box) of early frames, contrast inverted, of placements on one and the same movie."""
    first = group[0].movie
    images = [np.zeros((len(boxes.corners), boxes.box, boxes.box), np.float32) for boxes in group]
    kept: dict[int, np.ndarray] = {}
    ready: dict[tuple[Any, ...], tuple[_Rows, Look]] = {}
    with open_movie(first) as reader:
        for boxes in group:
            if boxes.camera not in ready:
                turned = reader.rows_reversed and boxes.movie.rows_as_stored != first.rows_as_stored
                rows = _Rows(reader, kept, turned)
                ready[boxes.camera] = rows, look_at(boxes.movie, rows, True, True)
                ready[boxes.camera][1].frames.clear()  # copies of what is kept
        for f in range(group[0].n_early):
            for camera, (rows, look) in ready.items():
                frame = look.frame(rows, f)
                level = None if look.background is None else look.background * mean_count(frame, look.gain)
                for boxes, total in zip(group, images):
                    if boxes.camera == camera:
                        total += cut_patches(frame, look.gain, boxes.corners[:, f], boxes.box, level)
            kept.pop(f, None)
    return images
