"""What a command says, on the screen and in its log."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from refmotion_nb.data.files import naming
from refmotion_nb.views.progress import move


class Console:
    """Progress on stderr, everything in run.log; a reporter."""

    def __init__(self, log: Path):
        self._log = open(log, "a", encoding="utf-8", errors="backslashreplace")
        self._bar: Any = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *problem: object) -> None:
        if problem[1] is not None:
            with suppress(OSError):  # the disk may be full: what is told is what stopped the work
                self._write(f"stopped: {str(problem[1]) or 'by the user'}")
        self.done()
        self._log.close()

    def _write(self, text: str) -> None:
        with naming(self._log.name):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._log.flush()

    def say(self, text: str, log_only: bool = False) -> None:
        """Tell the user and the log."""
        self._write(text)
        if not log_only:
            print(text, file=sys.stderr)

    def start(self, total: int, what: str) -> None:
        """Begin a progress bar."""
        self._write(what)
        self._bar = tqdm(total=total, desc=what, file=sys.stderr, leave=True, dynamic_ncols=True)

    def advance(self, n: int = 1, **facts: Any) -> None:
        """Move the bar on; facts go to the log."""
        self._write("  " + ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()))
        if self._bar is not None:
            move(self._bar, n, found="from_an_earlier_run" in facts)

    def done(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
