"""Empirical dose weights: how well frames agree with the opposite half map, by frame and frequency.

Movies that were exposed alike (one optics group, one frame count, one dose to within a frame's) are measured together. With
more than one such group the table's first row is the pool of all; each group leans on the pool as far as it is small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import Dataset, InputError, wanted
from refmotion_nb.numerics.dose import (
    DoseModel,
    bootstrap_weights,
    fcc,
    fcc_sums,
    fit_model,
    fit_relion,
    relion_gauge,
    sums_at_doses,
    weights,
    weights_at_doses,
)
from refmotion_nb.numerics.energy import grant_grigorieff, inverse_noise
from refmotion_nb.numerics.patches import movie_box
from refmotion_nb.stages.alignment import Alignment, MotionPrior
from refmotion_nb.stages.base import Reporter
from refmotion_nb.stages.micrograph import Micrograph, optics_group
from refmotion_nb.stages.places import Found, Task
from refmotion_nb.stages.runs import viewer_of
from refmotion_nb.stages.sampling import draw, sample
from refmotion_nb.stages.search import HyperparameterSearch, prior_of
from refmotion_nb.stages.session import Session

LOW_RESOLUTION_A = 20.0  # the FCC is fitted from here to FSC = 0.143, as in RELION
FEWEST_SHELLS = 4  # to fit a decay to
POOL = "all"  # name of the first row
BORROWED_PARTICLES = 1000  # the pool counts as so many particles of each group
_MEASURING = "measuring dose weights"
_SAME_DOSE = 0.01  # of a frame's dose


def micrograph_fcc_sums(
    m: Micrograph, displacement_A: np.ndarray, threads: int, extent_A: float | None = None
) -> np.ndarray:
    """Return the FCC sums (3, frame, shell) of a micrograph along trajectories, against the opposite half maps.

    Shells are those of a box ``extent_A`` wide, the micrograph's own unless given. Movies are whitened to a power of 1 in each
    Fourier component, so that sums of several count alike whatever their pixels. (RELION's are divided by the number of these.)
    """
    whitening = np.sqrt(inverse_noise(m.noise_power))
    whitening[0] = 0
    shift = displacement_A / m.pixel_size_A
    scale = (extent_A or m.extent_A) / m.extent_A
    return fcc_sums(
        m.spectra, m.opposite, shift, whitening.astype(np.float32), m.placement.box // 2 + 1, scale, threads=threads
    )


@dataclass(frozen=True)
class Exposure:
    """What the movies of a group have in common."""

    optics_group: str
    dose_edges: tuple[float, ...]  # (frame + 1,) e/Å²
    voltage_kV: float

    @property
    def edges(self) -> np.ndarray:
        """Accumulated dose before each frame and after the last (frame + 1,) e/Å²."""
        return np.array(self.dose_edges)


def exposures(session: Session) -> dict[str, Exposure]:
    """Return how the movies that each micrograph is measured with were exposed.

    Doses that differ by less than a frame's are one, the median: measured doses, all a little different, make no groups.
    """
    kinds: dict[tuple[str, float, int], dict[str, np.ndarray]] = {}
    for name, (movie, particles) in session.micrographs.items():
        kind = optics_group(particles, session.data.optics), movie.voltage_kV, len(movie.dose_edges)
        kinds.setdefault(kind, {})[name] = movie.dose_edges
    found: dict[str, Exposure] = {}
    for (group, voltage_kV, _), edges in kinds.items():
        left = sorted(edges, key=lambda name: edges[name][-1])
        while left:
            least = edges[left[0]]
            near = [name for name in left if np.abs(edges[name] - least).max() < least[1] - least[0]]
            middle = np.median([edges[name] for name in near], axis=0)
            found |= dict.fromkeys(near, Exposure(group, tuple(np.round(middle, 4).tolist()), voltage_kV))
            left = [name for name in left if name not in found]
    return found


@dataclass
class Measured:
    """The FCC sums of the micrographs of one group."""

    exposure: Exposure
    extent_A: float  # of the shells
    k_out: int  # first shell with an FSC below 0.143
    sums: list[np.ndarray] = field(default_factory=list)  # (3, frame, shell) each
    names: list[str] = field(default_factory=list)
    particles: int = 0

    @property
    def total(self) -> np.ndarray:
        """Sums of all micrographs (3, frame, shell)."""
        return np.sum(self.sums, axis=0)

    def add(self, name: str, particles: int, sums: np.ndarray) -> None:
        """Add a micrograph of the group."""
        self.names.append(name)
        self.particles += particles
        self.sums.append(sums)


class DoseWeights(Alignment):
    """Measure the decay of signal with dose on a part of the data and turn it into weights."""

    target_particles = copy(HyperparameterSearch.param["target_particles"])
    seed = copy(HyperparameterSearch.param["seed"])

    def run(self, data: Dataset | Session, search: xr.Dataset, reporter: Reporter | None = None) -> xr.Dataset:
        """Return FCC, its model and weights (group, frame, frequency) under the prior a search chose.

        Raises
        ------
        InputError
            A movie cannot be used.
        """
        session = data if isinstance(data, Session) else Session(data)
        reporter = viewer_of(reporter)
        prior = prior_of(search)
        groups: dict[Exposure, Measured] = {}
        exposed, extent_A = exposures(session), self._extent_A(session)
        task = partial(self.measure, prior=prior, extent_A=extent_A)
        for name, (k_out, sums) in self.sample(session, exposed, task, reporter):
            group = groups.setdefault(exposed[name], Measured(exposed[name], extent_A, k_out))
            group.add(name, session.particle_count(name), sums)
            reporter.show(lambda: weights_table([*groups.values()], self.relion))
        if not groups:
            raise session.nothing_usable(list(session))
        table = weights_table(list(groups.values()), self.relion)
        return table.assign_attrs(micrographs_key=session.keys.of(table.attrs["micrographs"]))

    def measure(self, session: Session, m: Micrograph, prior: MotionPrior, extent_A: float) -> tuple[int, np.ndarray]:
        """Return the first shell of a micrograph with an FSC below 0.143, and its FCC sums, of a box ``extent_A`` wide."""
        tracks = session.track(m, self, prior)
        return m.k_out, micrograph_fcc_sums(m, tracks.displacement_A, session.threads, extent_A)

    def _extent_A(self, session: Session) -> float:
        """Return the width of the boxes of the first micrograph drawn, whose shells all others are brought to."""
        first = draw(session, list(session), self.target_particles, self.seed)[0]
        pixel = session.micrographs[first][0].pixel_size_A
        return movie_box(session.extent_A(self), pixel) * pixel

    def sample(
        self, session: Session, exposed: Mapping[str, Exposure], task: Task, reporter: Reporter
    ) -> Iterator[tuple[str, Any]]:
        """Yield name and value of a task on random micrographs; no group of movies ``exposed`` alike is left out."""
        groups: dict[Exposure, list[str]] = {}
        for name, exposure in exposed.items():
            groups.setdefault(exposure, []).append(name)

        def visit(names: list[str]) -> Found:
            return session.place.each(names, self, task)

        used = set()
        for name, value in sample(
            session, list(session), self.target_particles, self.seed, visit, reporter, _MEASURING
        ):
            used.add(name)
            yield name, value
        # of many groups, as beam tilts make of one exposure, few particles each: they lean on the pool
        few = max(1, min(self.target_particles // len(groups), BORROWED_PARTICLES))
        for names in groups.values():
            if used.isdisjoint(names):
                yield from sample(session, names, few, self.seed, visit, reporter, _MEASURING)


def weights_table(groups: list[Measured], relion: bool = False) -> xr.Dataset:
    """Return the table of FCC, model, weights and bands of all groups, the pool first if there are several.

    With ``relion`` the model is RELION's, unbounded and with its B-factors as they are.
    """
    shells = max(group.total.shape[2] for group in groups)
    groups = [replace(group, sums=[np.pad(one, ((0, 0), (0, 0), (0, shells - one.shape[2]))) for one in group.sums])
              for group in groups]  # fmt: skip
    rows = [(POOL, groups[0], np.zeros_like(groups[0].total))]
    if len(groups) > 1:
        pool = _pool(groups)
        rows = [(POOL, pool, np.zeros_like(pool.total))]
        rows += [(label, group, _borrowed(pool, group)) for label, group in zip(_labels(groups), groups)]
    frames = max(len(group.exposure.edges) - 1 for _, group, _ in rows)
    tables = [_row_table(group, borrowed, relion).pad(frame=(0, frames - len(group.exposure.edges) + 1), keep_attrs=True)
              for _, group, borrowed in rows]  # fmt: skip
    table = xr.concat(tables, "group", join="outer", combine_attrs="override")
    table = table.assign_coords(
        group=[label for label, _, _ in rows],
        optics_group=("group", ["" if label == POOL else group.exposure.optics_group for label, group, _ in rows]),
        frame=np.arange(frames),
    )
    table["particles"] = ("group", [group.particles for _, group, _ in rows], {"long_name": "particles measured"})
    fitted = _fitted(rows[0][1])
    frequency = table["frequency"].values
    table.attrs = {
        "micrographs": [name for group in groups for name in group.names],
        "fitted_from_A": _told(1 / frequency[fitted][0]),
        "fitted_to_A": _told(1 / frequency[fitted][-1]),
        "extent_A": _told(groups[0].extent_A),
    }
    return table


def _told(value: float) -> float:
    """Return a value with the digits that say something: attributes are shown as they are."""
    return float(f"{value:.5g}")


def _pool(groups: list[Measured]) -> Measured:
    """Return all groups as one, on the doses of the one exposed longest (of several the largest)."""
    largest = max(groups, key=lambda group: (group.exposure.dose_edges[-1], group.particles))
    edges = largest.exposure.edges
    sums = [sums_at_doses(one, group.exposure.edges, edges) for group in groups for one in group.sums]
    names = [name for group in groups for name in group.names]
    return replace(largest, sums=sums, names=names, particles=sum(group.particles for group in groups))


def _borrowed(pool: Measured, group: Measured) -> np.ndarray:
    share = BORROWED_PARTICLES / max(pool.particles, 1)
    return share * sums_at_doses(pool.total, pool.exposure.edges, group.exposure.edges)


def _labels(groups: list[Measured]) -> list[str]:
    """Name groups by their optics group; movies of one that were exposed differently are told apart by how."""
    count = Counter(group.exposure.optics_group for group in groups)
    labels = []
    for group in groups:
        name, edges = group.exposure.optics_group, group.exposure.edges
        exposed = f"{name}, {len(edges) - 1} frames of {np.diff(edges).mean():.4g} e/Å² from {edges[0]:.4g}"
        labels.append(name if count[name] == 1 and name != POOL else exposed)
    return labels


def _fitted(group: Measured) -> slice:
    low = min(max(1, int(group.extent_A / LOW_RESOLUTION_A)), max(group.k_out - FEWEST_SHELLS, 1))
    return slice(low, group.k_out)


def _row_table(group: Measured, borrowed: np.ndarray, relion: bool) -> xr.Dataset:
    """Return the table of one group (frame, frequency); ``borrowed`` sums of the pool are fitted with its own."""
    own, edges = group.total, group.exposure.edges
    n_shells = own.shape[2]
    frequency, fitted = np.arange(n_shells) / group.extent_A, _fitted(group)
    curve = fcc(own + borrowed)
    if relion:
        model = _relion_model(curve, frequency, fitted)
    else:
        model = fit_model(curve[:, fitted], frequency[fitted], frequency[fitted])
    found = weights(model, frequency)
    low_band = high_band = np.full_like(found, np.nan)
    if len(group.sums) > 2 and not relion:
        low_band, high_band = bootstrap_weights(np.stack(group.sums), frequency[fitted], fitted, frequency, borrowed)
    middle = 0.5 * (edges[1:] + edges[:-1])
    standard = grant_grigorieff(frequency, middle, group.exposure.voltage_kV)
    curve = np.where(own[2] > 0, fcc(own), np.nan)  # beyond the band of the references nothing was measured
    modelled = np.full_like(curve, np.nan)
    modelled[:, fitted] = model.values(frequency[fitted]) * model.envelope

    def cube(values: np.ndarray, name: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        return ("frame", "frequency"), values, {"units": "1", "long_name": name}

    def row(values: np.ndarray, name: str, units: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        return ("frame",), values, {"units": units, "long_name": name}

    return xr.Dataset(
        {
            "fcc": cube(curve, "Fourier cylinder correlation"),
            "fcc_model": cube(modelled, "modelled Fourier cylinder correlation"),
            "weight": cube(found, "dose weight"),
            "weight_lo": cube(low_band, "dose weight, 5th percentile"),
            "weight_hi": cube(high_band, "dose weight, 95th percentile"),
            "reference_weight": cube(standard / standard.sum(0), "dose weight of Grant & Grigorieff"),
            "dose": row(middle, "accumulated dose", "e/Å²"),
            "frame_dose": row(np.diff(edges), "dose of the frame", "e/Å²"),
            "b_factor": row(model.b_factor_A2, "B-factor relative to the best frame", "Å²"),
            "frame_scale": row(model.scale, "scale of the frame's signal", "1"),
        },
        coords={"frequency": ("frequency", frequency, {"units": "1/Å", "long_name": "spatial frequency"})},
    )


def _relion_model(curve: np.ndarray, frequency: np.ndarray, fitted: slice) -> DoseModel:
    b_factor, log_scale = fit_relion(curve, 0.5 / frequency[-1], fitted.start, fitted.stop)
    model = DoseModel(np.exp(log_scale), -b_factor / relion_gauge(curve.shape[1]), np.ones(fitted.stop - fitted.start))
    basis = model.values(frequency[fitted])
    return replace(model, envelope=np.maximum((basis * curve[:, fitted]).sum(0) / (basis**2).sum(0), 0))


def weights_of(dose: Any) -> xr.Dataset:
    """Return a table of dose weights as it is.

    Raises
    ------
    InputError
        It is something else.
    """
    remedy = "what DoseWeights().run returned, or read_weights read"
    if lacking := lacks(wanted(dose, xr.Dataset, "dose", remedy)):
        raise InputError(f"dose is a Dataset without {lacking}; give {remedy}")
    return dose


def lacks(table: xr.Dataset) -> str:
    """Return what a table of dose weights cannot do without and does not have; empty if there is all."""
    if missing := [name for name in ("weight", "dose", "frequency", "group") if name not in table.variables]:
        return ", ".join(missing)
    if not table.sizes["group"]:
        return "groups"
    return "" if table["weight"].dims == ("group", "frame", "frequency") else "weight (group, frame, frequency)"


def weights_on(table: xr.Dataset, dose_edges: np.ndarray, frequency_per_A: np.ndarray, group: str = POOL) -> np.ndarray:
    """Return the weights of a table (frame, frequency) for a movie, normalised over its frames.

    The row of the movie's optics ``group`` is taken, or else the pool. A movie cut into other frames gets weights at
    the doses of its own (see ``weights_at_doses``).

    Raises
    ------
    InputError
        The weights end before the movie's last frame does, or begin after its first.
    """
    row = table.isel(group=_row_of(table, dose_edges, group)).dropna("frame", subset=["dose"])
    weight, frequency = row["weight"].values, row["frequency"].values
    edges = table_edges(row)
    if not _same_frames(edges, dose_edges):
        _check_reach(edges, dose_edges)
        weight = weights_at_doses(weight, edges, dose_edges)
    out = np.stack([np.interp(frequency_per_A, frequency, one) for one in weight])
    return out / out.sum(0)


def weights_for(m: Micrograph, dose: xr.Dataset | None) -> np.ndarray:
    """Return what each frame of a micrograph weighs (frame, shell), to the corners of its patches; in all 1 in every shell.

    Weights are those of a table, or without one Grant & Grigorieff's. InputError as of ``weights_on``.
    """
    frequency = m.frequency(int(np.ceil(np.sqrt(2) * m.spectra.box / 2)) + 1)
    if dose is not None:
        return weights_on(dose, m.movie.dose_edges, frequency, m.group)
    standard = grant_grigorieff(frequency, m.mid_dose, m.movie.voltage_kV)
    return standard / standard.sum(0)


def table_edges(row: xr.Dataset) -> np.ndarray:
    """Return the accumulated dose (frame + 1,) before each frame and after the last of one row of a table, e/Å²."""
    middle = row["dose"].values
    if "frame_dose" in row:
        width = row["frame_dose"].values
    else:
        width = np.full(len(middle), np.diff(middle).mean() if len(middle) > 1 else 2 * middle[0])
    return np.append(middle - 0.5 * width, middle[-1] + 0.5 * width[-1])


def per_dose(row: xr.Dataset) -> xr.Dataset:
    """Return one row of a table with its weights per e/Å²: they do not depend on how the dose was cut into frames."""
    width = xr.DataArray(np.diff(table_edges(row)), dims="frame")
    names = [name for name in ("weight", "weight_lo", "weight_hi", "reference_weight") if name in row]
    return row.assign({name: (row[name] / width).assign_attrs(row[name].attrs, units="Å²/e") for name in names})


def _row_of(table: xr.Dataset, dose_edges: np.ndarray, group: str) -> int:
    if table.sizes["group"] == 1 or "optics_group" not in table.coords:
        return 0

    def apart(i: int) -> tuple[bool, float]:
        edges = table_edges(table.isel(group=i).dropna("frame", subset=["dose"]))
        return len(edges) != len(dose_edges), float(np.abs(edges[[0, -1]] - dose_edges[[0, -1]]).max())

    return min(np.flatnonzero(table["optics_group"].values == group).tolist(), key=apart, default=0)


def _same_frames(one: np.ndarray, other: np.ndarray) -> bool:
    return len(one) == len(other) and bool(np.abs(one - other).max() <= _SAME_DOSE * np.diff(other).mean())


def _check_reach(edges: np.ndarray, dose_edges: np.ndarray) -> None:
    slack = max(np.diff(edges).max(), np.diff(dose_edges).max())
    if dose_edges[-1] > edges[-1] + slack or dose_edges[0] < edges[0] - slack:
        raise InputError(
            f"the dose weights are for {edges[0]:.4g} to {edges[-1]:.4g} e/Å², the movie has {dose_edges[0]:.4g} to "
            f"{dose_edges[-1]:.4g}; measure weights on movies with as much dose, or leave frames out"
        )
