"""The camera: gain reference, defects and hot pixels, oriented as the frames, and the repair of bad pixels.

A bad pixel takes the count of a good neighbour, chosen anew in each frame by a hash of pixel and frame: its noise is
that of its surroundings, results depend neither on threads nor on order. Its gain is the mean of those neighbours'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from refmotion_nb.data.files import admit, load_array
from refmotion_nb.data.movies.eer import is_eer
from refmotion_nb.data.movies.reader import read_image
from refmotion_nb.data.schema import Background, Gain, InputError, Movie
from refmotion_nb.numerics.backend import beside, kernels_of, to_host

_AGAIN = "run motion correction again"
_FEWEST = 7  # good neighbours within reach; a pixel with fewer borrows from the nearest good pixels further away
_SOURCES = 24  # neighbours remembered per bad pixel
_CHUNK = 1 << 15  # bad pixels at a time, to bound memory


@dataclass(frozen=True, eq=False)
class Detector:
    """Gain (height, width) float32 or None, bad pixels (n, 2) int32 y x, and where each finds replacements."""

    height: int
    width: int
    gain: Any
    bad: np.ndarray
    pixel: Any  # (n,) flat index of the bad pixels
    sources: Any  # (n, 24) flat index of good pixels
    n_sources: Any  # (n,) how many of them are filled

    def on(self, put: Callable[[Any], Any]) -> Detector:
        """Return the detector with what repairs frames where ``put`` puts it."""
        return replace(self, pixel=put(self.pixel), sources=put(self.sources), n_sources=put(self.n_sources))

    def repair(self, frame: Any, f: int) -> Any:
        """Replace the bad pixels of frame ``f``, (height, width) raw counts, where it is and in place (read-only: in a copy)."""
        if frame.shape != (self.height, self.width):
            raise ValueError(f"the frame is {frame.shape}, the detector {(self.height, self.width)}")
        if not len(self.bad):
            return frame
        if isinstance(frame, np.ndarray) and not (frame.flags.writeable and frame.flags.c_contiguous):
            frame = frame.copy()
        counts = frame.reshape(-1).view(f"u{frame.dtype.itemsize}")  # moved, whatever they are
        kernels_of(frame).repair_kernel(counts, self.pixel, self.sources, self.n_sources, _mixed(f + (1 << 20)))
        return frame


def reach_of(movie: Movie) -> int:
    """Return how far away (px) a bad pixel finds its replacements, as in RELION."""
    return 4 if is_eer(movie.path) else 2


def load_camera(movie: Movie) -> tuple[np.ndarray, np.ndarray | None]:
    """Read which pixels are bad, (height, width) bool, and the gain as it is stored.

    Raises
    ------
    InputError
        Gain, defects or hot pixels are missing, damaged or of the wrong size, or leave no good pixel.
    """
    shape = (movie.height, movie.width)
    bad = np.zeros(shape, bool)
    gain = None
    if movie.gain is not None:
        gain = load_gain(movie.gain, shape, is_eer(movie.path))
        bad |= gain <= 0
    if movie.defects is not None:
        bad |= load_defects(movie.defects, shape, flip_tiff=not movie.rows_as_stored)
    hot = np.asarray(movie.hot_pixels, np.int64).reshape(-1, 2)
    outside = np.flatnonzero((hot < 0).any(1) | (hot[:, 0] >= movie.width) | (hot[:, 1] >= movie.height))
    if outside.size:
        x, y = hot[outside[0]]
        raise InputError(f"{movie.path}: hot pixel x {x}, y {y} is outside its frames: check the motion STAR file")
    bad[hot[:, 1], hot[:, 0]] = True
    if bad.all():
        raise InputError(f"{movie.path}: gain reference and defects leave no good pixel: check both files")
    return bad, gain


def make_detector(bad: np.ndarray, gain: Any, reach: int) -> Detector:
    """Find the replacements of the pixels in ``bad``, a (height, width) mask, within ``reach`` px where there are.

    The gain stays where it is; the mask, and what is found, are on the host.
    """
    height, width = bad.shape
    pixel = np.flatnonzero(bad)
    sources = np.zeros((len(pixel), _SOURCES), np.uint32)  # enough for frames of 65535 × 65535
    n_sources = np.zeros(len(pixel), np.int64)
    for start in range(0, len(pixel), _CHUNK):
        part = slice(start, start + _CHUNK)
        sources[part], n_sources[part] = _near(bad, pixel[part], reach)
    lonely = np.flatnonzero(n_sources < _FEWEST)
    if len(lonely):
        sources[lonely] = _far(bad, pixel[lonely], reach)
        n_sources[lonely] = _SOURCES
    if gain is not None and len(pixel):
        gain = gain.copy()
        flat, known = gain.reshape(-1), np.arange(_SOURCES) < n_sources[:, None]
        around = to_host(flat[beside(gain, sources, np.int64)])
        mean = np.where(known, around, 0).sum(1) / n_sources
        flat[beside(gain, pixel)] = beside(gain, mean, np.float32)
    yx = np.stack(np.divmod(pixel, width), 1).astype(np.int32)
    return Detector(height, width, gain, yx, pixel, sources, n_sources)


def _near(bad: np.ndarray, pixel: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 24 good pixels of the window around each bad pixel, in an order that the hash decides, and their number."""
    height, width = bad.shape
    dy, dx = (g.ravel() for g in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    y, x = (v[:, None] for v in np.divmod(pixel, width))
    y, x = y + dy, x + dx
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = np.where(inside, y * width + x, 0)
    good = inside & ~bad.reshape(-1)[at]
    rank = np.where(good, _hash(pixel[:, None], np.arange(len(dy), dtype=np.uint64)), 1 << 31)
    order = np.argsort(rank, axis=1, kind="stable")[:, :_SOURCES]
    return np.take_along_axis(at, order, 1), np.minimum(good.sum(1), _SOURCES)


def _far(bad: np.ndarray, pixel: np.ndarray, reach: int) -> np.ndarray:
    """24 good pixels for each pixel within a bad area: scattered about the nearest good one, as far as that is away."""
    from scipy.spatial import cKDTree  # takes long to import, and few cameras have such areas

    height, width = bad.shape
    edge = _edge(bad)
    yx = np.stack(np.divmod(pixel, width), 1)
    distance, nearest = cKDTree(edge).query(yx)
    anchor = edge[nearest]
    spread = np.maximum(np.ceil(distance).astype(np.int64), reach)
    out = np.repeat((anchor[:, 0] * width + anchor[:, 1])[:, None], _SOURCES, 1)
    for k in range(_SOURCES):
        dy, dx = (_hash(pixel, np.uint64(1000 + 2 * k + axis)) % (2 * spread + 1) - spread for axis in (0, 1))
        for sign in (-1, 1):  # at a straight edge one of the two is good
            y, x = anchor[:, 0] + sign * dy, anchor[:, 1] + sign * dx
            inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
            good = inside[~bad[y[inside], x[inside]]]
            out[good, k] = y[good] * width + x[good]
    return out


def _edge(bad: np.ndarray) -> np.ndarray:
    """Good pixels that touch a bad one, (n, 2) y x: the good pixel nearest to any bad one is among them."""
    touched = np.zeros_like(bad)
    touched[1:] |= bad[:-1]
    touched[:-1] |= bad[1:]
    wide = touched | bad
    touched[:, 1:] |= wide[:, :-1]
    touched[:, :-1] |= wide[:, 1:]
    return np.argwhere(touched & ~bad)


def _hash(pixel: np.ndarray, salt: np.ndarray | np.uint64) -> np.ndarray:
    """Mix pixel and salt into 31 random bits (the finaliser of splitmix64): same input, same output, everywhere."""
    with np.errstate(over="ignore"):
        z = pixel.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _mixed(salt)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(33)).astype(np.int64)


