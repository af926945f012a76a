"""A small EER writer: electron events of raw frames, run-length coded (compression 65001) in a BigTIFF."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from refmotion_nb.numerics.compiled import njit

SKIP_BITS = 7  # all ones: that many empty pixels and no electron
LONG, SHORT, LONG8, UNDEFINED = 4, 3, 16, 7


def split_into_events(
    counts: np.ndarray, grouping: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Spread the electrons of a fraction over its raw frames: per frame sorted linear pixels and sub-pixels (0..15).

    Electrons that meet in one pixel of one raw frame count once, as in the camera.
    """
    pixels = np.repeat(np.arange(counts.size, dtype=np.int32), counts.ravel())
    frame = rng.integers(0, grouping, len(pixels), dtype=np.uint16)
    pixels = pixels[np.argsort(frame, kind="stable")]
    ends = np.cumsum(np.bincount(frame, minlength=grouping))
    events = []
    for hit in np.split(pixels, ends[:-1]):
        alone = hit[np.diff(hit, prepend=-1) > 0]
        events.append((alone, rng.integers(0, 16, len(alone), dtype=np.uint8)))
    return events


@njit(nogil=True, cache=True)
def _encode(pixels, sub_pixels, n_pixels, out):  # pragma: no cover - compiled
    """Write codes into ``out``, least significant bit first; return the number of bytes used."""
    full = (1 << SKIP_BITS) - 1
    hold, held, size, at = 0, 0, 0, 0
    for e in range(len(pixels) + 1):
        gap = (pixels[e] if e < len(pixels) else n_pixels) - at
        while gap >= full:
            hold |= full << held
            held += SKIP_BITS
            gap -= full
            while held >= 8:
                out[size] = hold & 255
                hold, held, size = hold >> 8, held - 8, size + 1
        if e == len(pixels):
            if gap:
                hold |= gap << held
                held += SKIP_BITS
        else:
            hold |= (gap | ((sub_pixels[e] ^ 0b1010) << SKIP_BITS)) << held
            held += SKIP_BITS + 4
            at = pixels[e] + 1
        while held > 0 and (held >= 8 or e == len(pixels)):
            out[size] = hold & 255
            hold, held, size = hold >> 8, held - 8, size + 1
    return size


def encode_frame(pixels: np.ndarray, sub_pixels: np.ndarray, n_pixels: int) -> bytes:
    """Code of one raw frame from its sorted linear pixels and sub-pixels (2 bits x, 2 bits y); an even byte count."""
    out = np.zeros(2 * len(pixels) + n_pixels // 100 + 64, np.uint8)
    used = _encode(pixels.astype(np.int64), sub_pixels.astype(np.int64), n_pixels, out)
    return out[: used + used % 2].tobytes()


def write_eer(
    path: Path, frames: Iterable[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int], n_frames: int, dose_e: float
) -> None:
    """Write raw frames of events; ``dose_e`` is the mean number of electrons per pixel and raw frame."""
    height, width = shape
    about = (
        f'<metadata><item name="numberOfFrames">{n_frames}</item><item name="sensorImageWidth">{width}</item>'
        f'<item name="sensorImageHeight">{height}</item>'
        f'<item name="meanDoseRate" unit="e/pixel/frame">{dose_e:.6f}</item>'
        f'<item name="totalDose" unit="e/pixel">{dose_e * n_frames:.6f}</item></metadata>'
    )
    with open(path, "wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16))
        for index, (pixels, sub_pixels) in enumerate(frames):
            code = encode_frame(pixels, sub_pixels, height * width)
            dose = f'<item name="dose">{len(pixels) / (height * width):.6f}</item>'
            note = f'<metadata><item name="frameID">{index}</item>{dose}</metadata>'
            extra = {65002: note.encode()} | ({65001: about.encode()} if index == 0 else {})
            _write_page(file, code, extra, shape, index == n_frames - 1)


def _write_page(file: BinaryIO, code: bytes, extra: dict[int, bytes], shape: tuple[int, int], last: bool) -> None:
    """Append a directory, its texts and its only strip; the next directory follows unless it is the last."""
    height, width = shape
    start, n_tags = file.tell(), 7 + len(extra)
    data = start + 8 + 20 * n_tags + 8
    texts = {tag: text + b"\0" * (8 - len(text) % 8) for tag, text in sorted(extra.items())}
    offsets = {}
    for tag, text in texts.items():
        offsets[tag] = data
        data += len(text)
    tags = [
        (256, LONG, 1, width), (257, LONG, 1, height), (259, SHORT, 1, 65001), (273, LONG8, 1, data),
        (277, SHORT, 1, 1), (278, LONG, 1, height), (279, LONG8, 1, len(code)),
        *((tag, UNDEFINED, len(extra[tag]), offsets[tag]) for tag in texts),
    ]  # fmt: skip
    follow = -(data + len(code)) % 8  # directories start on 8-byte boundaries
    file.write(struct.pack("<Q", n_tags))
    for entry in tags:
        file.write(struct.pack("<HHQQ", *entry))
    file.write(struct.pack("<Q", 0 if last else data + len(code) + follow))
    file.write(b"".join(texts.values()) + code + b"\0" * follow)
