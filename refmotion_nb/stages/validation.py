"""What was gained, and from what: half-map FSC with and without the trajectories and the empirical weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import param
import xarray as xr

from refmotion_nb.data.files import sole, spare, writable
from refmotion_nb.data.maps import load_reference, write_map
from refmotion_nb.data.schema import Dataset, InputError, Reference, as_path
from refmotion_nb.data.store import ResultStore
from refmotion_nb.numerics.fourier import first_shell_below
from refmotion_nb.numerics.imposed_symmetry import imposed_symmetry
from refmotion_nb.numerics.reconstruct import BackProjector, MaskedFSC, Transform, fsc_masked_corrected
from refmotion_nb.numerics.sharpening import guinier_b_factor, sharpened
from refmotion_nb.numerics.symmetry import generators, operators
from refmotion_nb.stages.alignment import Alignment, MotionPrior
from refmotion_nb.stages.base import Reporter, Silent
from refmotion_nb.stages.correction import written_displacement
from refmotion_nb.stages.describe import files_read
from refmotion_nb.stages.dose_weights import weights_for, weights_of
from refmotion_nb.stages.half_maps import Grid, half_maps, slices_of
from refmotion_nb.stages.search import prior_of
from refmotion_nb.stages.session import Session

TRANSFORMS_SHARE = 0.5  # of the cache, for the transforms that are filled side by side
AUTO = "auto"  # the symmetry that is found in the half maps
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


def chosen(combinations: str | Iterable[Combination | str], what: str = "combinations") -> tuple[Combination, ...]:
    """Return combinations, given as such or by name (rigid, weights, trajectories, both; several separated by commas).

    ``what`` names them in errors.

    Raises
    ------
    InputError
        There is none, or none of a name.
    """
    given = combinations.split(",") if isinstance(combinations, str) else [*combinations]
    known = {one.file_name: one for one in COMBINATIONS}
    found = {
        one: one if isinstance(one, Combination) else known.get(str(one).strip().removeprefix("+ ")) for one in given
    }
    if wrong := [name for name, one in found.items() if one is None]:
        raise InputError(f"{what} {wrong[0]!r}: give names out of {', '.join(known)}")
    if not found:
        raise InputError(f"{what}: none is given; give names out of {', '.join(known)}")
    return tuple(dict.fromkeys(one for one in found.values() if one))  # each once


@dataclass(frozen=True)
class Compared:
    """How well two half maps agree, and how their mean falls off."""

    curve: MaskedFSC
    b_factor_A2: float  # NaN where too few shells agree to fit it

    @classmethod
    def of(cls, maps: tuple[np.ndarray, np.ndarray], mask: np.ndarray, grid: Grid, threads: int) -> Compared:
        """Compare two half maps (z, y, x)."""
        curve = fsc_masked_corrected(*maps, mask, threads=threads)
        b_factor = guinier_b_factor(0.5 * (maps[0] + maps[1]), curve.corrected, grid.pixel_size_A, threads)
        return cls(curve, b_factor)


class Validation(Alignment):
    """Reconstruct both half sets at the given poses and compare them, for each combination asked for."""

    symmetry = param.String(
        default="auto",
        doc="Point group of the reference, oriented as RELION's (C1, D7, O, I2 …), or auto: the one that was imposed on its half "
        "maps; of several references one for all, or one each, separated by commas (O,C1).",
    )
    write_maps = param.String(
        default="rigid,both",
        doc="Combinations whose half maps and sharpened map are written to Maps: names separated by commas (rigid, weights, "
        "trajectories, both), all, or none.",
    )

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change the result, not which maps are kept."""
        return {name: value for name, value in super().settings().items() if name != "write_maps"}

    def least_box(self, box: int) -> int:
        """Return the whole box: all maps are on the grid of the movies."""
        return box

    def run(
        self,
        data: Dataset | Session,
        search: xr.Dataset,
        dose: xr.Dataset,
        reporter: Reporter | None = None,
        combinations: str | Iterable[Combination | str] = COMBINATIONS,
        out: str | Path | None = None,
    ) -> xr.Dataset:
        """Return FSC curves (reference, combination, frequency), the resolutions they reach and the maps' B-factors.

        All ``combinations`` (also by name, see ``chosen``) are made of the same particles in one pass over the movies, or as
        few as the session's cache allows. With ``out`` the maps asked for are written to ``out/Maps``.

        Raises
        ------
        InputError
            An unknown symmetry or combination, a movie that cannot be used, a half set without particles; in ``out`` a
            reference would be overwritten, or another run writes to it.
        """
        session = data if isinstance(data, Session) else Session(data)
        reporter = reporter or Silent()
        prior, dose, combinations = prior_of(search), weights_of(dose), chosen(combinations)
        symmetries = self.symmetries(session.data.references, session.threads)
        rotations = [operators(name) for name in symmetries]
        out = as_path(out, "out") if out else None
        if out:
            writable(out)
            spare(files_read(session.data), out, ["Maps/*"])
        kept = self.combinations_to_write() if out else ()
        grid = Grid.of(session, self)
        names = [name for name in session if name not in session.failed]
        groups = _groups(combinations, grid, len(rotations), TRANSFORMS_SHARE * session.cache_bytes)
        found: list[list[Compared]] = [[] for _ in rotations]
        with sole(out) if out else nullcontext():
            for turn, group in enumerate(groups, 1):
                several = f", part {turn} of {len(groups)}" * (len(groups) > 1)
                reporter.start(len(names), f"validating{several}")
                n_bytes = _transform_bytes(grid, len(group), len(rotations))
                with session.setting_aside(n_bytes), session.device.telling_of_memory("half maps were made"):
                    projectors = self._back_project(session, names, prior, dose, group, grid, rotations, reporter, out)
                reporter.done()
                # of other length than a micrograph's: counted apart, so that the time left is that of these
                reporter.start(len(rotations) * len(group), f"reconstructing maps{several}")
                for number, reference in enumerate(session.data.references):
                    halves = [_finished(projectors, number, half) for half in (1, 2)]
                    mask = grid.mask(reference)
                    for combination, maps in zip(group, half_maps(halves, session.threads)):
                        compared = Compared.of(maps, mask, grid, session.threads)
                        found[number].append(compared)
                        if out and combination.file_name in kept:
                            path = map_path(out, combination, number, len(rotations))
                            _write_maps(path, maps, compared, grid, session.threads)
                        reporter.advance(combination=combination.name)
                    del halves  # the next part fills as much memory anew
                reporter.done()
        return _table(found, grid, combinations, symmetries)

    def point_groups(self, n_references: int) -> list[str]:
        """Return the point group asked for, or auto, of each reference; InputError if there is none of a name."""
        names = [name.strip() for name in self.symmetry.split(",")]
        if len(names) not in (1, n_references):
            raise InputError(
                f"symmetry {self.symmetry} names {len(names)} point groups for {n_references} references; give one for all, "
                "or one each"
            )
        try:
            for name in names:
                if name != AUTO:
                    generators(name)
        except ValueError as error:
            raise InputError(f"{error}, or auto") from None
        return names * n_references if len(names) == 1 else names

    def symmetries(self, references: Sequence[Reference], threads: int = 1) -> list[str]:
        """Return the point group of each reference, found in its half maps where that was asked for.

        Raises
        ------
        InputError
            There is no such point group, or half maps cannot be used.
        """
        found = []
        for name, reference in zip(self.point_groups(len(references)), references):
            if name == AUTO:
                loaded = load_reference(reference)
                name = imposed_symmetry(loaded.half1, loaded.half2, threads)
            found.append(name)
        return found

    def combinations_to_write(self) -> tuple[str, ...]:
        """Return the file names of the combinations whose maps are kept; InputError if there is none of a name."""
        if self.write_maps == "none":
            return ()
        try:
            kept = COMBINATIONS if self.write_maps == "all" else chosen(self.write_maps, "write_maps")
        except InputError as error:
            raise InputError(f"{error}; or all, or none") from None
        return tuple(one.file_name for one in kept)

    def maps_are_there(self, out: Path, n_references: int, combinations: tuple[Combination, ...]) -> bool:
        """Return whether the maps that ``run`` writes for these combinations are in ``out``."""
        kept = [c for c in combinations if c.file_name in self.combinations_to_write()]
        paths = [map_path(out, c, number, n_references) for c in kept for number in range(n_references)]
        return all(path.exists() for whole in paths for path in (whole, *_half_paths(whole)))

    def _back_project(
        self, session: Session, names: list[str], prior: MotionPrior, dose: xr.Dataset, group: tuple[Combination, ...],
        grid: Grid, rotations: list[np.ndarray], reporter: Reporter, out: Path | None,
    ) -> dict[tuple[int, int], BackProjector]:  # fmt: skip
        """Insert all particles into the transforms of their reference and half set, once per combination of a group.

        Those that a correction has written into ``out`` move as they do there.
        """
        projectors: dict[tuple[int, int], BackProjector] = {}
        store = ResultStore(out / "results.zarr") if out else None
        for name, m in session.walk(names, self):
            if m is None:
                reporter.advance(micrograph=name, failed=session.failed[name])
                continue
            displacement = {False: m.placement.initial_A}
            if any(c.corrected for c in group):
                written = written_displacement(store, session, name, self, prior) if store else None
                displacement[True] = session.track(m, self, prior).displacement_A if written is None else written
            weight = {
                empirical: weights_for(m, dose if empirical else None) for empirical in {c.empirical for c in group}
            }
            chosen = [(displacement[c.corrected] / m.pixel_size_A, weight[c.empirical]) for c in group]
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
            del m  # the next one may need its room
        return projectors