def _mixed(salt: np.ndarray | np.uint64 | int) -> Any:
    """Return the salt as it enters the hash, which ``repair_kernel`` computes too."""
    with np.errstate(over="ignore"):
        return np.asarray(salt, np.uint64)[()] * np.uint64(0xD1342543DE82EF95)


def load_gain(gain: Gain, shape: tuple[int, int], eer: bool) -> np.ndarray:
    """Read what raw counts are to be multiplied with, (height, width) float32 as the frames lie; 0 where defective.

    A TIFF is flipped as TIFF movies are, except the ``.gain`` of an EER movie. The gain is turned first (quarter turns
    clockwise with the first row on top, RELION's ``--gain_rot``), then flipped. For EER, a gain of the sensor's raster
    is repeated to that of the frames, a finer one summed, and all but ``.gain`` are inverted unless ``invert`` says.
    Raises InputError for a size that does not fit and for values that are not finite. Not to be changed: it is kept for the
    next movie.
    """
    path = Path(gain.path)
    try:
        written = path.stat().st_mtime_ns
    except OSError:
        written = 0
    return _load_gain(gain, shape, eer, written)


@lru_cache(maxsize=1)
def _load_gain(gain: Gain, shape: tuple[int, int], eer: bool, written: int) -> np.ndarray:
    path = Path(gain.path)
    multiplies = path.suffix == ".gain" or not eer
    flip = not (gain.rows_as_stored or (eer and path.suffix == ".gain"))
    image = read_image(path, flip_tiff=flip).astype(np.float32)
    if not np.isfinite(image).all():
        raise InputError(
            f"{path}: the gain reference has values that are not finite; make it again, with 0 for defects"
        )
    image = np.rot90(image, -gain.rotate_quarter_turns)
    image = image[:: -1 if gain.flip_y else 1, :: -1 if gain.flip_x else 1]
    fitted = _resampled(image, shape) if eer else image
    if fitted.shape != shape:
        raise InputError(
            f"{path}: the gain reference is {image.shape[0]} × {image.shape[1]} (height × width), the frames are "
            f"{shape[0]} × {shape[1]}: give the gain of this camera mode, or turn it by a quarter"
        )
    fitted = np.array(fitted, np.float32)
    if not fitted.any():
        raise InputError(f"{path}: the gain reference is 0 everywhere; give another one")
    if gain.invert if gain.invert is not None else not multiplies:
        mean = np.float32(fitted.mean(dtype=np.float64))  # as RELION: defects count
        np.divide(mean, fitted, out=fitted, where=fitted != 0)
    fitted.flags.writeable = False
    return fitted


