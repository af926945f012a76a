"""How a run stands, in words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refmotion_nb.views.report_html import duration
from refmotion_nb.views.svg import number

if TYPE_CHECKING:
    from refmotion_nb.stages.runs import Run, Work

_SAID = {
    "strength": "prior strength {} (e/Å²)/Å²", "rays": "{} rays walking", "best": "best score {}",
    "micrograph": "micrograph {}", "particles": "{} particles", "failed": "could not be used: {}",
    "combination": "combination {}", "kept_in_memory_MB": "{} MB in memory", "kept_on_disk_MB": "{} MB on disk",
    "from_an_earlier_run": "{} micrographs were done by an earlier run", "resolution_A": "resolution {} Å",
}  # fmt: skip
_DIGITS = {"best": 5}
_BRIEF = ("strength", "rays", "best", "particles", "combination")


def state_of(run: Run) -> str:
    """Return how a run stands; the first word is its state."""
    seconds = run.seconds if run.seconds is not None else time.perf_counter() - run.started
    if run.stopping:
        return "stopping at its next report"
    if run.state == "paused":
        return f"paused, begun {clock(seconds)} ago"
    if run.state in ("running", "waiting"):
        return f"{run.state} for {clock(seconds)}"
    return f"{run.state} {'in' if run.state == 'done' else 'after'} {duration(seconds)}"


def clock(seconds: float) -> str:
    """Return a time that goes on: in whole seconds."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def roughly(seconds: float) -> str:
    """Return an estimated time: in one unit."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def how_far(work: Work, at_work: bool = True) -> str:
    """Return how far a piece of work has come, and how fast; its time left only while somebody is ``at_work``."""
    done = f"{work.done:,} of {work.total:,} {work.units}".rstrip()
    rate = f", {number(60 * work.rate_per_s)} per minute" if work.rate_per_s is not None else ""
    if work.seconds is not None:
        return f"{done} in {duration(work.seconds)}" + rate * (work.seconds >= 1)
    if not at_work or work.seconds_left is None:
        return done
    return f"{done}{rate}, about {clock(work.seconds_left)} left"


def told(facts: Mapping[str, Any]) -> str:
    """Return facts as people say them."""
    said = []
    for name, value in facts.items():
        text = value if isinstance(value, str) else number(value, _DIGITS.get(name, 3))
        said.append(_SAID.get(name, name.replace("_", " ") + " {}").format(text))
    return ", ".join(said)


def told_briefly(facts: Mapping[str, Any]) -> str:
    """Return the facts that fit beside a bar."""
    return told({name: facts[name] for name in _BRIEF if name in facts})
