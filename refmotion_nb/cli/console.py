"""What a command says, on the screen and in its log."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from refmotion_nb.data.files import naming
from refmotion_nb.views.progress import drawn, end, move

IN_FILE_S = 10.0  # between states of a bar where stderr is a file, as in batch systems: hours of work would fill it


class Console:
    """Progress on stderr or another ``screen``, everything in a log; a reporter.

    The log begins with the work: what was said before waits for it. A command that is refused leaves none, nor does it
    write into that of another one, which holds the folder.
    """

    def __init__(self, log: Path, screen: TextIO | None = None):
        self._path = log
        self._screen = screen or sys.stderr
        self._log: TextIO | None = None
        self._waiting: list[str] = []
        self._bar: Any = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *problem: object) -> None:
        if problem[1] is None and self._waiting:
            self._begin()
        if problem[1] is not None and self._log:
            with suppress(OSError):  # the disk may be full: what is told is what stopped the work
                self._write(f"stopped: {str(problem[1]) or 'by the user'}")
        self.done()
        if self._log:
            self._log.close()

    def _begin(self) -> None:
        """Open the log, unless it is."""
        if self._log is None:
            self._log = open(self._path, "a", encoding="utf-8", errors="backslashreplace")
            waiting, self._waiting = self._waiting, []
            self._put("".join(waiting))

    def _write(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        if self._log is None:
            self._waiting.append(line)
        else:
            self._put(line)

    def _put(self, text: str) -> None:
        assert self._log is not None
        with naming(self._path):
            self._log.write(text)
            self._log.flush()

    def say(self, text: str, log_only: bool = False) -> None:
        """Tell the user and the log."""
        self._write(text)
        if not log_only:
            print(text, file=self._screen, flush=True)

    def start(self, total: int, what: str) -> None:
        """Begin a progress bar, and the log if it has not begun."""
        self._begin()
        self._write(what)
        every_s = 0.1 if self._screen.isatty() else IN_FILE_S
        self._bar = drawn(tqdm, total, what, file=self._screen, mininterval=every_s)

    def advance(self, n: int = 1, **facts: Any) -> None:
        """Move the bar on; facts go to the log."""
        self._write("  " + ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()))
        if self._bar is not None:
            move(self._bar, n, found="from_an_earlier_run" in facts)

    def done(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            end(self._bar)
            self._bar = None
