"""Bytes of a movie file by position, from several threads at once; compressed streams are unpacked once on opening."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO, Self, cast

import numpy as np
import zstandard

from refmotion_nb.data.files import admit
from refmotion_nb.data.schema import InputError

LARGEST_IN_MEMORY = 4 << 30  # bytes; a bigger unpacked stream goes to an unnamed temporary file
LARGEST_SIDE = 65535  # px of an image; more is a damaged header, one read in the wrong byte order, or none at all
_CHUNK = 16 << 20
_XZ = b"\xfd7zX"


class Bytes:
    """Random access to a file that holds no position of its own, so that threads need no lock."""

    def __init__(self, path: Path):
        self.path = path
        admit(path)
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: check the path, or the folder it is relative to") from None
        except OSError as problem:
            raise InputError(f"{path} cannot be opened ({problem.strerror}): check its permissions") from None
        self.size = os.fstat(self._fd).st_size

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill a contiguous buffer with the bytes from ``offset`` on; InputError where the file ends before."""
        view = target.cast("B")
        done = 0
        while done < len(view):
            n = os.preadv(self._fd, [view[done:]], offset + done)
            if n == 0:
                raise self.truncated(offset + len(view))
            done += n

    def read(self, offset: int, n: int) -> memoryview:
        """``n`` bytes from ``offset`` on; InputError where the file ends before."""
        if offset + n > self.size:
            raise self.truncated(offset + n)  # before asking for what a damaged header may put at terabytes
        data = np.empty(n, np.uint8)
        self.read_into(offset, data.data)
        return data.data

    def truncated(self, needed: int) -> InputError:
        """Return the error of a file that ends before its contents do."""
        return InputError(f"{self.path} is truncated: {needed} bytes are needed, it has {self.size}; copy it again")

    def close(self) -> None:
        """Release the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class UnpackedBytes(Bytes):
    """The unpacked contents of a compressed stream of known length, in memory or, when big, in a temporary file."""

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        self._fd = -1
        self._data: np.ndarray | None = None
        with open_stream(path) as stream:
            if size <= LARGEST_IN_MEMORY:
                self._data = np.empty(size, np.uint8)
                got = _fill(stream, self._data.data, path)
            else:
                with tempfile.TemporaryFile() as spool:
                    buffer, got = memoryview(bytearray(_CHUNK)), 0
                    while got < size and (n := _fill(stream, buffer[: size - got], path)):
                        spool.write(buffer[:n])
                        got += n
                    spool.flush()
                    self._fd = os.dup(spool.fileno())  # now that nothing can fail: it keeps gigabytes on the disk
        if got < size:
            self.close()
            raise InputError(f"{path} is truncated: its header says {size} bytes, it unpacks to {got}; copy it again")

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill a contiguous buffer with the unpacked bytes from ``offset`` on."""
        if self._data is None:
            return super().read_into(offset, target)
        view = target.cast("B")
        if offset + len(view) > self.size:
            raise self.truncated(offset + len(view))
        np.copyto(np.frombuffer(view, np.uint8), self._data[offset : offset + len(view)])

    def close(self) -> None:
        """Release the memory or the temporary file."""
        self._data = None
        super().close()


def is_compressed(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a bzip2, Zstandard, xz or gzip stream."""
    return start[:3] == b"BZh" or start[:4] in (b"\x28\xb5\x2f\xfd", _XZ) or start[:2] == b"\x1f\x8b"


def open_stream(path: Path) -> BinaryIO:
    """Open a bzip2, Zstandard, xz or gzip file for reading its contents from the beginning."""
    admit(path)
    raw = path.open("rb")
    start = raw.read(4)
    raw.seek(0)
    if start[:3] == b"BZh":
        raw.close()
        return cast(BinaryIO, bz2.open(path, "rb"))
    if start[:2] == b"\x1f\x8b":
        raw.close()
        return cast(BinaryIO, gzip.open(path, "rb"))
    if start == _XZ:
        raw.close()
        return cast(BinaryIO, lzma.open(path, "rb"))
    return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=True)


def unpacked_start(path: Path, n: int) -> bytes:
    """Up to ``n`` first bytes of a compressed file's contents."""
    buffer = bytearray(n)
    with open_stream(path) as stream:
        return bytes(buffer[: _fill(stream, memoryview(buffer), path)])


def _fill(stream: BinaryIO, view: memoryview, path: Path) -> int:
    done = 0
    try:
        while done < len(view) and (n := stream.readinto(view[done : done + _CHUNK])):  # type: ignore[attr-defined]
            done += n
    except EOFError:
        return done  # the stream stops in the middle; the caller knows how much there should be
    except (OSError, zlib.error, zstandard.ZstdError, lzma.LZMAError, ValueError) as problem:
        raise InputError(f"{path} cannot be unpacked ({problem}): copy it again") from None
    return done
