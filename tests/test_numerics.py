"""The engine's kernels against plain sums in double precision, written from their definitions."""

import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier, Event, get_ident

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from refmotion_nb.numerics import ctf as optics
from refmotion_nb.numerics.backend import OneBlasThread, over_chunks
from refmotion_nb.numerics.correlation import correlation_windows, pixel_grid, spline_grid
from refmotion_nb.numerics.dose import DoseModel, fcc, fcc_sums, fit_model, fit_relion, weights
from refmotion_nb.numerics.energy import (
    OWN_NOISE_SPREAD,
    band_cross,
    band_power,
    grant_grigorieff,
    own_noise_share,
    own_noise_windows,
    pooled_scale,
    reference_scale,
)
from refmotion_nb.numerics.fourier import band_indices, band_of, half_plane_indices, shell_floor
from refmotion_nb.numerics.patches import PatchSpectra, cut_patches, integer_coordinate, movie_box, particle_power
from refmotion_nb.numerics.projection import euler_to_matrix, prepare_volume, slices
from refmotion_nb.numerics.recombine import normalise, recombine
from refmotion_nb.numerics.room import Room
from refmotion_nb.numerics.symmetry import operators
from refmotion_nb.numerics.threads import in_order, side_by_side
from refmotion_nb.numerics.trajectories import Windows

BOX, FRAMES = 48, 3


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def spectra_of(images):
    """The store of images (particle, frame, box, box), laid side by side in a frame and cut out again."""
    n, n_frames, box, _ = images.shape
    spectra = PatchSpectra.empty(n, n_frames, box)
    corners = np.stack([np.arange(n) * box, np.zeros(n, int)], 1)
    for f in range(n_frames):
        frame = np.concatenate(list(images[:, f]), axis=1)
        spectra.add_frame(f, -frame.astype(np.float32), np.ones(frame.shape, np.float32), corners)
    return spectra


def smooth(rng, *shape):
    """Images with most of their power at low frequencies, as particles have it."""
    k = np.hypot(np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])[None])
    return np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * np.exp(-40 * k**2), shape[-2:])


def moved(images, displacement):
    """Images (..., box, box) whose content is moved by displacements (..., 2) x y px."""
    box = images.shape[-1]
    ky, kx = half_plane_indices(box)
    turn = np.exp(-2j * np.pi * (kx * displacement[..., 0, None, None] + ky * displacement[..., 1, None, None]) / box)
    return np.fft.irfft2(np.fft.rfft2(images) * turn, images.shape[-2:])


# threads of BLAS


def test_blas_keeps_to_one_thread_until_the_last_user_has_left_and_gets_its_own_back():
    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    one = OneBlasThread()
    with threadpool_limits(limits=2, user_api="blas"):
        before = threads()
        first, second = ExitStack(), ExitStack()
        first.enter_context(one)
        second.enter_context(one)
        first.close()  # the one that came first leaves first, as threads do
        assert threads() == {1}
        with one:
            assert threads() == {1}
        second.close()
        assert threads() == before != {1}


def test_blas_keeps_to_one_thread_whatever_thread_asks():
    """threadpoolctl 3.8 lets only the thread that was first set the number."""

    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    def inside():
        with one:
            return threads()

    one = OneBlasThread()
    with threadpool_limits(limits=2, user_api="blas"), ThreadPoolExecutor(1) as beside:
        before = threads()
        assert inside() == beside.submit(inside).result() == inside() == {1}
        assert threads() == before != {1}


# patches


def test_patches_are_cut_scaled_and_inverted(rng):
    frame = rng.integers(0, 9, (60, 70)).astype(np.uint8)
    gain = rng.uniform(0.8, 1.2, frame.shape).astype(np.float32)
    corners = np.array([[5, 7], [-4, 50], [40, -9]])  # the last two over the edge
    spectra = PatchSpectra.empty(3, 1, 32)
    spectra.add_frame(0, frame, gain, corners)
    for p, (x, y) in enumerate(corners):
        rows, columns = np.clip(y + np.arange(32), 0, 59), np.clip(x + np.arange(32), 0, 69)
        expected = np.fft.rfft2(-(frame * gain.astype(float))[np.ix_(rows, columns)], norm="forward")
        expected[0, 0] = 0
        error = np.abs(spectra.spectrum(p, 0) - expected)
        assert np.sqrt((error**2).mean()) < 1e-3 * np.sqrt((abs(expected) ** 2).mean())


