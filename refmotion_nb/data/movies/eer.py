"""EER movies: every electron of every raw frame, run-length coded, rendered on the raster that is asked for.

A code is the number of empty pixels before the next electron (8 bits in compression 65000, 7 in 65001, as tags 65007 to
65009 say in 65002) followed by the sub-pixel position of that electron, low bits x, high bits y, each with its top bit
inverted. All bits of the count set means: that many empty pixels and no electron. Rows are in the order of the stream,
which is RELION's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from refmotion_nb.data.movies import tiff
from refmotion_nb.data.movies.rawbytes import LARGEST_SIDE, Bytes
from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics.compiled import njit

_SKIP_BITS, _X_BITS, _Y_BITS = 65007, 65008, 65009
_COMPRESSIONS = {65000: (8, 2, 2), 65001: (7, 2, 2)}
_KEEP = frozenset({tiff.WIDTH, tiff.HEIGHT, tiff.COMPRESSION, tiff.OFFSETS, tiff.COUNTS, _SKIP_BITS, _X_BITS, _Y_BITS})
PADDING = 8  # bytes that may be read beyond the end of a stream
_BAND_BYTES = 1 << 18  # of the rendered frame; all raw frames of a group add to it while it is in the cache
# How many pixels of the rendered frame to one of the sensor, as a power of two; 3 is what RELION calls 4x
_UPSAMPLINGS = {-1: -1, 1: 0, 2: 1, 3: 2, 4: 2}


@dataclass(frozen=True)
class EerInfo:
    """What the headers of an EER file say."""

    n_frames: int  # raw frames
    height: int  # px of the sensor
    width: int


class EerFile:
    """An open EER file: its raw frames found, its electrons decoded on request, by any number of threads."""

    def __init__(self, source: Bytes):
        self._source = source
        self._streams: list[list[tuple[int, int]]] = []
        self._bits: tuple[int, int, int] = (0, 0, 0)
        self.info = EerInfo(0, 0, 0)
        for tags in tiff.directories(source, _KEEP):
            compression = tiff.number_of(tags, tiff.COMPRESSION, 1)
            bits = _COMPRESSIONS.get(compression)
            if compression == 65002:
                bits = tuple(tiff.number_of(tags, c, d) for c, d in ((_SKIP_BITS, 7), (_X_BITS, 2), (_Y_BITS, 2)))  # type: ignore[assignment]
            if bits is None:
                continue  # some programs put an ordinary image, the sum, beside the electrons
            self._add(tags, bits)
        if not self._streams:
            raise InputError(
                f"{source.path} holds no EER frames: it is not an EER movie, or was not written to its end"
            )
        self.info = replace(self.info, n_frames=len(self._streams))

    def _add(self, tags: tiff.Tags, bits: tuple[int, int, int]) -> None:
        path, frame = self._source.path, len(self._streams) + 1
        height, width = tiff.number_of(tags, tiff.HEIGHT), tiff.number_of(tags, tiff.WIDTH)
        if frame == 1:
            self._bits = bits
            self.info = EerInfo(0, height, width)
            sizes_fit = 0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE
            if not (sizes_fit and 1 <= bits[0] <= 16 and 0 <= bits[1] <= 4 and 0 <= bits[2] <= 4):
                raise InputError(f"{path}: raw frame 1 has a damaged header; copy the file again")
        elif (height, width, bits) != (self.info.height, self.info.width, self._bits):
            raise InputError(f"{path}: raw frame {frame} differs in size or coding from the first; copy the file again")
        offsets, counts = tags.get(tiff.OFFSETS, ()), tags.get(tiff.COUNTS, ())
        streams = [(int(o), int(n)) for o, n in zip(offsets, counts)]
        if not streams or len(offsets) != len(counts):
            raise InputError(f"{path}: raw frame {frame} has a damaged header; copy the file again")
        if max(o + n for o, n in streams) > self._source.size:
            raise InputError(f"{path} is truncated in raw frame {frame}: copy it again")
        self._streams.append(streams)

    def render(self, first: int, n: int, upsampling: int) -> np.ndarray:
        """Sum of ``n`` raw frames from ``first`` on: (height, width) uint8, or uint16 where 255 could be exceeded."""
        out = np.zeros(eer_shape(self.info, upsampling, self._source.path), dtype_for(n, upsampling))
        shift = _UPSAMPLINGS[upsampling]
        skip_bits, x_bits, y_bits = self._bits
        if shift > min(x_bits, y_bits):
            raise InputError(
                f"{self._source.path} stores {min(x_bits, y_bits)} sub-pixel bits: EER upsampling can be at most "
                f"{2 ** min(x_bits, y_bits)}"
            )
        stream, starts = self._streams_of(first, n)
        decoded = decode_eer(stream, starts, out, self.info.height, self.info.width, skip_bits, x_bits, y_bits, shift)
        damaged = np.flatnonzero(decoded != self.info.height * self.info.width)
        if damaged.size:
            raise InputError(
                f"{self._source.path}: raw frame {first + damaged[0] + 1} is damaged ({decoded[damaged[0]]} pixels "
                f"instead of {self.info.height * self.info.width}); copy the file again or leave the movie out"
            )
        return out

    def _streams_of(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of ``n`` raw frames one after the other, each followed by padding, and where each starts (n + 1,)."""
        segments = self._streams[first : first + n]
        sizes = [sum(count for _, count in streams) + PADDING for streams in segments]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        data = np.zeros(starts[-1], np.uint8)
        for start, streams in zip(starts.tolist(), segments):
            for offset, count in streams:
                self._source.read_into(offset, data[start : start + count].data)
                start += count
        return data, starts


