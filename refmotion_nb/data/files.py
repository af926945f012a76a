"""Files that appear whole or not at all, and text files that are what they should be."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refmotion_nb.data.schema import InputError


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
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, older_than_s: float = 3600.0) -> None:
    """Remove what killed runs left of ``atomic`` in a folder; younger ones may belong to a run that is still going."""
    for path in folder.glob(".*.????????.*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def read_text(path: str | Path) -> str:
    """Read a text file whole.

    Raises
    ------
    InputError
        It does not exist, is a folder, or is not text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give a file in it") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