def test_patches_kept_fourier_cropped_are_those_of_larger_pixels(rng):
    images = smooth(rng, 4, FRAMES, BOX, BOX)
    whole, cropped = spectra_of(images), PatchSpectra.empty(4, FRAMES, 32)
    corners = np.stack([np.arange(4) * BOX, np.zeros(4, int)], 1)
    for f in range(FRAMES):
        frame = -np.concatenate(list(images[:, f]), axis=1).astype(np.float32)
        cropped.add_frame(f, frame, np.ones_like(frame), corners, cut_px=BOX)
    rows = np.fft.fftfreq(32, 1 / 32).astype(int)
    expected = whole.spectrum(1, 2)[rows, :17]
    np.testing.assert_allclose(cropped.spectrum(1, 2), expected, atol=2e-4 * np.abs(expected).max())
    displacement = rng.uniform(-3, 3, (4, FRAMES, 2))
    whole.offset_px[:] = rng.integers(-2, 3, whole.offset_px.shape)
    cropped.offset_px[:] = whole.offset_px * 32 / BOX
    weight = rng.uniform(0, 1, (FRAMES, 40))
    found = recombine(cropped, displacement * 32 / BOX, weight, 32)
    wanted = recombine(whole, displacement, weight, 32)
    assert np.abs(found - wanted).max() < 2e-4 * np.abs(wanted).max()


def test_backgrounds_are_spread_linearly_and_constant_beyond_the_last_cells(rng):
    height, width, box = 90, 130, 40
    frame, gain = rng.integers(0, 9, (height, width)).astype(np.int16), np.ones((height, width), np.float32)
    corners = np.array([[5, 7], [-30, 70], [110, -20], [91, 50], [400, 0]])  # also over all edges, and beyond
    for shape in ((5, 7), (1, 3), (1, 1)):
        coarse = rng.uniform(1, 2, shape).astype(np.float32)
        spread = coarse.astype(float)
        for axis, (size, n) in enumerate(zip((height, width), shape)):
            pixel = (np.arange(-200, size + 400) + 0.5) * n / size - 0.5
            spread = np.apply_along_axis(lambda c, at=pixel: np.interp(at, np.arange(len(c)), c), axis, spread)
        without, less = (cut_patches(frame, gain, corners, box, b) for b in (None, coarse))
        for p, (x, y) in enumerate(corners + 200):
            np.testing.assert_allclose((less - without)[p], spread[y : y + box, x : x + box], atol=2e-6)


def test_power_is_the_sum_of_squares(rng):
    images = smooth(rng, 3, FRAMES, BOX, BOX)
    images -= images.mean((2, 3), keepdims=True)
    spectra = spectra_of(images)
    full = np.abs(np.fft.fft2(images, norm="forward")) ** 2
    k = np.fft.fftfreq(BOX, 1 / BOX)
    shell = np.hypot(k[:, None], k[None]).astype(int)
    expected = np.stack([np.bincount(shell.ravel(), full[p].sum(0).ravel()) for p in range(3)])
    power, count = particle_power(spectra, threads=2)
    np.testing.assert_allclose(power, expected, rtol=2e-3, atol=1e-6 * expected.max())
    np.testing.assert_array_equal(count, np.bincount(shell.ravel()))
    half = shell_floor(*half_plane_indices(BOX))
    once = np.abs(np.fft.rfft2(images, norm="forward")) ** 2
    expected = np.stack([np.bincount(half.ravel(), once[p].sum(0).ravel()) for p in range(3)])
    power, count = particle_power(spectra, half_plane=True)
    np.testing.assert_allclose(power, expected, rtol=2e-3, atol=1e-6 * expected.max())
    np.testing.assert_array_equal(count, np.bincount(half.ravel()))
    ky, kx = half_plane_indices(BOX)
    within = (np.maximum(np.abs(ky), kx) <= 5).astype(float)
    expected = np.stack([np.bincount(half.ravel(), (once[p].sum(0) * within).ravel())[:8] for p in range(3)])
    power, count = particle_power(spectra, half_plane=True, image_box=10)
    np.testing.assert_allclose(power, expected, rtol=2e-3, atol=1e-6 * expected.max())
    np.testing.assert_array_equal(count, np.bincount(half.ravel(), within.ravel())[:8])


def test_boxes_and_coordinates_are_relions():
    assert movie_box(192.0, 1.0) == 192 and movie_box(177.0, 0.885) == 200 and movie_box(281.6, 1.0) == 282
    assert integer_coordinate(np.array([10.99, 11.0 - 1e-6]), 1.0).tolist() == [10, 11]  # a whole number, rounded once


# views of the reference


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 50, 70), (-120, 95, 10)])
def test_euler_matrices(angles):
    rot, tilt, psi = np.deg2rad(angles)

    def z(t):
        return np.array([[np.cos(t), np.sin(t), 0], [-np.sin(t), np.cos(t), 0], [0, 0, 1]])

    y = np.array([[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]])
    np.testing.assert_allclose(euler_to_matrix(np.array(angles)), z(psi) @ y @ z(rot), atol=1e-12)


