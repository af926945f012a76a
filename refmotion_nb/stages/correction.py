"""Motion correction of every particle: final trajectories, weighted sums, stacks and tables on disk."""

from __future__ import annotations

import re
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import param
import xarray as xr

from refmotion_nb.data.cryosparc.write import trajectory_file, write_particle_group, write_trajectories
from refmotion_nb.data.files import listed_from, output
from refmotion_nb.data.maps import check_reference, is_whole, write_stack
from refmotion_nb.data.reasons import listed
from refmotion_nb.data.relion.results import write_bfactors, write_particles, write_tracks
from refmotion_nb.data.schema import AXES, Dataset, InputError, as_path
from refmotion_nb.data.store import ResultStore
from refmotion_nb.numerics.dose import DoseModel, relion_gauge, weights
from refmotion_nb.numerics.patches import movie_box
from refmotion_nb.stages.alignment import Alignment, MotionPrior, Tracks
from refmotion_nb.stages.base import Reporter, Silent, hash_of
from refmotion_nb.stages.describe import files_read
from refmotion_nb.stages.dose_weights import weights_for, weights_of, weights_on
from refmotion_nb.stages.keys import digest
from refmotion_nb.stages.micrograph import Micrograph, optics_group, particle_images
from refmotion_nb.stages.search import prior_of
from refmotion_nb.stages.session import Session

WEIGHTS = ("weight", "dose", "frame_dose", "frequency", "group", "optics_group")  # of a table, all that correction uses

TOLD_AFTER = 250  # micrographs of an earlier run that are looked at: on a network's disk each takes a while
_TABLE = re.compile(r"particles(_\d+)?\.(star|cs|csg)")
WRITTEN = ("Particles/*", "Tracks/*", "Motion/*", "particles*.star", "particles*.cs*", "bfactors*.star")


