"""Correlation windows of a micrograph and the trajectories that fit them best: what search and correction share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import param

from refmotion_nb.data.schema import SettingError
from refmotion_nb.numerics.backend import beside
from refmotion_nb.numerics.correlation import correlation_windows, pixel_grid, spline_grid
from refmotion_nb.numerics.energy import (
    band_cross,
    band_power,
    grant_grigorieff,
    inverse_noise,
    own_noise_share,
    own_noise_windows,
    reference_scale,
    relion_damage,
    spectral_weight,
)
from refmotion_nb.numerics.fourier import raised_cosine
from refmotion_nb.numerics.prior import (
    CommonPrior,
    Hyperparameters,
    PriorModes,
    common_prior,
    dose_modes,
    exponential,
    mode_precisions,
    spatial_modes,
)
from refmotion_nb.numerics.recombine import recombined_band
from refmotion_nb.numerics.trajectories import Solution, TrajectoryProblem, Windows
from refmotion_nb.stages.base import Stage, hash_of
from refmotion_nb.stages.micrograph import Micrograph

MOST_DISTANCES = 64  # whose modes are kept
_PROBE = np.geomspace(0.01, 10.0, 31)  # where kernels are told apart


@dataclass(frozen=True)
class MotionPrior:
    """Hyperparameters with what else the prior is made of, estimated from the data rather than set."""

    hyperparameters: Hyperparameters
    common_std_A: float = 0.0  # of the errors of whole-frame alignment, which the common motion mends; 0: not split off
    profile_decay_e_A2: float = np.inf  # local velocity falls with dose as floor + (1 - floor) exp(-dose / decay)
    profile_floor: float = 1.0
    grey_scale: float = np.nan  # grey scale of the reference against the movies, in their grey units
    scale_spread2: float = 0.0  # variance of it between micrographs
    drift_strength: float = 0.0  # of the acceleration prior on the motion of the whole field, (e/Å²)³/Å²; 0: none

    def profile(self, dose_e_A2: np.ndarray) -> np.ndarray:
        """Return by how much velocities are scaled at each dose."""
        return self.profile_floor + (1 - self.profile_floor) * np.exp(-dose_e_A2 / self.profile_decay_e_A2)

    def with_hyperparameters(self, hyperparameters: Hyperparameters) -> MotionPrior:
        """Return the same prior with other hyperparameters."""
        return replace(self, hyperparameters=hyperparameters)


class Alignment(Stage):
    """Settings of the energy that trajectories minimise; the base of every stage that aligns."""

    energy: Any = param.Selector(
        default="calibrated", objects=["calibrated", "relion"],
        doc="Data term and prior: 'calibrated' (FSC-weighted reference, own noise removed, split motion) or exactly "
        "RELION's, for comparison with its results.",
    )  # fmt: skip
    alignment_fraction = param.Number(
        default=0.5, bounds=(0, 1), inclusive_bounds=(False, True),
        doc="Fraction of the Fourier components up to FSC = 0.143 that align during the search; the rest scores.",
    )  # fmt: skip
    all_fourier_components = param.Boolean(
        default=True,
        doc="Final trajectories use all Fourier components up to FSC = 0.143, weighted by it; off: the search's band.",
    )
    split_motion = param.Boolean(
        default=True,
        doc="Estimate a common displacement per frame beside the local motion (errors of rigid alignment).",
    )
    dose_profile = param.Boolean(default=True, doc="Let the prior's local velocities decay with dose.")
    remove_own_noise = param.Boolean(
        default=True, doc="Take out the noise that each particle left in its own half map at its rigid alignment."
    )
    window_reach_A = param.Number(
        default=10.0, bounds=(1.0, 200.0), doc="Largest displacement (Å) from rigid motion that is looked at."
    )
    box_size = param.Integer(
        default=0, bounds=(0, None),
        doc="Box (px of the movies, of the finest if they differ) in which particles are cut out, compared and written; "
        "0: the reference's physical extent.",
    )  # fmt: skip
    recenter = param.Boolean(default=True, doc="Move boxes by the whole pixels of the refined origins.")
    repair_hot_pixels = param.Boolean(
        default=True, doc="Replace hot and defect pixels; RELION 3.1 does not when it polishes TIFF movies."
    )

    @property
    def relion(self) -> bool:
        """Whether RELION's energy is in use."""
        return self.energy == "relion"

    @property
    def how_read(self) -> tuple[str, ...]:
        """All that the numbers of a micrograph in memory depend on, beside the data."""
        return self.energy, str(self.recenter), str(self.repair_hot_pixels), str(self.box_size)

    def least_box(self, box: int) -> int:
        """Return the box, px, to which patches of ``box`` movie px may be Fourier-cropped for what follows the alignment."""
        return 0

    def kernel(self, ratio: np.ndarray) -> np.ndarray:
        """Return how alike particles move whose distance is ``ratio`` (any shape) times the correlation distance.

        A stage with another prior overrides it: 1 at 0, falling, and of positive type (no negative Fourier component).
        """
        return exponential(ratio)

    def used_of(self, prior: MotionPrior) -> MotionPrior:
        """Return a prior, wherever it was found, without the parts that these settings leave out; RELION's has none of them."""
        if self.relion:
            return MotionPrior(prior.hyperparameters)
        if not self.split_motion:
            prior = replace(prior, common_std_A=0.0, drift_strength=0.0)
        return prior if self.dose_profile else replace(prior, profile_decay_e_A2=np.inf, profile_floor=1.0)

    def k_cut(self, micrograph: Micrograph) -> int:
        """Return the last shell that aligns during the search."""
        return self._k_cut(micrograph.k_out)

    def _k_cut(self, k_out: int) -> int:
        return max(2, int(k_out * np.sqrt(self.alignment_fraction) + (0.5 if self.relion else 0.0)))

    def held_out(self, k_out: int) -> range:
        """Return the shells that score a search, beyond the soft edge of those that align and below ``k_out``.

        Raises
        ------
        SettingError
            There is none.
        """
        shells = range(self._k_cut(k_out) + 2, k_out)
        if not shells:
            most = max(0.0, (k_out - 2.5 if self.relion else k_out - 2) / k_out) ** 2  # that leaves one
            less = f"give less than {int(100 * most) / 100:g}"
            remedy = less if k_out > 4 else "give hyperparameters instead of searching"
            raise SettingError(
                "alignment_fraction", f"is {self.alignment_fraction:g}: the FSC falls below 0.143 at shell {k_out}, and none "
                f"up to there is left to score by; {remedy}"
            )  # fmt: skip
        return shells

    def decay(self, micrograph: Micrograph, n_shells: int) -> np.ndarray:
        """Return how much signal is left in every frame (frame, shell)."""
        frequency, movie = micrograph.frequency(n_shells), micrograph.movie
        if self.relion:
            # RELION counts dose from the first frame on, at the start of each, without pre-exposure
            dose = (movie.first_frame + np.arange(movie.n_frames)) * movie.dose_per_frame_e_A2
            return relion_damage(frequency, dose)
        return grant_grigorieff(frequency, micrograph.mid_dose, movie.voltage_kV)

    def band(self, micrograph: Micrograph, final: bool) -> np.ndarray:
        """Return the spectral weight of the reference (particle or 1, shell) of the search's or the final alignment."""
        shells = np.arange(micrograph.fsc.shape[1])
        if self.relion:
            flat = np.ones((1, len(shells)))
            if final and self.all_fourier_components:
                return flat
            edge = micrograph.k_out if final else self.k_cut(micrograph)
            return flat * raised_cosine(shells + 0.5, edge)  # RELION's is of |k|, of which shells hold the whole part
        edge = micrograph.k_out if final and self.all_fourier_components else self.k_cut(micrograph)
        return spectral_weight(micrograph.fsc, edge)

    def track_key(self, prior: MotionPrior) -> str:
        """Return a hash of all that decides about final trajectories."""
        settings = {name: value for name, value in Stage.settings(self).items() if name in Alignment.param}
        kernel = self.kernel(_PROBE)
        usual = np.array_equal(kernel, exponential(_PROBE))
        return hash_of(settings, asdict(prior), *([] if usual else [np.asarray(kernel).tolist()]))