def blobs(n, centres, sigma, weights):
    r = np.arange(n) - n // 2
    z, y, x = np.meshgrid(r, r, r, indexing="ij")
    square = [(x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2 for c in centres]
    return sum(w * np.exp(-0.5 * s / sigma**2) for w, s in zip(weights, square))


@pytest.mark.parametrize("n", [64, 65])
def test_slices_are_the_analytic_transform_of_blobs(n, rng):
    centres, sigma, heights = np.array([[4.0, -6, 3], [-5, 2, 7], [1, 9, -4]]), 1.6, (1.0, 0.7, -0.5)
    volume = prepare_volume(blobs(n, centres, sigma, heights), None, n // 2)
    matrices = euler_to_matrix(rng.uniform(-180, 180, (4, 3)))
    origin = rng.uniform(-2, 2, (4, 2))
    k = 14
    ky, kx = band_indices(k)
    found = slices(volume, matrices, origin, k, box=n, centre_px=n // 2)
    for p, matrix in enumerate(matrices):
        x, y = (matrix @ centres.T)[:2]
        # the object sits at the centre of the image minus its origin
        x, y = x + n // 2 - origin[p, 0], y + n // 2 - origin[p, 1]
        phases = np.exp(-2j * np.pi * (kx[..., None] * x + ky[..., None] * y) / n) @ np.array(heights)
        envelope = (2 * np.pi * sigma**2) ** 1.5 * np.exp(-2 * (np.pi * sigma) ** 2 * (kx**2 + ky**2) / n**2) / n**2
        expected = np.where(kx**2 + ky**2 <= k**2, phases * envelope, 0)
        assert np.abs(found[p] - expected).max() < 0.02 * np.abs(expected).max()  # of trilinear sampling


def test_masks_are_multiplied_and_what_they_leave_out_is_left_out(rng):
    half_map, mask = rng.normal(size=(2, 24, 24, 24)).astype(np.float32)
    z, y, x = np.mgrid[:24, :24, :24]
    mask = np.clip(4 - np.sqrt((z - 15) ** 2 + (y - 9) ** 2 + (x - 4) ** 2) / 2, 0, 1).astype(
        np.float32
    )  # off the centre
    expected = prepare_volume(half_map * mask, None, 8).ft
    np.testing.assert_allclose(prepare_volume(half_map, mask, 8).ft, expected, atol=1e-6 * np.abs(expected).max())
    assert not prepare_volume(half_map, 0 * mask, 8).ft.any()


def test_slices_are_trilinear_samples(rng):
    n, k, scale = 24, 9, 1.07
    volume = prepare_volume(rng.normal(size=(n, n, n)), None, 8)
    matrices = euler_to_matrix(rng.uniform(-180, 180, (3, 3)))
    magnification = np.array([[1.02, 0.01], [-0.015, 0.97]])
    found = slices(volume, matrices, np.zeros((3, 2)), k, scale, magnification)
    limit = (volume.ft.shape[0] - 1) // 2
    half = volume.ft.astype(complex)
    # the other half of the transform follows from its symmetry
    full = np.concatenate([half[::-1, ::-1, :0:-1].conj(), half], axis=2)
    for p, matrix in enumerate(matrices):
        for ky in range(-k, k + 1):
            for kx in range(k + 1):
                at = 2 * scale * (matrix[:2].T @ magnification @ [kx, ky])
                value = 0
                if np.hypot(kx, ky) <= k and np.linalg.norm(at) <= 2 * 8:
                    low = np.floor(at).astype(int)
                    for corner in np.ndindex(2, 2, 2):
                        x, y, z = low + corner
                        value += full[z + limit, y + limit, x + limit] * np.prod(1 - np.abs(at - (low + corner)))
                assert abs(found[p, ky + k, kx] - value) < 1e-5 * np.abs(half).max()


def test_symmetry_operators_are_groups():
    for name, order in {"C1": 1, "C5": 5, "D7": 14, "T": 12, "O": 24, "I": 60}.items():
        group = operators(name)
        assert len(group) == order, name
        products = np.einsum("aij,bjk->abik", group, group).reshape(-1, 1, 9)
        assert np.abs(products - group.reshape(1, -1, 9)).max(-1).min(-1).max() < 1e-6
        np.testing.assert_allclose(np.linalg.det(group), 1)
    with pytest.raises(ValueError, match="Q7"):
        operators("Q7")


# optics


def test_ctf_is_the_plain_formula(rng):
    y, x = optics.specimen_frequencies(*band_indices(20), 60.0)
    n = 4
    u, v, angle = rng.uniform(8000, 20000, n), rng.uniform(8000, 20000, n), rng.uniform(-90, 90, n)
    shift, b, scale = rng.uniform(0, 120, n), rng.uniform(0, 80, n), rng.uniform(0.5, 1.5, n)
    extra = 0.1 * rng.normal(size=x.shape)
    found = optics.ctf(
        x, y, defocus_u_A=u, defocus_v_A=v, defocus_angle_deg=angle, phase_shift_deg=shift, b_factor_A2=b, scale=scale,
        voltage_kV=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.07, symmetric_phase=extra,
    )  # fmt: skip
    lam = optics.wavelength_A(300.0)
    assert lam == pytest.approx(0.019687, rel=1e-4) and optics.wavelength_A(200.0) == pytest.approx(0.025079, rel=1e-4)
    k2, direction = x**2 + y**2, np.arctan2(y, x)
    for p in range(n):
        defocus = 0.5 * (u[p] + v[p]) + 0.5 * (u[p] - v[p]) * np.cos(2 * (direction - np.deg2rad(angle[p])))
        gamma = -np.pi * lam * defocus * k2 + 0.5 * np.pi * 2.7e7 * lam**3 * k2**2 - np.deg2rad(shift[p]) + extra
        expected = -(np.sqrt(1 - 0.07**2) * np.sin(gamma) - 0.07 * np.cos(gamma)) * scale[p] * np.exp(-b[p] * k2 / 4)
        np.testing.assert_allclose(found[p], expected, atol=2e-5)


def test_zernikes_are_orthogonal_and_in_relions_order():
    assert [optics.odd_zernike_index(i) for i in range(6)] == [(-1, 1), (1, 1), (-3, 3), (-1, 3), (1, 3), (3, 3)]
    even = [(0, 0), (-2, 2), (0, 2), (2, 2), (-4, 4), (-2, 4), (0, 4), (2, 4), (4, 4)]
    assert [optics.even_zernike_index(i) for i in range(9)] == even
    # a grid in radius and angle on which the polynomials' integrals over the disc are exact
    nodes, weight = np.polynomial.legendre.leggauss(20)
    rho, phi = np.meshgrid(0.5 * (nodes + 1), 2 * np.pi * np.arange(32) / 32, indexing="ij")
    area = np.broadcast_to((0.5 * weight * 0.5 * (nodes + 1))[:, None] * 2 * np.pi / 32, rho.shape)
    x, y = rho * np.cos(phi), rho * np.sin(phi)
    kinds = [*even, *(optics.odd_zernike_index(i) for i in range(6))]
    values = np.stack([optics.zernike(m, n, x, y).ravel() for m, n in kinds])
    gram = (values * area.ravel()) @ values.T
    norm = [np.pi / (n + 1) * (1 if m == 0 else 0.5) for m, n in kinds]
    np.testing.assert_allclose(gram, np.diag(norm), atol=1e-12)


def test_beam_tilt_is_coma(rng):
    x, y = rng.uniform(-0.4, 0.4, (2, 50))
    tilt = (0.3, -0.2)
    found, even = optics.aberration_phases(
        x, y, odd=(0.5, -0.3, 0.2), even=(0.0, 0.4), beam_tilt_mrad=tilt, spherical_aberration_mm=2.7, voltage_kV=300.0
    )
    lam = optics.wavelength_A(300.0)
    coma = -2 * np.pi * 2.7e7 * lam**2 * (x**2 + y**2) * (x * tilt[0] + y * tilt[1]) * 1e-3
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    np.testing.assert_allclose(found, coma + 0.5 * y - 0.3 * x + 0.2 * rho**3 * np.sin(3 * phi), atol=1e-9)
    np.testing.assert_allclose(even, 0.4 * rho**2 * np.sin(2 * phi), atol=1e-12)


# correlation windows


def likeness(X, V, weight, shift, box):
    """Σ w Re[X V* exp(2πi k·s)] over the full plane, term by term, for bands (2k + 1, k + 1) of half planes."""
    k = X.shape[-1] - 1
    ky, kx = band_indices(k)
    shell = np.sqrt(kx**2 + ky**2).astype(int)
    w = np.append(weight, np.zeros(shell.max() + 1))[shell] * np.where(kx == 0, 1, 2)
    turn = np.exp(2j * np.pi * (kx * shift[0] + ky * shift[1]) / box)
    return float((w * (X * V.conj() * turn).real).sum())


def test_windows_are_the_sum_over_the_plane(rng):
    k, n, reach = 17, 4, 7.0
    images = smooth(rng, n, BOX, BOX)
    true = rng.uniform(-4, 4, (n, FRAMES, 2))
    patches = moved(np.repeat(images[:, None], FRAMES, 1), true) + 0.2 * images.std() * rng.normal(
        size=(n, FRAMES, BOX, BOX)
    )
    spectra = spectra_of(patches)
    predicted = band_of(np.fft.rfft2(images, norm="forward"), 20).astype(np.complex64)
    weight = rng.uniform(0.5, 1.5, (1, FRAMES, k + 1)) / (1 + np.arange(k + 1))
    weight[..., 0] = 0
    grid = spline_grid(k, BOX, reach)
    values = correlation_windows(spectra, predicted, weight, k, grid, threads=2)
    pixel_A = 1.3
    windows = Windows(values, grid, np.zeros((n, FRAMES, 2)), pixel_A)
    shift = true + rng.uniform(-1.5, 1.5, (30, n, FRAMES, 2))  # about the peaks, where it matters
    found, gradient = windows.sample(shift * pixel_A)
    exact = band_of(np.fft.rfft2(patches, norm="forward"), k)
    expected, step = np.empty_like(found, float), 1e-4
    slope = np.empty_like(gradient, float)
    view = band_of(np.fft.rfft2(images, norm="forward"), k)
    for s, p, f in np.ndindex(found.shape):
        terms = [
            likeness(exact[p, f], view[p], weight[0, f], shift[s, p, f] + d, BOX)
            for d in ((0, 0), (step, 0), (-step, 0), (0, step), (0, -step))
        ]
        expected[s, p, f] = terms[0]
        slope[s, p, f] = (terms[1] - terms[2]) / (2 * step), (terms[3] - terms[4]) / (2 * step)
    peak = np.array(
        [[likeness(exact[p, f], view[p], weight[0, f], true[p, f], BOX) for f in range(FRAMES)] for p in range(n)]
    )
    assert np.abs(found - expected).max() < 0.01 * peak.min()
    assert np.abs(gradient * pixel_A - slope).max() < 0.04 * np.abs(slope).max()


@pytest.mark.parametrize("grid", [spline_grid(20, BOX, 8.0), pixel_grid(8.0)], ids=["spline", "pixel"])
def test_a_patch_moved_by_d_peaks_at_d_and_recombining_puts_it_back(grid, rng):
    images = smooth(rng, 2, BOX, BOX)
    images -= images.mean((1, 2), keepdims=True)
    displacement = np.array([[[3.3, -1.7], [0.0, 0.0], [-2.6, 4.1]], [[1.2, 5.0], [-4.8, -3.1], [0.4, 0.3]]])
    spectra = spectra_of(moved(np.repeat(images[:, None], FRAMES, 1), displacement))
    predicted = band_of(np.fft.rfft2(images, norm="forward"), 20).astype(np.complex64)
    values = correlation_windows(spectra, predicted, np.ones((1, FRAMES, 21)), 20, grid)
    windows = Windows(values, grid, np.zeros((2, FRAMES, 2)), 1.0)
    axis = np.arange(-6, 6.01, 0.1)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    trial = np.broadcast_to(np.stack([x.ravel(), y.ravel()], 1)[:, None, None], (x.size, 2, FRAMES, 2))
    best = np.argmax(windows.sample(trial)[0], axis=0)
    np.testing.assert_allclose(np.stack([x.ravel()[best], y.ravel()[best]], -1), displacement, atol=0.15)
    assert not windows.edge_hits(displacement).any() and windows.edge_hits(displacement + 20).all()
    assert (windows.curvature(displacement) > 0).all()
    back = recombine(spectra, displacement, np.full((FRAMES, 40), 1 / FRAMES), BOX, threads=2)
    assert np.abs(back - images).max() < 2e-3 * np.abs(images).max()


def test_windows_follow_patches_that_were_cut_elsewhere(rng):
    """A patch cut 3 px to the right shows its particle 3 px to the left: the offset makes up for it."""
    image = smooth(rng, 1, 1, BOX, BOX)
    image -= image.mean()
    spectra = spectra_of(moved(image, np.array([[[-3.0, 2.0]]])))
    spectra.offset_px[:] = [3, -2]
    predicted = band_of(np.fft.rfft2(image[:, 0], norm="forward"), 20).astype(np.complex64)
    grid = spline_grid(20, BOX, 5.0)
    values = correlation_windows(spectra, predicted, np.ones((1, 1, 21)), 20, grid)
    windows = Windows(values, grid, spectra.offset_px.astype(float), 1.0)
    value, gradient = windows.sample(np.zeros((1, 1, 1, 2)))
    assert np.abs(gradient).max() < 0.01 * value[0, 0, 0]
    still = recombine(spectra, np.zeros((1, 1, 2)), np.ones((1, 40)), BOX)
    assert np.abs(still[0] - image[0, 0]).max() < 2e-3 * np.abs(image).max()


def test_own_noise_peaks_where_the_particle_was_taken_from(rng):
    k, n = 15, 2
    ctf = rng.uniform(-1, 1, (n, 41, 21)).astype(np.float32)
    ctf[:, :20, 0] = ctf[:, :20:-1, 0]  # as a CTF has it
    weight = rng.uniform(0.5, 1, (FRAMES, k + 1))
    offset = rng.uniform(-3, 3, (n, FRAMES, 2))
    grid = spline_grid(k, BOX, 6.0)
    windows = Windows(own_noise_windows(ctf, weight, offset, k, grid, BOX), grid, np.zeros((n, FRAMES, 2)), 1.0)
    ky, kx = band_indices(k)
    ctf2 = ctf[:, 20 - k : 21 + k, : k + 1].astype(float) ** 2 * (kx**2 + ky**2 <= k**2)
    for shift in rng.uniform(-1, 1, (5, 2)):
        found = windows.sample((offset + shift)[None])[0][0]
        expected = [[likeness(ctf2[p], np.ones(1), weight[f], shift, BOX) for f in range(FRAMES)] for p in range(n)]
        top = [[likeness(ctf2[p], np.ones(1), weight[f], (0, 0), BOX) for f in range(FRAMES)] for p in range(n)]
        assert np.abs(found - expected).max() < 0.01 * np.min(top)


def test_products_of_bands_are_those_of_the_plane(rng):
    k, (first, second) = 11, rng.normal(size=(2, 6, BOX, BOX))
    ky, kx = (np.fft.fftfreq(BOX, 1 / BOX)[:, None], np.fft.fftfreq(BOX, 1 / BOX))
    shell = np.hypot(ky, kx).astype(int)
    one, other = (band_of(np.fft.rfft2(images, norm="forward"), 15).astype(np.complex64) for images in (first, second))
    plane = [np.fft.fft2(images, norm="forward") for images in (first, second)]
    for found, product in ((band_power(one, k), np.abs(plane[0]) ** 2),
                           (band_cross(one, other, k), (plane[0] * plane[1].conj()).real)):  # fmt: skip
        expected = np.stack([product[:, shell == r].sum(1) for r in range(k + 1)], 1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_own_noise_is_drawn_towards_what_is_expected():
    assert own_noise_share(30.0, 100.0, 1e-9) == pytest.approx(0.3)
    assert own_noise_share(30.0, 100.0, 1e12) == pytest.approx(1)
    assert own_noise_share(30.0, 100.0, (OWN_NOISE_SPREAD * 100) ** 2) == pytest.approx(0.65)
    assert own_noise_share(-30.0, 100.0, 1e-9) == 0, "there is none"
    assert own_noise_share(0.0, 0.0, 0.0) == 1, "a half map without noise"


def test_grey_scales_are_shrunk_towards_the_pool():
    cross, power = np.array([30.0, 55.0, 36.0]), np.array([100.0, 100.0, 100.0])
    pool, spread2 = pooled_scale(cross, power)
    assert pool == pytest.approx(121 / 300)
    assert spread2 == pytest.approx(np.mean((cross / power - pool) ** 2) - 0.01)
    assert reference_scale(30.0, 100.0, pool, 0.0) == pool
    assert reference_scale(30.0, 100.0, pool, 1e9) == pytest.approx(0.3)
    assert 0.3 < reference_scale(30.0, 100.0, pool, 0.01) < pool


# dose weights and recombination


def test_fcc_sums_are_sums_over_the_half_plane(rng):
    n = 3
    images = smooth(rng, n, BOX, BOX)
    patches = np.repeat(images[:, None], FRAMES, 1) + 0.1 * rng.normal(size=(n, FRAMES, BOX, BOX))
    patches -= patches.mean((2, 3), keepdims=True)
    spectra = spectra_of(patches)
    spectra.offset_px[:] = rng.integers(-2, 3, spectra.offset_px.shape)
    displacement = rng.uniform(-3, 3, (n, FRAMES, 2))
    predicted = band_of(np.fft.rfft2(images, norm="forward"), 18).astype(np.complex64)
    whitening = rng.uniform(0.5, 2, BOX // 2 + 1).astype(np.float32)
    ky, kx = half_plane_indices(BOX)
    radius = np.hypot(kx, ky)
    shell, floor = np.floor(radius + 0.5).astype(int), radius.astype(int)
    white = np.append(whitening, np.zeros(40))[floor]
    X = np.fft.rfft2(patches, norm="forward") * white
    shift = displacement - spectra.offset_px
    turn = np.exp(2j * np.pi * (kx * shift[..., 0, None, None] + ky * shift[..., 1, None, None]) / BOX)
    band = (abs(ky) <= 18) & (kx <= 18)  # nothing is measured beyond the band of the predicted views
    V = np.where(band, np.fft.rfft2(images, norm="forward"), 0)[:, None]
    n_shells = BOX // 2 + 1

    def summed(values):
        values = np.where(white > 0, values, 0)
        return np.stack([np.bincount(shell.ravel(), v.ravel())[:n_shells] for v in values.sum(0)])

    expected = [
        summed((X * turn * V.conj()).real),
        summed(abs(X) ** 2 * band),
        summed(np.broadcast_to(abs(V) ** 2, X.shape)),
    ]
    found = fcc_sums(spectra, predicted, displacement, whitening, n_shells, threads=2)
    for a, b in zip(found, expected):
        assert np.abs(a - b).max() < 2e-3 * np.abs(b).max()
    assert np.array_equal(found, fcc_sums(spectra, predicted, displacement, whitening, n_shells, threads=1))
    curve = fcc(found)
    assert np.abs(curve).max() <= 1 + 1e-6 and not curve[:, 0].any()


def test_recombining_weights_and_crops(rng):
    images = smooth(rng, 1, BOX, BOX)
    images -= images.mean()
    spectra = spectra_of(np.stack([images, 2 * images, -images], 1))
    weight = np.stack([np.full(40, 0.5), np.linspace(0.1, 0.4, 40), np.zeros(40)])
    weight[2] = 1 - weight.sum(0)
    for box_out in (BOX, 32):
        found = np.fft.rfft2(recombine(spectra, np.zeros((1, 3, 2)), weight, box_out), norm="forward")[0]
        k = box_out // 2 - 1
        ky, kx = band_indices(k)
        shell = np.floor(np.hypot(kx, ky) + 0.5).astype(int)
        share = (weight[0] + 2 * weight[1] - weight[2])[shell]
        expected = band_of(np.fft.rfft2(images[0], norm="forward"), k) * share
        assert np.abs(band_of(found, k) - expected).max() < 1e-3 * np.abs(expected).max()


def test_normalised_background(rng):
    images = 3 + 2 * rng.normal(size=(3, 64, 64))
    images[2] = 5  # nothing in it: left alone
    found = normalise(images, 24)
    outside = np.hypot(*np.mgrid[-32:32, -32:32]) > 24
    np.testing.assert_allclose(found[:2, outside].mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(found[:2, outside].std(1), 1, rtol=1e-5)
    assert np.isfinite(found).all() and not found[2].any()


FREQUENCY = np.arange(8, 50) / 192


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_dose_model_recovers_b_factors_and_scales(rng, noise):
    b = np.concatenate([[60.0, 20.0, 0.0], np.linspace(2, 120, 17)])
    scale = np.concatenate([[0.7, 0.9], np.linspace(1, 0.6, 18)])
    envelope = 0.2 * np.exp(-60 * FREQUENCY**2)
    values = scale[:, None] * np.exp(-0.25 * b[:, None] * FREQUENCY**2) * envelope
    found = fit_model(values + noise * rng.normal(size=values.shape), FREQUENCY, FREQUENCY)
    tolerance = 0.06 if not noise else 0.35
    np.testing.assert_allclose(found.b_factor_A2, b, atol=4 + tolerance * 60)
    np.testing.assert_allclose(found.scale / found.scale.max(), scale / scale.max(), atol=0.05 + 0.1 * bool(noise))
    np.testing.assert_allclose(weights(found, FREQUENCY).sum(0), 1)


def test_dose_model_is_physical_where_late_frames_are_noise(rng):
    signal = 0.1 * np.exp(-np.arange(30) / 4)[:, None] * np.exp(-0.25 * 8 * np.arange(30)[:, None] * FREQUENCY**2)
    for _ in range(20):
        found = fit_model(signal + 0.01 * rng.normal(size=signal.shape), FREQUENCY, FREQUENCY)
        best = np.argmin(found.b_factor_A2[:10])
        assert best < 5 and found.b_factor_A2.min() == 0 and (found.scale > 0).all()
        assert (np.diff(found.b_factor_A2[best:]) >= -1e-9).all() and np.isfinite(weights(found, FREQUENCY)).all()


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_without_signal_all_frames_are_alike(value):
    found = fit_model(np.full((5, len(FREQUENCY)), value), FREQUENCY, FREQUENCY)
    np.testing.assert_array_equal(weights(found, FREQUENCY), 0.2)


@pytest.mark.parametrize("scale", [(1.0, 0.5, -0.2), (-1.0, -0.5, -0.2), (0.0, 0.0, 0.0)])
def test_relions_fit_has_no_weight_for_frames_without_signal(scale):
    shell = np.arange(60)
    b_factor, log_scale = fit_relion(np.array(scale)[:, None] * np.exp(-(shell**2) / 1800), 1.0, 10, 50)
    found = weights(DoseModel(np.exp(log_scale), -b_factor, np.ones(40)), shell / 120)
    expected = np.maximum(scale, 0) if max(scale) > 0 else np.ones(3)  # else all frames are alike
    np.testing.assert_allclose(found, np.tile(expected / expected.sum(), (60, 1)).T, atol=2e-3)


def test_critical_doses_are_those_published():
    # Grant & Grigorieff 2015: Nc = 0.245 k^-1.665 + 2.81 e/Å² at 300 kV, 20 % less at 200 kV; exp(-N / 2 Nc)
    left = grant_grigorieff(np.array([0.1, 0.25]), np.array([0.0, 20.0]), 300.0)
    assert left[0].tolist() == [1, 1]
    assert left[1, 1] == pytest.approx(np.exp(-10 / (0.245 * 0.25**-1.665 + 2.81)), rel=3e-3)
    assert grant_grigorieff(np.array([0.1]), np.array([16.0]), 200.0)[0, 0] == pytest.approx(left[1, 0])


def test_chunks_cover_everything_once():
    for n, chunk, threads in ((1, 0, 1), (17, 0, 3), (17, 4, 3), (16, 4, 1)):
        seen = np.zeros(n, int)

        def work(part, seen=seen):
            seen[part] += 1

        over_chunks(n, work, threads, chunk)
        assert (seen == 1).all()


def test_work_side_by_side_may_hold_more_of_it_and_tells_the_first_error():
    def row(i):
        return side_by_side(lambda j: (i, j), range(5), 3)

    everything = side_by_side(row, range(40), 3)
    assert everything == [[(i, j) for j in range(5)] for i in range(40)]
    together = Barrier(3)  # of one thread that asks and two that help
    assert side_by_side(lambda i: together.wait(timeout=60) >= 0, range(3), 3) == [True] * 3
    begun = []

    def fails(i):
        begun.append(i)
        if i >= 2:
            raise ValueError(str(i))

    with pytest.raises(ValueError, match="2"):
        side_by_side(fails, range(1000), 2)
    assert len(begun) < 1000
    started = [Event() for _ in range(3)]

    def interrupted(i):  # the last one, while the one before fails in another thread
        started[i].set()
        if i < 2:
            started[i + 1].wait(timeout=60)
        if i:
            raise ValueError if i == 1 else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(interrupted, range(3), 2)
    held = np.zeros(3)
    alive = weakref.ref(held)
    side_by_side(lambda i, held=held: held[i], range(3), 3)
    del held
    assert alive() is None  # no thread that waits for more holds on to what was done


def test_who_is_interrupted_waits_for_those_who_help():
    begun, ended, here = Event(), Event(), get_ident()

    def work(i):
        if get_ident() != here:
            begun.set()
            time.sleep(0.1)  # until nothing is left to do here but wait
            signal.pthread_kill(here, signal.SIGINT)
            time.sleep(0.2)
            ended.set()
        else:
            begun.wait(timeout=60)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(2), 2)
    assert ended.is_set()


def test_helping_threads_are_new_ones_in_a_process_that_was_forked():
    program = """import os, threading
from refmotion_nb.numerics.threads import side_by_side
def both():
    together = threading.Barrier(2)
    side_by_side(lambda _: together.wait(timeout=10), range(2), 2)
both()
if (child := os.fork()) == 0:
    both()
    os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_work_in_order_is_ahead_and_ends_with_its_caller(ahead):
    begun = []
    assert list(in_order(lambda i: i * i, iter(range(5)), ahead)) == [(i, i * i) for i in range(5)]
    found = in_order(lambda i: begun.append(i), range(100), ahead)
    next(found)
    found.close()
    assert sorted(begun) == list(range(len(begun))) and len(begun) <= 1 + ahead


# memory


def test_memory_goes_from_one_array_to_the_next_and_never_while_in_use():
    room = Room()
    with room.open(least_bytes=4000):
        first = room.empty((10, 100), np.int16)
        where, part = first.ctypes.data, first[3:5, ::2].view(np.uint16)
        del first
        second = room.empty((10, 100), np.int16)  # part is still in use
        part[:] = 7
        second[:] = 1
        assert second.ctypes.data != where and (part == 7).all()
        del part
        third = room.empty((2000,), np.int16)
        assert third.ctypes.data == where and third.shape == (2000,)
        del third
        assert room.empty((3000,), np.int16).nbytes == 6000  # larger than what waits
    del second
    assert not room._spare
    assert room.empty((2, 3), np.float32).base is None
