"""Movies frame by frame, as the camera counted: TIFF, MRC and EER behind one reader.

Row order is RELION's: TIFF rows are flipped along the slow axis, MRC and rendered EER are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from refmotion_nb.data.movies import rawbytes, tiff
from refmotion_nb.data.movies.eer import EerFile, dtype_for, eer_info, eer_shape, holds_electrons, is_eer
from refmotion_nb.data.movies.rawbytes import LARGEST_SIDE, Bytes
from refmotion_nb.data.schema import InputError, Movie

_MRC_HEADER = 1024  # bytes
_MRC_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: "u1"}
_IMOD_STAMP = 1146047817


class MovieReader:
    """An open movie, a context manager; ``frame(f)`` may be called by several threads at once.

    ``n_frames`` counts the frames used, ``n_in_file`` all of them; ``height`` and ``width`` are those of a frame as
    rendered and ``dtype`` is that of the file (EER: uint8 or uint16).
    """

    rows_reversed = False  # whether RELION's order of the rows is the reverse of the file's

    def __init__(self, source: Bytes, n_in_file: int, height: int, width: int, dtype: np.dtype):
        self._source = source
        self.path = source.path
        self.n_in_file, self.height, self.width, self.dtype = n_in_file, height, width, np.dtype(dtype)
        self.n_frames, self._first = n_in_file, 0
        self.rows_as_stored = False

    def use(self, first: int, n: int) -> None:
        """Restrict to ``n`` frames from ``first`` on; InputError unless the file has them."""
        if first < 0 or n < 1 or first + n > self.n_in_file:
            raise InputError(
                f"{self.path} has {self.n_in_file} frames, but frames {first + 1} to {first + n} are to be used: copy "
                f"the movie again, or skip movies with a wrong frame count"
            )
        self._first, self.n_frames = first, n

    def frame(self, f: int) -> np.ndarray:
        """Frame ``f`` of those used: (height, width) raw counts, rows in RELION's order; InputError if damaged.

        With ``rows_as_stored`` the rows of a TIFF stay as they are in the file.
        """
        if not 0 <= f < self.n_frames:
            raise IndexError(f"{self.path}: there is no frame {f}; {self.n_frames} frames are used")
        image = self._read(self._first + f)
        if self.rows_as_stored and self.rows_reversed:
            image = np.ascontiguousarray(image[::-1])
        if image.dtype.kind == "f":
            self._check_finite(image, f)
        return image

    def _check_finite(self, image: np.ndarray, f: int) -> None:
        with np.errstate(all="ignore"):
            if np.isfinite(image.sum(dtype=np.float32)):  # quick; the exact look only where it fails
                return
        bad = np.argwhere(~np.isfinite(image))
        if len(bad):
            raise InputError(
                f"{self.path}: frame {self._first + f + 1} has {len(bad)} values that are not finite, the first at "
                f"x {bad[0, 1]}, y {bad[0, 0]}; write the movie again or leave it out"
            )

    def _read(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        """Release the file; call it when no thread is reading any more."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TiffReader(MovieReader):
    """TIFF and BigTIFF: uncompressed, LZW, deflate, Zstandard or PackBits, in strips or tiles."""

    rows_reversed = True

    def __init__(self, source: Bytes):
        self._pages = pages = tiff.TiffPages(source)
        super().__init__(source, pages.n_pages, pages.height, pages.width, pages.dtype)

    def _read(self, index: int) -> np.ndarray:
        return self._pages.page(index)


