"""What a correction will cost, from what earlier work on the same data took."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.correction import MotionCorrection
from refmotion_nb.stages.describe import describes
from refmotion_nb.stages.dose_weights import DoseWeights
from refmotion_nb.stages.runs import Run
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.stages.session import Session

# in this order of preference: the work itself, the same reading and aligning, the same reading
BASES = (
    (MotionCorrection, "correcting"),
    (DoseWeights, "measuring dose weights"),
    (HyperparameterSearch, "reading movies"),
)


@dataclass(frozen=True)
class Cost:
    """Time and disk of a correction."""

    micrographs: int  # still to be done
    particles: int
    finished: (
        int  # micrographs that lie in the output folder already; whether their settings still hold shows on the way
    )
    seconds_per_micrograph: float | None  # None: nothing has been measured yet
    basis: str  # what was measured
    bytes_needed: int
    bytes_free: int

    @property
    def seconds(self) -> float | None:
        """Time that is left, s."""
        return None if self.seconds_per_micrograph is None else self.micrographs * self.seconds_per_micrograph


def cost_of_correction(session: Session, correction: MotionCorrection, out: Path) -> Cost:
    """Return what correcting all micrographs that are not in ``out`` yet will take.

    Raises
    ------
    InputError
        The settings of ``correction`` do not fit the data.
    """
    store = ResultStore(out / "results.zarr")
    inputs = store.attrs.get("inputs")
    ours = inputs is None or describes(inputs, session.data)
    left = [
        name for name in session
        if not (ours and (out / "Particles" / f"{name}.mrcs").exists() and store.has(f"tracks/{name}"))
    ]  # fmt: skip
    seconds, basis = measured(session.runs)
    if seconds is None and ours:
        seconds, basis = recorded(store)
    boxes = correction.output_boxes(session.data)
    pixels = sum(session.particle_count(name) * boxes[session.micrographs[name][0].pixel_size_A] ** 2 for name in left)
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    return Cost(
        len(left), sum(map(session.particle_count, left)), len(session.micrographs) - len(left), seconds, basis,
        pixels * (2 if correction.float16 else 4), shutil.disk_usage(there).free,
    )  # fmt: skip


def measured(runs: list[Run]) -> tuple[float | None, str]:
    """Return the seconds that a micrograph took in the latest run that tells best, and what was done with it."""
    for kind, what in BASES:
        for run in reversed(runs):
            if type(run.stage) is kind:
                times = [work.seconds / work.done for work in run.snapshot.works[:1] if work.seconds and work.done]
                if kind is MotionCorrection:
                    n = len(run.snapshot.micrographs)
                    times = [run.seconds / n] if run.seconds and n else []
                if times:
                    return times[0], what
    return None, ""


def recorded(store: ResultStore) -> tuple[float | None, str]:
    """Return the seconds that a micrograph took when the dose weights in a store were measured, and what was done with it."""
    weights = store.read("dose_weights", lazy=True)
    seconds = store.attrs.get("seconds", {}).get("dose weights")
    names = weights.attrs.get("micrographs") if weights is not None else None
    return (seconds / len(names), "measuring dose weights in an earlier run") if seconds and names else (None, "")