class MotionCorrection(Alignment):
    """Write motion-corrected, dose-weighted particles; micrograph by micrograph, each finished before it counts."""

    fourier_crop_to = param.Integer(
        default=0, bounds=(0, None), allow_None=False,
        doc="Box of the output particles (px) after Fourier cropping; 0: movie pixel, the reference's physical extent.",
    )  # fmt: skip
    float16 = param.Boolean(default=False, doc="Write particles in 16-bit floating point (MRC mode 12).")

    def run(
        self,
        data: Dataset | Session,
        search: xr.Dataset,
        dose: xr.Dataset,
        out: str | Path,
        reporter: Reporter | None = None,
        image_root: Path | None = None,
    ) -> xr.Dataset:
        """Correct all particles into ``out`` and return the table of what was written and what was not, with reasons.

        ``rlnImageName`` is written relative to ``image_root`` where ``out`` lies in it. Micrographs finished by an
        earlier run with the same settings are kept as they are.

        Raises
        ------
        InputError
            The dose weights do not fit the movies, ``out`` holds files of others that would be overwritten or another run writes
            to it, or nothing could be written.
        """
        session = data if isinstance(data, Session) else Session(data)
        reporter = reporter or Silent()
        out, prior, dose = as_path(out, "out"), prior_of(search), weights_of(dose)
        check_reach(session, dose)
        with output(out, files_read(session.data), WRITTEN):
            return self._run(session, prior, dose, out, reporter, image_root)

    def _run(
        self,
        session: Session,
        prior: MotionPrior,
        dose: xr.Dataset,
        out: Path,
        reporter: Reporter,
        image_root: Path | None,
    ) -> xr.Dataset:
        store = ResultStore(out / "results.zarr")
        settings = self.settings(), self.track_key(prior), hash_of_weights(dose), session.keys.common
        store.update_attrs()  # the folder is this run's from now on
        stacks = listed_from(out / "Particles", image_root)
        reporter.start(len(session.micrographs), "correcting particles")
        finished: dict[str, tuple[pd.DataFrame, int]] = {}  # no tracks: they grow with the dataset
        for name in session:
            key = _key(session, name, settings)
            table = store.read(f"tracks/{name}", key)
            if table is None or store.read(f"noise/{name}", key) is None:
                continue
            files = _tracks_file(out, name), trajectory_file(out, name)
            if not all(file.exists() and file.stat().st_size for file in files):
                continue
            box = int(table.attrs["box"])
            if is_whole(out / "Particles" / f"{name}.mrcs", (table.sizes["particle"], box, box), float16=self.float16):
                finished[name] = _written(table, name, stacks), int(table.attrs["edge_hits"])
                if len(finished) % TOLD_AFTER == 0:
                    reporter.advance(TOLD_AFTER, from_an_earlier_run=len(finished))
        reporter.advance(len(finished) % TOLD_AFTER, from_an_earlier_run=len(finished))
        failed = []
        left = [name for name in session if name not in finished]
        task = partial(
            self.write_micrograph, prior=prior, dose=without_measurements(dose), out=out.absolute(), settings=settings
        )
        with closing(session.place.each(left, self, task)) as each:
            for name, table in each:
                if name in session.failed:
                    failed.append((name, session.failed[name]))
                    reporter.advance(micrograph=name, failed=session.failed[name])
                    continue
                finished[name] = _written(table, name, stacks), int(table.attrs["edge_hits"])
                reporter.advance(micrograph=name, particles=session.particle_count(name))
        reporter.done()
        if hits := {name: n for name, (_, n) in finished.items() if n}:
            n = sum(hits.values())
            session.warnings.append(f"{listed([*hits])}: {n} positions lie beyond the window; raise window_reach_A")
        if not finished:
            raise InputError(f"no particle was written: {failed[0][1] if failed else 'there is none'}")
        written = pd.concat([rows for rows, _ in finished.values()])
        particles = self._finish(session, out, store, written, failed)
        _write_bfactors(out, dose, check_reference(session.data.references[0])[0])
        return particles

    def write_micrograph(
        self, session: Session, m: Micrograph, prior: MotionPrior, dose: xr.Dataset, out: Path, settings: Any
    ) -> xr.Dataset:
        """Write stack, tracks and results of one micrograph into ``out``, each whole; return its ``tracks``.

        ``settings`` are what the results depend on beside the micrograph.
        """
        name, store = m.movie.micrograph, ResultStore(out / "results.zarr")
        tracks = session.track(m, self, prior)
        images = self.images(m, tracks, dose, session.threads)
        pixel = m.extent_A / images.shape[-1]
        store.remove(
            f"tracks/{name}"
        )  # else, if this ends here, the group of other settings would vouch for this stack
        write_stack(out / "Particles" / f"{name}.mrcs", images, pixel, float16=self.float16)
        write_tracks(_tracks_file(out, name), tracks.displacement_A)
        write_trajectories(out, m.movie, tracks.displacement_A, session.data.orientation)
        table = tracks_table(m, tracks, images.shape[-1], pixel).assign_attrs(track_key=self.track_key(prior))
        key = _key(session, name, settings)
        store.write(f"noise/{name}", noise_table(m, tracks), key)
        store.write(f"tracks/{name}", table, key)
        return table

    def output_box(self, box: int) -> int:
        """Return the box of the output particles, px, of patches of ``box`` movie px; InputError if it does not fit."""
        if self.fourier_crop_to > box or self.fourier_crop_to % 2:
            raise InputError(
                f"fourier_crop_to {self.fourier_crop_to}: the box in movie pixels is {box}; give an even number up to that"
            )
        return self.fourier_crop_to or box

    def least_box(self, box: int) -> int:
        """Return the box of what is written, px."""
        return self.output_box(box)

    def output_boxes(self, data: Dataset) -> dict[float, int]:
        """Return the box of the output particles, px, by pixel size of the movies; InputError where one does not fit."""
        pixel_sizes_A = sorted({movie.pixel_size_A for movie in data.movies_with_particles})
        extent_A = max(box * pixel_A for box, pixel_A in map(check_reference, data.references))
        if self.box_size:
            extent_A = self.box_size * pixel_sizes_A[0]
        return {pixel_A: self.output_box(movie_box(extent_A, pixel_A)) for pixel_A in pixel_sizes_A}

    def images(self, m: Micrograph, tracks: Tracks, dose: xr.Dataset, threads: int) -> np.ndarray:
        """Return the corrected particles (particle, box, box) of a micrograph, background 0 ± 1."""
        box_out = self.output_box(m.placement.box)
        return particle_images(m, tracks.displacement_A / m.pixel_size_A, weights_for(m, dose), box_out, threads)

    def _finish(
        self,
        session: Session,
        out: Path,
        store: ResultStore,
        written: pd.DataFrame,
        failed: list[tuple[str, str]],
    ) -> xr.Dataset:
        data, tables = session.data, set[Path]()
        for number in range(len(data.references)):
            mine = written[written["reference"] == number].sort_values("row")
            if mine.empty:
                continue
            stem = out / (f"particles_{number + 1}" if len(data.references) > 1 else "particles")
            star, cs = stem.with_suffix(".star"), stem.with_suffix(".cs")
            if data.tables:
                _write_star(star, data.tables[number], mine)
            write_particle_group(cs, data, number, mine)
            tables |= {star, cs, cs.with_suffix(".csg")}
        stale = sorted(p.name for p in out.glob("particles*") if p not in tables and _TABLE.fullmatch(p.name))
        if stale:  # nobody but their owner can tell that they are no longer wanted
            session.warnings.append(
                f"{listed(stale)} in {out}: not of this run, which has other references; move them away"
            )
        table = particles_table(session, written, failed)
        store.write("particles", table)
        return table


