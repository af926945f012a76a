"""What was gained, and from what: half-map FSC with and without the trajectories and the empirical weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import param
import xarray as xr
from scipy import fft

from refmotion_nb.data.maps import load_reference, write_map
from refmotion_nb.data.schema import Dataset, InputError, Reference
from refmotion_nb.numerics.energy import first_shell_below, grant_grigorieff
from refmotion_nb.numerics.fourier import half_plane_indices
from refmotion_nb.numerics.patches import PatchSpectra, movie_box
from refmotion_nb.numerics.projection import euler_to_matrix, slice_axes
from refmotion_nb.numerics.recombine import normalise, recombine
from refmotion_nb.numerics.reconstruct import (
    BackProjector,
    MaskedFSC,
    Transform,
    fsc_masked_corrected,
    reconstruct,
    sampling_density,
)
from refmotion_nb.numerics.sharpening import guinier_b_factor, sharpened
from refmotion_nb.numerics.symmetry import operators
from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.base import Reporter, Silent
from refmotion_nb.stages.dose_weights import weights_on
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.search import prior_from_attrs
from refmotion_nb.stages.session import Session
from refmotion_nb.stages.transfer import Transfer

TRANSFORMS_SHARE = 0.5  # of the cache, for the transforms that are filled side by side
CHUNK = 32  # particles whose images are in memory at once


@dataclass(frozen=True)
class Combination:
    """Which trajectories and weights go into a reconstruction."""

    name: str
    corrected: bool  # along the final trajectories, else as motion correction found them
    empirical: bool  # with the measured dose weights, else Grant & Grigorieff's

    @property
    def file_name(self) -> str:
        """How its maps are called."""
        return self.name.removeprefix("+ ").replace(" ", "_")

    @property
    def meaning(self) -> str:
        """In words what went into it."""
        motion = "trajectories" if self.corrected else "rigid motion"
        return f"{motion}, {'empirical' if self.empirical else 'standard'} weights"


COMBINATIONS = (
    Combination("rigid", False, False),
    Combination("+ weights", False, True),
    Combination("+ trajectories", True, False),
    Combination("both", True, True),
)


@dataclass(frozen=True)
class Grid:
    """The box of all maps: particles from movies of other pixel sizes are of one extent and go onto the finest."""

    size: int  # px
    pixel_size_A: float

    @classmethod
    def of(cls, session: Session, settings: Alignment) -> Grid:
        """Return the grid of a dataset."""
        finest = min(movie.pixel_size_A for movie, _ in session.micrographs.values())
        return cls(movie_box(session.extent_A(settings), finest), finest)

    @property
    def extent_A(self) -> float:
        """Physical width."""
        return self.size * self.pixel_size_A

    def mask(self, reference: Reference) -> np.ndarray:
        """Return the mask of a reference on this grid (z, y, x); InputError if its files cannot be used."""
        loaded = load_reference(reference)
        n = movie_box(loaded.box_size * loaded.pixel_size_A, self.pixel_size_A)
        return _centred(_resampled(loaded.mask, n), self.size)


class Validation(Alignment):
    """Reconstruct both half sets at the given poses and compare them, for each combination asked for."""

    symmetry = param.String(
        default="C1",
        doc="Point group of the reference, oriented as RELION's (C1, D7, O, I2 …); of several references one for all, or "
        "one each, separated by commas (O,C1).",
    )
    write_maps = param.String(
        default="rigid,both",
        doc="Combinations whose half maps and sharpened map are written to Maps: names separated by commas (rigid, weights, "
        "trajectories, both), all, or none.",
    )

    def run(
        self,
        data: Dataset | Session,
        search: xr.Dataset,
        dose: xr.Dataset,
        reporter: Reporter | None = None,
        combinations: tuple[Combination, ...] = COMBINATIONS,
        out: Path | None = None,
    ) -> xr.Dataset:
        """Return FSC curves (reference, combination, frequency), the resolutions they reach and the maps' B-factors.

        All combinations are made of the same particles in one pass over the movies, or as few as the session's cache
        allows. With ``out`` the maps asked for are written to ``out/Maps``.

        Raises
        ------
        InputError
            An unknown symmetry or combination, a movie that cannot be used, a half set without particles.
        """
        session = data if isinstance(data, Session) else Session(data)
        reporter = reporter or Silent()
        rotations = self.rotations(len(session.data.references))
        kept = self.combinations_to_write() if out else ()
        grid = Grid.of(session, self)
        names = [name for name in session if name not in session.failed]
        groups = _groups(combinations, grid, len(rotations), TRANSFORMS_SHARE * session.cache_bytes)
        reporter.start(len(groups) * len(names) + len(combinations), "validating")
        curves: list[list[MaskedFSC]] = [[] for _ in rotations]
        b_factors: list[list[float]] = [[] for _ in rotations]
        for group in groups:
            projectors = self._back_project(session, names, search, dose, group, grid, rotations, reporter)
            for number, reference in enumerate(session.data.references):
                halves = [_finished(projectors, number, half) for half in (1, 2)]
                mask = grid.mask(reference)
                for combination, maps in zip(group, _half_maps(halves, session.threads)):
                    curve = fsc_masked_corrected(*maps, mask, threads=session.threads)
                    mean = 0.5 * (maps[0] + maps[1])
                    b_factor = guinier_b_factor(mean, curve.corrected, grid.pixel_size_A, session.threads)
                    curves[number].append(curve)
                    b_factors[number].append(b_factor)
                    if out and combination.file_name in kept:
                        ending = f"_{number + 1}" if len(rotations) > 1 else ""
                        path = out / "Maps" / (combination.file_name + ending)
                        final = sharpened(
                            mean, curve.corrected, np.nan_to_num(b_factor), grid.pixel_size_A, session.threads
                        )
                        _write_maps(path, maps, final, grid.pixel_size_A)
            for combination in group:
                reporter.advance(combination=combination.name)
        reporter.done()
        return _table(curves, b_factors, grid, combinations)

    def rotations(self, n_references: int) -> list[np.ndarray]:
        """Return the operators (operator, 3, 3) of each reference's symmetry; InputError if there is no such point group."""
        names = self.symmetry.split(",")
        if len(names) not in (1, n_references):
            raise InputError(
                f"symmetry {self.symmetry} names {len(names)} point groups for {n_references} references; give one for all, "
                "or one each"
            )
        try:
            found = [operators(name) for name in names]
        except ValueError as error:
            raise InputError(str(error)) from None
        return found * n_references if len(found) == 1 else found

    def combinations_to_write(self) -> tuple[str, ...]:
        """Return the file names of the combinations whose maps are kept; InputError if there is none of a name."""
        known = tuple(c.file_name for c in COMBINATIONS)
        if self.write_maps in ("all", "none"):
            return known if self.write_maps == "all" else ()
        names = tuple(name.strip().removeprefix("+ ") for name in self.write_maps.split(","))
        if wrong := [name for name in names if name not in known]:
            raise InputError(f"write_maps {wrong[0]!r}: give names out of {', '.join(known)}; or all, or none")
        return names

    def _back_project(
        self, session: Session, names: list[str], search: xr.Dataset, dose: xr.Dataset, group: tuple[Combination, ...],
        grid: Grid, rotations: list[np.ndarray], reporter: Reporter,
    ) -> dict[tuple[int, int], BackProjector]:  # fmt: skip
        """Insert all particles into the transforms of their reference and half set, once per combination of a group."""
        prior = prior_from_attrs(search.attrs)
        projectors: dict[tuple[int, int], BackProjector] = {}
        for name, m in session.walk(names, self):
            if m is None:
                reporter.advance(micrograph=name, failed=session.failed[name])
                continue
            displacement = {False: m.placement.initial_A}
            if any(c.corrected for c in group):
                displacement[True] = session.track(m, self, prior).displacement_A
            weight = {empirical: self.weights(m, dose, empirical) for empirical in {c.empirical for c in group}}
            chosen = [(displacement[c.corrected] / m.movie.pixel_size_A, weight[c.empirical]) for c in group]
            for start in range(0, m.n, CHUNK):
                part = slice(start, min(start + CHUNK, m.n))
                images, power, axes = slices_of(m, part, chosen, session, grid)
                half, which = m.particles["half"].values[part], m.particles["reference"].values[part]
                for key in sorted({(int(r), int(h)) for r, h in zip(which, half)}):
                    if key not in projectors:
                        projectors[key] = BackProjector(
                            grid.size, len(group), rotations[key[0]], threads=session.threads
                        )
                    mine = (which == key[0]) & (half == key[1])
                    projectors[key].insert(images[mine], power[mine], axes[mine])
            reporter.advance(micrograph=name)
        return projectors

    def weights(self, m: Micrograph, dose: xr.Dataset, empirical: bool) -> np.ndarray:
        """Return the dose weights (frame, shell) of a micrograph, normalised over frames: measured, or the standard curve's."""
        frequency = m.frequency(int(np.ceil(np.sqrt(2) * m.spectra.box / 2)) + 1)
        if empirical:
            return weights_on(dose, m.movie.dose_edges, frequency, m.group)
        standard = grant_grigorieff(frequency, m.mid_dose, m.movie.voltage_kV)
        return standard / standard.sum(0)


