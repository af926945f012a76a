"""The hyperparameter search: rays step outwards in prior strength until no motion is left, scored on held-out shells."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import numpy as np
import param
import xarray as xr

from refmotion_nb.data.schema import Dataset, InputError, wanted
from refmotion_nb.numerics.backend import beside, to_host
from refmotion_nb.numerics.energy import pooled_scale
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.numerics.rays import activity, cut_short, ray_table, retired, strengths
from refmotion_nb.numerics.trajectories import Windows
from refmotion_nb.stages.alignment import (
    AlignedWindows,
    Alignment,
    Geometry,
    MotionPrior,
    ScoreWindows,
    alignment_windows,
    score_windows,
    trajectory_problem,
)
from refmotion_nb.stages.base import Reporter
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.places import Place
from refmotion_nb.stages.runs import Viewer, viewer_of
from refmotion_nb.stages.sampling import sample
from refmotion_nb.stages.session import Session

# what is tried for the parts of the prior that are estimated: decay (e/Å²) and floor of the dose profile; σ of the errors of
# whole-frame alignment (Å) and drift strength; the first of each is where the search starts
PROFILES = ((10.0, 0.15), (5.0, 0.15), (20.0, 0.15), (3.0, 0.3), (np.inf, 1.0))
COMMON = ((1.0, 3.0), (0.5, 3.0), (2.0, 3.0), (1.0, 10.0), (1.0, 0.0))
START = Hyperparameters(1.0, 50.0, 3000.0)  # where who knows nothing begins
FEW_SHELLS = 3  # of Fourier components to score by: with less the search goes on, with a warning
LEADERS = 3  # rays on which these are compared
COARSE_FACTORS = (0.4, 1.0, 2.5)  # of the strength at which a ray was best
FINE_FACTORS = tuple(float(f) for f in 10 ** (np.arange(-5, 6) / 12))


@dataclass
class ReadMicrograph:
    """What the search keeps of a micrograph before the grey scale of the reference is known; the movie is not needed again."""

    geometry: Geometry
    raw: AlignedWindows
    score: ScoreWindows


@dataclass
class SearchMicrograph:
    """What the search tries priors on: two sets of windows of a micrograph."""

    geometry: Geometry
    windows: Windows
    score: ScoreWindows

    @cached_property
    def bend(self) -> np.ndarray:
        """Curvature (frame,) of the windows, per Å², at the motion that motion correction found."""
        return self.windows.curvature(self.geometry.initial_A)


@dataclass
class Trial:
    """One set of hyperparameters tried on all micrographs."""

    prior: MotionPrior
    cv_score: float
    activity_local: float
    activity_total: float


@dataclass
class Aligned:
    """The trajectories of a micrograph under several priors, and what of them a search needs to know."""

    facts: np.ndarray  # (3, prior): cross term of the score, activity of local and of all motion, Å
    local_A: Any  # (prior, particle, frame, 2) float32; on a GPU that has room
    common_A: Any  # (prior, frame, 2)


@dataclass(frozen=True)
class Searched:
    """All micrographs of a search, wherever they are."""

    place: Place
    held: list[Any]  # SearchMicrograph
    names: tuple[str, ...]
    n_particles: int
    power: float  # of movies times that of references, on the shells of the score
    relion: bool

    def try_priors(
        self, priors: list[MotionPrior], before: tuple[list[Any], list[int]] | None = None, tolerance: float = 1e-5
    ) -> tuple[list[Trial], list[Any]]:
        """Align all micrographs under several priors at once and score each; return trials and what was found, held.

        ``before`` is what was found under other priors, and from which of them (prior,) each starts.
        """
        n = len(self.held)
        found, stay = before or ([None] * n, [])
        columns = [[one] * n for one in (priors, stay, self.relion, tolerance, n)]
        aligned = self.place.apply(_aligned, self.held, found, *columns)
        facts = np.array(self.place.values(self.place.apply(_facts_of, aligned)))  # (micrograph, 3, prior)
        scores = -facts[:, 0].sum(0) / np.sqrt(self.power)
        activities = facts[:, 1:].mean(0)
        return [Trial(p, *map(float, of)) for p, *of in zip(priors, scores, *activities)], aligned


def _facts(session: Session, read: ReadMicrograph) -> tuple[float, float, float, float, int]:
    score = read.score
    cross, power = read.raw.sums
    return cross, power, score.movie_power, score.reference_power * score.unit**2, len(read.geometry.position_A)


def _scaled(session: Session, read: ReadMicrograph, prior: MotionPrior) -> SearchMicrograph:
    windows = read.raw.on(session.device.put).scaled(prior, session.threads)
    return SearchMicrograph(read.geometry, _kept(session, windows), read.score)


def _aligned(
    session: Session, m: SearchMicrograph, before: Aligned | None, priors: list[MotionPrior], stay: list[int],
    relion: bool, tolerance: float, n_micrographs: int,
) -> Aligned:  # fmt: skip
    device = session.device
    threads = max(1, session.threads // n_micrographs)
    problem = trajectory_problem(m.windows.on(device.put), m.geometry, priors, relion, m.bend, threads)
    if before is None:
        start = problem.unknowns_of(m.geometry.initial_A - problem.rigid_A)
    else:
        local, common = device.put(before.local_A), device.put(before.common_A)
        rows = beside(local, stay)
        start = problem.unknowns_of(local[rows], common[rows])
    found = problem.descend(start, tolerance)
    local, common = found.local_A, found.common_A
    shown = local + common[:, None] + beside(local, problem.rigid_A)
    cross = to_host(m.score.windows.on(device.put).sample(shown)[0].sum((1, 2), dtype=np.float64))
    total = activity(shown - beside(local, m.geometry.rigid_A))
    facts = np.stack([cross * m.score.unit, activity(local), total])
    if not device.keeps(local):
        local, common = to_host(local), to_host(common)
    return Aligned(facts, local.astype(np.float32), common)


def _facts_of(session: Session, aligned: Aligned) -> np.ndarray:
    return aligned.facts


@dataclass
class _Ray:
    balance: float
    distance: float
    trials: list[Trial] = field(default_factory=list)
    reason: str = ""

    @property
    def best(self) -> Trial:
        return min(self.trials, key=lambda t: t.cv_score)


class HyperparameterSearch(Alignment):
    """Find the prior under which trajectories from low frequencies agree best with the opposite half map at high ones."""

    thoroughness: Any = param.Selector(
        default="fast", objects=["fast", "balanced", "extensive"], doc="Number of rays: 9, 16 or 36."
    )
    max_strength = param.Number(
        default=30000.0, bounds=(0.1, None), inclusive_bounds=(False, True),
        doc="Maximum total prior strength: rays that still move there end there.",
    )  # fmt: skip
    target_particles = param.Integer(
        default=5000, bounds=(1, None), doc="Particles to search with: random micrographs until there are as many."
    )
    seed = param.Integer(default=0, bounds=(0, None), doc="Seed of the random choice of micrographs.")

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change what is found, which is no matter of final trajectories."""
        return {name: value for name, value in super().settings().items() if name != "all_fourier_components"}

    def run(self, data: Dataset | Session, reporter: Reporter | None = None) -> xr.Dataset:
        """Search on a random part of the data and return every ray with its scores; attrs hold the choice.

        Raises
        ------
        InputError
            A movie cannot be used, or no micrograph has two particles.
        """
        session = data if isinstance(data, Session) else Session(data)
        reporter = viewer_of(reporter)
        self._check_scoring(session)
        names, read = self._read(session, reporter)
        k_out = self._resolution(session)
        place = session.place
        cross, power, movie_power, reference_power, particles = np.array(place.values(place.apply(_facts, read))).T
        pool, spread2 = pooled_scale(cross, power)
        prior = self.used_of(replace(default_prior(START, self), grey_scale=pool, scale_spread2=spread2))
        held = []
        while read:  # unscaled windows make room for scaled ones, one by one
            held += place.apply(_scaled, [read.pop(0)], [prior])
        power_of_all = float(movie_power.sum() * reference_power.sum())
        everything = Searched(place, held, tuple(names), int(particles.sum()), power_of_all, self.relion)
        rays = self._walk(everything, prior, k_out, reporter)
        best = self._refine(everything, rays, k_out, reporter)
        table = self._table(rays, best, everything, k_out)
        return table.assign_attrs(micrographs_key=session.keys.of(table.attrs["micrographs"]))

    def _resolution(self, session: Session) -> float:
        return max(r.k_out / r.extent_A for r in session.references(self.relion))

    def _check_scoring(self, session: Session) -> None:
        """Refuse a search without Fourier components to score by before any movie is read; warn of one with few."""
        extent = session.extent_A(self)
        k_out = max(r.k_out_of(extent) for r in session.references(self.relion))
        if (n := len(self.held_out(k_out))) < FEW_SHELLS:
            session.warnings.append(f"alignment_fraction {self.alignment_fraction:g} leaves {n} shell{'s' * (n > 1)} of Fourier "
                                    "components to score by, and scores are noisy: give a smaller one")  # fmt: skip

    def _read(self, session: Session, reporter: Reporter) -> tuple[list[str], list[Any]]:
        """Return names of random micrographs and, held, both sets of windows of each."""
        names = [name for name in session if session.particle_count(name) > 1]
        if not names:
            raise InputError("no micrograph has two particles or more; the search needs neighbours to compare")
        visit = partial(session.place.hold, settings=self, task=self._windows)
        read = list(sample(session, names, self.target_particles, self.seed, visit, reporter, "reading movies"))
        if not read:
            raise session.nothing_usable(names)
        kept = session.spool
        reporter.advance(0, kept_in_memory_MB=kept.held_bytes / 1e6, kept_on_disk_MB=kept.spilled_bytes / 1e6)
        return [name for name, _ in read], [held for _, held in read]

    def _windows(self, session: Session, m: Micrograph) -> ReadMicrograph:
        """Return both sets of windows of a micrograph; their values, and what scaling needs, as ``keep`` has room."""
        one = m.distinct()
        raw, score = alignment_windows(one, self, False, session.threads), score_windows(one, self, session.threads)
        raw.windows, score.windows = _kept(session, raw.windows), _kept(session, score.windows)
        for _, arguments in raw.own_noise:
            arguments["ctf"] = session.keep(arguments["ctf"])
        return ReadMicrograph(Geometry.of(one, self.kernel), raw, score)

    def _walk(self, micrographs: Searched, prior: MotionPrior, k_out: float, reporter: Viewer) -> list[_Ray]:
        """Step all live rays outwards until the last has retired, each step from the trajectories of the one before."""
        rays = [_Ray(b, z) for b, z in zip(*ray_table(self.thoroughness))]
        table = strengths(self.max_strength)
        reporter.start(len(table), "searching hyperparameters")
        live, before = list(range(len(rays))), None
        for strength in table:
            priors = [
                prior.with_hyperparameters(Hyperparameters(strength, rays[i].balance, rays[i].distance)) for i in live
            ]
            trials, held = micrographs.try_priors(priors, before, 1e-4)
            for i, trial in zip(live, trials):
                rays[i].trials.append(trial)
                if retired(np.array([t.activity_local for t in rays[i].trials])):
                    rays[i].reason = "no motion left"
            stay = [j for j, i in enumerate(live) if not rays[i].reason]
            live, before = [live[j] for j in stay], (held, stay)
            best = min((ray.best for ray in rays), key=lambda t: t.cv_score)
            reporter.show(lambda: self._table(rays, best, micrographs, k_out))  # noqa: B023  (called at once or never)
            reporter.advance(strength=float(strength), rays=len(live), best=best.cv_score)
            if not live:
                break
        for i in live:
            rays[i].reason = "maximum strength reached"
        reporter.done()
        return rays

    def _refine(self, micrographs: Searched, rays: list[_Ray], k_out: float, reporter: Viewer) -> Trial:
        """Estimate dose profile and common motion by the score on the best rays, then take finer steps along them."""
        leaders = sorted(rays, key=lambda ray: ray.best.cv_score)[:LEADERS]
        reporter.start(3, "refining the prior")
        walked = best = min((ray.best for ray in leaders), key=lambda t: t.cv_score)
        reporter.show(lambda: self._table(rays, walked, micrographs, k_out))  # no ray walks any more
        _, held = micrographs.try_priors([ray.best.prior for ray in leaders])  # to start from
        if self.dose_profile and not self.relion:
            options = [{"profile_decay_e_A2": d, "profile_floor": f} for d, f in PROFILES]
            best = self._pick(micrographs, best, leaders, held, options)
        reporter.advance(best=best.cv_score)
        if self.split_motion and not self.relion:
            options = [{"common_std_A": s, "drift_strength": a} for s, a in COMMON]
            best = self._pick(micrographs, best, leaders, held, options)
        reporter.advance(best=best.cv_score)
        best = min(self._along(micrographs, best.prior, leaders, held, FINE_FACTORS), key=lambda t: t.cv_score)
        reporter.advance(best=best.cv_score)
        reporter.done()
        return best

    def _pick(
        self, micrographs: Searched, best: Trial, leaders: list[_Ray], held: list[Any], options: list[dict[str, float]]
    ) -> Trial:
        """Return the best trial on the leading rays with one or another part of the prior changed."""
        changed = [replace(best.prior, **change) for change in options]  # type: ignore[arg-type]
        trials = [t for prior in changed for t in self._along(micrographs, prior, leaders, held, COARSE_FACTORS)]
        return min(trials, key=lambda t: t.cv_score)

    def _along(
        self, micrographs: Searched, prior: MotionPrior, rays: list[_Ray], held: list[Any], factors: tuple[float, ...]
    ) -> list[Trial]:
        """Try a prior around the best strength of each ray, from what is held of it."""
        priors = [
            prior.with_hyperparameters(
                Hyperparameters(ray.best.prior.hyperparameters.strength * f, ray.balance, ray.distance)
            )
            for ray in rays
            for f in factors
        ]
        return micrographs.try_priors(priors, (held, [i for i in range(len(rays)) for _ in factors]))[0]

    def _table(self, rays: list[_Ray], best: Trial, micrographs: Searched, k_out: float) -> xr.Dataset:
        n_steps = max(len(ray.trials) for ray in rays)

        def padded(name: str) -> np.ndarray:
            out = np.full((len(rays), n_steps), np.nan)
            for row, ray in zip(out, rays):
                row[: len(ray.trials)] = [*map(attrgetter(name), ray.trials)]
            return out

        strength, scores = padded("prior.hyperparameters.strength"), padded("cv_score")
        where = np.unravel_index(np.nanargmin(scores), scores.shape)
        both = ("ray", "step")
        table = xr.Dataset(
            {
                "strength": (both, strength, {"units": "(e/Å²)/Å²", "long_name": "total prior strength"}),
                "cv_score": (both, scores, {"units": "1", "long_name": "cross-validation score (lower is better)"}),
                "activity_local": (
                    both,
                    padded("activity_local"),
                    {"units": "Å", "long_name": "local trajectory activity"},
                ),
                "activity_total": (both, padded("activity_total"), {"units": "Å", "long_name": "trajectory activity"}),
                "retired": ("ray", np.array([ray.reason == "no motion left" for ray in rays])),
                "reason": ("ray", np.array([ray.reason for ray in rays])),
            },
            coords={
                "balance": ("ray", np.array([r.balance for r in rays]), {"units": "degrees", "long_name": "balance"}),
                "distance": (
                    "ray",
                    np.array([r.distance for r in rays]),
                    {"units": "Å", "long_name": "correlation distance"},
                ),
            },
        )
        table.attrs = {
            **prior_attrs(best.prior), "cv_score": best.cv_score, "activity_local": best.activity_local,
            "activity_total": best.activity_total, "best_ray": int(where[0]), "best_step": int(where[1]),
            "k_cut_per_A": self.alignment_fraction**0.5 * k_out, "k_out_per_A": k_out,
            "n_particles": micrographs.n_particles,
            "micrographs": list(micrographs.names), "max_strength": self.max_strength,
            "resolution_A": 1 / k_out, "energy": self.energy,
        }  # fmt: skip
        return table


