"""Half maps, their symmetry, FSC and B-factor: against insertion one by one, a known object, RELION's own tables."""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
import xarray as xr
from job import GIVEN, run, said, store
from scipy.ndimage import convolve1d
from scipy.spatial.transform import Rotation
from test_numerics import spectra_of

import refmotion_nb as rm
from refmotion_nb.data.maps import read_map
from refmotion_nb.data.relion.results import open_postprocess, read_fsc
from refmotion_nb.data.schema import InputError, Mtf, Optics
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.transfer import Transfer
from refmotion_nb.numerics.fourier import half_plane_indices
from refmotion_nb.numerics.imposed_symmetry import imposed_symmetry
from refmotion_nb.numerics.kernels_maps import insert_kernel
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.numerics.projection import euler_to_matrix
from refmotion_nb.numerics.reconstruct import (
    PADDING,
    BackProjector,
    backproject,
    fsc,
    fsc_masked_corrected,
    reconstruct,
    sampling_density,
)
from refmotion_nb.numerics.sharpening import fsc_weight, guinier_b_factor, sharpened
from refmotion_nb.numerics.symmetry import grid_cosets, operators
from refmotion_nb.stages.half_maps import Grid, _resampled, slices_of
from refmotion_nb.stages.halves import check_split
from refmotion_nb.stages.runs import Run
from refmotion_nb.stages.search import default_prior, prior_attrs
from refmotion_nb.stages.validation import COMBINATIONS, chosen

GROUPS = ["C1", "C4", "C5", "D2", "D7", "T", "O", "I1", "I2", "I3", "I4"]