class MrcReader(MovieReader):
    """MRC and MRCS of modes 0, 1, 2, 6, 12 and 101, either byte order, also as .bz2, .zst, .xz or .gz."""

    def __init__(self, source: Bytes, header: MrcHeader):
        self._header = header
        half = header.dtype.kind == "f" and header.dtype.itemsize == 2  # which is for files, not to compute with
        dtype = np.dtype(np.float32) if half else header.dtype.newbyteorder("=")
        super().__init__(source, header.n_frames, header.height, header.width, dtype)

    def _read(self, index: int) -> np.ndarray:
        header = self._header
        stored = np.empty((header.height, header.row_bytes), np.uint8)
        self._source.read_into(header.offset + index * header.frame_bytes, stored.data)
        if header.packed:
            return np.ascontiguousarray(tiff.unpack_4bit(stored)[:, : header.width])
        image = stored.view(header.dtype)
        return image.astype(self.dtype, copy=False)


class EerReader(MovieReader):
    """EER: groups of raw frames summed, an incomplete last group left out."""

    def __init__(self, source: Bytes, upsampling: int, grouping: int):
        self._file = EerFile(source)
        self._upsampling, self._grouping = upsampling, grouping
        n = _fractions(self._file.info.n_frames, grouping, source.path)
        height, width = eer_shape(self._file.info, upsampling, source.path)
        super().__init__(source, n, height, width, dtype_for(grouping, upsampling))

    def _read(self, index: int) -> np.ndarray:
        return self._file.render(index * self._grouping, self._grouping, self._upsampling)


@dataclass(frozen=True)
class MrcHeader:
    """The fields of an MRC header that say where the frames are."""

    n_frames: int
    height: int
    width: int
    dtype: np.dtype  # as stored, with its byte order
    packed: bool  # two 4-bit pixels to the byte
    offset: int  # bytes to the first frame

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return (self.width + 1) // 2 if self.packed else self.width * self.dtype.itemsize

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.height * self.row_bytes

    @property
    def size(self) -> int:
        """Bytes of a complete file."""
        return self.offset + self.n_frames * self.frame_bytes


def parse_mrc_header(start: bytes, path: Path) -> MrcHeader:
    """Read the 1024 bytes of an MRC header; InputError if it is not one or its mode is not that of a movie."""
    for order in "<>":  # the machine stamp is often wrong, sizes are implausible in the wrong byte order
        words = np.frombuffer(start[:_MRC_HEADER].ljust(_MRC_HEADER, b"\0"), f"{order}i4")
        width, height, n_frames, mode = (int(v) for v in words[:4])
        extended = int(words[23])
        if 0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE and n_frames > 0 and extended >= 0:
            break
    else:
        raise InputError(f"{path} is neither TIFF, MRC nor EER: convert it, or check that it was copied completely")
    if len(start) < _MRC_HEADER:
        raise InputError(f"{path} is truncated: it ends within its header; copy it again")
    if mode not in _MRC_TYPES:
        raise InputError(f"{path}: MRC mode {mode} is not supported; use mode 0, 1, 2, 6, 12 or 101")
    letter = _MRC_TYPES[mode]
    if mode == 0 and int(words[38]) == _IMOD_STAMP and not int(words[39]) & 1:
        letter = "u1"  # IMOD's flag; bytes are signed where nobody says otherwise
    return MrcHeader(n_frames, height, width, np.dtype(order + letter), mode == 101, _MRC_HEADER + extended)


def _open_mrc(path: Path) -> MrcReader:
    start = _start(path, _MRC_HEADER)
    if not rawbytes.is_compressed(start):
        header = parse_mrc_header(start, path)
        source = Bytes(path)
        if source.size < header.size:
            source.close()
            complete = max(0, source.size - header.offset) // header.frame_bytes
            raise InputError(
                f"{path} is truncated: its header says {header.n_frames} frames of {header.height} × {header.width}, "
                f"it holds {complete}; copy it again"
            )
        return MrcReader(source, header)
    header = parse_mrc_header(_unpacked_header(path), path)
    return MrcReader(rawbytes.UnpackedBytes(path, header.size), header)


def _unpacked_header(path: Path) -> bytes:
    start = rawbytes.unpacked_start(path, _MRC_HEADER)
    if len(start) < _MRC_HEADER:
        raise InputError(f"{path} is truncated: it unpacks to less than a header; copy it again")
    return start


