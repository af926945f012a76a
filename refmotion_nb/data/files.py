"""Files that appear whole or not at all, and files of text or numbers that are what they should be."""

from __future__ import annotations

import fcntl
import math
import os
import re
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np

from refmotion_nb.data.schema import InputError, OutputError, as_path

STALE_S = 3600.0  # a file is written in much less: what is older was left by a killed run
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8}(\.[^.]+)?|[0-9a-f]{12})")  # of ``atomic``, and of a group of results

_READABLE: ContextVar[tuple[tuple[Path, ...], Callable[[], object]]] = ContextVar(
    "folders that may be read, and what is called before", default=((), lambda: None)
)
_HELD: ContextVar[Mapping[Path, bool]] = ContextVar(
    "folders that are held, and whether with a lock", default=MappingProxyType({})
)


@contextmanager
def only_within(folders: Iterable[str | Path], before_each: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Refuse to open input files outside ``folders`` while the block lasts, in this thread, whatever names them.

    ``before_each`` is called before each file is opened; it may raise to stop the reading.
    """
    token = _READABLE.set((tuple(Path(folder).resolve() for folder in folders), before_each))
    try:
        yield
    finally:
        _READABLE.reset(token)


def admit(path: str | Path) -> None:
    """Check a file that is about to be opened; every reader of input asks here.

    Raises
    ------
    InputError
        It lies, links followed, outside the folders of ``only_within``, or is no path.
    """
    as_path(path, "path")
    folders, before_each = _READABLE.get()
    before_each()
    if folders and not any(Path(path).resolve().is_relative_to(folder) for folder in folders):
        raise InputError(beyond(path, folders))


def outside(path: str | Path) -> str:
    """Return the words that a path lies outside; where it is or goes through a link, with what that leads to."""
    real = Path(path).resolve()
    linked = ".." not in Path(path).parts and real != Path(path).absolute()
    return f"{path} leads to {real}, outside" if linked else f"{path} is outside"


def beyond(path: str | Path, folders: Iterable[Path]) -> str:
    """Return what to do about a file outside the folders that may be read."""
    allowed = [str(folder) for folder in folders]
    options = " ".join(f"--browse {shlex.quote(one)}" for one in (*allowed, str(Path(path).resolve().parent)))
    return f"{outside(path)} the folders that may be read ({', '.join(allowed)}); copy it there, or start the app with {options}"


def listed_from(folder: Path, root: Path | None) -> str:
    """Return a folder as it stands in a table whose paths start at ``root``: absolute, unless it lies there."""
    ways = [] if root is None else [(folder.absolute(), root.absolute()), (folder.resolve(), root.resolve())]
    for whole, start in ways:  # the second where one of them is named by a link, or by ``..``
        if ".." not in (*whole.parts, *start.parts) and whole.is_relative_to(start):
            return whole.relative_to(start).as_posix()
    return (folder.resolve() if ".." in folder.parts else folder.absolute()).as_posix()


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give errors of the system that name no file, as those of writing to an open one, the name of ``path``."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it into place when the block ends without an error.

    A reader never sees half a file, and a run that is killed leaves the previous file as it was. Folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the extension stays last, since writers choose the format (and compression) by it
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):  # which nobody knows
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write bytes into an open file (its descriptor) from ``offset`` on; OSError where the disk is full."""
    while data:
        n = os.pwrite(file, data[: 1 << 30], offset)
        data, offset = data[n:], offset + n


def sweep(folder: Path, older_than_s: float = STALE_S, of: str = "") -> None:
    """Remove what killed runs left of ``atomic`` and of groups in a folder, if nobody may still be writing it.

    With a name only what was to become that. Others may make and remove such files meanwhile.
    """
    for path in folder.glob(".*"):
        if not path.name.startswith(f".{of}") or _TEMPORARY.fullmatch(path.name) is None:
            continue
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > older_than_s:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def spare(inputs: Iterable[tuple[str, str | Path]], out: Path, written: Iterable[str]) -> None:
    """Make sure that nothing of what is written into ``out`` (patterns of names in it) takes the place of an input.

    ``inputs`` are files with what they are, in words.

    Raises
    ------
    OutputError
        Which file would be overwritten.
    """
    patterns, home = tuple(written), out.resolve()
    for what, path in inputs:
        for there in {
            Path(path).resolve(),
            Path(path).parent.resolve() / Path(path).name,
        }:  # where a link leads, and itself
            if there.is_relative_to(home):
                name = there.relative_to(home).as_posix()
                if any(fnmatch(name, pattern) for pattern in patterns):
                    raise OutputError(f"{path} ({what}) is read and would be overwritten; move it elsewhere")


def spare_others(out: Path, written: Iterable[str]) -> None:
    """Make sure that nothing of what is written (patterns of names) takes the place of a file that no run made.

    Where a run has written, its results are, or hyperparameters or log if these were deleted; what else is there is the run's.

    Raises
    ------
    OutputError
        Which file would be overwritten.
    """
    if any((out / name).exists() for name in ("results.zarr", "hyperparameters.json")) or _is_log(out / "run.log"):
        return
    for path in (path for pattern in written for path in sorted(out.glob(pattern))):
        if not path.name.startswith("."):
            raise OutputError(f"{path} is of no earlier run and might be overwritten; move it elsewhere")


def _is_log(path: Path) -> bool:
    """Tell whether a file is the log of a run: date and time, then the command."""
    with suppress(OSError), open(path, "rb") as file:
        return file.readline(40)[19:].startswith(b" refmotion ")
    return False


def writable(out: Path) -> None:
    """Make sure that ``out`` is a folder that can be written to, or can be made; nothing is.

    Raises
    ------
    OutputError
        It is a file, or permissions, the file system or a file in its place are against it.
    """
    there = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if there == out.absolute() and not there.is_dir():
        raise OutputError(f"{out} is not a folder; check the path")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OutputError(f"{out} cannot be written to ({error.strerror}); check the path") from None


@contextmanager
def sole(folder: Path) -> Iterator[bool]:
    """Hold a folder against other runs while the block lasts, however it ends; False if the file system cannot.

    It is made where there is none, and gone again if the block fails before anything is in it. Within the block, in its thread,
    it may be held again: a job's stages hold its folder as those that are run alone do.

    Raises
    ------
    OutputError
        Another run holds it.
    """
    before, home = _HELD.get(), folder.resolve()
    if home in before:
        yield before[home]
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            raise OutputError(f"another run is writing to {folder}; wait for it") from None
        except OSError:  # some network file systems have no locks
            held = False
        token = _HELD.set({**before, home: held})
        try:
            yield held
        finally:
            _HELD.reset(token)
    except BaseException:
        with suppress(OSError):  # something is in it
            for path in new:
                path.rmdir()
        raise
    finally:
        os.close(handle)


@contextmanager
def output(out: Path, inputs: Iterable[tuple[str, str | Path]], written: Iterable[str]) -> Iterator[None]:
    """Hold a folder to write into (see ``sole``), and remove what killed runs left in it.

    ``written`` are the patterns of what is written beside ``results.zarr``; none of it takes the place of one of the ``inputs``,
    which are files with what they are, or of a file that no run made.

    Raises
    ------
    OutputError
        As ``writable``, ``spare``, ``spare_others`` and ``sole`` do.
    """
    patterns, store = tuple(written), out / "results.zarr"
    writable(out)
    spare(inputs, out, patterns)
    spare_others(out, patterns)
    with sole(out) as alone:
        for folder in {out, store, *store.glob("*/"), *((out / pattern).parent for pattern in patterns)}:
            # where others may be writing, only what is too old to be theirs
            sweep(folder, -math.inf if alone else STALE_S)
        yield


def read_text(path: str | Path) -> str:
    """Read a text file whole.

    Raises
    ------
    InputError
        It does not exist, is a folder, is not text, or is text in another encoding than UTF-8.
    """
    admit(path)
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # editors of Windows put a mark before the text
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give a file in it") from None
    except UnicodeDecodeError as error:
        raise InputError(_not_utf8(path, error)) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None


def save_array(path: str | Path, array: np.ndarray) -> None:
    """Save an array, also a structured one, as .npy, atomically; OSError where the disk is full."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        # to a file NumPy writes by a stream of C's, and does not look whether the last 4096 bytes arrived
        np.lib.format.write_array(SimpleNamespace(write=file.write), array, allow_pickle=False)


def load_array(path: Path, remedy: str) -> np.ndarray:
    """Load an array from a .npy file.

    Raises
    ------
    InputError
        It does not exist, or holds no array of numbers; the line ends in ``remedy``.
    """
    admit(path)
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {remedy}") from None
    except Exception as error:  # of any kind, as NumPy's reader is full of surprises
        raise InputError(f"{path} is not a readable NumPy array ({error}); {remedy}") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path} is not an array of numbers; {remedy}")
    return array


def _not_utf8(path: str | Path, error: UnicodeDecodeError) -> str:
    """Say where a file stops being UTF-8: names with accents once were written in other encodings, or it is no text at all."""
    content, at = error.object, error.start
    if b"\0" in content:
        return f"{path} is not a text file; check the path"
    line = content.count(b"\n", 0, at) + 1
    before = re.search(rb"\S*\Z", content[:at])
    after = re.match(rb"\S*", content[at:])
    word = b"".join(part[0] for part in (before, after) if part).decode("ascii", "backslashreplace")
    return (
        f"{path}, line {line}: {word} is not UTF-8; convert the file (iconv -f latin1 -t utf-8), and where it is the name of a "
        "file or folder, rename that too (convmv --notest -f latin1 -t utf-8)"
    )
