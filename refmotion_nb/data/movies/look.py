"""What has to be known of a movie before its frames are used: camera, hot pixels, background.

A few frames spread through the movie are decoded first and added up; they are kept, so that no frame is decoded twice. They
are put where frames are used, on a GPU if one is in use: sums, hot pixels, levels and repair are found there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from refmotion_nb.data.movies.detector import Detector, load_background, load_camera, make_detector, reach_of
from refmotion_nb.data.schema import Movie
from refmotion_nb.numerics.backend import beside, over_chunks, xp_of
from refmotion_nb.numerics.field import block_level, find_hot_pixels, smooth_background

SAMPLE = 8  # frames
SAMPLE_BYTES = 1 << 30  # of these frames, at most
_BAND = 64  # rows that are added up at a time, while their sum is in the cache


class Frames(Protocol):
    """What gives the frames of a movie, as a ``MovieReader`` does."""

    n_frames: int
    height: int
    width: int
    dtype: np.dtype

    def frame(self, f: int) -> np.ndarray:
        """Return frame ``f`` (height, width) of raw counts, to be changed at will."""
        ...


Put = Callable[[Any], Any]  # an array on the host -> the same where it is used


@dataclass
class Look:
    """A movie ready to be read; gain, background and frames are where they were put."""

    gain: Any  # (height, width) float32; bad pixels have that of their neighbours, if they are repaired
    detector: Detector | None  # None: bad pixels are left as they are
    background: Any | None  # (ky, kx) float32 with mean 1, to be subtracted from every frame
    frames: dict[int, Any] = field(default_factory=dict)  # raw counts decoded already, by frame

    def raw(self, reader: Frames, f: int) -> Any:
        """Return frame ``f`` of raw counts, on the host unless it was put elsewhere; each once, since none is kept longer."""
        image = self.frames.pop(f, None)
        return reader.frame(f) if image is None else image

    def repaired(self, image: Any, f: int) -> Any:
        """Return frame ``f`` of raw counts with its bad pixels repaired, where it is; it is changed."""
        return image if self.detector is None else self.detector.repair(image, f)

    def frame(self, reader: Frames, f: int) -> Any:
        """Return frame ``f`` of raw counts, repaired; each frame once."""
        return self.repaired(self.raw(reader, f), f)


def here(array: Any) -> Any:
    """Return the array: it stays in the host's memory."""
    return array


def look_at(
    movie: Movie,
    reader: Frames,
    repair: bool,
    flatten: bool,
    threads: int = 1,
    put: Put = here,
    keep: Put | None = None,
) -> Look:
    """Find out what is needed to read a movie; ``repair`` bad pixels, ``flatten`` its background.

    ``put`` brings arrays to where frames are used, ``keep`` the gain, which the next movie may share.

    Raises
    ------
    InputError
        The movie, its gain, defects or background cannot be used.
    """
    bad, stored = load_camera(movie)
    gain = (keep or put)(_ones(bad.shape) if stored is None else stored)
    background = load_background(movie.background) if movie.background and flatten else None
    estimate = flatten and movie.estimate_background
    detect = repair and movie.hot_pixel_threshold > 0
    frames: dict[int, Any] = {}
    if estimate or detect:
        frames = {f: put(image) for f, image in _decoded(reader, sample_of(reader), threads).items()}
        total, known = _sum(list(frames.values()), threads), put(bad)
        if detect:
            hot = find_hot_pixels(total, gain, known, movie.hot_pixel_threshold, threads)
            for mask in (bad, known):  # one and the same on the CPU
                mask[tuple(beside(mask, axis) for axis in hot.T[::-1])] = True
        if estimate:
            level, _, count = block_level(total, gain, known, threads)
            background = smooth_background(level, count)
        del total, known  # on a GPU their room is counted once with that of the gain without bad pixels
    detector = make_detector(bad, None if stored is None else gain, reach_of(movie)).on(put) if repair else None
    if detector is not None and detector.gain is not None:
        gain = detector.gain
    return Look(gain, detector, None if background is None else put(background), frames)


@lru_cache(maxsize=1)
def _ones(shape: tuple[int, int]) -> np.ndarray:
    """Return the gain of a camera without one; not to be changed: it is kept for the next movie."""
    return np.ones(shape, np.float32)


def _decoded(reader: Frames, chosen: list[int], threads: int) -> dict[int, np.ndarray]:
    frames: dict[int, np.ndarray] = {}

    def decode(part: slice) -> None:
        for f in chosen[part]:
            frames[f] = reader.frame(f)

    over_chunks(len(chosen), decode, threads, chunk=1)
    return {f: frames[f] for f in chosen}


def _sum(frames: list[Any], threads: int) -> Any:
    """Return the sum of frames (height, width) float32, where they are."""
    total = xp_of(frames[0]).empty(frames[0].shape, np.float32)

    def add(rows: slice) -> None:
        some = total[rows]
        some[...] = frames[0][rows]
        for frame in frames[1:]:
            some += frame[rows]

    over_chunks(len(total), add, threads, chunk=_BAND, like=total, item_bytes=1)
    return total


def sample_of(reader: Frames) -> list[int]:
    """Return the frames to look at first: spread evenly through the movie, as many as memory is meant for."""
    size = reader.height * reader.width * reader.dtype.itemsize
    n = min(reader.n_frames, SAMPLE, max(1, SAMPLE_BYTES // size))
    return sorted({int(f) for f in (np.arange(n) + 0.5) * reader.n_frames / n})


def sample_bytes(n_frames: int, frame_bytes: int) -> int:
    """Return what the frames that are looked at first take, of a movie of frames of ``frame_bytes`` or less."""
    return min(min(n_frames, SAMPLE) * frame_bytes, max(SAMPLE_BYTES, frame_bytes))
