"""One micrograph in memory: transforms of all its patches and the predicted views they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from refmotion_nb.data.movies.look import Put, look_at, sample_bytes
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.motion import initial_displacement, rigid_displacement
from refmotion_nb.data.schema import InputError, Movie, Optics
from refmotion_nb.data.transfer import Transfer
from refmotion_nb.numerics.backend import beside, over_chunks, to_host
from refmotion_nb.numerics.correlation import spline_grid
from refmotion_nb.numerics.device_sizes import MicrographSizes, slice_work_bytes
from refmotion_nb.numerics.fourier import band_indices
from refmotion_nb.numerics.patches import PatchSpectra, integer_coordinate, movie_box, particle_power, patch_corners
from refmotion_nb.numerics.projection import euler_to_matrix, slices
from refmotion_nb.numerics.recombine import normalise, recombine
from refmotion_nb.numerics.room import Room
from refmotion_nb.numerics.threads import in_order, side_by_side
from refmotion_nb.stages.device import Device
from refmotion_nb.stages.references import PreparedReference

_COUNT_BYTES = 4  # of a pixel of a raw frame, at most


@dataclass(frozen=True)
class Placement:
    """Where the particles of a micrograph are cut out, and how their frames moved according to motion correction."""

    box: int  # movie px
    centre_px: np.ndarray  # (particle, 2) whole movie px
    beside_px: np.ndarray  # (particle, 2) how far that lies from the position, which may be between pixels
    origin_A: np.ndarray  # (particle, 2) the object sits at the centre minus this
    rigid_A: np.ndarray  # (frame, 2) displacement of the whole frame
    initial_A: np.ndarray  # (particle, frame, 2) with the local motion model, where there is one


def place(
    movie: Movie, particles: xr.Dataset, extent_A: float, recenter: bool, images_A: np.ndarray | None = None
) -> Placement:
    """Return where to cut boxes ``extent_A`` wide; ``recenter`` moves them by the whole pixels of the refined origins.

    Coordinates are cut to whole pixels of the micrograph, as when particles are extracted; with ``images_A`` to those of
    the particle images (particle, 1), as when RELION polishes. Moved by such pixels they are read again as what they are.
    """
    pixel_A: Any = movie.pixel_size_A * movie.binning if images_A is None else images_A
    coordinate = particles["coordinate"].values
    whole, origin = integer_coordinate(coordinate, pixel_A), particles["origin"].values.astype(float)
    if recenter:
        moved = np.rint(origin / pixel_A)
        whole, origin = whole - moved, origin - moved * pixel_A
    position = np.round(whole * pixel_A / movie.pixel_size_A, 6)
    centre = np.floor(position + 0.5).astype(np.int64)  # halves up, as RELION
    beside = centre - (position if images_A is None else centre)  # RELION takes the particle for centred all the same
    box = movie_box(extent_A, movie.pixel_size_A)
    return Placement(box, centre, beside, origin, rigid_displacement(movie), initial_displacement(movie, coordinate))


def read_spectra(
    movie: Movie,
    placement: Placement,
    follow: bool,
    repair: bool,
    threads: int,
    device: Device | None = None,
    room: Room | None = None,
    keep: Put | None = None,
    kept_px: int = 0,
) -> PatchSpectra:
    """Read a movie frame by frame and return the transforms of its patches, on ``device``, by default the CPU.

    ``follow`` cuts each frame's patches where motion correction saw the particle, less the background of the movie, else
    all at one place as they are; ``repair`` replaces hot and defect pixels. ``keep`` puts the gain there, for the next
    movie too. Patches are Fourier-cropped to ``kept_px``, if that is given.

    Raises
    ------
    InputError
        The movie or its gain cannot be used.
    """
    n, device = len(placement.centre_px), device or Device()
    spectra = PatchSpectra.empty(n, movie.n_frames, kept_px or placement.box, device.xp, room)
    offset_px = np.zeros(placement.initial_A.shape, np.int64)  # of the movie
    if follow:
        offset_px[:] = np.rint(placement.initial_A / movie.pixel_size_A)
        spectra.offset_px[:] = (offset_px + placement.beside_px[:, None]) * (spectra.box / placement.box)
    with open_movie(movie) as reader:
        look = look_at(movie, reader, repair, follow, threads, device.put, keep)

        def decode(f: int) -> Any:
            return look.raw(reader, f)

        def add(f: int, raw: Any) -> None:
            frame = look.repaired(device.put(raw), f)
            corners = patch_corners(placement.centre_px, placement.box, offset_px[:, f])
            spectra.add_frame(f, frame, look.gain, corners, look.background, placement.box)

        if device.is_gpu:  # all threads decode, as raw counts frames go to the GPU, one by one
            with closing(in_order(decode, range(movie.n_frames), threads)) as frames:
                for f, raw in frames:
                    add(f, raw)
        else:
            side_by_side(lambda f: add(f, decode(f)), range(movie.n_frames), threads)
    return spectra


@dataclass
class Micrograph:
    """Everything that is needed to align, measure and correct the particles of one movie."""

    movie: Movie
    group: str  # name of the optics group (that of most particles)
    particles: xr.Dataset
    placement: Placement
    spectra: PatchSpectra
    noise_power: np.ndarray  # (floor shell,) mean |X|², signal included, up to the Nyquist frequency of ``image_box``
    ctf: Any  # (particle, 2K + 1, K + 1) float32, with the spectra on the device
    own: Any  # (particle, 2K + 1, K + 1) complex64, from the own half map; 0 beyond the reference's own band
    opposite: Any  # from the other
    fsc: np.ndarray  # (particle, shell) of each particle's reference, on the shells of the patch
    k_out: int  # first shell of the patch with an FSC below 0.143 (of the best reference)
    mask_radius_A: float

    @property
    def n(self) -> int:
        """Number of particles."""
        return self.spectra.n_particles

    @property
    def nbytes(self) -> int:
        """Bytes of its transforms and views."""
        return self.spectra.stored.nbytes + self.own.nbytes + self.opposite.nbytes + self.ctf.nbytes

    @property
    def image_box(self) -> int:
        """Box (px) that patches are compared in: their own, for RELION's energy that of the particles that were refined."""
        return 2 * (len(self.noise_power) - 1)

    @property
    def extent_A(self) -> float:
        """Physical width of a patch."""
        return self.placement.box * self.movie.pixel_size_A

    @property
    def pixel_size_A(self) -> float:
        """Pixel size of the patches: the movie's, or more where they are Fourier-cropped."""
        return self.extent_A / self.spectra.box

    @cached_property
    def mid_dose(self) -> np.ndarray:
        """Accumulated dose in the middle of every frame (frame,) e/Å²."""
        edges = self.movie.dose_edges
        return 0.5 * (edges[1:] + edges[:-1])

    @property
    def frame_dose(self) -> np.ndarray:
        """Dose of every frame (frame,) e/Å²."""
        return np.diff(self.movie.dose_edges)

    @property
    def grey_unit(self) -> float:
        """What grey scales of micrographs differ by: transforms of the same signal grow with the dose of a frame (e/Å²).

        So do they with the area of a pixel, and they are divided by the number of pixels: that of the box stays.
        """
        return self.movie.dose_per_frame_e_A2 / self.placement.box**2

    @property
    def position_A(self) -> np.ndarray:
        """Positions of the particles on the micrograph (particle, 2) Å."""
        return (self.placement.centre_px - self.placement.beside_px) * self.movie.pixel_size_A

    def background_radius_px(self, box: int) -> float:
        """Return the radius (px) beyond which an image of the particle, ``box`` px wide, shows background."""
        return min(max(self.mask_radius_A / self.extent_A, 0.25), 0.45) * box

    @cached_property
    def representatives(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the first particle at each position (position,), and for every particle its position (particle,).

        Symmetry-expanded sets and duplicates show one piece of the movie several times; counted once, it moves once.
        """
        _, first, inverse = np.unique(self.position_A, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)  # as they come, not by position
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return first[order], rank[inverse.reshape(-1)]

    def distinct(self) -> Micrograph:
        """Return the micrograph with one particle at each position (itself, if they all differ)."""
        rows, _ = self.representatives
        return self if len(rows) == self.n else self.subset(rows)

    def subset(self, rows: np.ndarray) -> Micrograph:
        """Return the micrograph with some of its particles."""
        place, spectra, there = self.placement, self.spectra, beside(self.own, rows)
        return replace(
            self, particles=self.particles.isel(particle=rows),
            placement=replace(
                place, centre_px=place.centre_px[rows], beside_px=place.beside_px[rows], origin_A=place.origin_A[rows],
                initial_A=place.initial_A[rows],
            ),
            spectra=PatchSpectra(spectra.stored[there], spectra.scale[there], spectra.offset_px[rows]),
            ctf=self.ctf[there], own=self.own[there], opposite=self.opposite[there], fsc=self.fsc[rows],
        )  # fmt: skip

    def on(self, put: Callable[[Any], Any]) -> Micrograph:
        """Return the micrograph with its arrays where ``put`` puts them; itself if they are there."""
        stored = put(self.spectra.stored)
        if stored is self.spectra.stored:
            return self
        spectra = PatchSpectra(stored, put(self.spectra.scale), self.spectra.offset_px)
        return replace(self, spectra=spectra, ctf=put(self.ctf), own=put(self.own), opposite=put(self.opposite))

    def frequency(self, n_shells: int) -> np.ndarray:
        """Spatial frequency of the first shells of the patch (shell,) 1/Å."""
        return np.arange(n_shells) / self.extent_A


def particle_images(
    m: Micrograph, displacement_px: np.ndarray, weight: np.ndarray, box: int, threads: int, part: slice = slice(None)
) -> np.ndarray:
    """Return images (particle, box, box) of all particles of a micrograph, or a part of them, on the host; background 0 ± 1.

    Frames are moved back by displacements (all particles, frame, 2) px of the patches, and added up by ``weight`` (frame, shell).
    """
    spectra = PatchSpectra(m.spectra.stored[part], m.spectra.scale[part], m.spectra.offset_px[part])
    images = recombine(spectra, displacement_px[part], weight, box, threads)
    return to_host(normalise(images, m.background_radius_px(box), threads))


def optics_group(particles: xr.Dataset, optics: tuple[Optics, ...]) -> str:
    """Return the name of the optics group of most particles of a micrograph."""
    return optics[int(np.bincount(particles["optics"].values).argmax())].name


def load_micrograph(
    movie: Movie,
    particles: xr.Dataset,
    optics: tuple[Optics, ...],
    references: list[PreparedReference],
    *,
    extent_A: float,
    relion: bool,
    recenter: bool,
    repair: bool,
    threads: int,
    device: Device | None = None,
    room: Room | None = None,
    keep: Put | None = None,
    kept_px: int = 0,
) -> Micrograph:
    """Read a movie and predict its particles; with ``relion`` exactly as RELION normalises and cuts them.

    Views are predicted where the references are, and moved. ``room``, ``keep`` and ``kept_px``, which has to hold all shells of
    the references, as ``read_spectra`` takes them.

    Raises
    ------
    InputError
        The movie or its gain cannot be used, or there are no counts where its particles are.
    """
    device = device or Device()
    images_A = np.array([one.pixel_size_A for one in optics])[particles["optics"].values, None]
    placement = place(movie, particles, extent_A, recenter, images_A if relion else None)
    spectra = read_spectra(movie, placement, not relion, repair, threads, device, room, keep, kept_px)
    extent, image_box = placement.box * movie.pixel_size_A, spectra.box
    if relion:  # crops patches to the pixels of the particles before all else
        image_box = min(image_box, movie_box(extent, float(np.median(images_A))))
    noise = _relion_noise(spectra, image_box, threads) if relion else _noise(spectra, threads)
    if not (noise[1:] > 0).all():
        raise InputError(
            f"{movie.path} holds no counts where its particles are; check the movie and its gain reference"
        )
    k = _last_shell(image_box, extent, references)
    with device.slices_on.current():
        views = _predict(movie, particles, placement, optics, references, k, relion, threads, device.slices_on)
    transfer, own, opposite = map(device.put, views)
    which = particles["reference"].values
    shells = np.arange(spectra.box // 2 + 1)
    curves = np.stack(
        [np.interp(shells * r.extent_A / extent, np.arange(len(r.fsc)), r.fsc, right=0) for r in references]
    )
    k_out = max(r.k_out_of(extent) for r in references)
    radius = max(r.mask_radius_A for r in references)
    group = optics_group(particles, optics)
    return Micrograph(
        movie,
        group,
        particles,
        placement,
        spectra,
        noise,
        transfer,
        own,
        opposite,
        curves[which],
        min(k_out, spectra.box // 2),
        radius,
    )


def _last_shell(box: int, extent_A: float, references: list[PreparedReference]) -> int:
    """Return the last shell of a box that any reference reaches."""
    return min(max(int(r.volumes[0].k_max * extent_A / r.extent_A) for r in references), box // 2)


def smallest_box(box: int, extent_A: float, references: list[PreparedReference]) -> int:
    """Return the least even box, ``box`` at most, to which patches can be cropped without loss of a shell of the references."""
    return min(2 * _last_shell(box, extent_A, references) + 2, box)


def device_sizes(
    movie: Movie, n_particles: int, references: list[PreparedReference], extent_A: float, reach_A: float, kept_px: int
) -> MicrographSizes:
    """Return what a movie's particles take on a GPU, with windows of ``reach_A``, when patches of ``kept_px`` are kept."""
    box = movie_box(extent_A, movie.pixel_size_A)
    k = _last_shell(box, box * movie.pixel_size_A, references)
    window = spline_grid(max(k, 1), box, reach_A / movie.pixel_size_A).size
    pixels = movie.width * movie.height
    sample = sample_bytes(movie.n_frames, pixels * _COUNT_BYTES)
    return MicrographSizes.of(n_particles, movie.n_frames, box, kept_px, k, window, pixels, _COUNT_BYTES, sample)


def _noise(spectra: PatchSpectra, threads: int) -> np.ndarray:
    """Return the mean |X|² of every shell over the full plane."""
    power, count = particle_power(spectra, threads)
    noise = power.sum(0) / (np.maximum(count, 1) * spectra.n_particles * spectra.n_frames)
    return noise[: spectra.box // 2 + 1]


def _relion_noise(spectra: PatchSpectra, box: int, threads: int) -> np.ndarray:
    """Scale the patches as RELION does (mean variance of the frame average 1) and return its noise spectrum.

    Both are those of patches Fourier-cropped to ``box``. Empty patches stay empty.
    """
    power, count = particle_power(spectra, threads, image_box=box)
    mean = power.sum(1) / ((count.sum() - 1) * spectra.n_frames)
    norm = 1 / (box * np.sqrt(np.where(mean > 0, mean, 1) / spectra.n_frames))
    spectra.scale *= beside(spectra.scale, norm[:, None].astype(np.float32))
    power, count = particle_power(spectra, threads, half_plane=True, image_box=box)
    noise = power.sum(0) / (np.maximum(count, 1) * spectra.n_particles * spectra.n_frames)
    return noise[: box // 2 + 1]


def _predict(
    movie: Movie,
    particles: xr.Dataset,
    placement: Placement,
    optics: tuple[Optics, ...],
    references: list[PreparedReference],
    k: int,
    relion: bool,
    threads: int,
    device: Device,
) -> tuple[Any, Any, Any]:
    """Return CTF and the views predicted from the own and the opposite half map, each (particle, 2k + 1, k + 1)."""
    n = particles.sizes["particle"]
    shape = (n, 2 * k + 1, k + 1)
    transfer = device.xp.empty(shape, np.float32)
    own, opposite = (device.xp.empty(shape, np.complex64) for _ in range(2))
    extent = placement.box * movie.pixel_size_A
    group, which, half = (particles[name].values for name in ("optics", "reference", "half"))
    matrices = euler_to_matrix(particles["euler"].values)
    origin_px = placement.origin_A / movie.pixel_size_A
    scale = device.put(particles["scale"].values.astype(np.float32))
    for g in np.unique(group):
        transfer_of = Transfer.of(optics[g], *band_indices(k), extent, whole_mtf=relion).on(device.put)
        for r, h in {(int(a), int(b)) for a, b in zip(which[group == g], half[group == g])}:
            mine = np.flatnonzero((group == g) & (which == r) & (half == h))

            def work(part: slice, mine=mine, r=r, h=h, transfer_of=transfer_of) -> None:
                rows = mine[part]
                there = device.put(rows)
                transfer[there] = transfer_of.ctf(particles, rows)
                for out, volume in ((own, references[r].volumes[h - 1]), (opposite, references[r].volumes[2 - h])):
                    view = slices(
                        volume, matrices[rows], origin_px[rows], k, references[r].extent_A / extent,
                        transfer_of.magnification, placement.box // 2, placement.box,
                    )  # fmt: skip
                    view *= transfer[there] * scale[there, None, None]
                    out[there] = view if transfer_of.response is None else view * transfer_of.response

            over_chunks(len(mine), work, threads, like=transfer, item_bytes=slice_work_bytes(k))
    return transfer, own, opposite