def _groups(
    combinations: tuple[Combination, ...], grid: Grid, n_references: int, limit_bytes: float
) -> list[tuple[Combination, ...]]:
    """Divide combinations into groups whose transforms fit into memory side by side."""
    fit = [n for n in range(1, len(combinations) + 1)
           if _transform_bytes(grid, n, n_references) <= limit_bytes]  # fmt: skip
    together = max(fit, default=1)
    return [combinations[i : i + together] for i in range(0, len(combinations), together)]


def _transform_bytes(grid: Grid, n_combinations: int, n_references: int) -> int:
    """Return what the transforms of both half sets of all references take."""
    return 2 * n_references * BackProjector.bytes_needed(grid.size, n_combinations)


def _finished(projectors: dict[tuple[int, int], BackProjector], number: int, half: int) -> Transform:
    if (number, half) not in projectors:
        raise InputError(
            f"reference {number + 1} has no particle of half set {half} in the movies that can be used; its half maps "
            "cannot be compared"
        )
    return projectors.pop((number, half)).transform()


def remove_maps(out: Path) -> None:
    """Remove the maps that a validation wrote to ``out``; files of other names stay."""
    names = "|".join(one.file_name for one in COMBINATIONS)
    for path in (out / "Maps").glob("*.mrc"):
        if re.fullmatch(rf"({names})(_\d+)?(_half[12])?", path.stem):
            path.unlink(missing_ok=True)