def load_background(background: Background) -> np.ndarray:
    """Read how bright the field is, (ky, kx) float32 on a coarse grid, in the rows of the movie, with mean 1.

    Raises InputError where it cannot be read or is not a positive level on average.
    """
    path = Path(background.path)
    image = load_array(path, _AGAIN) if path.suffix == ".npy" else read_image(path, flip_tiff=False)
    if image.ndim < 2 or image.size != math.prod(image.shape[-2:]):
        raise InputError(f"{path} has shape {image.shape}, a background is one image; {_AGAIN}")
    image = np.asarray(image, np.float32).reshape(image.shape[-2:])
    level = float(image.mean(dtype=np.float64))
    if not (np.isfinite(level) and level > 0):
        raise InputError(f"{path}: the mean of the background is {level:g}, not positive; {_AGAIN}")
    return (image[::-1] if background.rows_reversed else image) / np.float32(level)


def _resampled(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sum blocks of 2 × 2 or 4 × 4, or repeat pixels, so that ``image`` has this shape; as it is where that cannot be."""
    for factor in (2, 4):
        if image.shape == (shape[0] * factor, shape[1] * factor):
            return image.reshape(shape[0], factor, shape[1], factor).sum((1, 3))
    return _repeated(image, shape)


def _repeated(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Repeat pixels of the sensor 2 or 4 times along both axes to give ``image`` this shape; as it is where that cannot be."""
    for factor in (2, 4):
        if (image.shape[0] * factor, image.shape[1] * factor) == shape:
            return image.repeat(factor, 0).repeat(factor, 1)
    return image


def load_defects(path: Path | str, shape: tuple[int, int], flip_tiff: bool) -> np.ndarray:
    """Mask of defective pixels, (height, width) bool, from a map or from rectangles ``x y width height`` per line.

    Coordinates are 0-based pixels of the frames as rendered, y in RELION's row order; ``#`` starts a comment. Raises
    InputError where a line cannot be read, a rectangle lies outside the frames or the map has another size.
    """
    path = Path(path)
    try:
        admit(path)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path, or the folder it is relative to") from None
    except (UnicodeDecodeError, OSError):
        text = "\0"
    if "\0" in text:
        return _defect_map(path, shape, flip_tiff)
    bad = np.zeros(shape, bool)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            x, y, width, height = (int(float(w)) for w in words)
        except (ValueError, OverflowError):
            raise InputError(f"{path}, line {number}: a defect is four numbers, x y width height; correct it, or "
                             "convert a file of SerialEM's by IMOD's clip defect") from None  # fmt: skip
        if min(x, y) < 0 or min(width, height) < 1 or x >= shape[1] or y >= shape[0]:
            raise InputError(
                f"{path}, line {number}: the defect at x {x}, y {y} of {width} × {height} is outside the frames of "
                f"{shape[1]} × {shape[0]} (width × height); check that the file belongs to this camera mode"
            )
        bad[y : y + height, x : x + width] = True
    return bad


def _defect_map(path: Path, shape: tuple[int, int], flip_tiff: bool) -> np.ndarray:
    image = read_image(path, flip_tiff) != 0
    fitted = _repeated(image, shape)  # the map of the sensor for upsampled frames
    if fitted.shape != shape:
        raise InputError(
            f"{path}: the defect map is {image.shape[0]} × {image.shape[1]} (height × width), the frames are "
            f"{shape[0]} × {shape[1]}: give the map of this camera mode"
        )
    return fitted