def _kept(session: Session, windows: Windows) -> Windows:
    return replace(windows, values=session.keep(windows.values))


def still_moving(search: xr.Dataset) -> list[str]:
    """Return a warning if rays ended that still moved and might have got better, else nothing."""
    moving, last = cut_short(*(search[name].values for name in ("activity_local", "cv_score", "retired")))
    if not moving.any():
        return []
    limit = float(search.attrs.get("max_strength", np.nanmax(search["strength"].values)))
    return [
        f"activity has not come near zero on {moving.sum()} of {moving.size} rays: at the maximum total prior strength "
        f"({limit:g}) particles still move up to {last[moving].max():.3g} Å. Raise max_strength."
    ]


def default_prior(hyperparameters: Hyperparameters, settings: Alignment) -> MotionPrior:
    """Return a prior with given hyperparameters and typical values of what a search estimates beside them."""
    (decay, floor), (std_A, drift) = PROFILES[0], COMMON[0]
    return settings.used_of(MotionPrior(hyperparameters, std_A, decay, floor, drift_strength=drift))


def prior_attrs(prior: MotionPrior) -> dict[str, float]:
    """Return a prior as plain numbers."""
    h = prior.hyperparameters
    return {
        "strength": float(h.strength), "balance_deg": float(h.balance_deg), "distance_A": float(h.distance_A),
        "common_std_A": float(prior.common_std_A), "drift_strength": float(prior.drift_strength),
        "profile_decay_e_A2": float(prior.profile_decay_e_A2),
        "profile_floor": float(prior.profile_floor), "grey_scale": float(prior.grey_scale),
        "scale_spread2": float(prior.scale_spread2),
    }  # fmt: skip


