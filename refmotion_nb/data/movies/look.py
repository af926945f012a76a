"""What has to be known of a movie before its frames are used: camera, hot pixels, background.

A few frames spread through the movie are decoded first and added up; they are kept, so that no frame is decoded twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from refmotion_nb.data.movies.detector import Detector, load_background, load_camera, make_detector, reach_of
from refmotion_nb.data.schema import Movie
from refmotion_nb.numerics.backend import over_chunks
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


@dataclass
class Look:
    """A movie ready to be read."""

    gain: np.ndarray  # (height, width) float32; bad pixels have that of their neighbours, if they are repaired
    detector: Detector | None  # None: bad pixels are left as they are
    background: np.ndarray | None  # (ky, kx) float32 with mean 1, to be subtracted from every frame
    frames: dict[int, np.ndarray] = field(default_factory=dict)  # raw counts decoded already, by frame

    def frame(self, reader: Frames, f: int) -> np.ndarray:
        """Return frame ``f`` of raw counts, repaired; each frame once, since none is kept longer."""
        image = self.frames.pop(f, None)
        image = reader.frame(f) if image is None else image
        return image if self.detector is None else self.detector.repair(image, f)


def look_at(movie: Movie, reader: Frames, repair: bool, flatten: bool, threads: int = 1) -> Look:
    """Find out what is needed to read a movie; ``repair`` bad pixels, ``flatten`` its background.

    Raises
    ------
    InputError
        The movie, its gain, defects or background cannot be used.
    """
    bad, gain = load_camera(movie)
    flat = np.ones(bad.shape, np.float32) if gain is None else gain
    estimate = flatten and movie.estimate_background
    detect = repair and movie.hot_pixel_threshold > 0
    frames: dict[int, np.ndarray] = {}
    if estimate or detect:
        frames = _decoded(reader, sample_of(reader), threads)
        total = _sum(list(frames.values()), threads)
    if detect:
        hot = find_hot_pixels(total, flat, bad, movie.hot_pixel_threshold, threads)
        bad[hot[:, 1], hot[:, 0]] = True
    background = load_background(movie.background) if movie.background and flatten else None
    if estimate:
        level, _, count = block_level(total, flat, bad, threads)
        background = smooth_background(level, count)
    detector = make_detector(bad, gain, reach_of(movie)) if repair else None
    if detector is not None and detector.gain is not None:
        flat = detector.gain
    return Look(flat, detector, background, frames)


def _decoded(reader: Frames, chosen: list[int], threads: int) -> dict[int, np.ndarray]:
    frames: dict[int, np.ndarray] = {}

    def decode(part: slice) -> None:
        for f in chosen[part]:
            frames[f] = reader.frame(f)

    over_chunks(len(chosen), decode, threads, chunk=1)
    return {f: frames[f] for f in chosen}


def _sum(frames: list[np.ndarray], threads: int) -> np.ndarray:
    """Return the sum of frames (height, width) float32."""
    total = np.empty(frames[0].shape, np.float32)

    def add(rows: slice) -> None:
        total[rows] = frames[0][rows]
        for frame in frames[1:]:
            total[rows] += frame[rows]

    over_chunks(len(total), add, threads, chunk=_BAND)
    return total


def sample_of(reader: Frames) -> list[int]:
    """Return the frames to look at first: spread evenly through the movie, as many as memory is meant for."""
    size = reader.height * reader.width * reader.dtype.itemsize
    n = min(reader.n_frames, SAMPLE, max(1, SAMPLE_BYTES // size))
    return sorted({int(f) for f in (np.arange(n) + 0.5) * reader.n_frames / n})
