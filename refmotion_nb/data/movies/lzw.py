"""TIFF's LZW compression, decoded for whole images at a time: most movies of direct detectors come in it.

A string of the table is the string before it plus one pixel, and both stand in the output already: so the table holds
only where each string was last written and its length, and decoding is copying from what has been decoded.
"""

from __future__ import annotations

import numpy as np

from refmotion_nb.numerics.compiled import njit

PADDING = 8  # bytes that may be read after the data and written after the output


@njit(nogil=True, cache=True)
def decode_strips(data, starts, counts, rows_per_strip, out):
    """Decode all strips of an image into ``out``, (row, byte) uint8, last row first; return whether all were intact.

    Strip i is data[starts[i] : starts[i] + counts[i]], and 8 bytes of padding follow the last one in ``data``.
    """
    height, row_bytes = out.shape
    scratch = np.empty(rows_per_strip * row_bytes + PADDING, np.uint8)
    offsets, lengths = np.empty(4096, np.uint32), np.empty(4096, np.uint32)
    for i in range(starts.size):
        first = i * rows_per_strip
        rows = min(rows_per_strip, height - first)
        size = rows * row_bytes
        if _decode(data[starts[i] :], counts[i], scratch, size, offsets, lengths) != size:
            return False
        for row in range(rows):
            _copy(scratch[row * row_bytes :], out[height - 1 - first - row])
    return True


@njit(nogil=True, cache=True)
def _copy(values, out):
    """Fill ``out`` from the first of ``values``; an assignment would take 3 s to compile, for the words of its error."""
    for i in range(out.size):
        out[i] = values[i]


@njit(nogil=True, cache=True)
def decode(data, n, out):
    """Decode ``n`` bytes of ``data`` into ``out``, both of which end in 8 bytes of padding; return how many were decoded."""
    return _decode(data, n, out, out.size - PADDING, np.empty(4096, np.uint32), np.empty(4096, np.uint32))


@njit(nogil=True, cache=True)
def _decode(data, n, out, size, offsets, lengths):
    """Decode one strip into the first ``size`` bytes of ``out``; return how many were decoded."""
    # All unsigned: signed indices would be checked for being negative, which stops the compiler from merging the eight
    # single-byte loads and stores below into one of eight bytes each
    one, three, seven, eight, full = np.uint64(1), np.uint64(3), np.uint64(7), np.uint64(8), np.uint64(64)
    clear, finish, first_free, table_size = np.uint64(256), np.uint64(257), np.uint64(258), np.uint64(4096)
    at, n_bits, end = np.uint64(0), np.uint64(8 * n), np.uint64(size)
    width, free, widen_at = np.uint64(9), first_free, np.uint64(511)
    done, last, last_length = np.uint64(0), np.uint64(0), np.uint64(0)
    while at + width <= n_bits and done < end:
        byte = at >> three
        word = np.uint64(0)
        for i in range(8):
            word |= np.uint64(data[byte + np.uint64(i)]) << np.uint64(56 - 8 * i)
        word <<= at & seven
        left = full - (at & seven)
        while left >= width and at + width <= n_bits and done < end:
            code = word >> (full - width)
            word <<= width
            left -= width
            at += width
            if code < clear:
                out[done] = np.uint8(code)
                length = one
            elif code == clear:
                width, free, widen_at, last_length = np.uint64(9), first_free, np.uint64(511), np.uint64(0)
                continue
            elif code == finish:
                return np.int64(done)
            else:
                if code < free:
                    source, length = np.uint64(offsets[code]), np.uint64(lengths[code])
                elif code == free and last_length > np.uint64(0):
                    source, length = last, last_length + one  # the string being defined: the last one and its beginning
                else:
                    return np.int64(0)
                length = min(length, end - done)
                if done - source >= eight:
                    k = np.uint64(0)
                    while k < length:
                        eight_bytes = np.uint64(0)
                        for i in range(8):
                            eight_bytes |= np.uint64(out[source + k + np.uint64(i)]) << np.uint64(8 * i)
                        for i in range(8):
                            out[done + k + np.uint64(i)] = np.uint8((eight_bytes >> np.uint64(8 * i)) & np.uint64(255))
                        k += eight
                else:
                    for j in range(length):
                        out[done + np.uint64(j)] = out[source + np.uint64(j)]
            if last_length > np.uint64(0) and free < table_size:
                offsets[free], lengths[free] = last, last_length + one
                free += one
                if free >= widen_at and width < np.uint64(12):
                    width += one
                    widen_at = (one << width) - one
            last, last_length = done, length
            done += length
    return np.int64(done)