def map_path(out: Path, combination: Combination, number: int, n_references: int) -> Path:
    """Return where the sharpened map of a combination and a reference (from 0) is written."""
    ending = f"_{number + 1}" if n_references > 1 else ""
    return out / "Maps" / f"{combination.file_name}{ending}.mrc"


def _half_paths(path: Path) -> list[Path]:
    return [path.with_name(f"{path.stem}_half{number}.mrc") for number in (1, 2)]


def _write_maps(
    path: Path, halves: tuple[np.ndarray, np.ndarray], compared: Compared, grid: Grid, threads: int
) -> None:
    """Write half maps as they are, and their mean weighted by the FSC and sharpened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for half_path, half in zip(_half_paths(path), halves):
        write_map(half_path, half, grid.pixel_size_A)
    mean, b_factor = 0.5 * (halves[0] + halves[1]), np.nan_to_num(compared.b_factor_A2)
    write_map(path, sharpened(mean, compared.curve.corrected, b_factor, grid.pixel_size_A, threads), grid.pixel_size_A)


def _table(
    found: list[list[Compared]], grid: Grid, combinations: tuple[Combination, ...], symmetries: list[str]
) -> xr.Dataset:
    frequency = np.arange(grid.size // 2 + 1) / grid.extent_A
    dims = ("reference", "combination", "frequency")

    def curve(name: str, about: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        return (
            dims,
            np.array([[getattr(c.curve, name) for c in row] for row in found]),
            {"units": "1", "long_name": about},
        )

    def resolution(level: float) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        reached = [[1 / frequency[max(first_shell_below(c.curve.corrected, level), 1)] for c in row] for row in found]
        return dims[:2], np.array(reached), {"units": "Å", "long_name": f"resolution at FSC = {level:g}"}

    return xr.Dataset(
        {
            "fsc_unmasked": curve("unmasked", "FSC of half maps"),
            "fsc_masked": curve("masked", "FSC of masked half maps"),
            "fsc_randomised": curve("randomised", "FSC of masked half maps with random phases"),
            "fsc_corrected": curve("corrected", "corrected FSC"),
            "resolution_0143": resolution(0.143),
            "resolution_05": resolution(0.5),
            "b_factor": (
                dims[:2],
                np.array([[c.b_factor_A2 for c in row] for row in found]),
                {"units": "Å²", "long_name": "Guinier B-factor of the map"},
            ),
        },
        coords={
            "combination": [c.name for c in combinations],
            "meaning": ("combination", [c.meaning for c in combinations], {"long_name": "what the maps are made of"}),
            "reference": np.arange(len(found)),
            "symmetry": ("reference", symmetries, {"long_name": "point group imposed on the maps"}),
            "frequency": ("frequency", frequency, {"units": "1/Å", "long_name": "spatial frequency"}),
        },
    )