def _groups(
    combinations: tuple[Combination, ...], grid: Grid, n_references: int, limit_bytes: float
) -> list[tuple[Combination, ...]]:
    """Divide combinations into groups whose transforms fit into memory side by side."""
    fit = [n for n in range(1, len(combinations) + 1)
           if 2 * n_references * BackProjector.bytes_needed(grid.size, n) <= limit_bytes]  # fmt: skip
    together = max(fit, default=1)
    return [combinations[i : i + together] for i in range(0, len(combinations), together)]


def particle_images(
    m: Micrograph, part: slice, displacement_px: np.ndarray, weight: np.ndarray, threads: int
) -> np.ndarray:
    """Return images (particle, box, box) of some particles along displacements (all particles, frame, 2), background 0 ± 1."""
    spectra = PatchSpectra(m.spectra.stored[part], m.spectra.scale[part], m.spectra.offset_px[part])
    box = spectra.box
    radius = min(max(m.mask_radius_px, 0.25 * box), 0.45 * box)
    return normalise(recombine(spectra, displacement_px[part], weight, box, threads), radius, threads)


def slices_of(
    m: Micrograph, part: slice, chosen: list[tuple[np.ndarray, np.ndarray]], session: Session, grid: Grid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what some particles of a micrograph add to maps on a grid.

    That is, their images for each of the displacements (particle, frame, 2) px and weights (frame, shell) of ``chosen``:
    transforms times the CTF (particle, choice, box, box//2+1), aberrations undone and the object at the first pixel; the
    CTF² (particle, box, box//2+1); the axes of the slices (particle, 2, 3).
    """
    box, threads = m.spectra.box, session.threads
    ky, kx = half_plane_indices(box)
    centre = box // 2 - m.placement.origin_A[part] / m.movie.pixel_size_A
    # noise of one pixel is 1 in all images: per Fourier component it is, too, once transforms are divided by their box
    ramp = np.exp(2j * np.pi / box * kx[None] * centre[:, 0, None, None]).astype(np.complex64) * np.float32(
        grid.size / box
    )
    ramp = ramp * np.exp(2j * np.pi / box * ky[None] * centre[:, 1, None, None]).astype(np.complex64)
    power = np.empty(ramp.shape, np.float32)
    axes = np.empty((len(ramp), 2, 3))
    matrices = euler_to_matrix(m.particles["euler"].values[part])
    group = m.particles["optics"].values[part]
    for g in np.unique(group):
        mine = np.flatnonzero(group == g)
        transfer = Transfer.of(session.data.optics[g], ky, kx, m.extent_A)
        value = transfer.ctf(m.particles, part.start + mine)
        power[mine] = value**2
        ramp[mine] *= value if transfer.tilt is None else value * transfer.tilt.conj()
        scale = grid.extent_A / m.extent_A
        axes[mine] = slice_axes(matrices[mine], scale, transfer.magnification).transpose(0, 2, 1)
    images = np.empty((len(ramp), len(chosen), *ramp.shape[1:]), np.complex64)
    for i, (displacement_px, weight) in enumerate(chosen):
        seen = particle_images(m, part, displacement_px, weight, threads)
        np.multiply(fft.rfft2(seen, workers=threads), ramp, out=images[:, i])
    return images, power, axes


def _finished(projectors: dict[tuple[int, int], BackProjector], number: int, half: int) -> Transform:
    if (number, half) not in projectors:
        raise InputError(
            f"reference {number + 1} has no particle of half set {half} in the movies that can be used; its half maps "
            "cannot be compared"
        )
    return projectors.pop((number, half)).transform()


def _half_maps(halves: list[Transform], threads: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield both half maps of each combination, made from the transforms of half sets."""
    density = [sampling_density(half, threads) for half in halves]
    for i in range(halves[0].n_maps):
        first, second = (reconstruct(half, i, d, threads) for half, d in zip(halves, density))
        yield first, second


def _resampled(mask: np.ndarray, box: int) -> np.ndarray:
    """Return the mask sampled on another box of the same extent, by Fourier cropping or padding."""
    n = len(mask)
    if n == box:
        return mask
    ft = np.fft.fftshift(np.fft.fftn(mask))
    out = np.zeros((box,) * 3, complex)
    m = min(n, box)
    a, b = n // 2 - m // 2, box // 2 - m // 2
    out[b : b + m, b : b + m, b : b + m] = ft[a : a + m, a : a + m, a : a + m]
    return np.clip(np.fft.ifftn(np.fft.ifftshift(out)).real * (box / n) ** 3, 0, 1).astype(np.float32)


def _centred(mask: np.ndarray, box: int) -> np.ndarray:
    """Return the mask in another box of the same pixel, cut or filled up with zeros about the centre."""
    n, m = len(mask), min(len(mask), box)
    if n == box:
        return mask
    out = np.zeros((box,) * 3, mask.dtype)
    a, b = n // 2 - m // 2, box // 2 - m // 2
    out[b : b + m, b : b + m, b : b + m] = mask[a : a + m, a : a + m, a : a + m]
    return out


def _write_maps(path: Path, halves: tuple[np.ndarray, np.ndarray], final: np.ndarray, pixel_size_A: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, half in enumerate(halves, 1):
        write_map(path.with_name(f"{path.name}_half{number}.mrc"), half, pixel_size_A)
    write_map(path.with_name(f"{path.name}.mrc"), final, pixel_size_A)


def _table(
    curves: list[list[MaskedFSC]], b_factors: list[list[float]], grid: Grid, combinations: tuple[Combination, ...]
) -> xr.Dataset:
    frequency = np.arange(grid.size // 2 + 1) / grid.extent_A
    dims = ("reference", "combination", "frequency")

    def curve(name: str, about: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        return dims, np.array([[getattr(c, name) for c in row] for row in curves]), {"units": "1", "long_name": about}

    def resolution(level: float) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        reached = [[1 / frequency[max(first_shell_below(c.corrected, level), 1)] for c in row] for row in curves]
        return dims[:2], np.array(reached), {"units": "Å", "long_name": f"resolution at FSC = {level:g}"}

    return xr.Dataset(
        {
            "fsc_unmasked": curve("unmasked", "FSC of half maps"),
            "fsc_masked": curve("masked", "FSC of masked half maps"),
            "fsc_randomised": curve("randomised", "FSC of masked half maps with random phases"),
            "fsc_corrected": curve("corrected", "corrected FSC"),
            "resolution_0143": resolution(0.143),
            "resolution_05": resolution(0.5),
            "b_factor": (dims[:2], np.array(b_factors), {"units": "Å²", "long_name": "Guinier B-factor of the map"}),
        },
        coords={
            "combination": [c.name for c in combinations],
            "meaning": ("combination", [c.meaning for c in combinations], {"long_name": "what the maps are made of"}),
            "reference": np.arange(len(curves)),
            "frequency": ("frequency", frequency, {"units": "1/Å", "long_name": "spatial frequency"}),
        },
    )