def eer_info(path: Path | str) -> EerInfo:
    """Read raw frame count and sensor size from the headers; InputError unless EER."""
    with Bytes(Path(path)) as source:
        if not tiff.is_tiff(bytes(source.read(0, min(4, source.size)))):
            raise InputError(f"{path} is not an EER movie: it does not start as a TIFF file does")
        file = EerFile(source)
    return file.info


def is_eer(path: Path | str) -> bool:
    """Whether the file is a TIFF whose first or second image is a stream of electrons."""
    with Bytes(Path(path)) as source:
        return holds_electrons(source)


def holds_electrons(source: Bytes) -> bool:
    """Whether an open file is such a TIFF."""
    if source.size < 16 or not tiff.is_tiff(bytes(source.read(0, 4))):
        return False
    for i, tags in enumerate(tiff.directories(source, frozenset({tiff.COMPRESSION}))):
        if tiff.number_of(tags, tiff.COMPRESSION) in (*_COMPRESSIONS, 65002):
            return True
        if i == 1:
            break
    return False


def eer_shape(info: EerInfo, upsampling: int, path: Path) -> tuple[int, int]:
    """Height and width of a frame rendered at 1, 2 or 4 times the sensor's raster (-1: half of it)."""
    if upsampling not in _UPSAMPLINGS:
        raise InputError(f"{path}: EER upsampling {upsampling} is not possible; use 1, 2 or 4 (or -1 for half)")
    shift = _UPSAMPLINGS[upsampling]
    if shift < 0:
        return info.height >> -shift, info.width >> -shift
    return info.height << shift, info.width << shift


def dtype_for(n: int, upsampling: int) -> np.dtype:
    """Return the smallest type that ``n`` raw frames cannot overflow: a pixel counts at most once per raw frame."""
    return np.dtype(np.uint8 if n * (4 if upsampling == -1 else 1) <= 255 else np.uint16)


