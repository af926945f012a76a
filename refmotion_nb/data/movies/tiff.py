"""TIFF and BigTIFF as cameras write them: directories read quickly, grey images decoded strip by strip or tile by tile.

Decoding runs outside the interpreter lock. Rows come out in RELION's order: the last row of the file first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from operator import add
from typing import Any, Literal

import imagecodecs
import numpy as np

from refmotion_nb.data.movies import lzw
from refmotion_nb.data.movies.rawbytes import LARGEST_SIDE, Bytes
from refmotion_nb.data.schema import InputError

WIDTH, HEIGHT, BITS, COMPRESSION, FILL_ORDER, OFFSETS, SAMPLES, ROWS_PER_STRIP, COUNTS = (
    256, 257, 258, 259, 266, 273, 277, 278, 279,
)  # fmt: skip
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, SAMPLE_FORMAT = 317, 322, 323, 324, 325, 339

# no tag that is read has a sign or a fraction
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 7: "s", 13: "I", 16: "Q", 18: "Q"}
_LZW = 5
_DECODERS = {  # of imagecodecs
    1: "",
    _LZW: "",  # its own depends on what memory held before where data are damaged, and may end the process
    8: "zlib_decode",
    32946: "zlib_decode",
    50000: "zstd_decode",
    34926: "zstd_decode",
    32773: "packbits_decode",
}
# Images of K2 and K3 super-resolution movies with two 4-bit pixels to the byte; like IMOD and RELION, go by the size
_PACKED_4BIT = {(s, f) for a, b in ((11520, 8184), (7676, 7420)) for s, f in ((b, a // 2), (a, b // 2))}

Tags = dict[int, tuple | bytes]


def is_tiff(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF or BigTIFF (an EER file is, too)."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def byte_order(source: Bytes) -> Literal["<", ">"]:
    """``<`` or ``>`` as struct writes it."""
    return "<" if bytes(source.read(0, 2)) == b"II" else ">"


def directories(source: Bytes, keep: frozenset[int]) -> Iterator[Tags]:
    """Yield the wanted tags of each page; InputError where the chain leads out of the file or in a circle."""
    start = bytes(source.read(0, 8))
    order, big = ("<" if start[:2] == b"II" else ">"), start[3 if start[:2] == b"MM" else 2] == 43
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    number = struct.Struct(order + ("Q" if big else "I"))
    count = struct.Struct(order + ("Q" if big else "H"))
    offset = number.unpack(source.read(8, 8) if big else start[4:8])[0]
    seen: set[int] = set()
    while offset:
        if offset in seen or offset + count.size > source.size:
            raise InputError(f"{source.path} is truncated or damaged after {len(seen)} frames: copy it again")
        seen.add(offset)
        block = source.read(offset, min(512, source.size - offset))  # nearly always the whole directory
        n = count.unpack_from(block)[0]
        length = count.size + n * entry.size + number.size
        if length > len(block):
            block = source.read(offset, length)
        tags: Tags = {}
        for code, kind, items, value in entry.iter_unpack(block[count.size : count.size + n * entry.size]):
            if code in keep and kind in _TYPES:
                tags[code] = _value(source, order, number, kind, items, value)
        yield tags
        offset = number.unpack_from(block, length - number.size)[0]


def _value(source: Bytes, order: str, number: struct.Struct, kind: int, items: int, value: bytes) -> tuple | bytes:
    letter = _TYPES[kind]
    size = items * struct.calcsize("=" + letter)
    data = value[:size] if size <= len(value) else source.read(number.unpack(value)[0], size)
    return bytes(data) if letter == "s" else struct.unpack(f"{order}{items}{letter}", data)


def number_of(tags: Tags, code: int, default: int = 0) -> int:
    """Return the first value of a numeric tag."""
    values = tags.get(code, ())
    return int(values[0]) if values else default


@dataclass(frozen=True)
class _Layout:
    """What every page of a movie has in common."""

    height: int
    width: int  # as stored; half the image where pixels are packed two to the byte
    dtype: np.dtype
    compression: int
    predictor: int
    tile: tuple[int, int]  # rows, columns of a strip or tile
    tiled: bool


class TiffPages:
    """The pages of a grey TIFF, all of one size; ``page(i)`` decodes one, rows in RELION's order."""

    KEEP = frozenset({WIDTH, HEIGHT, BITS, COMPRESSION, FILL_ORDER, OFFSETS, SAMPLES, ROWS_PER_STRIP, COUNTS, PREDICTOR,
                      TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, SAMPLE_FORMAT})  # fmt: skip

    def __init__(self, source: Bytes, only_first: bool = False):
        self._source = source
        self._order = byte_order(source)
        self._segments: list[tuple[np.ndarray, np.ndarray]] = []  # byte offsets and counts
        for i, tags in enumerate(directories(source, self.KEEP)):
            layout = self._layout_of(tags, i)
            if i == 0:
                self._layout = layout
            elif layout != self._layout:
                raise InputError(f"{source.path}: image {i + 1} differs in size or type from the first: not a movie")
            self._segments.append(self._segments_of(tags, i))
            if only_first:
                break
        if not self._segments:
            raise InputError(f"{source.path} holds no image: it was not written to its end; copy it again")
        self.packed = self._layout.dtype.itemsize == 1 and (self._layout.height, self._layout.width) in _PACKED_4BIT
        self.n_pages = len(self._segments)
        self.height, self.width = self._layout.height, self._layout.width * (2 if self.packed else 1)
        self.dtype = np.dtype(np.uint8) if self.packed else self._layout.dtype

    def _layout_of(self, tags: Tags, page: int) -> _Layout:
        path = self._source.path
        height, width = number_of(tags, HEIGHT), number_of(tags, WIDTH)
        compression, bits, kind = (number_of(tags, c, 1) for c in (COMPRESSION, BITS, SAMPLE_FORMAT))
        if compression not in _DECODERS:
            raise InputError(f"{path}: TIFF compression {compression} is not supported; rewrite it with LZW or none")
        letter = {1: "u", 2: "i", 3: "f"}.get(kind, "?")
        if number_of(tags, SAMPLES, 1) != 1 or f"{letter}{bits}" not in ("u8", "i8", "u16", "i16", "u32", "i32", "f32"):
            raise InputError(f"{path}: image {page + 1} is not grey with 8, 16 or 32 bits; convert it")
        if number_of(tags, FILL_ORDER, 1) != 1:
            raise InputError(f"{path}: image {page + 1} is stored in an unusual way; rewrite it as plain grey TIFF")
        tiled = TILE_OFFSETS in tags
        tile = (number_of(tags, TILE_HEIGHT), number_of(tags, TILE_WIDTH)) if tiled else (
            min(number_of(tags, ROWS_PER_STRIP, height), height), width)  # fmt: skip
        if not all(0 < side <= LARGEST_SIDE for side in (height, width, *tile)):
            raise InputError(f"{path}: image {page + 1} has a damaged header; copy the file again")
        return _Layout(height, width, np.dtype(f"{letter}{bits // 8}"), compression, number_of(tags, PREDICTOR, 1),
                       tile, tiled)  # fmt: skip

    def _segments_of(self, tags: Tags, page: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where the strips or tiles of an image start in the file and how long they are, bytes."""
        codes = (TILE_OFFSETS, TILE_COUNTS) if self._layout.tiled else (OFFSETS, COUNTS)
        offsets, counts = (tags.get(code, ()) for code in codes)
        numbers = isinstance(offsets, tuple) and isinstance(counts, tuple)  # not text, of the same length
        if not (numbers and len(offsets) == len(counts) == self._per_column * self._per_row):
            raise InputError(f"{self._source.path}: image {page + 1} has a damaged header; copy the file again")
        end = max(map(add, offsets, counts))
        if end > self._source.size:
            raise InputError(
                f"{self._source.path} is truncated: image {page + 1} goes to byte {end}, the file to "
                f"{self._source.size}; copy it again"
            )
        return np.array(offsets, np.int64), np.array(counts, np.int64)

    @property
    def _per_column(self) -> int:
        return -(-self._layout.height // self._layout.tile[0])

    @property
    def _per_row(self) -> int:
        return -(-self._layout.width // self._layout.tile[1])

    def page(self, index: int) -> np.ndarray:
        """Decode image ``index``: (height, width) of the native dtype, the last row of the file first."""
        lay = self._layout
        data, starts, counts = self._load(index)
        out = np.empty((lay.height, lay.width), lay.dtype)
        if not self._decode_quickly(data, starts, counts, out):
            self._decode(data, starts.tolist(), counts.tolist(), out, index)
        return unpack_4bit(out) if self.packed else out

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compressed bytes of an image with padding, where its strips or tiles start in them, and their lengths."""
        offsets, counts = self._segments[index]
        first, last, total = int(offsets.min()), int((offsets + counts).max()), int(counts.sum())
        if last - first <= 2 * total:  # in one go, as nearly always
            data = np.empty(last - first + lzw.PADDING, np.uint8)
            self._source.read_into(first, data[: last - first].data)
            return data, offsets - first, counts
        starts = np.cumsum(counts) - counts
        data = np.empty(total + lzw.PADDING, np.uint8)
        for offset, start, n in zip(offsets.tolist(), starts.tolist(), counts.tolist()):
            self._source.read_into(offset, data[start : start + n].data)
        return data, starts, counts

    def _decode_quickly(self, data: np.ndarray, starts: np.ndarray, counts: np.ndarray, out: np.ndarray) -> bool:
        """Decode plain LZW strips; False where the image is something else or damaged."""
        lay = self._layout
        if lay.compression != _LZW or lay.tiled or lay.predictor != 1:
            return False
        if not lzw.decode_strips(data, starts, counts, lay.tile[0], out.view(np.uint8)):
            return False
        if lay.dtype.newbyteorder(self._order) != lay.dtype:
            out.byteswap(inplace=True)
        return True

    def _decode(self, data: np.ndarray, starts: list[int], counts: list[int], out: np.ndarray, index: int) -> None:
        lay = self._layout
        flipped = out[::-1]
        rows, columns = lay.tile
        scratch = np.empty(rows * columns * lay.dtype.itemsize + lzw.PADDING, np.uint8)
        for i, (start, n) in enumerate(zip(starts, counts)):
            y, x = i // self._per_row * rows, i % self._per_row * columns
            height, width = min(rows, lay.height - y), min(columns, lay.width - x)
            stored = rows if lay.tiled else height  # tiles are padded to their full size, the last strip is not
            size = stored * columns * lay.dtype.itemsize
            block = self._block(data[start : start + n + lzw.PADDING], scratch[: size + lzw.PADDING], index)
            flipped[y : y + height, x : x + width] = block.reshape(stored, columns)[:height, :width]

    def _block(self, packed: np.ndarray, scratch: np.ndarray, page: int) -> np.ndarray:
        """Decompress one strip or tile, padded as ``scratch`` is, into the dtype of the image, flat or (rows, columns)."""
        lay, size = self._layout, scratch.size - lzw.PADDING
        try:
            data = _decompress(lay.compression, packed, scratch)
        except (RuntimeError, ValueError, MemoryError) as problem:  # the last of some damaged streams
            raise InputError(
                f"{self._source.path}: image {page + 1} is damaged ({problem}); copy the file again"
            ) from None
        if len(data) < size:
            raise InputError(f"{self._source.path}: image {page + 1} is damaged (too few pixels); copy the file again")
        stored = lay.dtype.newbyteorder(self._order)
        if lay.predictor == 3 and lay.dtype.kind == "f":
            planes = np.frombuffer(data, lay.dtype, size // lay.dtype.itemsize).reshape(-1, lay.tile[1])
            return imagecodecs.floatpred_decode(planes, axis=-1)
        block = np.frombuffer(data, stored, size // lay.dtype.itemsize)
        if lay.predictor == 2:
            native = block.astype(lay.dtype, copy=False).reshape(-1, lay.tile[1])
            return imagecodecs.delta_decode(native, axis=-1)
        return block


def _decompress(compression: int, packed: np.ndarray, scratch: np.ndarray) -> Any:
    """Return the bytes of a strip or tile, in ``scratch`` or elsewhere; both arrays end in padding."""
    if compression == _LZW:
        return scratch[: lzw.decode(packed, packed.size - lzw.PADDING, scratch)]
    data = packed[: -lzw.PADDING].data
    if not _DECODERS[compression]:
        return data
    decode = getattr(imagecodecs, _DECODERS[compression])
    try:
        return decode(data, out=scratch[: -lzw.PADDING])
    except (RuntimeError, ValueError):
        return decode(data)  # some writers pad the last strip to its full length


def unpack_4bit(packed: np.ndarray) -> np.ndarray:
    """Two 4-bit pixels to the byte, the low half first: (height, 2 · width) uint8."""
    out = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=out[:, 0::2])
    np.right_shift(packed, 4, out=out[:, 1::2])
    return out
