"""Numbers as a small PNG, in a colour scale that people with any colour vision read in the same order."""

from __future__ import annotations

import struct
import zlib

import numpy as np

# viridis
_VIRIDIS = (
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219"
    " fde725"
).split()


def png_of_levels(levels: np.ndarray, grey: bool = False) -> bytes:
    """Return a PNG of ``levels`` (row, column): 0 to 254 through the colour scale, or black to white; 255 transparent."""
    scale = ("000000", "ffffff") if grey else _VIRIDIS
    anchors = np.array([list(bytes.fromhex(colour)) for colour in scale], float)
    at = np.linspace(0, len(anchors) - 1, 255)
    palette = np.stack([np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T], axis=-1)
    colours = palette.round().astype(np.uint8).tobytes() + bytes(3)
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    height, width = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", colours), (b"tRNS", b"\xff" * 255 + b"\0"), (b"IDAT", zlib.compress(rows)))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body