def _start(path: Path, n: int) -> bytes:
    with Bytes(path) as source:
        return bytes(source.read(0, min(n, source.size)))


def _fractions(n_raw: int, grouping: int, path: Path) -> int:
    if grouping < 1:
        raise InputError(f"{path}: EER grouping {grouping} is not possible; use 1 or more raw frames")
    if n_raw < grouping:
        raise InputError(f"{path} has {n_raw} raw frames, fewer than one group of {grouping}: use a smaller grouping")
    return n_raw // grouping


def _open(path: Path, eer_upsampling: int, eer_grouping: int) -> MovieReader:
    source = Bytes(path)  # once: of thousands on a network's disk, each takes its time
    try:
        if tiff.is_tiff(bytes(source.read(0, min(4, source.size)))):
            return EerReader(source, eer_upsampling, eer_grouping) if holds_electrons(source) else TiffReader(source)
    except Exception:
        source.close()
        raise
    source.close()
    return _open_mrc(path)


def open_movie(movie: Movie) -> MovieReader:
    """Open a movie for reading the frames used; InputError if it is missing, truncated or not as the metadata says."""
    reader = _open(Path(movie.path), movie.eer_upsampling, movie.eer_grouping)
    try:
        _restrict(reader, movie)
    except InputError:
        reader.close()
        raise
    return reader


def _restrict(reader: MovieReader, movie: Movie) -> None:
    if (reader.height, reader.width) != (movie.height, movie.width):
        raise InputError(
            f"{movie.path} has frames of {reader.height} × {reader.width} (height × width), the metadata say "
            f"{movie.height} × {movie.width}: check the EER upsampling, or that this is the movie that was aligned"
        )
    reader.use(movie.first_frame, movie.n_frames)
    reader.rows_as_stored = movie.rows_as_stored


def movie_shape(path: Path | str, eer_upsampling: int = 1, eer_grouping: int = 1) -> tuple[int, int, int]:
    """Frames in the file, height and width (px), from the headers alone; InputError if it is not a movie."""
    path = Path(path)
    start = _start(path, _MRC_HEADER)
    if tiff.is_tiff(start):
        if is_eer(path):
            info = eer_info(path)
            return _fractions(info.n_frames, eer_grouping, path), *eer_shape(info, eer_upsampling, path)
        with _open(path, eer_upsampling, eer_grouping) as reader:
            return reader.n_in_file, reader.height, reader.width
    if rawbytes.is_compressed(start):
        start = _unpacked_header(path)
    header = parse_mrc_header(start, path)
    return header.n_frames, header.height, header.width


def check_movie(movie: Movie) -> None:
    """Check headers, sizes and frame count of a movie, and that its gain and defect files exist, decoding nothing.

    A compressed MRC is unpacked only as far as its header. Raises InputError for the first thing that is wrong.
    """
    path = Path(movie.path)
    if rawbytes.is_compressed(_start(path, 4)):
        n, height, width = movie_shape(path)
        with MovieReader(Bytes(path), n, height, width, np.dtype(np.uint8)) as reader:
            _restrict(reader, movie)
    else:
        open_movie(movie).close()
    for extra in (movie.gain.path if movie.gain else None, movie.defects):
        if extra is not None:
            Bytes(Path(extra)).close()


def read_image(path: Path | str, flip_tiff: bool = True) -> np.ndarray:
    """Read the first image of a TIFF or MRC file: (height, width), rows in RELION's order unless told otherwise."""
    path = Path(path)
    if tiff.is_tiff(_start(path, 4)):
        with Bytes(path) as source:
            image = tiff.TiffPages(source, only_first=True).page(0)
        return image if flip_tiff else np.ascontiguousarray(image[::-1])
    with _open_mrc(path) as reader:
        return reader._read(0)
