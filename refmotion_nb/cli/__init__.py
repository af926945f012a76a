"""The command line: every parameter of the stages is an option of the same name."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from threading import current_thread, main_thread

from refmotion_nb.cli.options import option_of
from refmotion_nb.cli.parser import parsed
from refmotion_nb.data.schema import InputError, OutputError, SettingError, failure_in_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line, the exit code is 0 only if everything asked for was written."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # terminals that know no Å get its number
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if wrong := [word for word in arguments if not _is_text(word)]:  # what is written could not name it
        print(f"refmotion: {wrong[0]} is not UTF-8; rename it (convmv --notest -f latin1 -t utf-8)", file=sys.stderr)
        return 1
    code = 1
    try:
        with _told_to_end():
            from refmotion_nb.numerics.backend import one_blas_thread

            options = parsed(arguments)
            options.arguments = arguments
            with one_blas_thread():
                ended = options.command(options)
            print(end="", flush=True)  # what fails later ends in a traceback
            return ended
    except BrokenPipeError:  # whoever read what is said has seen enough, as head does
        code = 141
    except OutputError as error:
        print(f"refmotion: {error}, or choose another --out", file=sys.stderr)
    except SettingError as error:
        print(f"refmotion: {option_of(error.name)} {error.why}", file=sys.stderr)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"refmotion: {line}", file=sys.stderr)
    except (OSError, MemoryError) as error:
        told = failure_in_words(error, "run the same command again", "give a smaller --cache-size-GB")
        print(f"refmotion: {told}", file=sys.stderr)
    except KeyboardInterrupt as stop:
        print("refmotion: stopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        code = 143 if isinstance(stop, Terminated) else 130
    _forget_unwritten()
    return code


def _forget_unwritten() -> None:
    """Send what nobody reads, or a full disk does not take, nowhere: Python would try again at the end, and tell."""
    for stream in (sys.stdout, sys.stderr):
        try:
            print(end="", file=stream, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_text(word: str) -> bool:
    """Tell whether a word of the command line was UTF-8: other bytes come as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in word)


class Terminated(KeyboardInterrupt):
    """The process was told to end (SIGTERM), as queues do before they kill."""


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, which leaves temporary files and workers nowhere."""

    def end(*_: object) -> None:
        raise Terminated("told to end (SIGTERM)")

    if current_thread() is not main_thread():  # only there may signals be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
