"""Whole frames summed with their motion undone: exact for motion of the whole frame, splines for local motion.

Frame f of the corrected image at x is the frame at x + d_f(x). Of d_f, what the whole frame moved is undone by whole
pixels, mirrored at the edges, and a phase ramp; local motion by sampling quintic B-splines, whose coefficients come with
the same transform, since dividing by the spline's response is exact in Fourier space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from refmotion_nb.numerics.backend import (
    all_beside,
    beside,
    irfft2_large,
    kernels_of,
    over_chunks,
    rfft2_large,
    to_host,
    xp_of,
)
from refmotion_nb.numerics.patches import mean_count
from refmotion_nb.numerics.threads import in_order

GRID_PX = 32  # spacing of the grid that local motion is given on
IN_FLIGHT_BYTES = 4e9  # of frames worked on at a time
_NOTHING = np.zeros((0, 0), np.float32)
_ROWS = 64  # or columns of an image, that one thread takes at a time


@dataclass(frozen=True)
class Camera:
    """What turns raw counts into an image: gain and brightness of the field, (height, width) each, or none."""

    gain: Any = None
    background: Any = None  # in units of the mean count


def spread(coarse: Any, shape: tuple[int, int]) -> Any:
    """Return an image (ky, kx) of coarse cells spread linearly over ``shape``, (height, width) float32, where it is."""
    y, x = (beside(coarse, _cell_weights(size, n)) for size, n in zip(shape, coarse.shape))
    return y @ coarse.astype(np.float32) @ x.T


def _cell_weights(size: int, n: int) -> np.ndarray:
    """Weights (pixel, n) of ``n`` equal cells along an axis of ``size`` pixels; constant beyond the last centres."""
    u = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    return np.clip(1 - np.abs(u[:, None] - np.arange(n)), 0, None).astype(np.float32)


def grid_nodes(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (gy,) and columns (gx,) px of the grid that local motion is given on; the last reach the edge."""
    y, x = (np.arange(-(-max(size - 1, 1) // GRID_PX) + 1) * GRID_PX for size in shape)
    return y, x


def radius_axis(shape: tuple[int, int]) -> np.ndarray:
    """Return the radii (radius,) cycles/px, from 0 to the corner of Fourier space, that weights are given at."""
    n = int(np.ceil(2 * np.sqrt(0.5) * max(shape))) + 2
    return np.arange(n) * (0.5 / max(shape))


def binned_shape(shape: tuple[int, int], binning: float) -> tuple[int, int]:
    """Return height and width after Fourier cropping: as RELION's, even."""
    if binning == 1:
        return shape
    # a binning that is a quotient of sizes must give these sizes back
    height, width = (int(size / binning + 1e-6) // 2 * 2 for size in shape)
    return height, width


def sum_frames(
    load: Callable[[int], Any],
    camera: Camera,
    rigid_px: np.ndarray,  # (frame, 2) x y, displacement of the whole frame
    local_px: np.ndarray | None,  # (frame, gy, gx, 2) x y beyond it, on the grid of ``grid_nodes``
    weights: Sequence[np.ndarray],  # (frame, radius) each, on ``radius_axis``
    shape_out: tuple[int, int],
    threads: int = 1,
    ready: Callable[[Any, int], Any] = lambda counts, f: counts,
) -> list[np.ndarray]:
    """Return one sum of frames (height_out, width_out) float32 for each of ``weights``, its grey scale that of a frame.

    ``load`` gives frame f, (height, width) raw counts; ``ready`` repairs it and puts it where frames are added up, as gain and
    background are. Frames are added in their order, so that the sums do not depend on the number of threads. On the CPU several
    are worked on side by side; for a GPU all threads load, and frames go there one by one.
    """
    n_frames = len(rigid_px)
    first = ready(load(0), 0)
    shape, on_gpu = first.shape, xp_of(first) is not np
    adder: Adder = (
        _Rigid(first, shape_out, rigid_px, weights, threads)
        if local_px is None
        else _Local(first, shape_out, rigid_px, local_px, weights, threads)
    )
    side_by_side = max(1, min(threads, n_frames, int(IN_FLIGHT_BYTES // (16 * shape[0] * shape[1]))))
    each = max(1, threads // side_by_side)

    def loaded(f: int) -> Any:
        return load(f) if f else None

    def prepared(f: int, counts: Any) -> list[Any]:
        frame = ready(counts, f) if f else first
        return adder.prepared(f, _spectrum(frame, camera, adder.whole_px[f], each), each)

    ahead = threads if on_gpu else side_by_side if side_by_side > 1 else 0
    frames = in_order(loaded if on_gpu else lambda f: prepared(f, loaded(f)), range(n_frames), ahead)
    with closing(frames):  # whatever happens, nobody reads a movie that is closed
        for f, found in frames:
            adder.add(f, prepared(f, found) if on_gpu else found)
    return adder.finished()


class Adder:
    """A sum under way; what frames share. Arrays are where the first frame is."""

    def __init__(self, first: Any, shape_out: tuple[int, int], rigid_px: np.ndarray, weights: Sequence[np.ndarray],
                 threads: int):  # fmt: skip
        self.like, self.shape, self.shape_out, self.threads = first, first.shape, shape_out, threads
        self.tables = all_beside(first, weights, np.float32)
        self.whole_px = np.rint(rigid_px).astype(np.int64)
        self.part_px = rigid_px - self.whole_px
        self.step = 0.5 / max(self.shape)

    def ramps(self, f: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the phase ramps (row,), (column,) that move frame f back by the rest of its shift."""
        y = fft.fftfreq(shape[0], 1 / shape[0]) / self.shape[0]
        x = np.arange(shape[1] // 2 + 1) / self.shape[1]
        dx, dy = self.part_px[f]
        if shape[0] % 2 == 0:
            y[shape[0] // 2] *= -1  # at the Nyquist limit either sign will do; this is RELION's
        return np.exp(2j * np.pi * dy * y), np.exp(2j * np.pi * dx * x)

    def prepared(self, f: int, spectrum: Any, threads: int) -> list[Any]:
        """Return what of frame f can be had before its turn."""
        raise NotImplementedError

    def add(self, f: int, images: list[Any]) -> None:
        """Add what was prepared of frame f."""
        raise NotImplementedError

    def finished(self) -> list[np.ndarray]:
        """Return the sums, on the host."""
        raise NotImplementedError

    def zeros(self, shape: tuple[int, int], dtype: Any = np.float32) -> Any:
        """Return an image of zeros, beside the first frame."""
        return xp_of(self.like).zeros(shape, dtype)

    def half_plane(self) -> Any:
        """Return a half plane of zeros, of what is written."""
        return self.zeros((self.shape_out[0], self.shape_out[1] // 2 + 1), np.complex64)

    def weigh(self, spectrum: Any, weight: Any, ramps: Sequence[np.ndarray], rows: slice, out: Any, add: bool) -> None:
        """Add to rows of ``out``, or set them to, those of a transform times weight and ramps."""
        ramp_y, ramp_x = ramps
        kernels = kernels_of(out)
        kernels.weigh_kernel(
            spectrum, self.shape[1], weight, self.step, ramp_y, ramp_x, rows.start, rows.stop, out, add
        )

    def rows(self, n: int, work: Callable[[slice], None]) -> None:
        """Spread the rows of an image over threads."""
        over_chunks(n, work, self.threads, chunk=_ROWS, like=self.like, item_bytes=4 * self.shape[1])

    def image(self, spectrum: Any) -> np.ndarray:
        """Transform a cropped sum back, keeping the grey scale of a frame."""
        area = np.prod(self.shape_out) / np.prod(self.shape)
        image = irfft2_large(spectrum, self.shape_out, self.threads)
        image *= np.float32(area)
        return to_host(image)


class _Rigid(Adder):
    """Frames that move as a whole are added in Fourier space, where only what is kept after cropping is looked at."""

    def __init__(self, *settings: Any):
        super().__init__(*settings)
        self.sums = [self.half_plane() for _ in self.tables]

    def prepared(self, f: int, spectrum: Any, threads: int) -> list[Any]:
        return [spectrum]

    def add(self, f: int, images: list[Any]) -> None:
        ramps = all_beside(self.like, self.ramps(f, self.shape_out), np.complex64)
        for total, table in zip(self.sums, self.tables):

            def work(part: slice, total: Any = total, weight: Any = table[f]) -> None:
                self.weigh(images[0], weight, ramps, part, total, True)

            self.rows(len(total), work)

    def finished(self) -> list[np.ndarray]:
        return [self.image(total) for total in self.sums]


class _Local(Adder):
    """Frames that move locally are weighted in Fourier space and added as images, sampled where the specimen was."""

    def __init__(self, first: Any, shape_out: tuple[int, int], rigid_px: np.ndarray, local_px: np.ndarray,
                 weights: Sequence[np.ndarray], threads: int):  # fmt: skip
        super().__init__(first, shape_out, rigid_px, weights, threads)
        height, width = self.shape
        (self.local_px,) = all_beside(first, [local_px], np.float32)
        self.sums = [self.zeros(self.shape) for _ in self.tables]
        self.responses = _spline_response(fft.fftfreq(height)), _spline_response(np.arange(width // 2 + 1) / width)

    def prepared(self, f: int, spectrum: Any, threads: int) -> list[Any]:
        ramps = [ramp / response for ramp, response in zip(self.ramps(f, self.shape), self.responses)]
        ramps = all_beside(spectrum, ramps, np.complex64)
        images = []
        for number, table in enumerate(self.tables):
            last = number == len(self.tables) - 1
            out = spectrum if last else xp_of(spectrum).empty(spectrum.shape, np.complex64)
            self.weigh(spectrum, table[f], ramps, slice(0, len(out)), out, False)
            images.append(irfft2_large(out, self.shape, threads))
        return images

    def add(self, f: int, images: list[Any]) -> None:
        for total, image in zip(self.sums, images):

            def work(part: slice, total: Any = total, image: Any = image) -> None:
                kernels_of(total).warp_add_kernel(image, self.local_px[f], GRID_PX, part.start, part.stop, total)

            self.rows(len(total), work)

    def finished(self) -> list[np.ndarray]:
        if tuple(self.shape) == tuple(self.shape_out):
            return [to_host(total) for total in self.sums]
        still = [np.ones(n) for n in (self.shape_out[0], self.shape_out[1] // 2 + 1)]
        still = all_beside(self.like, still, np.complex64)
        (flat,) = all_beside(self.like, [np.ones(self.tables[0].shape[1])], np.float32)
        out = []
        for total in self.sums:
            cropped = self.half_plane()
            self.weigh(rfft2_large(total, self.threads), flat, still, slice(0, len(cropped)), cropped, False)
            out.append(self.image(cropped))
        return out


def _spectrum(frame: Any, camera: Camera, whole_px: np.ndarray, threads: int) -> Any:
    gain, background = (beside(frame, _NOTHING if one is None else one) for one in (camera.gain, camera.background))
    level = np.float32(0)
    if camera.background is not None:
        level = mean_count(frame, beside(frame, np.ones((1, 1), np.float32)) if camera.gain is None else gain)
    image = xp_of(frame).empty(frame.shape, np.float32)
    dx, dy = (int(v) for v in whole_px)
    kernels_of(frame).shifted_frame_kernel(frame, gain, background, level, dy, dx, 0, len(image), image)
    return rfft2_large(image, threads)


def _spline_response(frequency: np.ndarray) -> np.ndarray:
    """Return the transform of the quintic B-spline's samples at frequencies (cycles/px)."""
    angle = 2 * np.pi * frequency
    return (66 + 52 * np.cos(angle) + 2 * np.cos(2 * angle)) / 120