@njit(nogil=True, cache=True)
def decode_eer(stream, starts, out, height, width, skip_bits, x_bits, y_bits, shift):
    """Add the electrons of some raw frames to ``out`` in place; return how many sensor pixels each of them covers.

    ``stream`` holds the raw frames as uint8, frame i from starts[i] to starts[i + 1], its last 8 bytes being padding;
    ``out`` is (height·2**shift, width·2**shift) unsigned. The values returned, (frame,) int64, are height·width for an
    intact frame, less for one that ends early and more for a damaged one.
    """
    n = starts.size - 1
    at, pixel = np.zeros(n, np.int64), np.zeros(n, np.int64)
    per_row = out.itemsize * (out.size // height)
    band = max(1, _BAND_BYTES // per_row) * width if n > 1 else height * width
    stop = 0
    while stop < height * width:
        stop = min(stop + band, height * width)
        for i in range(n):
            at[i], pixel[i] = _advance(
                stream[starts[i] : starts[i + 1]], at[i], pixel[i], stop, out, height, width, skip_bits, x_bits,
                y_bits, shift,
            )  # fmt: skip
    return pixel


@njit(nogil=True, cache=True)
def _advance(stream, first_bit, first_pixel, stop, out, height, width, skip_bits, x_bits, y_bits, shift):
    """Decode one raw frame from a bit and a pixel on until ``stop`` is reached; return where to go on."""
    # All unsigned: signed indices would be checked for being negative, which stops the compiler from merging loads
    n_bits = np.uint64(8 * (stream.size - PADDING))
    skip_width, code_width = np.uint64(skip_bits), np.uint64(skip_bits + x_bits + y_bits)
    all_ones = np.uint64((1 << skip_bits) - 1)
    x_mask, y_mask = np.uint64((1 << x_bits) - 1), np.uint64((1 << y_bits) - 1)
    x_flip, y_flip = np.uint64((1 << x_bits) >> 1), np.uint64((1 << y_bits) >> 1)
    x_low, y_low = np.uint64(max(0, x_bits - shift)), np.uint64(max(0, y_bits - shift))
    y_at = np.uint64(skip_bits + x_bits)
    up = np.uint64(max(0, shift))
    n_pixels, end, row_width = np.uint64(height * width), np.uint64(stop), np.uint64(width)
    n_rows, n_columns = np.uint64(out.shape[0]), np.uint64(out.shape[1])
    flat = out.reshape(-1)
    one, three, seven = np.uint64(1), np.uint64(3), np.uint64(7)
    at, pixel = np.uint64(first_bit), np.uint64(first_pixel)
    x, y = np.uint64(first_pixel % width), np.uint64(first_pixel // width)
    while pixel < end and at + skip_width <= n_bits:
        byte = at >> three
        word = np.uint64(0)
        for i in range(8):  # one unaligned load once compiled
            word |= np.uint64(stream[byte + np.uint64(i)]) << np.uint64(8 * i)
        word >>= at & seven
        left = np.uint64(64) - (at & seven)
        while left >= code_width and at + skip_width <= n_bits:
            skip = word & all_ones
            pixel += skip
            x += skip
            if skip == all_ones:
                word >>= skip_width
                left -= skip_width
                at += skip_width
                continue
            if pixel >= n_pixels or at + code_width > n_bits:  # the run that ends the frame, or one cut short
                return np.int64(n_bits), np.int64(pixel)
            while x >= row_width:
                x -= row_width
                y += one
            if shift == 0:
                flat[pixel] += 1
            elif shift > 0:
                column = (x << up) | (((word >> skip_width & x_mask) ^ x_flip) >> x_low)
                row = (y << up) | (((word >> y_at & y_mask) ^ y_flip) >> y_low)
                flat[row * n_columns + column] += 1
            elif x >> one < n_columns and y >> one < n_rows:  # half of an odd raster leaves one over
                flat[(y >> one) * n_columns + (x >> one)] += 1
            pixel += one
            x += one
            word >>= code_width
            left -= code_width
            at += code_width
    return np.int64(at), np.int64(pixel)