# two operators of each group that make all of it, as `relion_refine --print_symmetry_ops` (3.1.3) prints them
RELION = {
    "C5": ([[0.309017, 0.95105654, 0], [-0.95105654, 0.309017, 0], [0, 0, 1]],),
    "D7": ([[0.6234898, 0.7818315, 0], [-0.7818315, 0.6234898, 0], [0, 0, 1]], [[1, 0, 0], [0, -1, 0], [0, 0, -1]]),
    "T": ([[-0.5, 0.86602539, 0], [-0.86602539, -0.5, 0], [0, 0, 1]],
          [[0, 0.57735, -0.8165], [0.57735, -0.66667, -0.4714], [-0.8165, -0.4714, -0.33333]]),
    "O": ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
    "I1": ([[1, 0, 0], [0, -1, 0], [0, 0, -1]], [[0.80902, -0.5, -0.30902], [0.5, 0.30902, 0.80902], [-0.30902, -0.80902, 0.5]]),
    "I2": ([[-1, 0, 0], [0, -1, 0], [0, 0, 1]], [[0.5, 0.80902, 0.30902], [-0.80902, 0.30902, 0.5], [0.30902, -0.5, 0.80902]]),
    "I3": ([[-0.44721, 0, -0.89443], [0, -1, 0], [-0.89443, 0, 0.44721]],
           [[0.309017, 0.95105654, 0], [-0.95105654, 0.309017, 0], [0, 0, 1]]),
    "I4": ([[-0.44721, 0, 0.89443], [0, -1, 0], [0.89443, 0, 0.44721]],
           [[0.8618, 0.42533, 0.27639], [-0.42533, 0.30902, 0.85065], [0.27639, -0.85065, 0.44721]]),
}  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def random_turns(rng, n):
    return np.stack(
        [rng.uniform(-180, 180, n), np.rad2deg(np.arccos(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], 1
    )


# symmetry


@pytest.mark.parametrize("name", RELION)
def test_operators_are_relions(name):
    group = operators(name)
    generated = [np.eye(3)]
    for one in generated:
        for g in RELION[name]:
            if all(np.abs(np.array(g) @ one - old).max() > 1e-2 for old in generated):
                generated.append(np.array(g) @ one)
    assert len(generated) == len(group)
    for one in RELION[name]:
        assert np.abs(group - np.array(one)).max((1, 2)).min() < 1e-5


def half_map(points, symmetry, rng, size=32, views=80):
    """A map (z, y, x) of ``points`` (point, xyz), px from its centre, from noisy views, under a symmetry."""
    rotations = Rotation.random(views, rng).as_matrix()
    ky, kx = half_plane_indices(size)
    k = kx[..., None] * rotations[:, None, None, 0] + ky[..., None] * rotations[:, None, None, 1]
    seen = np.exp(2j * np.pi / size * k @ points.T).sum(-1) * np.exp(-(kx**2 + ky**2) / 100)
    noise = rng.standard_normal((2, *seen.shape)) * 1.5
    images = (seen + noise[0] + 1j * noise[1]).astype(np.complex64)
    return reconstruct(backproject(images, np.ones(images.shape, np.float32), rotations, symmetry=operators(symmetry)))


@pytest.mark.parametrize(("name", "size"), [*((name, 32) for name in (*GROUPS, "C11")), ("D3", 33)])
def test_a_symmetry_that_was_imposed_is_found(name, size, rng):
    points = rng.uniform(-6, 6, (12, 3))
    assert imposed_symmetry(*(half_map(points, name, rng, size) for _ in range(2))) == name


def test_a_symmetric_molecule_refined_without_symmetry_has_none_imposed(rng):
    points = np.concatenate(rng.uniform(-6, 6, (3, 3)) @ operators("D4").transpose(0, 2, 1))
    assert imposed_symmetry(*(half_map(points, "C1", rng) for _ in range(2))) == "C1"


@pytest.mark.parametrize("name", GROUPS)
def test_cosets_and_operators_of_the_grid_make_the_group_once(name):
    group = operators(name)
    on_grid, cosets = grid_cosets(group)
    assert len(on_grid) * len(cosets) == len(group)
    products = np.einsum("hij,rjk->hrik", on_grid, cosets).reshape(-1, 1, 3, 3)
    assert (np.abs(products - group).max((2, 3)) < 1e-6).sum(0).tolist() == [1] * len(group)


@pytest.mark.parametrize("name", ["C1", "D2", "D7", "T", "O", "I2"])
def test_symmetrised_sums_are_those_of_every_operator(rng, name):
    n, count = 16, 5
    images = rng.normal(size=(count, 2, n, n // 2 + 1)) + 1j * rng.normal(size=(count, 2, n, n // 2 + 1))
    weights = rng.random((count, n, n // 2 + 1))
    axes = euler_to_matrix(random_turns(rng, count))[:, :2]
    projector = BackProjector(n, 2, operators(name))
    projector.insert(images, weights, axes)
    found = projector.transform().sums
    expected = BackProjector(n, 2)
    for one in operators(name):
        expected.insert(images, weights, axes @ one.T)
    expected = expected.transform().sums
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    if name in ("D2", "D7", "O", "I2"):  # half a turn about x
        np.testing.assert_allclose(found[::-1, ::-1, :, -1], found[..., -1], atol=1e-4)


# back-projection


def test_insertion_is_trilinear(rng):
    n, half = 8, 5
    radius = PADDING * n // 2
    values = rng.normal(size=(1, n, half, 3)).astype(np.float32)
    axes = euler_to_matrix(random_turns(rng, 1))[:, :2]
    found = np.zeros((2 * radius + 3, 2 * radius + 3, radius + 2, 3), np.float32)
    insert_kernel(values, axes[:, None], PADDING, radius, 0, len(found), found)
    expected = np.zeros(found.shape)
    for iy, ky in enumerate(np.fft.fftfreq(n, 1 / n)):
        for kx in range(half):
            at = PADDING * (kx * axes[0, 0] + ky * axes[0, 1])
            if 2 * kx == n or 2 * ky == -n or (kx == 0 and ky < 0) or np.linalg.norm(at) > radius:
                continue
            value = values[0, iy, kx].astype(float) * ([1, -1, 1] if at[0] < 0 else 1)
            at = -at if at[0] < 0 else at
            low = np.floor(at).astype(int)
            for corner in np.ndindex(2, 2, 2):
                x, y, z = low + corner
                share = np.prod(1 - np.abs(at - (low + corner)))
                expected[z + radius + 1, y + radius + 1, x] += share * value
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("n", [9, 10])
def test_shells_are_those_of_the_whole_transform(rng, n):
    a, b = rng.normal(size=(2, n, n, n)).astype(np.float32)
    fa, fb = np.fft.fftn(a), np.fft.fftn(a + b)
    k = np.fft.fftfreq(n, 1 / n)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int)
    cross, one, two = (
        np.bincount(shell.ravel(), v.ravel())[: n // 2 + 1] for v in ((fa * fb.conj()).real, abs(fa) ** 2, abs(fb) ** 2)
    )
    np.testing.assert_allclose(fsc(a, a + b), cross / np.sqrt(one * two), atol=1e-5)


def test_the_density_is_that_of_pipe_and_menon_after_two_steps(rng):
    """Compared with plain convolutions of the whole transform, both signs of kx."""
    n, count = 12, 15
    weights = rng.random((count, n, n // 2 + 1)).astype(np.float32)
    projector = BackProjector(n, 1)
    projector.insert(
        np.zeros((count, 1, n, n // 2 + 1), complex), weights, euler_to_matrix(random_turns(rng, count))[:, :2]
    )
    transform = projector.transform()
    half = transform.sums[..., -1].astype(float)
    weight = np.concatenate([half[::-1, ::-1, :0:-1], half], 2)

    def averaged(values):
        for axis in range(3):
            values = convolve1d(values, [0.25, 0.5, 0.25], axis, mode="constant")
        return values

    found = sampling_density(transform)
    z, y, x = np.indices(weight.shape) - np.reshape(weight.shape, (3, 1, 1, 1)) // 2
    shell = np.minimum(np.rint(np.sqrt(z**2 + y**2 + x**2)).astype(int), transform.radius)
    first = averaged(weight)
    ratio = np.where(first > found.floors[shell], weight / np.maximum(first, 1e-30), 0)
    expected = first * averaged(ratio)
    stored = np.s_[..., half.shape[2] - 1 :]
    np.testing.assert_allclose(found.values, expected[stored], rtol=1e-3, atol=1e-5)
    inside = z**2 + y**2 + x**2 <= transform.radius**2
    some = inside[stored] & (shell[stored] == 7)
    assert found.floors[7] == pytest.approx(1e-3 * first[stored][some].mean(), rel=1e-4)  # RELION's


def test_sums_and_maps_do_not_depend_on_the_threads(rng):
    n, count = 20, 30
    images = (rng.normal(size=(count, 2, n, n // 2 + 1)) + 1j * rng.normal(size=(count, 2, n, n // 2 + 1))).astype(
        np.complex64
    )
    weights = rng.random((count, n, n // 2 + 1)).astype(np.float32)
    axes = euler_to_matrix(random_turns(rng, count))[:, :2]
    mask = np.ones((n, n, n), np.float32)
    found = []
    for threads in (1, 2, 5):
        projector = BackProjector(n, 2, operators("D4"), threads=threads)
        for part in (slice(0, 13), slice(13, None)):
            projector.insert(images[part], weights[part], axes[part])
        transform = projector.transform()
        maps = [reconstruct(transform, which, threads=threads) for which in (0, 1)]
        found.append((transform.sums, *maps, fsc_masked_corrected(*maps, mask, threads=threads).corrected))
    alone = BackProjector(n, 1, operators("D4"))
    alone.insert(images[:, 1:], weights, axes)
    for other in found[1:]:
        for one, again in zip(found[0], other):
            np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(reconstruct(alone.transform()), found[0][2])


# the microscope: a known object, imaged by plain formulas

CENTRES_A = np.array([[20, 5, -12], [-15, 22, 3], [-6, -20, -16], [4, -9, 24], [25, -14, 10], [-22, -3, 15]], float)
SIGMA_A = 1.6


def particle(x, y, z=None):
    """Fourier transform of the object at frequencies 1/Å, or (with z) the object itself at Å."""
    if z is None:
        raise TypeError
    return sum(np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * SIGMA_A**2)) for a, b, c in CENTRES_A)


def seen(matrix, x, y):
    """Transform of a projection of the object, per Å², at frequencies x, y of the specimen."""
    waves = sum(np.exp(-2j * np.pi * (x * a + y * b)) for a, b, _ in CENTRES_A @ matrix.T)
    return (2 * np.pi) ** 1.5 * SIGMA_A**3 * waves * np.exp(-2 * np.pi**2 * SIGMA_A**2 * (x**2 + y**2))


def imaged(rng, optics, box, pixel_size_A, n, strength=6.0):
    """A micrograph of one frame: its particles with their CTF, aberrations, origins, some noise."""
    euler, origin = random_turns(rng, n), rng.uniform(-2, 2, (n, 2))
    defocus = rng.uniform(6000, 14000, n)
    particles = xr.Dataset(
        {name: ("particle", values) for name, values in {
            "defocus_u": defocus + 200, "defocus_v": defocus - 200, "defocus_angle": rng.uniform(0, 180, n),
            "phase_shift": np.zeros(n), "ctf_b_factor": np.zeros(n), "ctf_scale": np.ones(n), "optics": np.zeros(n, int),
            "half": 1 + np.arange(n) % 2, "reference": np.zeros(n, int)}.items()})  # fmt: skip
    particles["euler"] = ("particle", "angle"), euler
    ky, kx = half_plane_indices(box)
    extent = box * pixel_size_A
    transfer = Transfer.of(optics, ky, kx, extent)
    ctf = transfer.ctf(particles, np.arange(n))
    at = box // 2 - origin / pixel_size_A
    images = np.empty((n, 1, box, box))
    for p, matrix in enumerate(euler_to_matrix(euler)):
        view = seen(matrix, transfer.x, transfer.y) * ctf[p] * (1 if transfer.response is None else transfer.response)
        view = view * np.exp(-2j * np.pi / box * (kx * at[p, 0] + ky * at[p, 1])) / pixel_size_A**2
        # noise of equal strength per Å², whatever the pixel
        images[p, 0] = np.fft.irfft2(view, (box, box)) * strength + rng.normal(size=(box, box)) / pixel_size_A
    return SimpleNamespace(
        spectra=spectra_of(images), n=n, particles=particles, extent_A=extent, background_radius_px=lambda size: 0.3 * size,
        placement=SimpleNamespace(origin_A=origin), pixel_size_A=pixel_size_A,
    )  # fmt: skip


def object_on(grid):
    r = (np.arange(grid.size) - grid.size // 2) * grid.pixel_size_A
    return particle(*np.meshgrid(r, r, r, indexing="ij")[::-1])


def mapped(micrographs, optics, grid):
    """Map of micrographs, taken for imaged with ``optics``."""
    session = SimpleNamespace(threads=2, data=SimpleNamespace(optics=[optics]))
    projector = BackProjector(grid.size, 1, threads=2)
    for m in micrographs:
        still = (np.zeros((m.n, 1, 2)), np.ones((1, m.spectra.box)))
        for part in (slice(0, m.n // 2), slice(m.n // 2, m.n)):
            images, power, axes = slices_of(m, part, [still], session, grid)
            projector.insert(images, power, axes)
    return reconstruct(projector.transform())


PLAIN = Optics("plain", 300.0, 2.7, 0.1, 2.0, 48)
ODD = {
    "beam tilt": replace(PLAIN, beam_tilt_mrad=(8.0, -5.0)),
    "odd Zernike": replace(PLAIN, odd_zernike=(0.0, 0.0, 600.0, 0.0, 0.0, 400.0)),
    "even Zernike": replace(PLAIN, even_zernike=(0.0, 150.0, 0.0, -150.0)),
    "magnification": replace(PLAIN, magnification=((1.12, 0.03), (0.02, 0.9))),
}


@pytest.mark.parametrize("what", ODD)
def test_what_the_microscope_did_is_undone(rng, what):
    grid = Grid(48, 2.0)
    m = imaged(rng, ODD[what], 48, 2.0, 160)
    truth = object_on(grid)
    right, wrong = (fsc(mapped([m], optics, grid), truth)[10:18].mean() for optics in (ODD[what], PLAIN))
    assert right > 0.95 and wrong < right - 0.15, (right, wrong)


def test_what_another_detector_passed_on_is_undone(rng):
    grid, truth = Grid(48, 2.0), object_on(Grid(48, 2.0))
    duller = replace(PLAIN, relative_mtf=Mtf((0.0, 0.2), (1.0, 0.5)))

    def gain(seen, taken):  # of the map against the truth, from coarse to fine shells
        made, true = (np.fft.rfftn(one) for one in (mapped([imaged(rng, seen, 48, 2.0, 160)], taken, grid), truth))
        shells = np.round(
            np.linalg.norm(np.meshgrid(*[np.fft.fftfreq(48) * 48] * 2, np.arange(25), indexing="ij"), axis=0)
        )
        slope = [np.vdot(true[shells == k], made[shells == k]).real / np.vdot(true[shells == k], true[shells == k]).real
                 for k in (5, 14)]  # fmt: skip
        return slope[1] / slope[0]

    plain = gain(PLAIN, PLAIN)
    assert gain(duller, duller) == pytest.approx(plain, rel=0.05)
    # 5 and 14 of 96 Å: 0.87 and 0.64 of the signal
    assert gain(duller, PLAIN) == pytest.approx(plain * (1 - 2.5 * 14 / 96) / (1 - 2.5 * 5 / 96), rel=0.05)


def test_premultiplied_input_images_do_not_matter(rng):
    grid = Grid(48, 2.0)
    m = imaged(rng, PLAIN, 48, 2.0, 20)
    np.testing.assert_array_equal(mapped([m], PLAIN, grid), mapped([m], replace(PLAIN, ctf_premultiplied=True), grid))


@pytest.mark.parametrize("sizes", [(31, 48), (32, 48), (48, 31), (33, 20), (25, 35)])
def test_masks_keep_their_place_on_another_grid(sizes):
    def ball(n):  # 60 Å wide, 5 Å from the centre
        z, y, x = np.ogrid[:n, :n, :n]
        place = [60 / n * (axis - n // 2) - shift for axis, shift in ((z, 1.0), (y, -3.0), (x, 4.0))]
        return np.exp(-sum(axis**2 for axis in place) / (2 * 7.0**2)).astype(np.float32)

    first, second = map(ball, sizes)
    np.testing.assert_allclose(_resampled(first, sizes[1]), second, atol=0.01)


def test_movies_of_two_pixel_sizes_go_onto_the_finest_grid(rng):
    # 38 px of 2.5 Å are 95 Å, 48 of 2 Å are 96: the coarse boxes are a little smaller than the map
    fine, coarse = (imaged(rng, PLAIN, box, pixel, 120, 0.6) for box, pixel in ((48, 2.0), (38, 2.5)))
    grid = Grid(48, 2.0)
    truth = object_on(grid)
    single, both = mapped([fine], PLAIN, grid), mapped([fine, coarse], PLAIN, grid)
    assert fsc(both, truth)[4:16].mean() > fsc(single, truth)[4:16].mean()
    alone = mapped([coarse], PLAIN, grid)
    assert fsc(alone, truth)[4:12].min() > 0.6
    # the same grey values: each map regresses on the truth with the same slope
    inside = truth > 0.1
    slopes = [(one * truth)[inside].sum() / (truth**2)[inside].sum() for one in (single, alone)]
    assert slopes[0] == pytest.approx(slopes[1], rel=0.08)  # without regard to the box they would differ by a quarter


# FSC and B-factor against RELION's


@pytest.fixture(scope="module")
def half_maps(test_data):
    folder = test_data / "apoferritin/Ref"
    return [read_map(folder / name)[0] for name in ("half1.mrc", "half2.mrc", "mask.mrc")]


def relions(path, column):
    return read_star(path, ["fsc"])["fsc"][column].to_numpy(float)


def test_curves_are_relions_on_the_same_maps(test_data, half_maps):
    path = test_data / "apoferritin/Ref/postprocess.star"
    found = fsc_masked_corrected(*half_maps, threads=2)
    for curve, column in ((found.unmasked, "UnmaskedMaps"), (found.masked, "MaskedMaps")):
        # RELION counts the coefficients with kx = 0 twice as often as the others
        np.testing.assert_allclose(curve[1:], relions(path, f"rlnFourierShellCorrelation{column}")[1:], atol=0.01)
    assert found.randomised_from == round(192 / read_star(path, ["general"])["general"]["rlnRandomiseFrom"])
    start = (
        found.randomised_from
    )  # from this radius on, not from half a shell before: there the curve falls by a fifth a shell
    theirs = relions(path, "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps")
    np.testing.assert_allclose(found.randomised[1 : start + 1], theirs[1 : start + 1], atol=0.04)
    theirs = relions(path, "rlnFourierShellCorrelationCorrected")
    np.testing.assert_allclose(found.corrected[1:50], theirs[1:50], atol=0.03)  # phases are random


def test_b_factor_is_relions_on_the_same_maps(test_data, half_maps):
    path = test_data / "apoferritin/Ref/postprocess.star"
    mean = 0.5 * (half_maps[0] + half_maps[1])
    found = guinier_b_factor(mean, read_fsc(path), 1.0, 2, from_A=8.0, to_fsc=1e-4)  # as this file was made
    assert -found == pytest.approx(read_star(path, ["general"])["general"]["rlnBfactorUsedForSharpening"], abs=0.01)


def test_sharpening_undoes_a_b_factor(rng):
    n, pixel = 64, 1.5
    k = np.sqrt(
        sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(n, pixel)] * 2, np.fft.rfftfreq(n, pixel), indexing="ij"))
    )
    flat = np.fft.rfftn(rng.normal(size=(n, n, n)))
    volume = np.fft.irfftn(flat * np.exp(-80.0 * k**2 / 4), (n, n, n), (0, 1, 2))
    fsc_of_it = np.where(np.arange(n // 2 + 1) < 24, 1.0, 0.0)
    assert guinier_b_factor(volume, fsc_of_it, pixel) == pytest.approx(80.0, abs=1.5)
    assert np.isnan(guinier_b_factor(volume, np.where(np.arange(n // 2 + 1) < 10, 1.0, 0.0), pixel))
    again = np.abs(np.fft.rfftn(sharpened(volume, fsc_of_it, 80.0, pixel)))
    band = (k > 0.03) & (k < 0.21)
    np.testing.assert_allclose(again[band], np.abs(flat)[band], rtol=0.01, atol=0.01 * np.abs(flat).mean())
    assert again[k > 0.28].max() < 1e-3 * again[band].mean()
    falling = np.where(np.arange(n // 2 + 1) < 16, 1.0, 0.1)  # below 0.143 there is nothing to sharpen, only noise
    again = np.abs(np.fft.rfftn(sharpened(volume, falling, 80.0, pixel)))
    assert again[k > 18 / (n * pixel)].max() < 1e-3 * again[k < 14 / (n * pixel)].mean()
    # the corners of a map of small pixels would be raised by more than numbers hold
    assert np.isfinite(sharpened(volume, fsc_of_it, 80.0, 0.3)).all()


def test_the_weight_of_a_shell():
    np.testing.assert_allclose(
        fsc_weight(np.array([1.0, 0.5, 1 / 3, -0.1, 0.4])), [1, np.sqrt(2 / 3), np.sqrt(0.5), 0, 0]
    )
    # half maps whose means have opposite signs agree no less in their shells
    np.testing.assert_allclose(fsc_weight(np.array([-1.0, 0.5, 0.0])), [0, np.sqrt(2 / 3), 0])


# the stage


@pytest.fixture(scope="module")
def data(tiny):
    reference, _ = open_postprocess(tiny.postprocess, tiny.folder)
    return rm.open_relion(tiny.particles, tiny.micrographs, reference, tiny.folder)


@pytest.fixture(scope="module")
def search():
    prior = default_prior(Hyperparameters.from_strengths(1.5, 3000.0, 2.0), rm.Validation())
    return xr.Dataset(attrs=prior_attrs(prior))


@pytest.fixture(scope="module")
def dose(data, search):
    return rm.DoseWeights().run(data, search)


@pytest.fixture(scope="module")
def four(data, search, dose, tmp_path_factory):
    """The stage's result with all maps, and the folder they are in."""
    out = tmp_path_factory.mktemp("maps")
    stage = rm.Validation(symmetry="O", write_maps="all")
    return stage.run(rm.Session(data, 2, 1e9), search, dose, out=out), out


def test_one_pass_or_four_give_the_same(data, search, dose, four, monkeypatch):
    finished, begin, finish = [], BackProjector.__init__, BackProjector.transform

    def begun(self, *settings, **options):
        assert not any(one() for one in finished), "transforms of the part before take as much memory as the new ones"
        begin(self, *settings, **options)

    def ended(self):
        transform = finish(self)
        finished.append(weakref.ref(transform))
        return transform

    monkeypatch.setattr(BackProjector, "__init__", begun)
    monkeypatch.setattr(BackProjector, "transform", ended)
    told = Run(None)
    again = rm.Validation().run(rm.Session(data, 1, 1e3), search, dose, told)  # which finds the symmetry
    assert again["symmetry"].values.tolist() == ["O"]
    works = [(work.what, work.total, work.done) for work in told.snapshot.works]  # each with units of one length
    parts = [f"part {part} of 4" for part in range(1, 5)]
    assert works == [
        one for part in parts for one in ((f"validating, {part}", 2, 2), (f"reconstructing maps, {part}", 1, 1))
    ]
    xr.testing.assert_identical(four[0], again)


def test_transforms_are_part_of_what_the_cache_may_hold(data, search, dose):
    session, stage = rm.Session(data, 2, 1e9), rm.Validation()
    first, second = (m.nbytes for _, m in session.walk(list(session), stage))
    transforms = 2 * BackProjector.bytes_needed(Grid.of(session, stage).size, 1)
    session.begin(2, transforms + 1.5 * max(first, second))
    assert len(session.kept) == 2
    stage.run(session, search, dose, combinations=COMBINATIONS[:1])
    assert len(session.kept) == 1 and session.spool.held_bytes == first


def test_trajectories_and_weights_gain(four):
    found, _ = four
    assert found["fsc_corrected"].dims == ("reference", "combination", "frequency")
    assert found["meaning"].values[0] == "rigid motion, standard weights"
    middle = (found["frequency"] > 1 / 12) & (found["frequency"] < 1 / 6)
    mean = found["fsc_corrected"].isel(reference=0).where(middle).mean("frequency")
    assert mean.sel(combination="both") > mean.sel(combination="rigid")
    assert found["b_factor"].dims == ("reference", "combination") and found["b_factor"].attrs["units"] == "Å²"
    assert float(found["b_factor"].sel(combination="both")[0]) < float(found["b_factor"].sel(combination="rigid")[0])


def test_maps_are_those_the_curves_are_of(four):
    found, out = four
    names = {path.name for path in (out / "Maps").iterdir()}
    assert names == {f"{c.file_name}{end}.mrc" for c in COMBINATIONS for end in ("", "_half1", "_half2")}
    halves = [read_map(out / f"Maps/both_half{h}.mrc") for h in (1, 2)]
    np.testing.assert_array_equal(
        fsc(halves[0][0], halves[1][0]), found["fsc_unmasked"].sel(combination="both").values[0]
    )
    assert halves[0][1] == pytest.approx(1.6)
    with mrcfile.open(out / "Maps/both.mrc") as final:
        assert final.is_volume() and final.data.std() > 0


def test_every_reference_has_its_particles_mask_and_symmetry(data, search, dose, four, tmp_path):
    particles = data.particles.copy()
    particles["reference"] = ("particle", (np.arange(particles.sizes["particle"]) // 2) % 2)
    two = replace(data, references=data.references * 2, particles=particles, tables=data.tables * 2)
    stage = rm.Validation(symmetry="O,C1", write_maps="rigid")
    found = stage.run(rm.Session(two, 2, 1e9), search, dose, combinations=COMBINATIONS[:1], out=tmp_path)
    assert {path.name for path in (tmp_path / "Maps").iterdir()} == {
        f"rigid_{n}{end}.mrc" for n in (1, 2) for end in ("", "_half1", "_half2")
    }
    octahedral, plain = (read_map(tmp_path / f"Maps/rigid_{n}_half1.mrc")[0] for n in (1, 2))
    for volume, same in ((octahedral, True), (plain, False)):
        c = volume[1:, 1:, 1:]  # the box is even: its first plane has no partner
        assert np.allclose(c, np.rot90(c, axes=(1, 2)), atol=1e-3 * np.abs(c).max()) == same
    one = replace(data, particles=data.particles.isel(particle=particles["reference"].values == 0))
    alone = rm.Validation(symmetry="O").run(rm.Session(one, 2, 1e9), search, dose, combinations=COMBINATIONS[:1])
    np.testing.assert_array_equal(found["fsc_masked"].values[0], alone["fsc_masked"].values[0])


def test_half_sets_must_both_be_there(data, search, dose):
    particles = data.particles.copy()
    particles["half"] = ("particle", np.ones(particles.sizes["particle"], int))
    with pytest.raises(InputError, match="reference 1 has no particle of half set 2"):
        rm.Validation().run(rm.Session(replace(data, particles=particles)), search, dose, combinations="rigid")


def test_combinations_have_names(data, search, dose):
    assert chosen("rigid, both") == chosen([COMBINATIONS[0], "both"]) == (COMBINATIONS[0], COMBINATIONS[-1])
    assert (
        chosen(["+ weights"])
        == chosen(["weights", *COMBINATIONS[1:2]])
        == chosen("weights, + weights")
        == COMBINATIONS[1:2]
    )
    with pytest.raises(InputError, match=r"^combinations 'all': give names out of rigid, weights, trajectories, both$"):
        rm.Validation().run(data, search, dose, combinations="all")
    with pytest.raises(InputError, match=r"^combinations: none is given"):
        rm.Job(data, "out", combinations=())


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--symmetry", "O,C1", "names 2 point groups for 1 references"),
        ("--symmetry", "Q7", "symmetry Q7: give one of"),
        ("--write-maps", "rigid,bth", "write_maps 'bth': give names out of rigid, weights"),
    ],
)
def test_settings_are_refused_before_the_work(tiny, tmp_path, capsys, option, value, complaint):
    assert run(tiny.folder, tmp_path, *GIVEN, "--until", "validate", option, value) == 1
    assert complaint in said(capsys)[-1]


def test_a_split_that_changed_is_an_error(tiny, data, tmp_path):
    assert run(tiny.folder, tmp_path, *GIVEN) == 0
    written = store(tmp_path).read("particles")
    check_split(tmp_path, data, written)
    tables = read_star(tmp_path / "particles.star")
    tables["particles"].loc[3, "rlnRandomSubset"] = 3 - int(tables["particles"].loc[3, "rlnRandomSubset"])
    write_star(tmp_path / "particles.star", tables)
    with pytest.raises(InputError, match=r"1 particles are not in the half set of the input \(the first in row 3"):
        check_split(tmp_path, data, written)
    tables["particles"] = tables["particles"].iloc[1:]
    write_star(tmp_path / "particles.star", tables)
    with pytest.raises(InputError, match="holds 23 particles, 24 were written"):
        check_split(tmp_path, data, written)