def prior_from_attrs(attrs: dict[str, float]) -> MotionPrior:
    """Return the prior that ``prior_attrs`` wrote; what is missing takes the value that does nothing."""
    h = Hyperparameters(float(attrs["strength"]), float(attrs["balance_deg"]), float(attrs["distance_A"]))
    decay = attrs.get("profile_decay_e_A2")
    pool = attrs.get("grey_scale")
    return MotionPrior(
        h, float(attrs.get("common_std_A", 0.0)), np.inf if decay is None else float(decay),
        float(attrs.get("profile_floor", 1.0)), np.nan if pool is None else float(pool),
        float(attrs.get("scale_spread2", 0.0)), float(attrs.get("drift_strength", 0.0)),
    )  # fmt: skip


def prior_of(search: xr.Dataset) -> MotionPrior:
    """Return the prior that a search chose, or that stands in place of a search.

    Raises
    ------
    InputError
        It is no result of a search.
    """
    remedy = "what HyperparameterSearch().run or hand_picked returned"
    attrs = wanted(search, xr.Dataset, "search", remedy).attrs
    if missing := [name for name in ("strength", "balance_deg", "distance_A") if name not in attrs]:
        raise InputError(f"search is a Dataset without {', '.join(missing)} among its attributes; give {remedy}")
    return prior_from_attrs(attrs)


def best(search: xr.Dataset) -> Hyperparameters:
    """Return the hyperparameters a search chose; InputError where it is no result of a search."""
    return prior_of(search).hyperparameters
