"""Dose-weighted micrographs: whole movies summed with their motion undone, weighted as measured or by the standard curve."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import param
import xarray as xr

from refmotion_nb.data.files import output
from refmotion_nb.data.limits import cpu_count
from refmotion_nb.data.maps import is_whole, write_stack
from refmotion_nb.data.micrographs import MovieTable, WrittenMicrograph, write_cryosparc, write_relion
from refmotion_nb.data.movies.look import look_at
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.motion import initial_displacement, rigid_displacement
from refmotion_nb.data.schema import AXES, InputError, Movie, as_path, wanted
from refmotion_nb.data.store import ResultStore
from refmotion_nb.numerics.dewarp import Camera, binned_shape, grid_nodes, radius_axis, spread, sum_frames
from refmotion_nb.numerics.energy import grant_grigorieff
from refmotion_nb.numerics.threads import in_order
from refmotion_nb.stages.base import Reporter, Silent, Stage, hash_of
from refmotion_nb.stages.describe import describe_movies, record
from refmotion_nb.stages.device import Device, choose
from refmotion_nb.stages.dose_weights import weights_of, weights_on
from refmotion_nb.stages.keys import digest
from refmotion_nb.stages.particle_motion import ParticleMotion, displacement

if TYPE_CHECKING:
    from refmotion_nb.stages.workers import Workers

FOLDER = "Micrographs"
LEAST_PX = 16  # of a micrograph, along either axis
WRITTEN = (f"{FOLDER}/*", "corrected_micrographs.star", "exposures.cs*")
TYPICAL_A = 10.0  # resolution that decides where particles were found
STILL_PX = 0.01  # local motion below it is none
_SHOWN = 5  # positions along each side that the table shows motion at

Weights = Callable[[np.ndarray], np.ndarray]  # frequencies 1/Å -> (frame, frequency)
Tables = Generator[xr.Dataset | InputError, None, None]  # of movies, or why there is none


class MicrographCorrection(Stage):
    """Write motion-corrected, dose-weighted micrographs; movie by movie, each finished before it counts."""

    binning = param.Number(
        default=None, allow_None=True, bounds=(1, None),
        doc="Micrograph pixel over movie pixel, by Fourier cropping; not given: that of the input's micrographs.",
    )  # fmt: skip
    local_motion = param.Boolean(
        default=True, doc="Undo local motion, where the input has it; off: motion of the whole frame only."
    )
    save_nodw = param.Boolean(default=False, doc="Also write the sum that is not dose-weighted, as NAME_noDW.mrc.")
    float16 = param.Boolean(default=False, doc="Write images in 16-bit floating point (MRC mode 12).")
    repair_hot_pixels = param.Boolean(
        default=True,
        doc="Replace hot and defect pixels, listed in the metadata or found by --hot-pixel-threshold, by a good "
        "neighbour's count.",
    )

    def run(
        self,
        data: MovieTable,
        dose: xr.Dataset | None,
        out: str | Path,
        reporter: Reporter | None = None,
        image_root: Path | None = None,
        threads: int = 0,
        particle_motion: ParticleMotion | None = None,
        command: str = "",
        workers: Workers | None = None,
        device: str | Device = "auto",
    ) -> xr.Dataset:
        """Correct all movies into ``out`` and return the table of what was written and what was not, with reasons.

        ``dose`` is a table of dose weights, of these or other movies; without one, weights are those of Grant &
        Grigorieff (2015). Beside the images in ``Micrographs/``, ``corrected_micrographs.star`` or ``exposures.cs`` lists
        them; names in the former are written relative to ``image_root`` where ``out`` lies in it. With ``particle_motion``
        micrographs move as their particles did. ``command`` is noted as what was given. With ``workers`` (see ``execute``) each
        movie is one of them's to do. ``device`` is auto, cpu, cuda or cuda:N. Micrographs finished by an earlier run with the
        same settings and input are kept.

        Raises
        ------
        InputError
            Nothing could be written, another run is writing to ``out``, or there is no such device.
        """
        if not isinstance(device, Device):
            device = choose(device, elsewhere=bool(workers and workers.elsewhere))
        data = wanted(data, MovieTable, "data", "what open_movies or open_exposures returns")
        dose = None if dose is None else weights_of(dose)
        out = as_path(out, "out")
        read = [*describe_movies(data)["files"], *(("movie", movie.path) for movie in data.movies)]
        with output(out, read, WRITTEN):
            work = _Work(self, dose, out.absolute(), particle_motion)
            tracks = particle_motion.store.path if particle_motion else None
            inputs = describe_movies(data, tracks, None if dose is None else dose.encoding.get("source"))
            # beside what a run in the same folder notes of itself
            before = work.store.attrs.get("micrographs", {})
            given = {name: value for name, value in self.settings().items() if value != self.param[name].default}
            work.store.update_attrs(micrographs=record((type(self),), given, inputs, command, before))
            items = list(zip(data.movies, data.groups))
            tables = workers.each(work, items, device) if workers else work.each(items, threads or cpu_count(), device)
            return self._run(data, work, tables, reporter or Silent(), image_root)

    def _run(
        self, data: MovieTable, work: _Work, tables: Tables, reporter: Reporter,
        image_root: Path | None,
    ) -> xr.Dataset:  # fmt: skip
        reporter.start(len(data.movies), "correcting micrographs")
        written, failed = [], {skip.micrograph: skip.reason for skip in data.skipped}
        with closing(tables):
            for movie, row, table in zip(data.movies, data.rows, tables):
                if isinstance(table, InputError):
                    failed[movie.micrograph] = str(table)
                    reporter.advance(micrograph=movie.micrograph, failed=str(table))
                    continue
                written.append(_written(movie, row, table))
                reporter.advance(micrograph=movie.micrograph)
        reporter.done()
        if not written:
            raise InputError(f"no micrograph was written; the first: {next(iter(failed.values()))}")
        if data.relion is not None:
            write_relion(work.out, data, written, image_root)
        else:
            write_cryosparc(work.out, data, written)
        found = _table(written, failed).assign_attrs(dose_weights="standard" if work.dose is None else "measured")
        if work.dose is not None and "from_file" in work.dose.attrs:
            found.attrs["dose_weights_from_file"] = work.dose.attrs["from_file"]
        work.store.write("corrected_micrographs", found)
        return found

    def motion(self, movie: Movie, weights: Weights, particle_motion: ParticleMotion | None = None) -> Motion:
        """Return how the field moves: as motion correction found it, or as a run's particles on it do.

        Raises
        ------
        InputError
            The trajectories do not belong to the movie.
        """
        tracks = particle_motion.of(movie) if particle_motion else None
        if tracks is not None and particle_motion is not None:
            early = weights(np.array([1 / TYPICAL_A]))[:, 0]
            along = partial(displacement, movie, tracks, particle_motion.distance_A, frame_weight=early)
        else:
            along = partial(initial_displacement, movie)
        return Motion(movie, along, tracks is not None, self.local_motion)

    def images(
        self, movie: Movie, weights: Weights, threads: int = 1, motion: Motion | None = None, device: Device | None = None
    ) -> list[np.ndarray]:  # fmt: skip
        """Return the micrograph of a movie, (height, width) float32, and the one that is not dose-weighted if asked for.

        ``weights`` gives what each frame weighs (frame, frequency) at frequencies (1/Å); ``motion`` is that of motion
        correction unless given, ``device`` the CPU. As in RELION, frames are added
        as Σ w X / √(Σ w²), which leaves white noise white; the other is their plain sum.

        Raises
        ------
        InputError
            The movie or its gain cannot be used, or the memory of the device ran out.
        """
        device = device or Device()
        shape = (movie.height, movie.width)
        if min(binned_shape(shape, self._binning(movie))) < LEAST_PX:
            raise InputError(
                f"binning {self._binning(movie):g} leaves less than {LEAST_PX} px of {movie.path}; give a smaller one"
            )
        weight = weights(radius_axis(shape) / movie.pixel_size_A)
        tables = [weight / np.sqrt((weight**2).sum(0))]
        if self.save_nodw:
            tables.append(np.ones_like(weight))
        rigid_px, local_px = (motion or self.motion(movie, weights)).on_grid()
        with open_movie(movie) as reader, device.current(), device.telling_of_memory(f"{movie.micrograph} was summed"):
            # CryoSPARC's micrographs are less their background, RELION's are not
            look = look_at(movie, reader, self.repair_hot_pixels, movie.background is not None, threads, device.put)
            background = None if look.background is None else spread(look.background, shape)
            return sum_frames(
                partial(look.raw, reader), Camera(look.gain, background), rigid_px, local_px, tables,
                binned_shape(shape, self._binning(movie)), threads, lambda raw, f: look.repaired(device.put(raw), f),
            )  # fmt: skip

    def _binning(self, movie: Movie) -> float:
        return float(movie.binning if self.binning is None else self.binning)

    def movie_key(self, movie: Movie, weights: Weights, motion: Motion) -> str:
        """Return what a micrograph depends on, as a hash."""
        at = np.linspace(0, np.sqrt(0.5), 100) / movie.pixel_size_A
        what = weights(at).tobytes() + motion.sample().tobytes()
        return hash_of(self.settings(), hashlib.sha256(what).hexdigest(), digest(movie))


@dataclass(frozen=True)
class _Work:
    """What is to be done to every movie, here or by a worker."""

    stage: MicrographCorrection
    dose: xr.Dataset | None
    out: Path
    particle_motion: ParticleMotion | None

    @property
    def store(self) -> ResultStore:
        """The results of the output folder."""
        return ResultStore(self.out / "results.zarr")

    def each(self, items: Iterable[tuple[Movie, str]], threads: int, device: Device) -> Tables:
        """Yield the table of each movie, or why there is none; a GPU that has room for two sums one while another is written."""

        def tried(item: tuple[Movie, str]) -> xr.Dataset | InputError:
            try:
                return self(item, threads, device)
            except InputError as error:
                return error

        with closing(in_order(tried, items, device.at_once if device.is_gpu and device.at_once > 1 else 0)) as found:
            for _, table in found:
                yield table

    def __call__(self, item: tuple[Movie, str], threads: int, device: Device) -> xr.Dataset:
        """Write the micrograph of a movie of a group, unless it is there as it would be now, and return its table."""
        movie, group = item
        weights = partial(frame_weights, self.dose, movie, group)
        motion = self.stage.motion(movie, weights, self.particle_motion)
        key = self.stage.movie_key(movie, weights, motion)
        table = self.store.read(f"micrographs/{movie.micrograph}", key)
        if table is not None and all(self._is_whole(name, table) for name in _names(table)):
            return table
        return self._write(movie, weights, motion, key, threads, device)

    def _is_whole(self, name: str, table: xr.Dataset) -> bool:
        return is_whole(self.out / name, tuple(table.attrs["shape"]), float16=self.stage.float16)

    def _write(
        self, movie: Movie, weights: Weights, motion: Motion, key: str, threads: int, device: Device
    ) -> xr.Dataset:
        group = f"micrographs/{movie.micrograph}"
        names = [f"{FOLDER}/{movie.micrograph}.mrc", f"{FOLDER}/{movie.micrograph}_noDW.mrc"]
        images = self.stage.images(movie, weights, threads, motion, device)
        self.store.remove(group)  # of other settings: void before the image it describes is replaced
        pixel = movie.height * movie.pixel_size_A / images[0].shape[0]  # sizes are whole, a binning need not be
        for name, image in zip(names, images):
            write_stack(self.out / name, image[None], pixel, float16=self.stage.float16)
        table = _micrograph_table(movie, motion, images[0], names[: len(images)], pixel)
        self.store.write(group, table, key)
        return table


@dataclass(frozen=True)
class Motion:
    """How the field of a movie moves."""

    movie: Movie
    along: Callable[[np.ndarray], np.ndarray]  # positions (position, 2) Å -> (position, frame, 2) Å
    of_particles: bool
    local: bool  # whether local motion counts

    def at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the displacement at rows and columns (px): (y, x, frame, 2) Å."""
        yx = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
        moved = self.along(yx[:, ::-1] * self.movie.pixel_size_A)
        if not self.local:
            moved[:] = moved.mean(0) if self.of_particles else rigid_displacement(self.movie)
        return moved.reshape(len(y), len(x), self.movie.n_frames, 2)

    def sample(self) -> np.ndarray:
        """Return the displacement at ``places``, (y, x, frame, 2) Å."""
        return self.at(*self.places)

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (px) that the field is shown at."""
        y, x = ((np.arange(_SHOWN) + 0.5) / _SHOWN * size for size in (self.movie.height, self.movie.width))
        return y, x

    def on_grid(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the motion of the whole frame (frame, 2) and local motion (frame, gy, gx, 2) px, None if there is none."""
        still = self.movie.local_motion is None and self.movie.spline_motion is None and not self.of_particles
        if still or (not self.local and not self.of_particles):
            return rigid_displacement(self.movie) / self.movie.pixel_size_A, None
        moved = self.at(*grid_nodes((self.movie.height, self.movie.width))) / self.movie.pixel_size_A
        rigid = moved.mean((0, 1)) if self.of_particles else rigid_displacement(self.movie) / self.movie.pixel_size_A
        local = moved - rigid
        return rigid, None if np.abs(local).max() < STILL_PX else np.moveaxis(local, 2, 0)


