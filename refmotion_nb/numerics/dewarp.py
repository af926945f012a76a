"""Whole frames summed with their motion undone: exact for motion of the whole frame, splines for local motion.

Frame f of the corrected image at x is the frame at x + d_f(x). Of d_f, what the whole frame moved is undone by whole
pixels, mirrored at the edges, and a phase ramp; local motion by sampling quintic B-splines, whose coefficients come with
the same transform, since dividing by the spline's response is exact in Fourier space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from refmotion_nb.numerics.backend import over_chunks
from refmotion_nb.numerics.kernels_dewarp import shifted_frame_kernel, warp_add_kernel, weigh_kernel
from refmotion_nb.numerics.patches import mean_count
from refmotion_nb.numerics.threads import in_order

GRID_PX = 32  # spacing of the grid that local motion is given on
IN_FLIGHT_BYTES = 4e9  # of frames worked on at a time
_NOTHING = np.zeros((0, 0), np.float32)
_ROWS = 64  # or columns of an image, that one thread takes at a time


@dataclass(frozen=True)
class Camera:
    """What turns raw counts into an image: gain and brightness of the field, (height, width) each, or none."""

    gain: np.ndarray | None = None
    background: np.ndarray | None = None  # in units of the mean count


def spread(coarse: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return an image (ky, kx) of coarse cells spread linearly over ``shape``, (height, width) float32."""
    y, x = (_cell_weights(size, n) for size, n in zip(shape, coarse.shape))
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
    load: Callable[[int], np.ndarray],
    camera: Camera,
    rigid_px: np.ndarray,  # (frame, 2) x y, displacement of the whole frame
    local_px: np.ndarray | None,  # (frame, gy, gx, 2) x y beyond it, on the grid of ``grid_nodes``
    weights: Sequence[np.ndarray],  # (frame, radius) each, on ``radius_axis``
    shape_out: tuple[int, int],
    threads: int = 1,
) -> list[np.ndarray]:
    """Return one sum of frames (height_out, width_out) float32 for each of ``weights``, its grey scale that of a frame.

    ``load`` gives frame f, (height, width) raw counts. Frames are worked on side by side and added in their order, so
    that the sums do not depend on the number of threads.
    """
    n_frames = len(rigid_px)
    first = load(0)
    shape = first.shape
    tables = [np.ascontiguousarray(weight, np.float32) for weight in weights]
    adder: Adder = (
        _Rigid(shape, shape_out, rigid_px, tables, threads)
        if local_px is None
        else _Local(shape, shape_out, rigid_px, np.ascontiguousarray(local_px, np.float32), tables, threads)
    )
    side_by_side = max(1, min(threads, n_frames, int(IN_FLIGHT_BYTES // (16 * shape[0] * shape[1]))))
    each = max(1, threads // side_by_side)

    def transformed(f: int) -> list[np.ndarray]:
        frame = first if f == 0 else load(f)
        return adder.prepared(f, _spectrum(frame, camera, adder.whole_px[f], each), each)

    for f, images in in_order(transformed, range(n_frames), side_by_side if side_by_side > 1 else 0):
        adder.add(f, images)
    return adder.finished()


class Adder:
    """A sum under way; what frames share."""

    def __init__(self, shape: tuple[int, ...], shape_out: tuple[int, int], rigid_px: np.ndarray, tables: list[np.ndarray],
                 threads: int):  # fmt: skip
        self.shape, self.shape_out, self.tables, self.threads = shape, shape_out, tables, threads
        self.whole_px = np.rint(rigid_px).astype(np.int64)
        self.part_px = rigid_px - self.whole_px
        self.step = 0.5 / max(shape)

    def ramps(self, f: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the phase ramps (row,), (column,) that move frame f back by the rest of its shift."""
        y = fft.fftfreq(shape[0], 1 / shape[0]) / self.shape[0]
        x = np.arange(shape[1] // 2 + 1) / self.shape[1]
        dx, dy = self.part_px[f]
        if shape[0] % 2 == 0:
            y[shape[0] // 2] *= -1  # at the Nyquist limit either sign will do; this is RELION's
        return np.exp(2j * np.pi * dy * y), np.exp(2j * np.pi * dx * x)

    def prepared(self, f: int, spectrum: np.ndarray, threads: int) -> list[np.ndarray]:
        """Return what of frame f can be had before its turn."""
        raise NotImplementedError

    def add(self, f: int, images: list[np.ndarray]) -> None:
        """Add what was prepared of frame f."""
        raise NotImplementedError

    def finished(self) -> list[np.ndarray]:
        """Return the sums."""
        raise NotImplementedError

    def rows(self, n: int, work: Callable[[slice], None]) -> None:
        """Spread the rows of an image over threads."""
        over_chunks(n, work, self.threads, chunk=_ROWS)

    def image(self, spectrum: np.ndarray) -> np.ndarray:
        """Transform a cropped sum back, keeping the grey scale of a frame."""
        area = np.prod(self.shape_out) / np.prod(self.shape)
        image = _transformed_back(spectrum, self.shape_out, self.threads)
        image *= np.float32(area)
        return image


class _Rigid(Adder):
    """Frames that move as a whole are added in Fourier space, where only what is kept after cropping is looked at."""

    def __init__(self, *settings: Any):
        super().__init__(*settings)
        self.sums = [_half_plane(self.shape_out) for _ in self.tables]

    def prepared(self, f: int, spectrum: np.ndarray, threads: int) -> list[np.ndarray]:
        return [spectrum]

    def add(self, f: int, images: list[np.ndarray]) -> None:
        ramp_y, ramp_x = (ramp.astype(np.complex64) for ramp in self.ramps(f, self.shape_out))
        for total, table in zip(self.sums, self.tables):

            def work(part: slice, total: np.ndarray = total, weight: np.ndarray = table[f]) -> None:
                weigh_kernel(
                    images[0], self.shape[1], weight, self.step, ramp_y, ramp_x, part.start, part.stop, total, True
                )

            self.rows(len(total), work)

    def finished(self) -> list[np.ndarray]:
        return [self.image(total) for total in self.sums]


class _Local(Adder):
    """Frames that move locally are weighted in Fourier space and added as images, sampled where the specimen was."""

    def __init__(self, shape: tuple[int, int], shape_out: tuple[int, int], rigid_px: np.ndarray, local_px: np.ndarray,
                 tables: list[np.ndarray], threads: int):  # fmt: skip
        super().__init__(shape, shape_out, rigid_px, tables, threads)
        self.local_px = local_px
        self.sums = [np.zeros(shape, np.float32) for _ in tables]
        self.response_y = _spline_response(fft.fftfreq(shape[0]))
        self.response_x = _spline_response(np.arange(shape[1] // 2 + 1) / shape[1])

    def prepared(self, f: int, spectrum: np.ndarray, threads: int) -> list[np.ndarray]:
        pairs = zip(self.ramps(f, (self.shape[0], self.shape[1])), (self.response_y, self.response_x))
        ramp_y, ramp_x = ((ramp / response).astype(np.complex64) for ramp, response in pairs)
        images = []
        for number, table in enumerate(self.tables):
            last = number == len(self.tables) - 1
            out = spectrum if last else np.empty_like(spectrum)
            weigh_kernel(spectrum, self.shape[1], table[f], self.step, ramp_y, ramp_x, 0, len(out), out, False)
            images.append(_transformed_back(out, self.shape, threads))
        return images

    def add(self, f: int, images: list[np.ndarray]) -> None:
        for total, image in zip(self.sums, images):

            def work(part: slice, total: np.ndarray = total, image: np.ndarray = image) -> None:
                scratch = np.empty((3, self.shape[1] + GRID_PX), np.float32)
                warp_add_kernel(image, self.local_px[f], GRID_PX, part.start, part.stop, scratch, total)

            self.rows(len(total), work)

    def finished(self) -> list[np.ndarray]:
        if tuple(self.shape) == tuple(self.shape_out):
            return self.sums
        nothing_y, nothing_x = (np.ones(n, np.complex64) for n in (self.shape_out[0], self.shape_out[1] // 2 + 1))
        flat = np.ones(len(self.tables[0][0]), np.float32)
        out = []
        for total in self.sums:
            cropped = _half_plane(self.shape_out)
            whole = _transformed(total, self.threads)
            weigh_kernel(whole, self.shape[1], flat, self.step, nothing_y, nothing_x, 0, len(cropped), cropped, False)
            out.append(self.image(cropped))
        return out


def _spectrum(frame: np.ndarray, camera: Camera, whole_px: np.ndarray, threads: int) -> np.ndarray:
    gain = _NOTHING if camera.gain is None else camera.gain
    background = _NOTHING if camera.background is None else camera.background
    level = np.float32(0)
    if camera.background is not None:
        level = mean_count(frame, np.ones((1, 1), np.float32) if camera.gain is None else camera.gain)
    image = np.empty(frame.shape, np.float32)
    dx, dy = (int(v) for v in whole_px)
    shifted_frame_kernel(frame, gain, background, level, dy, dx, 0, len(image), image)
    return _transformed(image, threads)


def _transformed(image: np.ndarray, threads: int) -> np.ndarray:
    """Return the half plane of one large image.

    Since SciPy 1.18 the last bits of a transform depend on among how many threads it is shared and with how many others it is
    done: here by one thread each, the same ones together always.
    """
    out = np.empty((image.shape[0], image.shape[1] // 2 + 1), np.complex64)

    def along_x(part: slice) -> None:
        out[part] = fft.rfft(image[part], workers=1)

    def along_y(part: slice) -> None:
        out[:, part] = fft.fft(out[:, part], axis=0, workers=1)

    over_chunks(len(out), along_x, threads, chunk=_ROWS)
    over_chunks(out.shape[1], along_y, threads, chunk=_ROWS)
    return out


def _transformed_back(half: np.ndarray, shape: Sequence[int], threads: int) -> np.ndarray:
    """Return the image of a half plane, which is used up; as above."""
    out = np.empty(shape, np.float32)

    def along_y(part: slice) -> None:
        half[:, part] = fft.ifft(half[:, part], axis=0, workers=1)

    def along_x(part: slice) -> None:
        out[part] = fft.irfft(half[part], shape[1], workers=1)

    over_chunks(half.shape[1], along_y, threads, chunk=_ROWS)
    over_chunks(len(out), along_x, threads, chunk=_ROWS)
    return out


def _half_plane(shape: tuple[int, int]) -> np.ndarray:
    return np.zeros((shape[0], shape[1] // 2 + 1), np.complex64)


def _spline_response(frequency: np.ndarray) -> np.ndarray:
    """Return the transform of the quintic B-spline's samples at frequencies (cycles/px)."""
    angle = 2 * np.pi * frequency
    return (66 + 52 * np.cos(angle) + 2 * np.cos(2 * angle)) / 120
