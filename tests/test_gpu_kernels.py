"""Every kernel for a GPU against its twin for the CPU, on random numbers, odd sizes and edges."""

import inspect

import numpy as np
import pytest

from refmotion_nb.data.movies.detector import _hash, _mixed
from refmotion_nb.numerics import kernels_cpu, kernels_gpu
from refmotion_nb.numerics.backend import irfft2, irfft2_large, kernels_of, rfft2, rfft2_large, to_host
from refmotion_nb.numerics.correlation import B_SPLINE_TAPS
from refmotion_nb.numerics.dewarp import GRID_PX, grid_nodes
from refmotion_nb.numerics.field import _limits, block_level, blocks_of
from refmotion_nb.numerics.fourier import half_plane_indices, hermitian_weight, shell_floor, shell_round

KERNELS = [name for name in vars(kernels_gpu) if name.endswith("_kernel")]
SIZES = [(8, 3, 4), (9, 3, 4), (32, 16, 11), (31, 9, 9)]  # box, K of the views, k of the band


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def on(cupy, arguments):
    """Return arguments with arrays on the device."""
    return [cupy.asarray(one) if isinstance(one, np.ndarray) else one for one in arguments]


def both(cupy, name, *arguments, result=-1):
    """Run a kernel on the host and on the device; return what each left in its results (place from the end)."""
    device = on(cupy, arguments)
    assert kernels_of(device[result]) is kernels_gpu
    getattr(kernels_cpu, name)(*arguments)
    getattr(kernels_gpu, name)(*device)
    return arguments[result], to_host(device[result])


def close(found, expected, relative=2e-6):
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=relative, atol=relative * np.abs(expected).max())


def complex_numbers(rng, shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def patches(rng, n, frames, box):
    stored = rng.integers(-32767, 32767, (n, frames, box, box // 2 + 1, 2)).astype(np.int16)
    return stored, rng.uniform(0.5, 2, (n, frames)).astype(np.float32) / 32767


@pytest.mark.parametrize("name", KERNELS)
def test_twins_have_the_same_signature(name):
    cpu = getattr(kernels_cpu, name).py_func
    assert list(inspect.signature(cpu).parameters) == list(inspect.signature(getattr(kernels_gpu, name)).parameters)


def test_every_kernel_has_a_twin_and_a_test():
    assert set(KERNELS) == {name for name in vars(kernels_cpu) if name.endswith("_kernel")}
    tests = "".join(inspect.getsource(one) for name, one in globals().items() if name.startswith("test_"))
    assert all(f'"{name}"' in tests for name in KERNELS)


@pytest.fixture
def camera(rng):
    """Sum of frames, gain and bad pixels in blocks of unequal sizes; one block has no good pixel, others have hot ones."""
    gain = rng.uniform(0.5, 2, (150, 201)).astype(np.float32)
    total = rng.poisson(8 / gain).astype(np.float32)
    y, x = blocks_of(gain.shape)
    bad = rng.uniform(size=gain.shape) < 0.01
    bad[: y[1], x[1] : x[2]] = True
    total[rng.integers(0, 150, 40), rng.integers(0, 201, 40)] += 30
    total[[0, 0, -1, -1, 75], [0, -1, 0, -1, 66]] = 60  # corners, and where four blocks meet
    return total, gain, bad, y, x


def test_blocks(cupy, rng, camera):
    wanted = np.array([[True, True, False], [True, True, True]])
    for first, end in ((0, 2), (1, 2)):
        out = rng.normal(size=(3, 2, 3))
        expected, found = both(cupy, "block_kernel", *camera, first, end, wanted, out)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.isnan(expected[:2, 0, 1]).all() == (first == 0)


@pytest.mark.parametrize("counts", [True, False])
def test_hot_pixels(cupy, camera, counts):
    total, gain, bad, y, x = camera
    level, variance, _ = np.nan_to_num(block_level(total, gain, bad))
    wanted = np.ones(level.shape, bool)
    wanted[1, 0] = False
    limits = _limits(5.0)
    expected, found = both(
        cupy, "hot_kernel", *camera, 0, 2, wanted, level, variance, 5.0, limits, counts, np.zeros(total.shape, bool)
    )
    np.testing.assert_array_equal(found, expected)
    assert expected.sum() > 10 and not expected[y[1] :, : x[1]].any() and not expected[bad].any()
    assert expected[0, 0] and expected[0, -1] and expected[-1, -1]


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8"])
def test_repair(cupy, rng, kind):
    pixel = np.sort(rng.permutation(500)[:60]).astype(np.int64)
    sources = rng.choice(np.setdiff1d(np.arange(500), pixel), (60, 24)).astype(np.uint32)
    n_sources = rng.integers(1, 25, 60)
    counts = rng.integers(0, 200, 500).astype(kind)
    plain = counts.copy()
    plain[pixel] = plain[sources[np.arange(60), _hash(pixel, np.uint64(12345)) % n_sources]]
    salt = _mixed(12345)
    expected, found = both(cupy, "repair_kernel", counts, pixel, sources, n_sources, salt, result=0)
    np.testing.assert_array_equal(expected, plain)
    np.testing.assert_array_equal(found, plain)


def test_ctf(cupy, rng):
    x, y, extra = rng.normal(size=(3, 13, 7)) * [[[0.2]], [[0.2]], [[1]]]
    per_particle = np.stack([*rng.normal(size=(3, 5)) * 300, *rng.normal(size=(2, 5)), rng.uniform(0.5, 1, 5)], 1)
    out = np.empty((5, 13, 7), np.float32)
    expected, found = both(cupy, "ctf_kernel", x, y, extra, 1e4, per_particle, out)
    close(found, expected)


@pytest.mark.parametrize("k_max, k", [(9, 9), (9, 12), (5, 3)])
def test_slices(cupy, rng, k_max, k):
    limit = 2 * k_max + 1
    ft = complex_numbers(rng, (2 * limit + 1, 2 * limit + 1, limit + 1))
    to_map = np.linalg.qr(rng.normal(size=(6, 3, 3)))[0][:, :, :2].copy()
    to_map[0] = [[1, 0], [0, 1], [0, 0]]  # along the axes, where samples fall upon grid points
    out = np.empty((6, 2 * k + 1, k + 1), np.complex64)
    expected, found = both(cupy, "slice_kernel", ft, 2, float(k_max), to_map, rng.normal(size=(6, 2)), k, out)
    close(found, expected)


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "float32", "float16", "int32"])
@pytest.mark.parametrize("box", [6, 7])
def test_patches(cupy, rng, kind, box):
    frame = rng.integers(0, 100, (20, 23)).astype(kind)
    gain = rng.uniform(0.5, 2, frame.shape).astype(np.float32)
    corners = np.array([[3, 4], [-2, 5], [21, 18], [-90, 90], [17, -6]])  # inside, across every edge, far outside
    out = np.empty((len(corners), box, box), np.float32)
    as_read = frame.astype(np.float32) if kind == "float16" else frame
    expected, found = both(cupy, "cut_patches_kernel", as_read, gain, corners, out)
    np.testing.assert_array_equal(found, expected)
    on_device = cupy.asarray(np.zeros_like(out))
    kernels_gpu.cut_patches_kernel(cupy.asarray(frame), cupy.asarray(gain), cupy.asarray(corners), on_device)
    np.testing.assert_array_equal(to_host(on_device), expected)


@pytest.mark.parametrize("cells", [(5, 7), (1, 1), (1, 6)])
def test_backgrounds(cupy, rng, cells):
    coarse = rng.normal(size=cells).astype(np.float32)
    corners = np.array([[3, 4], [-2, 5], [61, 58], [-90, 90], [17, -6]])
    out = rng.normal(size=(len(corners), 9, 9)).astype(np.float32)
    expected, found = both(cupy, "add_background_kernel", coarse, 60, 63, corners, out)
    close(found, expected)


def test_quantising(cupy, rng):
    values = rng.normal(size=(5, 41)).astype(np.float32) * np.array([[1e-6], [1], [1e6], [0], [-1]], np.float32)
    arguments = values, np.empty(values.shape, np.int16), np.empty(5, np.float32)
    on_device = [cupy.asarray(one) for one in arguments]
    kernels_gpu.quantise_kernel(*on_device)
    kernels_cpu.quantise_kernel(*arguments)
    expected, found = both(cupy, "quantise_kernel", *arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(to_host(on_device[1]).astype(int) - arguments[1]).max() <= 1  # ties may go either way


@pytest.mark.parametrize("box, big, k", SIZES)
def test_power(cupy, rng, box, big, k):
    shell = shell_floor(*half_plane_indices(box))
    hermitian = hermitian_weight(np.arange(box // 2 + 1), box)
    out = rng.normal(size=(3, k))  # to be added to; shells beyond do not count
    expected, found = both(cupy, "power_kernel", *patches(rng, 3, 4, box), shell, hermitian, out)
    close(found, expected)


def test_shell_sums(cupy, rng):
    shell = rng.integers(0, 9, 50)  # shell 7 holds nothing
    shell[shell == 7] = 8
    values, out = rng.normal(size=(4, 50)).astype(np.float32), rng.normal(size=(4, 8))
    expected, found = both(cupy, "shell_sum_kernel", values, rng.uniform(size=50), shell, out)
    close(found, expected, 1e-12)


@pytest.mark.parametrize("box, big, k", SIZES)
def test_cross_terms(cupy, rng, box, big, k):
    k = min(k, big)
    weight = rng.uniform(size=(3, 4, int(np.ceil(np.sqrt(2) * k)) + 1)).astype(np.float32)
    out = np.empty((2, k + 1, 3, 4, 2, k + 1), np.float32)
    views = complex_numbers(rng, (3, 2 * big + 1, big + 1))
    expected, found = both(cupy, "cross_kernel", *patches(rng, 3, 4, box), views, weight, out)
    close(found, expected)


@pytest.mark.parametrize("box, big, k", SIZES)
def test_fcc(cupy, rng, box, big, k):
    views = complex_numbers(rng, (5, 2 * big + 1, big + 1))
    shift = rng.normal(size=(5, 4, 2)) * 20
    whitening = rng.uniform(size=k).astype(np.float32)
    shell = shell_round(*half_plane_indices(box), 0.9)
    out = rng.normal(size=(3, 4, box // 2))
    expected, found = both(cupy, "fcc_kernel", *patches(rng, 5, 4, box), views, shift, whitening, shell, out)
    close(found, expected)


@pytest.mark.parametrize("box, box_out", [(32, 32), (32, 20), (31, 31), (31, 20), (32, 21)])
def test_recombined(cupy, rng, box, box_out):
    weight = rng.uniform(size=(4, box_out, box_out // 2 + 1)).astype(np.float32)
    out = rng.normal(size=(3, box_out, box_out // 2 + 1, 2)).astype(np.float32)
    shift = rng.normal(size=(3, 4, 2)) * 20
    expected, found = both(cupy, "recombine_kernel", *patches(rng, 3, 4, box), shift, weight, out)
    close(found, expected, 4e-6)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_sampling(cupy, rng, kind):
    windows = rng.normal(size=(3, 5, 9, 9)).astype(kind)
    position = rng.uniform(-3, 12, (2, 2, 3, 5)).astype(kind)  # beyond all edges too
    position[0, :, 0, 0], position[0, :, 0, 1] = (1, 7), (4, 4)  # exactly on the edge, on a sample
    taps = B_SPLINE_TAPS.astype(kind)
    slopes = taps[:, 1:] * np.arange(1, 4, dtype=kind)
    value, gradient = np.empty((2, 3, 5), kind), np.empty(position.shape, kind)
    on_device = [cupy.asarray(one) for one in (windows, position, taps, slopes, value, gradient)]
    kernels_gpu.sample_kernel(*on_device)
    expected, found = both(cupy, "sample_kernel", windows, position, taps, slopes, value, gradient)
    precision = 4e-6 if kind is np.float32 else 1e-13
    close(found, expected, precision)
    close(to_host(on_device[4]), value, precision)


def descent(rng, kind, n_particles, n_frames, modes, common_std_A):
    """Return the arguments of ``solve`` of three sets: rough windows, a mode that stands still, a start away from the minimum."""
    n_sets, width, size = 3, n_frames, 13
    windows = rng.normal(size=(n_particles, n_frames, size, size)).astype(kind)
    taps = B_SPLINE_TAPS.astype(kind)
    first = rng.uniform(3, 9, (2, n_particles, n_frames)).astype(kind)
    spatial = np.linalg.qr(rng.normal(size=(n_sets, n_particles, n_particles)))[0][..., :modes].astype(kind).copy()
    temporal = (rng.normal(size=(n_sets, width, n_frames)) / np.sqrt(width)).astype(kind)
    std = rng.uniform(0.2, 3, (n_sets, modes, width))
    std[:, -1, 1:] = 0
    std[..., 0] = 1
    slopes = taps[:, 1:] * np.arange(1, 4, dtype=kind)
    common = common_std_A * rng.normal(size=(n_frames, n_frames)) / np.sqrt(n_frames)
    problem = windows, taps, slopes, first, kind(0.6), spatial, temporal, std, common
    turn = np.linalg.qr(rng.normal(size=(n_sets, width, width)))[0].copy()
    whitening = np.where(std > 0, 1 / np.where(std > 0, std, 1), 0)
    gain = 1 / (1 + 1 / np.where(std > 0, std, 1) ** 2)
    start = 0.3 * rng.normal(size=(n_sets, 2 * modes * width + 2 * n_frames))
    return problem, (turn, gain, whitening, rng.uniform(0.1, 1, n_frames)), start


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 7, 5), (37, 33, 37), (131, 6, 130)])  # across the edges of tiles too
def test_descent(cupy, rng, kind, sizes, monkeypatch):
    for common_std_A, steps in ((0.8, 12), (0.0, 3)):
        problem, inverse, start = descent(rng, kind, *sizes, common_std_A)
        expected, iterations = kernels_cpu.solve(problem, inverse, start, 1e-9, steps)
        device = [on(cupy, problem), on(cupy, inverse)]
        found, taken = kernels_gpu.solve(*device, cupy.asarray(start), 1e-9, steps)
        np.testing.assert_array_equal(taken, iterations)
        assert steps == iterations.max() and isinstance(taken, np.ndarray)
        np.testing.assert_allclose(to_host(found), expected, atol=1e-9 if kind is np.float64 else 2e-3)
        assert np.abs(expected - start).max() > 0.1
        # sums come out the same whichever thread is first: none reads what another has not written yet
        monkeypatch.setenv("HOST_LAST_FIRST", "1")
        again, _ = kernels_gpu.solve(*device, cupy.asarray(start), 1e-9, steps)
        monkeypatch.delenv("HOST_LAST_FIRST")
        np.testing.assert_array_equal(to_host(again), to_host(found))


def test_sets_end_by_themselves(cupy, rng):
    """One that is at its minimum already, one that may take no step, one of three that ends before the others."""
    problem, inverse, start = descent(rng, np.float64, 6, 5, 6, 0.5)
    lowest, taken = kernels_cpu.solve(problem, inverse, start, 1e-9, 1000)
    assert len(set(taken)) > 1
    start[1] = lowest[1]
    device = [on(cupy, problem), on(cupy, inverse)]
    for most, expected in ((1000, [taken[0], 0, taken[2]]), (0, [0, 0, 0])):
        found, iterations = kernels_gpu.solve(*device, cupy.asarray(start), 1e-8, most)
        assert iterations[1] == 0 and (iterations <= expected).all() and (iterations.max() > 3) == bool(most)
        np.testing.assert_allclose(to_host(found), lowest if most else start, atol=1e-2)


@pytest.mark.parametrize("box", [16, 15])
def test_transforms(cupy, rng, box):
    images = rng.normal(size=(3, box, box)).astype(np.float32)
    close(to_host(rfft2(cupy.asarray(images))), rfft2(images))
    half = complex_numbers(rng, (3, box, box // 2 + 1))  # of no real image: what cannot be is ignored
    close(to_host(irfft2(cupy.asarray(half), box)), irfft2(half, box))


def test_arrays_that_kernels_cannot_read_are_refused(cupy, rng):
    frame = cupy.asarray(np.zeros((20, 20), np.float32))
    out = cupy.asarray(np.zeros((1, 4, 4), np.float32))
    with pytest.raises(ValueError, match="not contiguous"):
        kernels_gpu.cut_patches_kernel(frame[:, ::2], frame, cupy.asarray(np.zeros((1, 2), np.int64)), out)
    kernels_gpu.cut_patches_kernel(frame, frame, cupy.asarray(np.zeros((0, 2), np.int64)), out[:0])  # nothing to do


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "float32", "uint32"])
def test_shifted_frames(cupy, rng, kind):
    frame = rng.integers(0, 100, (37, 42)).astype(kind)
    gain, background = (rng.uniform(0.5, 2, frame.shape).astype(np.float32) for _ in range(2))
    nothing, level = np.zeros((0, 0), np.float32), np.float32(3.1)
    for shift, rows, fields in [((5, -3), (0, 37), (gain, background)), ((-40, 90), (5, 29), (gain, nothing)),
                                ((0, 0), (0, 37), (nothing, background))]:  # fmt: skip
        out = rng.normal(size=frame.shape).astype(np.float32)
        close(*both(cupy, "shifted_frame_kernel", frame, *fields, level, *shift, *rows, out)[::-1])


@pytest.mark.parametrize(("shape", "cropped"), [((32, 40), (32, 40)), ((32, 40), (20, 30)), ((31, 45), (18, 28))])
def test_weighted_transforms(cupy, rng, shape, cropped):
    spectrum = complex_numbers(rng, (shape[0], shape[1] // 2 + 1))
    n_rows, n_columns = cropped[0], cropped[1] // 2 + 1
    weight = rng.uniform(0, 1, 40).astype(np.float32)
    ramps = (np.exp(1j * rng.normal(size=n)).astype(np.complex64) for n in (n_rows, n_columns))
    arguments = [spectrum, shape[1], weight, 0.5 / max(shape), *ramps]
    for rows, add in (((0, n_rows), False), ((3, 11), True)):
        out = complex_numbers(rng, (n_rows, n_columns))
        close(*both(cupy, "weigh_kernel", *arguments, *rows, out, add, result=-2)[::-1])
    if shape == cropped:  # a transform may be weighed in its own place
        expected, there = spectrum.copy(), cupy.asarray(spectrum)
        kernels_cpu.weigh_kernel(*arguments, 0, n_rows, expected, False)
        kernels_gpu.weigh_kernel(there, *on(cupy, arguments[1:]), 0, n_rows, there, False)
        close(to_host(there), expected)


@pytest.mark.parametrize("shape", [(70, 90), (64, 96), (33, 17)])
@pytest.mark.parametrize("size_px", [0.3, 5.0, 60.0])
def test_frames_sampled_where_the_specimen_was(cupy, rng, shape, size_px):
    coefficients = rng.normal(size=shape).astype(np.float32)
    nodes = [len(axis) for axis in grid_nodes(shape)]
    grid = rng.normal(0, size_px, (*nodes, 2)).astype(np.float32)
    for rows in ((0, shape[0]), (7, 31)):
        out = rng.normal(size=shape).astype(np.float32)
        found = both(cupy, "warp_add_kernel", coefficients, grid, GRID_PX, *rows, out)
        close(*found[::-1], relative=1e-4 if size_px > 10 else 2e-5)  # positions are rounded in other places


@pytest.mark.parametrize("shape", [(48, 64), (45, 63)])
def test_transforms_of_large_images(cupy, rng, shape):
    image = rng.normal(size=shape).astype(np.float32)
    half = rfft2_large(image, 1)
    close(to_host(rfft2_large(cupy.asarray(image), 1)), half)
    half[:, [0, -1]] += 1j  # which images cannot have
    close(to_host(irfft2_large(cupy.asarray(half), shape, 1)), irfft2_large(half, shape, 1))
