"""What both views of the prior explorer show: where its sliders stand, what is drawn, what was tried, in words.

Moves are handed to one thread that solves for the newest position only; what it finds is published as one immutable
snapshot, and listeners are told that there is one. Views read it when it suits them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Condition, Thread

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.numerics.rays import FIRST_STRENGTH
from refmotion_nb.stages.base import Reporter
from refmotion_nb.stages.exploration import PriorExploration
from refmotion_nb.stages.search import HyperparameterSearch, prior_of
from refmotion_nb.stages.session import Session
from refmotion_nb.views.explorer_words import words
from refmotion_nb.views.scale import round_down

DISTANCES_A = (200.0, 50000.0)  # limits of the slider
REST_S = 0.15  # without a move, after which trajectories are found again from the usual start
MOST_TRIED = 400  # kept of what was tried
_FACTORS = (1, 2, 5)


@dataclass(frozen=True)
class Tried:
    """One set of hyperparameters that was tried on this micrograph, and what came of it."""

    hyperparameters: Hyperparameters
    cv_score: float
    activity_local: float  # Å
    activity_total: float  # Å


@dataclass(frozen=True)
class Snapshot:
    """The state of an explorer at one moment; ``version`` grows."""

    version: int
    tracks: xr.Dataset
    now: Tried
    trail: tuple[Tried, ...]
    pinned: Tried | None = None
    pinned_tracks: xr.Dataset | None = None
    whole: bool = False  # all motion is drawn, not only what is local
    magnified: float = 1.0
    error: str = ""


class ExplorerModel:
    """One micrograph's exploration with sliders: thread-safe, shared by any number of views."""

    def __init__(self, exploration: PriorExploration, best: Hyperparameters | None = None):
        """Start at ``best``, what a search chose, or where a search would begin."""
        self.exploration = exploration
        self.best = best
        self.strengths = (FIRST_STRENGTH, float(exploration.settings.max_strength))
        start = exploration.prior.hyperparameters if best is None else best
        tracks = exploration.at(start)
        now = _tried(start, tracks)
        self.at_best = None if best is None else now
        self._changed = Condition()
        self._wanted = start
        self._waiting: Hyperparameters | None = None
        self._thread: Thread | None = None
        self._listeners: list[Callable[[], None]] = []
        self.snapshot = Snapshot(0, tracks, now, (now,), magnified=suitable(tracks))

    @classmethod
    def of(
        cls,
        data: Dataset | Session,
        search: xr.Dataset | None = None,
        micrograph: str | None = None,
        settings: HyperparameterSearch | None = None,
        reporter: Reporter | None = None,
    ) -> ExplorerModel:
        """Prepare a micrograph of ``data`` and start at what ``search`` chose, if it is given.

        Raises
        ------
        InputError
            The micrograph cannot be explored, or the search was made with the other energy.
        """
        settings = settings or HyperparameterSearch(energy="calibrated" if search is None else _energy(search))
        if search is not None and _energy(search) != settings.energy:
            raise InputError(
                f"the search is of the {_energy(search)} energy; give settings with energy={_energy(search)!r}"
            )
        prior = None if search is None else prior_of(search)
        exploration = PriorExploration.prepare(data, micrograph, settings, prior, reporter)
        return cls(exploration, None if prior is None else prior.hyperparameters)

    # where the sliders stand

    @property
    def wanted(self) -> Hyperparameters:
        """Where the sliders stand; the snapshot follows."""
        return self._wanted

    @property
    def relion(self) -> tuple[float, float, float]:
        """Where the sliders stand in RELION's units (s_vel, s_div, s_acc), for this movie's dose per frame."""
        return self._wanted.to_relion(self.exploration.dose_per_frame_e_A2)

    @property
    def relion_limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the range of s_vel and of s_acc: of the strengths' limits, and a tenth of the weakest."""
        dose = self.exploration.dose_per_frame_e_A2
        both = [
            Hyperparameters.from_strengths(r, 1.0, r).to_relion(dose)
            for r in (self.strengths[1], self.strengths[0] / 10)
        ]
        return (both[0][0], both[1][0]), (both[0][2], both[1][2])

    def move(
        self, strength: float | None = None, balance_deg: float | None = None, distance_A: float | None = None
    ) -> Hyperparameters:
        """Move the sliders, at most to their ends; the trajectories follow in the background."""
        old = self._wanted
        return self.go_to(
            Hyperparameters(
                old.strength if strength is None else strength,
                old.balance_deg if balance_deg is None else balance_deg,
                old.distance_A if distance_A is None else distance_A,
            )
        )

    def move_relion(
        self, s_vel: float | None = None, s_div: float | None = None, s_acc: float | None = None
    ) -> Hyperparameters:
        """Move the sliders of RELION's units; those not given stay where they are."""
        given = (s_vel, s_div, s_acc)
        s_vel, s_div, s_acc = (old if new is None else new for new, old in zip(given, self.relion))
        return self.go_to(Hyperparameters.from_relion(s_vel, s_div, s_acc, self.exploration.dose_per_frame_e_A2))

    def go_to(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """Move all sliders at once; return where they stand."""
        h = Hyperparameters(
            _within(hyperparameters.strength, self.strengths), _within(hyperparameters.balance_deg, (0.0, 90.0)),
            _within(hyperparameters.distance_A, DISTANCES_A),
        )  # fmt: skip
        with self._changed:
            self._wanted = self._waiting = h
            self._changed.notify_all()
            if self._thread is None:
                self._thread = Thread(target=self._follow, name="prior explorer", daemon=True)
                self._thread.start()
        return h

    def back_to_best(self) -> Hyperparameters:
        """Move to what the search chose, else to the best that was tried here."""
        best = self.best or min(self.snapshot.trail, key=lambda one: one.cv_score).hyperparameters
        return self.go_to(best)

    def _follow(self) -> None:
        """Solve for the newest position until there is none; positions passed meanwhile are dropped."""
        try:
            while (target := self._next()) is not None:
                try:
                    self._show(target, self.exploration.near(target))
                    if self._rests():
                        self._show(target, self.exploration.at(target))
                except Exception as error:  # shown where the sliders are
                    self._publish(error=f"no trajectories there: {error}")
        except BaseException:  # of a listener: the next move starts afresh
            self._ended()
            raise

    def _show(self, h: Hyperparameters, tracks: xr.Dataset) -> None:
        now, trail = _tried(h, tracks), self.snapshot.trail  # which this thread only changes
        if trail[-1].hyperparameters == h:  # the same again, from the usual start
            trail = trail[:-1]
        self._publish(tracks=tracks, now=now, trail=(*trail, now)[-MOST_TRIED:], error="")

    def _rests(self) -> bool:
        """Return whether no slider is moved for a moment."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._waiting is not None, REST_S)

    def _next(self) -> Hyperparameters | None:
        with self._changed:
            target, self._waiting = self._waiting, None
            if target is None:
                self._ended()
            return target

    def _ended(self) -> None:
        with self._changed:
            self._thread = None
            self._changed.notify_all()

    def settle(self, timeout: float | None = None) -> Snapshot:
        """Return the snapshot of where the sliders stand, once it is final."""
        return self._when(lambda: self._thread is None, timeout)

    def shown(self, timeout: float | None = None) -> Snapshot:
        """Return the snapshot of where the sliders stand, once there is one: from the last solution, soon found again."""
        return self._when(lambda: self._thread is None or self.snapshot.now.hyperparameters == self._wanted, timeout)

    def _when(self, true: Callable[[], bool], timeout: float | None) -> Snapshot:
        with self._changed:
            if not self._changed.wait_for(true, timeout):
                raise TimeoutError("the trajectories have not been found in time")
        return self.snapshot

    # what is compared, and how it is drawn

    def pin(self) -> None:
        """Keep the present trajectories to compare with."""
        self._publish(pinned=self.snapshot.now, pinned_tracks=self.snapshot.tracks)

    def unpin(self) -> None:
        """Take the pinned trajectories away."""
        self._publish(pinned=None, pinned_tracks=None)

    def show(self, whole: bool | None = None, magnified: float | None = None) -> None:
        """Draw all motion instead of local motion, or draw it larger."""
        old = self.snapshot
        self._publish(whole=old.whole if whole is None else whole,
                      magnified=old.magnified if magnified is None else float(magnified))  # fmt: skip

    @property
    def magnifications(self) -> list[float]:
        """Return the magnifications to choose from."""
        most = np.log10(self.snapshot.magnified)
        powers = range(int(np.floor(most)) - 1, int(np.floor(most)) + 2)
        return sorted(
            {float(f * 10.0**p) for p in powers for f in _FACTORS if f * 10.0**p >= 1} | {self.snapshot.magnified}
        )

    def words(self, snapshot: Snapshot | None = None) -> list[str]:
        """Return what the numbers of a snapshot (by default the present one) mean, in sentences (not escaped)."""
        return words(snapshot or self.snapshot, self.at_best, self.exploration)

    def _publish(self, **changes: object) -> None:
        with self._changed:
            self.snapshot = replace(self.snapshot, version=self.snapshot.version + 1, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def watch(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` whenever there is a new snapshot, from any thread; return what ends that."""
        with self._changed:
            self._listeners.append(listener)

        def stop() -> None:
            with self._changed:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop


def paths_A(tracks: xr.Dataset, whole: bool) -> np.ndarray:
    """Return motion from the first frame on (particle, frame, 2) Å: all of it, or what is local."""
    shift = tracks["shift"].values
    if not whole:
        shift = shift - (tracks["rigid"].values + tracks["common"].values)
    return shift - shift[:, :1]


def suitable(tracks: xr.Dataset) -> float:
    """Return the magnification under which long local trajectories span a tenth of the micrograph."""
    length = float(np.percentile(np.ptp(paths_A(tracks, False), axis=1).max(-1), 90))
    if not length > 0:
        return 1.0
    return max(1.0, round_down(0.1 * float(tracks.attrs["width_A"]) / length))


def _tried(h: Hyperparameters, tracks: xr.Dataset) -> Tried:
    return Tried(h, *(float(tracks.attrs[name]) for name in ("cv_score", "activity_local", "activity_total")))


def _energy(search: xr.Dataset) -> str:
    return str(search.attrs.get("energy", "calibrated"))


def _within(value: float, limits: tuple[float, float]) -> float:
    return float(np.clip(value, *limits))
