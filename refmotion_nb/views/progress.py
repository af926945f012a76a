"""Progress of stages that are given no reporter: a panel in notebooks, a bar in terminals, nothing in scripts unless asked.

The rooms below know nothing of it: ``attach`` gives stages, jobs and runs what is shown of them, as ``reprs`` does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from refmotion_nb.stages.runs import Reporter, Run, Silent, Work
from refmotion_nb.views.run_words import told_briefly

HOW = ("auto", "panel", "bar", "off")
_REPORTING = (("stages.base", "Stage"), ("stages.job", "Job"), ("data.synthetic.simulate", "Simulation"))


class Bar:
    """A reporter that draws a bar with tqdm for each piece of work: of text on stderr, or of widgets in a notebook."""

    def __init__(self) -> None:
        self._bar: Any = None

    @contextmanager
    def watching(self, run: Run) -> Iterator[None]:
        """Leave no bar open, whichever way the run ends."""
        try:
            yield
        finally:
            self.done()

    def start(self, total: int, what: str) -> None:
        """Begin a bar."""
        self.done()
        self._bar = drawn(_tqdm(), total, what)

    def advance(self, n: int = 1, **facts: Any) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.set_postfix_str(told_briefly(facts), refresh=False)
            move(self._bar, n, found="from_an_earlier_run" in facts)

    def done(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            end(self._bar)
            self._bar = None


def drawn(kind: Any, total: int, what: str, **options: Any) -> Any:
    """Return a bar of a ``kind`` of tqdm's that tells speed and time left as ``Work`` does, to be moved on and ended here.

    tqdm itself would count what is read and compiled before the first unit is done: of 3000 that take 2 s each, days.
    """

    def told(bar: Any) -> dict[str, Any]:
        return {**kind.format_dict.fget(bar), "rate": bar.work.rate_per_s or 0.0}  # 0: not known yet

    clock = time.perf_counter
    content = {"format_dict": property(told), "work": Work(what, total, started=clock(), clock=clock)}
    return type(kind.__name__, (kind,), content)(total=total, desc=what, leave=True, dynamic_ncols=True, **options)


def end(bar: Any) -> None:
    """Close a bar; its speed is that of all that was done."""
    bar.work = replace(bar.work, seconds=bar.work.elapsed_s)
    bar.close()


def move(bar: Any, n: int, found: bool) -> None:
    """Move a bar on by ``n`` units; those ``found`` done say nothing about speed."""
    bar.work = bar.work.advanced(n, {"from_an_earlier_run": n} if found else {})
    if found:
        bar.initial += n
        bar.n += n
        bar.last_print_n = bar.n
        bar.refresh()
    else:
        bar.update(n)


class Panel(Silent):
    """A reporter that shows a panel in the notebook, which follows the run by itself."""

    def watching(self, run: Run) -> AbstractContextManager[None]:
        """Show the panel while the run goes on, its final state afterwards."""
        from refmotion_nb.views.widgets.run_panel import RunPanel

        return RunPanel(run).shown()


def progress(how: str = "auto") -> None:
    """Choose how stages and jobs that are run without a reporter show their progress.

    ``how`` is ``"bar"`` (a tqdm bar, on stderr outside notebooks), ``"panel"`` (in a notebook: bars, throughput, time left,
    live rays), ``"off"`` (nothing), or ``"auto"``, as it is at first: a panel in notebooks, a bar in interactive
    terminals, nothing in scripts and in notebooks that are executed with nobody there. Runs of ``session.submit`` show
    themselves where they are displayed.

    Raises
    ------
    InputError
        ``how`` is none of these, or a panel is asked for where there is no notebook.
    """
    from refmotion_nb.data.schema import InputError
    from refmotion_nb.data.synthetic.simulate import Simulation
    from refmotion_nb.stages.base import Stage
    from refmotion_nb.stages.job import Job

    if how not in HOW:
        raise InputError(f"progress {how!r} is not known; give one of {', '.join(HOW)}")
    if how == "panel" and not in_notebook():
        raise InputError("progress 'panel' needs a notebook with ipywidgets; give 'bar'")
    for kind in (Stage, Job):
        _give(kind, {"auto": automatic, "panel": Panel, "bar": Bar, "off": Silent}[how])
    _give(Simulation, {"auto": bar_for_people, "panel": Bar, "bar": Bar, "off": Silent}[how])


def automatic() -> Reporter:
    """Return the reporter that suits who is there."""
    return Panel() if in_notebook() else bar_for_people()


def bar_for_people() -> Reporter:
    """Return a bar if somebody is there, in a notebook or a terminal, to see it."""
    shell = _shell()
    return Bar() if (hasattr(sys, "ps1") if shell is None else _attended(shell)) else Silent()


def in_notebook() -> bool:
    """Return whether somebody looks at a notebook in which widgets work: Jupyter, VS Code or Colab."""
    shell = _shell()
    if shell is None or not hasattr(shell, "kernel") or not _attended(shell) or find_spec("ipywidgets") is None:
        return False
    # the kernel is not told what it serves: consoles use the same, and set none of these
    return any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD", "COLAB_RELEASE_TAG"))


def attach() -> None:
    """Give stages and jobs that are imported their default reporter, and runs what notebooks show of them."""
    for module, name in _REPORTING:
        kind = getattr(sys.modules.get(f"refmotion_nb.{module}"), name, None)
        if kind is not None and "_progress" not in vars(kind):
            _give(kind, bar_for_people if name == "Simulation" else automatic)
    if "_ipython_display_" not in vars(Run):
        type.__setattr__(Run, "_ipython_display_", _display)


def _give(kind: type, reporter: Callable[[], Reporter]) -> None:
    type.__setattr__(kind, "new_reporter", staticmethod(reporter))
    type.__setattr__(kind, "_progress", True)


def _display(run: Run) -> None:
    """Show a live panel of a run that has not ended; what has ended, or is shown elsewhere, has a page."""
    if run.snapshot.ended or not in_notebook():
        raise NotImplementedError  # IPython then takes the other reprs
    from refmotion_nb.views.widgets.run_panel import RunPanel

    RunPanel(run, buttons=True).show()


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _attended(shell: Any) -> bool:
    """Return whether somebody could answer: programs that execute notebooks tell the kernel that nobody can."""
    if not hasattr(shell, "kernel"):
        return True  # a terminal
    return bool(shell.get_parent().get("content", {}).get("allow_stdin", False))


def _tqdm() -> Any:
    if in_notebook():
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm
