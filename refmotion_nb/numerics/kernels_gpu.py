"""The inner loops on a GPU (CUDA through CuPy): the names and signatures of ``kernels_cpu``, on arrays of one device.

Each is tested against its twin. The sources are ``kernels_gpu.cu``, ``kernels_motion.cu`` and ``kernels_dewarp.cu``, compiled
once per device when first used.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from types import ModuleType
from typing import Any

import numpy as np

from refmotion_nb.numerics.device_sizes import SET_VECTORS
from refmotion_nb.numerics.kernels_field import LEAST, MOST

PIXELS, MOTION, DEWARP = SOURCES = "kernels_gpu.cu", "kernels_motion.cu", "kernels_dewarp.cu"
OPTIONS = ("--std=c++14",)  # no fast mathematics: sines of large phases would lose their digits
_THREADS = 256  # per block
_DESCENDING = 512  # threads per block where a block solves a set: THREADS in the source
COUNTS = ("uint8", "int8", "uint16", "int16", "float32")  # of raw frames; others are turned into float32 first


def block_kernel(total, gain, bad, y, x, first_row, end_row, wanted, out):
    """Level, variance per gain and number of good pixels of the blocks ``wanted`` in some rows of them: out (3, ky, kx)."""
    rows, width = end_row - first_row, total.shape[1]
    columns = _cupy().empty((4, rows, width))
    sizes = map(np.int32, (width, first_row))
    _launch("block_columns", (width, 1, rows), total, gain, _bytes(bad), y, *sizes, columns)
    sizes = map(np.int32, (width, *out.shape[1:], first_row))
    _launch("block", (out.shape[2], 1, rows), columns, x, _bytes(wanted), *sizes, out)


def hot_kernel(total, gain, bad, y, x, first_row, end_row, wanted, level, variance, threshold, limits, counts, out):
    """Mark the hot pixels of the blocks ``wanted`` in some rows of them: out (height, width) bool."""
    height, width = total.shape
    _launch(
        "hot", (width, 1, end_row - first_row), total, gain, _bytes(bad), y, x, _bytes(wanted), level, variance,
        np.float64(threshold), limits, np.int32(limits.size), np.float64(LEAST), np.float64(MOST),
        *map(np.int32, (counts, height, width, wanted.shape[1], first_row)), _bytes(out),
    )  # fmt: skip


def repair_kernel(counts, pixel, sources, n_sources, salt):
    """Give each bad pixel (n,) of counts (height · width,) the count of one of its ``sources`` (n, 24), chosen by a hash."""
    sizes = map(np.int32, sources.shape)
    _launch(
        f"repair_{counts.dtype.itemsize}",
        (pixel.size, 1, 1),
        counts,
        pixel,
        sources,
        n_sources,
        np.uint64(salt),
        *sizes,
    )


def ctf_kernel(x, y, extra, k4, per_particle, out):  # see kernels_cpu
    """CTF of every particle; columns of ``per_particle``: defocus xx, yy, xy, phase offset, -B/4, scale."""
    grid = x.size, 1, len(out)
    _launch("ctf", grid, *map(_double, (x, y, extra)), np.float64(k4), _double(per_particle), np.int32(x.size), out)


def slice_kernel(ft, padding, k_max, to_map, shift, k, out):
    """Trilinear slices of a half volume; shells beyond ``k_max`` are 0; ``shift`` (particle, 2) in boxes."""
    size = ft.shape[1], ft.shape[2]
    _launch(
        "slice", (out[0].size, 1, len(out)), ft, *map(np.int32, size), np.float64(padding), np.float64(k_max),
        _double(to_map), _double(shift), np.int32(k), out,
    )  # fmt: skip


def cut_patches_kernel(frame, gain, corners, out):
    """Cut boxes at ``corners`` (particle, 2) x y out of a raw frame, times gain, contrast inverted, edges replicated."""
    frame, box = _counts(frame), out.shape[1]
    _launch(
        f"cut_patches_{frame.dtype.name}", (box * box, 1, len(out)), frame, gain, corners,
        *map(np.int32, (*frame.shape, box)), out,
    )  # fmt: skip


def add_background_kernel(coarse, height, width, corners, out):
    """Add to boxes at ``corners`` (particle, 2) x y an image (ky, kx) of equal cells, spread linearly over height, width."""
    box = out.shape[1]
    _launch(
        "add_background", (box * box, 1, len(out)), coarse, *map(np.int32, (*coarse.shape, height, width)), corners,
        np.int32(box), out,
    )  # fmt: skip


def quantise_kernel(values, out, scale):
    """Store values (patch, n) float32 as 16-bit integers (patch, n) with one scale per patch."""
    n_patches, n = values.shape
    shares = _THREADS
    top = _cupy().empty((n_patches, shares), np.float32)
    _launch("largest", (shares, 1, n_patches), values, *map(np.int32, (n, shares)), top)
    _launch("steps", (n_patches, 1, 1), top, *map(np.int32, (n_patches, shares)), scale)
    _launch("quantise", (n, 1, n_patches), values, scale, np.int32(n), out)


def power_kernel(stored, scale, shell, hermitian, out):
    """Add up |X|² per shell of every particle: stored (particle, frame, ky, kx, 2) -> out (particle, shell)."""
    xp = _cupy()
    n, n_frames = stored.shape[:2]
    pixels = xp.empty((n, shell.size), np.float32)
    _launch("power", (shell.size, 1, n), stored, scale, *map(np.int32, (n_frames, shell.size)), pixels)
    weight = xp.broadcast_to(hermitian, shell.shape).ravel()
    shell_sum_kernel(pixels, weight, shell.ravel(), out)


def shell_sum_kernel(values, weight, shell, out):
    """Add up weighted values (row, pixel) per shell: weight and shell (pixel,) -> out (row, shell)."""
    xp = _cupy()
    n_shells = out.shape[1]
    key = xp.minimum(shell, n_shells).astype(np.int64) * shell.size + xp.arange(shell.size)
    order = xp.argsort(key)  # by shell, and as they come within one
    first = xp.searchsorted(key[order], xp.arange(n_shells + 1) * shell.size)
    _launch(
        "shell_sum", (n_shells, 1, len(values)), values, _double(weight), order, first,
        *map(np.int32, (shell.size, n_shells)), out,
    )  # fmt: skip


def cross_kernel(stored, scale, predicted, weight, out):
    """Cross terms X conj(V) w of the band, folded along ky, see kernels_cpu."""
    n, n_frames, box = stored.shape[:3]
    k, big = out.shape[5] - 1, predicted.shape[2] - 1
    grid, weight = ((k + 1) ** 2, n_frames, n), _cupy().ascontiguousarray(weight)
    _launch("cross", grid, stored, scale, predicted, weight, *map(np.int32, (box, big, k, weight.shape[2])), out)


def fcc_kernel(stored, scale, predicted, shift_px, whitening, shell, out):
    """FCC sums of every frame: Re(X conj V), |X|², |V|² per shell, see kernels_cpu."""
    xp = _cupy()
    n, n_frames, box = stored.shape[:3]
    big = predicted.shape[2] - 1
    first, last = -min(big, box // 2), min(big, (box - 1) // 2)
    rows, columns = last - first + 1, min(big + 1, box // 2 + 1)
    pixels = xp.empty((3 * n_frames, rows * columns), np.float32)
    _launch(
        "fcc", (rows * columns, n_frames, 1), stored, scale, predicted, _double(shift_px), whitening,
        *map(np.int32, (n, box, big, first, rows, columns, len(whitening))), pixels,
    )  # fmt: skip
    used = shell[xp.arange(first, last + 1) % box, :columns].ravel()
    shell_sum_kernel(pixels, xp.ones(used.size), used, out.reshape(3 * n_frames, -1))


def recombine_kernel(stored, scale, shift_px, weight, out):
    """Weighted sum of a particle's frames, each moved back by its trajectory, see kernels_cpu."""
    n, n_frames, box = stored.shape[:3]
    box_out, half = weight.shape[1:]
    sizes, total = map(np.int32, (n_frames, box, box_out)), out.view(np.complex64)
    _launch("recombine", (box_out * half, 1, n), stored, scale, _double(shift_px), weight, *sizes, total)


def shifted_frame_kernel(frame, gain, background, level, shift_y, shift_x, first, last, out):
    """Rows of a frame times gain less level · background, moved back by whole pixels, see kernels_dewarp."""
    frame = _counts(frame)
    height, width = frame.shape
    sizes = map(np.int32, (height, width, gain.size > 0, background.size > 0, first))
    _launch(
        f"shifted_frame_{frame.dtype.name}", (width, 1, last - first), frame, gain, background,
        _cupy().asarray(level, np.float32), np.int64(shift_y), np.int64(shift_x), *sizes, out, source=DEWARP,
    )  # fmt: skip


def weigh_kernel(spectrum, width, weight, step, ramp_y, ramp_x, first, last, out, add):
    """Rows of a cropped transform times radial weight and the phase ramps of a shift, see kernels_dewarp."""
    _launch(
        "weigh", (out.shape[1], 1, last - first), spectrum, *map(np.int32, (*spectrum.shape, width)), weight,
        np.int32(weight.size), np.float64(step), ramp_y, ramp_x, *map(np.int32, (*out.shape, first, add)), out, source=DEWARP,
    )  # fmt: skip


def warp_add_kernel(coefficients, grid, step, first, last, out):
    """Add rows of an image, given by its B-spline coefficients, sampled where each pixel was, see kernels_dewarp."""
    height, width = out.shape
    columns, size = _cupy().empty((last - first, width), np.float32), (width, 1, last - first)
    nodes, sizes = [*map(np.int32, (*grid.shape[:2], step))], map(np.int32, (height, width, first))
    _launch("warp_columns", size, coefficients, grid, *nodes, *sizes, columns, source=DEWARP)
    _launch("warp_rows", size, columns, grid, *nodes, *map(np.int32, (width, first)), out, source=DEWARP)


def sample_kernel(windows, position, taps, slopes, value, gradient):
    """Sample correlation windows and their gradients by 4 × 4 piecewise-cubic interpolation, see kernels_cpu."""
    n = windows.shape[0] * windows.shape[1]
    sizes = map(np.int32, (n, windows.shape[2]))
    name = f"sample_{windows.dtype.name}"
    _launch(name, (n, 1, len(position)), windows, position, taps, slopes, *sizes, value, gradient, source=MOTION)


def solve(problem, inverse, start, tolerance, max_iterations):
    """Minimise the energy of every set by preconditioned L-BFGS in one launch, a block to a set, see ``kernels_motion``."""
    xp = _cupy()
    windows, taps, slopes, first, samples_per_A, spatial, temporal, std, common = problem
    n_sets, n_particles, modes = spatial.shape
    width, n_frames = temporal.shape[1:]
    unknowns, iterations = start.copy(), xp.empty(n_sets, np.int64)
    work = xp.empty((n_sets, 2 * (modes + n_particles) * n_frames), windows.dtype)
    vectors = xp.empty((n_sets, SET_VECTORS, start.shape[1]))
    sizes = map(np.int32, (n_particles, n_frames, modes, width, windows.shape[2]))
    _start(
        f"solve_{windows.dtype.name}", (n_sets, 1, 1), _DESCENDING, MOTION, windows, taps, slopes, first, samples_per_A, spatial,
        temporal, std, common, *inverse, *sizes, work, vectors, np.float64(tolerance), np.int32(max_iterations),
        unknowns, iterations,
    )  # fmt: skip
    return unknowns, iterations.get()


def source(name: str) -> str:
    """Return the CUDA source of kernels, one of ``SOURCES``."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _cupy() -> ModuleType:
    import cupy

    return cupy


def _counts(frame: Any) -> Any:
    return frame if frame.dtype.name in COUNTS else frame.astype(np.float32)


def _bytes(mask: Any) -> Any:
    return mask.view(np.uint8)


def _double(array: Any) -> Any:
    return _cupy().ascontiguousarray(array, np.float64)


@cache
def _module(cupy: ModuleType, device: int, name: str) -> Any:
    return cupy.RawModule(code=source(name), options=OPTIONS)


def _launch(name: str, size: tuple[int, int, int], *arguments: Any, source: str = PIXELS) -> None:
    """Run a kernel on ``size`` elements, one thread to each."""
    _start(name, (-(-size[0] // _THREADS), *size[1:]), _THREADS, source, *arguments)


def _start(name: str, blocks: tuple[int, int, int], threads: int, source: str, *arguments: Any) -> None:
    """Run a kernel of a source; ValueError where an array is not as the kernels read it."""
    if 0 in blocks:
        return
    for array in arguments:
        if hasattr(array, "flags") and array.ndim and not array.flags.c_contiguous:
            raise ValueError(f"kernel {name}: an array of shape {array.shape} is not contiguous")
    cupy = _cupy()
    _module(cupy, cupy.cuda.runtime.getDevice(), source).get_function(name)(blocks, (threads,), arguments)
