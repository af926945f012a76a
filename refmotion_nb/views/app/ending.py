"""How work ended that did not end well, in words: what the tab that started it shows, without widgets."""

from __future__ import annotations

from errno import EDQUOT, ENOSPC
from html import escape
from typing import Any

from refmotion_nb.data.schema import InputError
from refmotion_nb.stages.base import Stage
from refmotion_nb.stages.job import Job
from refmotion_nb.stages.runs import Run


def latest(engine: Any, kind: type[Stage], *until: str) -> Run | None:
    """Return the latest run of a kind of stage; None if a job up to one of these stages came later and has none."""
    runs = (run for run in reversed(engine.runs) if type(run.stage) is kind or _until(run) in until)
    run = next(runs, None)
    return run if run is not None and type(run.stage) is kind else None


def last_ended(engine: Any, kind: type[Stage], *until: str) -> Run | None:
    """Return what ended last of the jobs up to one of these stages and of the runs of ``kind``; None if one goes on."""
    runs = [run for run in engine.runs if type(run.stage) is kind or _until(run) in until]
    if not runs or any(not run.snapshot.ended for run in runs):
        return None
    return max(runs, key=lambda run: run.ended_at or 0.0)


def _until(run: Run) -> str:
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
    if error is None or isinstance(error, InputError):
        return run.error
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    full = error.errno in (ENOSPC, EDQUOT)
    remedy = "make room and start it again: it goes on where it stopped" if full else "check the path"
    return f"{error.filename or 'the output folder'}: {error.strerror or error}; {remedy}"