def _write_star(path: Path, tables: dict[str, pd.DataFrame], mine: pd.DataFrame) -> None:
    """Write the particles of one reference, whose input ``tables`` are, in RELION's form."""
    group = tables["particles"]["rlnOpticsGroup"].to_numpy(int)[mine["row"]]
    write_particles(
        path, tables, mine["row"].to_numpy(), mine["image_name"].tolist(),
        pixel_size_A=dict(zip(group, mine["pixel_size_A"])), box_size=dict(zip(group, mine["box"])),
        coordinate_px=mine[["x_px", "y_px"]].to_numpy(), origin_A=mine[["origin_x_A", "origin_y_A"]].to_numpy(),
    )  # fmt: skip


def _tracks_file(out: Path, name: str) -> Path:
    return out / "Tracks" / f"{name}_tracks.star"


def _key(session: Session, name: str, settings: Any) -> str:
    *_, common = settings
    return f"{_data_key(session, name, common)}-{hash_of(settings)}"


def _data_key(session: Session, name: str, common: str) -> str:
    return hash_of(common, session.keys.of([name]))


def written_displacement(
    store: ResultStore, session: Session, micrograph: str, settings: Alignment, prior: MotionPrior
) -> np.ndarray | None:
    """Return the trajectories (particle, frame, 2) Å that particles were corrected by, None where there are none of these data.

    Found again, in patches that are not cropped or on another device, they would differ in their last digits.
    """
    group = f"tracks/{micrograph}"
    key = store.key(group)
    of_these_data = key.partition("-")[0] == _data_key(session, micrograph, session.keys.common)
    table = store.read(group, key) if of_these_data else None
    if table is None or table.attrs.get("track_key") != settings.track_key(prior):
        return None
    return table["shift"].values


def remove_tracks_of_other_data(store: ResultStore, session: Session) -> int:
    """Remove trajectories, with the noise, of micrographs that the session lacks, or has with other data; return how many."""
    names = {group.partition("/")[2] for section in ("tracks", "noise") for group in store.groups(section)}
    void = [
        name for name in names
        if store.key(f"tracks/{name}").partition("-")[0] != _data_key(session, name, session.keys.common)
    ]  # fmt: skip
    for name in void:
        store.remove(f"tracks/{name}")
        store.remove(f"noise/{name}")
    return len(void)


def tracks_table(m: Micrograph, tracks: Tracks, box: int, pixel_size_A: float) -> xr.Dataset:
    """Return the ``tracks`` group of a micrograph."""
    particles = m.particles
    micrograph_pixel = m.movie.pixel_size_A * m.movie.binning
    moved = (particles["origin"].values - m.placement.origin_A) / micrograph_pixel
    return xr.Dataset(
        {
            "shift": (("particle", "frame", "axis"), tracks.displacement_A,
                      {"units": "Å", "long_name": "displacement from the particle's coordinate"}),
            "common": (("frame", "axis"), tracks.common_A, {"units": "Å", "long_name": "common motion relative to rigid"}),
            "rigid": (("frame", "axis"), tracks.rigid_A, {"units": "Å", "long_name": "rigid motion"}),
            "coordinate": (("particle", "axis"), m.position_A, {"units": "Å", "long_name": "position"}),
            "coordinate_px": (("particle", "axis"), particles["coordinate"].values / micrograph_pixel - moved,
                              {"units": "px", "long_name": "position in micrograph pixels"}),
            "origin": (("particle", "axis"), m.placement.origin_A, {"units": "Å", "long_name": "origin"}),
            "row": ("particle", particles["row"].values),
            "reference": ("particle", particles["reference"].values),
        },
        coords={"axis": list(AXES)},
        attrs={
            "width_A": m.movie.width * m.movie.pixel_size_A, "height_A": m.movie.height * m.movie.pixel_size_A,
            "box": int(box), "pixel_size_A": float(pixel_size_A), "edge_hits": tracks.edge_hits,
        },
    )  # fmt: skip


def noise_table(m: Micrograph, tracks: Tracks) -> xr.Dataset:
    """Return the ``noise`` group of a micrograph."""
    frequency = m.frequency(len(m.noise_power))
    return xr.Dataset(
        {"noise_power": ("frequency", m.noise_power, {"units": "counts²", "long_name": "mean power of a frame"})},
        coords={"frequency": ("frequency", frequency, {"units": "1/Å", "long_name": "spatial frequency"})},
        attrs={"reference_scale": float(tracks.scale)},
    )


