"""How work ended that did not end well, in words: what the tab that started it shows, without widgets."""

from __future__ import annotations

from html import escape
from typing import Any

from refmotion_nb.data.schema import InputError, OutputError, failure_in_words
from refmotion_nb.stages.base import Stage
from refmotion_nb.stages.job import Job
from refmotion_nb.stages.runs import Run


def latest(engine: Any, kind: type[Stage], *until: str) -> Run | None:
    """Return the latest run of a kind of stage; None if a job up to one of these stages came later and has none."""
    runs = (run for run in reversed(engine.runs) if type(run.stage) is kind or until_of(run) in until)
    run = next(runs, None)
    return run if run is not None and type(run.stage) is kind else None


def last_ended(engine: Any, kind: type[Stage], *until: str) -> Run | None:
    """Return what ended last of the jobs up to one of these stages and of the runs of ``kind``; None if one goes on."""
    runs = [run for run in engine.runs if type(run.stage) is kind or until_of(run) in until]
    if not runs or any(not run.snapshot.ended for run in runs):
        return None
    return max(runs, key=lambda run: run.ended_at or 0.0)


def until_of(run: Run) -> str:
    """Return the last stage that a job was started for; nothing for other runs."""
    return str((*run.inputs, "correct")[0]) if isinstance(run.stage, Job) else ""


def told(run: Run | None) -> str:
    """Return the HTML of why a run failed and what to do, or that it was cancelled; nothing if it ended well."""
    if run is not None and run.state == "failed":
        return f'<p role="alert"><b>The run failed.</b> {escape(why(run))}</p>'
    if run is not None and run.state == "cancelled":
        return "<p><b>The run was cancelled.</b> What is finished is kept; started again, it goes on from there.</p>"
    return ""


def why(run: Run) -> str:
    """Return why a run failed, with the remedy."""
    error = run.exception
    if isinstance(error, OutputError) and isinstance(run.stage, Job):  # what is opened lies elsewhere
        return f"{error}, or choose another output folder on the Data tab"
    if isinstance(error, OSError | MemoryError):
        return failure_in_words(error, "start it again", "choose a smaller cache_size_GB on the Settings tab")
    if error is None or isinstance(error, InputError):
        return run.error
    return f"{type(error).__name__}: {error}"