@dataclass(frozen=True)
class Geometry:
    """What the prior needs to know of a micrograph, and how it correlates neighbours."""

    position_A: np.ndarray  # (particle, 2)
    frame_dose: np.ndarray  # (frame,)
    step_dose: np.ndarray  # (frame - 1,) accumulated dose between frames
    rigid_A: np.ndarray  # (frame, 2)
    initial_A: np.ndarray  # (particle, frame, 2)
    kernel: Callable[[np.ndarray], np.ndarray] = exponential

    _spatial: dict[float, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    _temporal: dict[tuple[float, float], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of(cls, micrograph: Micrograph, kernel: Callable[[np.ndarray], np.ndarray] = exponential) -> Geometry:
        """Return the geometry of a micrograph."""
        m, p = micrograph, micrograph.placement
        return cls(m.position_A, m.frame_dose, m.movie.dose_edges[1:-1], p.rigid_A, p.initial_A, kernel)

    def modes(self, prior: MotionPrior) -> PriorModes:
        """Return the modes of a prior; those of a correlation distance and of a profile are found once."""
        h = prior.hyperparameters
        if h.distance_A not in self._spatial:
            if len(self._spatial) >= MOST_DISTANCES:  # a slider passes many
                self._spatial.clear()
            self._spatial[h.distance_A] = spatial_modes(self.position_A, h.distance_A, self.kernel)
        shape = (prior.profile_decay_e_A2, prior.profile_floor)
        if shape not in self._temporal:
            self._temporal[shape] = dose_modes(self.frame_dose, prior.profile(self.step_dose))
        vectors, values = self._spatial[h.distance_A]
        temporal, beta = self._temporal[shape]
        return PriorModes(vectors, temporal, *mode_precisions(values, beta, h))

    def common(self, prior: MotionPrior, rigid_A: np.ndarray) -> CommonPrior:
        """Return the prior of the common motion relative to ``rigid_A`` (frame, 2)."""
        profile = prior.profile(self.step_dose)
        return common_prior(rigid_A, self.frame_dose, profile, prior.common_std_A, prior.drift_strength)


def trajectory_problem(
    windows: Windows, geometry: Geometry, priors: list[MotionPrior], relion: bool, bend: np.ndarray | None = None,
    threads: int = 1,
) -> TrajectoryProblem:  # fmt: skip
    """Return the trajectory problem under each prior; RELION's prior acts on the total motion, ours on local motion.

    ``bend`` is the curvature (frame,) of the windows at the motion to start from, found now unless given. Common motion is
    under the prior of the first of ``priors``: they are to have this part in common.
    """
    rigid = np.zeros_like(geometry.rigid_A) if relion else geometry.rigid_A
    modes = [geometry.modes(prior) for prior in priors]
    problem = TrajectoryProblem(windows, modes, geometry.common(priors[0], rigid), rigid, threads)
    problem.set_curvature(windows.curvature(geometry.initial_A) if bend is None else bend)
    return problem


def solve(
    windows: Windows, geometry: Geometry, priors: list[MotionPrior], relion: bool, tolerance: float = 1e-5
) -> Solution:
    """Return the trajectories under each prior, started from the motion that motion correction found."""
    problem = trajectory_problem(windows, geometry, priors, relion)
    start = problem.unknowns_of(geometry.initial_A - problem.rigid_A)
    return problem.solve(start, tolerance=1e-9 if relion else tolerance, max_iterations=5000 if relion else 200)


@dataclass
class AlignedWindows:
    """Windows of a micrograph before the grey scale of its reference is known."""

    windows: Windows
    cross: float  # Σ X V* / σ² along the motion that motion correction found
    power: float  # Σ |V|² / σ²: cross / power is the scale
    unit: float = 1.0  # the micrograph's grey unit, in which scales of all micrographs are alike
    own_noise: list[tuple[np.ndarray, dict[str, Any]]] = field(default_factory=list)  # rows, arguments of the function

    @property
    def sums(self) -> tuple[float, float]:
        """``cross`` and ``power`` in grey units, to be compared with those of other micrographs."""
        return self.cross * self.unit, self.power * self.unit**2

    def scale(self, prior: MotionPrior) -> float:
        """Return the grey scale of the reference in this micrograph; its own, where the prior knows of no others."""
        if not np.isfinite(prior.grey_scale):
            return self.cross / self.power
        return self.unit * reference_scale(*self.sums, prior.grey_scale, prior.scale_spread2)

    def on(self, put: Callable[[Any], Any]) -> AlignedWindows:
        """Return the same with its arrays where ``put`` puts them."""
        noise = [(rows, {**arguments, "ctf": put(arguments["ctf"])}) for rows, arguments in self.own_noise]
        return replace(self, windows=self.windows.on(put), own_noise=noise)

    def scaled(self, prior: MotionPrior, threads: int = 1) -> Windows:
        """Return the windows in log-likelihood units, the expected own noise taken out."""
        scale = self.scale(prior)
        values = self.windows.values * np.float32(scale)
        for rows, arguments in self.own_noise:
            noise = own_noise_windows(**arguments, threads=threads)
            noise *= np.float32(scale**2)
            if len(rows) == len(values):  # as nearly always
                values -= noise
            else:
                values[beside(values, rows)] -= noise
        return replace(self.windows, values=values)


def alignment_windows(
    micrograph: Micrograph, settings: Alignment, final: bool, threads: int, reach_A: float | None = None
) -> AlignedWindows:
    """Return the windows of all particles against their own half maps, for the search or the final trajectories."""
    m, spectra = micrograph, micrograph.spectra
    reach_px = (reach_A or settings.window_reach_A) / m.pixel_size_A
    band = settings.band(m, final)
    used = np.flatnonzero(band.max(0) > 0)
    k = min(int(used[-1]), m.own.shape[2] - 1)
    decay = settings.decay(m, k + 1)
    whiten = inverse_noise(m.noise_power)[: k + 1]
    weight = band[:, None, : k + 1] * decay * whiten
    if settings.relion:
        largest = np.abs(m.placement.initial_A).max() / m.pixel_size_A
        grid = pixel_grid(largest + reach_px, spectra.box / m.image_box)
        weight = weight * (m.image_box / (m.image_box + 1.0))
    else:
        grid = spline_grid(k, spectra.box, reach_px)
    values = correlation_windows(spectra, m.own, weight, k, grid, threads)
    centre = spectra.offset_px
    if settings.relion:
        return AlignedWindows(Windows(values.astype(np.float64), grid, centre, m.pixel_size_A), 1.0, 1.0)
    windows = Windows(values, grid, centre, m.pixel_size_A)
    cross = float(windows.sample(m.placement.initial_A[None])[0].sum(dtype=np.float64))
    total = band_power(m.own, k, threads)  # (particle, shell)
    worth = (total * (band[:, : k + 1] * whiten)).sum(0) * decay  # (frame, shell) by which grey scales are averaged
    aligned = AlignedWindows(windows, cross, float((worth * decay).sum()), m.grey_unit)
    if settings.remove_own_noise:
        # half maps are made from dose-weighted sums whose noise is white: each frame's is there in proportion to its dose
        # weight, on the grey scale that signal in proportion to that would have
        kept = decay / np.sqrt((decay**2).sum(0))
        kept *= aligned.power / (worth * kept).sum()
        aligned.own_noise = _own_noise(m, aligned, band[:, : k + 1], decay, kept, whiten, total, threads)
    return aligned


def _own_noise(
    m: Micrograph, aligned: AlignedWindows, band: np.ndarray, decay: np.ndarray, kept: np.ndarray, whiten: np.ndarray,
    total: np.ndarray, threads: int,
) -> list[tuple[np.ndarray, dict[str, Any]]]:  # fmt: skip
    """Return rows and the arguments of ``own_noise_windows`` for each reference, which has a noise of its own.

    How much there is at the rigid alignment is measured, by the half maps' difference: those of particles that were corrected
    hold it elsewhere.
    """
    k, rigid_px = band.shape[1] - 1, m.placement.initial_A / m.pixel_size_A
    offset_px = rigid_px - m.spectra.offset_px
    transfer = band_power(m.ctf, k, threads)
    ctf, own, opposite = (
        one[:, one.shape[2] - 1 - k : one.shape[2] + k, : k + 1] for one in (m.ctf, m.own, m.opposite)
    )
    unequal = own - opposite
    observed = recombined_band(m.spectra, rigid_px, decay, k, threads)
    found = band_cross(observed, unequal, k, threads) * (band * whiten)
    variance = band_power(unequal, k, threads) * (band**2 * whiten * (decay**2).sum(0))
    which, parts = m.particles["reference"].values, []
    for reference in np.unique(which):
        rows = np.flatnonzero(which == reference)
        # power of the half map without the CTF, shell by shell
        passed = transfer[rows].sum(0)
        unmodulated = np.divide(total[rows].sum(0), passed, out=np.zeros(k + 1), where=passed > 0)
        noise_share = (np.clip(1 - m.fsc[rows, : k + 1], 0, 1) * band[rows]).mean(0)
        weight = noise_share * unmodulated * whiten * decay * kept
        expected = float((passed * weight).sum()) * aligned.cross / aligned.power
        weight *= own_noise_share(float(found[rows].sum()), expected, float(variance[rows].sum()))
        parts.append((rows, {"ctf": ctf[beside(ctf, rows)], "weight": weight, "offset_px": offset_px[rows], "k": k,
                             "grid": aligned.windows.grid, "box": m.spectra.box}))  # fmt: skip
    return parts


@dataclass
class ScoreWindows:
    """What the cross-validation score of a micrograph is sampled from: the held-out shells, the opposite half map."""

    windows: Windows
    movie_power: float  # Σ w |X|²
    reference_power: float  # Σ w |V|²
    unit: float = 1.0  # by which V is to be multiplied in sums over micrographs, so that all count alike


def score_windows(micrograph: Micrograph, settings: Alignment, threads: int) -> ScoreWindows:
    """Return windows of the shells held out, up to FSC = 0.143, against the opposite half maps.

    Their score is the cosine RELION trains on, but for shells: here they hold the whole part of |k|, RELION rounds it, so that
    its band begins and ends half a shell lower (scores of the apoferritin set differ by some per cent, either way).

    Raises
    ------
    SettingError
        No shell is held out.
    """
    m, spectra = micrograph, micrograph.spectra
    k = min(m.k_out, m.opposite.shape[2] - 1)
    shells = np.arange(k + 1)
    band = np.isin(shells, settings.held_out(k))
    decay = settings.decay(m, k + 1)
    whiten = inverse_noise(m.noise_power)[: k + 1]
    if settings.relion:
        weight = (decay * (band * np.sqrt(whiten)))[None]
    else:
        weight = decay * (band * whiten * np.clip(m.fsc[:, : k + 1], 0, 1))[:, None]
    grid = spline_grid(k, spectra.box, settings.window_reach_A / m.pixel_size_A)
    values = correlation_windows(spectra, m.opposite, weight, k, grid, threads)
    windows = Windows(values, grid, spectra.offset_px, m.pixel_size_A)
    over_frames = np.broadcast_to(weight.sum(1), (m.n, k + 1))
    reference = float((band_power(m.opposite, k, threads) * over_frames).sum())
    power = m.noise_power[: k + 1] * np.pi * (2 * shells + 1)  # Σ |X|² of a shell
    return ScoreWindows(windows, float((power * over_frames).sum()), reference, 1.0 if settings.relion else m.grey_unit)


@dataclass(frozen=True)
class Tracks:
    """Final trajectories of a micrograph."""

    displacement_A: np.ndarray  # (particle, frame, 2) from the coordinate
    common_A: np.ndarray  # (frame, 2) relative to rigid
    rigid_A: np.ndarray  # (frame, 2)
    scale: float  # grey scale of the reference, of that in all micrographs
    edge_hits: int  # particles and frames that left the window even after it was widened


def displacement_std(
    micrograph: Micrograph, settings: Alignment, prior: MotionPrior, tracks: Tracks, threads: int
) -> np.ndarray:
    """Return the posterior standard deviation (particle, frame), Å, along either axis, of the final trajectories.

    It counts on the prior and on the weights of the reference, which are cautious: true errors of simulated movies are
    about three quarters of it.
    """
    rows, position = micrograph.representatives
    micrograph = micrograph.distinct()
    prior = settings.used_of(prior)
    windows = alignment_windows(micrograph, settings, True, threads).scaled(prior, threads)
    problem = trajectory_problem(windows, Geometry.of(micrograph, settings.kernel), [prior], settings.relion)
    return problem.displacement_std(windows.curvature(tracks.displacement_A[rows]))[position]


def track(micrograph: Micrograph, settings: Alignment, prior: MotionPrior, threads: int) -> Tracks:
    """Return the trajectories of a micrograph's particles; windows that turn out too small are widened twice."""
    if settings.relion and micrograph.n == 1:  # RELION leaves it where motion correction saw it
        at = micrograph.placement
        return Tracks(at.initial_A, np.zeros_like(at.rigid_A), at.rigid_A, 1.0, 0)
    _, position = micrograph.representatives
    micrograph, prior = micrograph.distinct(), settings.used_of(prior)
    geometry = Geometry.of(micrograph, settings.kernel)
    reach = settings.window_reach_A
    for attempt in range(3):
        raw = alignment_windows(micrograph, settings, True, threads, reach * 2**attempt)
        windows = raw.scaled(prior, threads)
        solution = solve(windows, geometry, [prior], settings.relion)
        hits = int(windows.edge_hits(solution.displacement_A[0]).sum())
        if not hits:
            break
    usual = raw.unit * prior.grey_scale
    scale = raw.scale(prior) / usual if np.isfinite(usual) else 1.0
    return Tracks(solution.displacement_A[0][position], solution.common_A[0], geometry.rigid_A, scale, hits)