def _written(table: xr.Dataset, name: str, stacks: str) -> pd.DataFrame:
    """Return a row for each particle of a micrograph that was written."""
    (x, y), (origin_x, origin_y) = table["coordinate_px"].values.T, table["origin"].values.T
    return pd.DataFrame({
        "row": table["row"].values, "reference": table["reference"].values, "micrograph": name, "index": np.arange(len(x)),
        "image_name": [f"{i + 1:06d}@{stacks}/{name}.mrcs" for i in range(len(x))],
        "box": int(table.attrs["box"]), "pixel_size_A": float(table.attrs["pixel_size_A"]),
        "x_px": x, "y_px": y, "origin_x_A": origin_x, "origin_y_A": origin_y,
    })  # fmt: skip


def particles_table(session: Session, written: pd.DataFrame, failed: list[tuple[str, str]]) -> xr.Dataset:
    """Return the ``particles`` group: what was written and where, and why the others were not."""
    columns = ["row", "reference", "micrograph", "written", "image_name", "reason"]
    left_out = [(s.row, s.reference, s.micrograph, False, "", s.reason) for s in session.data.skipped if s.row >= 0]
    for name, reason in failed:
        particles = session.micrographs[name][1]
        left_out += [(row, reference, name, False, "", reason)
                     for row, reference in zip(particles["row"].values, particles["reference"].values)]  # fmt: skip
    parts = [written.assign(written=True, reason="")[columns]]
    if left_out:
        parts.append(pd.DataFrame(left_out, columns=columns))
    table = pd.concat(parts).sort_values(["reference", "row"])
    sizes = written.sort_values(["reference", "row"])[["box", "pixel_size_A"]].drop_duplicates()
    return xr.Dataset(
        {name: ("particle", _column(table[name])) for name in columns},
        attrs={name: sizes[name].tolist() for name in sizes},  # one for each pixel size of the movies
    )


def _column(values: pd.Series) -> np.ndarray:
    """Return a column; NumPy's text would take room for the longest reason in each row, a gigabyte for a million particles."""
    return np.array(values.tolist(), object if isinstance(values.iloc[0], str) else None)


def hash_of_weights(dose: xr.Dataset) -> str:
    """Return a hash of what weights do: their values, doses, frequencies and groups."""
    return digest([dose[name].values for name in WEIGHTS if name in dose.variables])


def without_measurements(dose: xr.Dataset) -> xr.Dataset:
    """Return the table with what weights are and whom they are for, not what they were found from."""
    kept = dose.drop_vars([name for name in dose.variables if name not in WEIGHTS])
    kept.attrs = {}
    return kept


def check_reach(session: Session, dose: xr.Dataset) -> None:
    """Make sure that dose weights cover every movie, before hours of work.

    Raises
    ------
    InputError
        The weights do not reach as far as a movie's exposure: which movie, and by how much.
    """
    known = set()
    for name, (movie, particles) in session.micrographs.items():
        group = optics_group(particles, session.data.optics)
        exposure = (group, *movie.dose_edges.tolist())
        if exposure in known:
            continue
        known.add(exposure)
        try:
            weights_on(dose, movie.dose_edges, dose["frequency"].values[:1], group)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


def _as_modelled(row: xr.Dataset) -> bool:
    """Return whether the weights of one row of a table are those of its B-factors and scales."""
    model = DoseModel(row["frame_scale"].values, row["b_factor"].values, np.ones(0))
    weight = row["weight"].values
    return np.allclose(weight / weight.sum(0), weights(model, row["frequency"].values), rtol=1e-3, atol=1e-6)


def _write_bfactors(out: Path, dose: xr.Dataset, box: int) -> None:
    """Write B-factors, ln scales in RELION's form, sign, gauge (of the reference's ``box``): the pool's and each group's.

    Edited weights have none: whoever took those that were measured would weight otherwise than the particles are.
    """
    written = set()
    for i in range(dose.sizes["group"]):
        row = dose.isel(group=i)
        if "b_factor" not in row or not np.isfinite(row["b_factor"].values).any():
            continue
        row = row.dropna("frame", subset=["b_factor"])
        if not _as_modelled(row):
            continue
        safe = re.sub(r"[^\w.-]+", "_", str(row["group"].values))
        path = out / ("bfactors.star" if i == 0 else f"bfactors_{safe}.star")
        if path in written:  # of a group whose name differs in what no file name holds
            path = out / f"bfactors_{safe}_{i}.star"
        written.add(path)
        with np.errstate(divide="ignore"):  # RELION's of a frame without signal is 0
            log_scale = np.log(row["frame_scale"].values)
        write_bfactors(path, -row["b_factor"].values * relion_gauge(box // 2 + 1), log_scale)
    for path in out.glob("bfactors*.star"):  # of an earlier run with other weights
        if path not in written:
            path.unlink()