def frame_weights(dose: xr.Dataset | None, movie: Movie, group: str, frequency_per_A: np.ndarray) -> np.ndarray:
    """Return what each frame of a movie weighs (frame, frequency): by a table of dose weights, or the standard curve.

    The standard curve is taken at the dose after each frame, as RELION and Grant & Grigorieff do.

    Raises
    ------
    InputError
        The table does not reach over the movie's dose.
    """
    if dose is None:
        return grant_grigorieff(frequency_per_A, movie.dose_edges[1:], movie.voltage_kV)
    return weights_on(dose, movie.dose_edges, frequency_per_A, _called(dose, group))


def _called(dose: xr.Dataset, group: str) -> str:
    """Return what a table calls a group: CryoSPARC's exposure groups are parts of its names."""
    names = set(map(str, dose["optics_group"].values)) if "optics_group" in dose.coords else set()
    alike = [name for name in names if name.endswith(f"_{group}")]
    return alike[0] if group not in names and len(alike) == 1 else group


def _micrograph_table(movie: Movie, motion: Motion, image: np.ndarray, names: list[str], pixel_A: float) -> xr.Dataset:
    """Return the ``micrographs`` group of a movie: how it moved over the field, and what was written."""
    y, x = motion.places
    low, high = np.percentile(image[::8, ::8], [1, 99])
    return xr.Dataset(
        {
            "displacement": (("y", "x", "frame", "axis"), motion.sample(),
                             {"units": "Å", "long_name": "displacement that was undone"}),
            "dose": ("frame", movie.dose_edges[1:], {"units": "e/Å²", "long_name": "dose after the frame"}),
        },
        coords={"axis": list(AXES), "y": ("y", y * movie.pixel_size_A, {"units": "Å"}),
                "x": ("x", x * movie.pixel_size_A, {"units": "Å"})},
        attrs={"motion_of_particles": motion.of_particles, "names": names,
               "shape": list(image.shape), "pixel_size_A": pixel_A, "low": float(low), "high": float(high),
               "mean": float(image.mean(dtype=float)), "std": float(image.std(dtype=float))},
    )  # fmt: skip


def _names(table: xr.Dataset) -> list[str]:
    names = table.attrs.get("names", [])
    return [str(name) for name in ([names] if isinstance(names, str) else names)]


def _written(movie: Movie, row: int, table: xr.Dataset) -> WrittenMicrograph:
    name, *nodw = _names(table)
    attrs = table.attrs
    height, width = (int(n) for n in attrs["shape"])
    return WrittenMicrograph(
        movie, row, name, nodw[0] if nodw else "", (height, width), float(attrs["pixel_size_A"]), float(attrs["low"]),
        float(attrs["high"]),
    )  # fmt: skip


def _table(written: list[WrittenMicrograph], failed: dict[str, str]) -> xr.Dataset:
    """Return the ``corrected_micrographs`` group: what was written and where, and why the others were not."""
    entries = [
        {"micrograph": one.movie.micrograph, "written": True, "image_name": one.name, "pixel_size_A": one.pixel_size_A,
         "reason": ""} for one in written
    ] + [
        {"micrograph": name, "written": False, "image_name": "", "pixel_size_A": np.nan, "reason": reason}
        for name, reason in failed.items()
    ]  # fmt: skip
    return xr.Dataset({name: ("row", np.array([entry[name] for entry in entries])) for name in entries[0]})
