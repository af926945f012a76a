"""Micrographs: sums of frames against plain ones, motion undone against the truth, tables as RELION and CryoSPARC read them."""

import re
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import xarray as xr
from cameras import load_detector
from conftest import TINY
from cryosparc_project import convert, dataset_class
from job import GIVEN, held_by_another, left_behind, said
from job import run as polish
from scipy.ndimage import map_coordinates, spline_filter

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.data.cryosparc.csfile import read_csg
from refmotion_nb.data.micrographs import MovieTable, WrittenMicrograph, write_relion
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.motion import initial_displacement
from refmotion_nb.data.relion.results import write_bfactors
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.store import write_netcdf
from refmotion_nb.data.synthetic.simulate import simulate, trajectory_error_A
from refmotion_nb.numerics.dewarp import GRID_PX, Camera, binned_shape, grid_nodes, radius_axis, spread, sum_frames
from refmotion_nb.numerics.kernels_dewarp import warp_add_kernel
from refmotion_nb.numerics.motion_field import motion_field
from refmotion_nb.stages.micrographs import frame_weights
from refmotion_nb.stages.particle_motion import ParticleMotion, displacement

INSIDE = slice(24, -24)


def counts(n_frames: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3, (n_frames, *shape)).astype(np.uint8)


def summed(frames, rigid=None, local=None, weights=None, shape_out=None, camera=None, threads=1) -> list[np.ndarray]:
    shape = frames.shape[1:]
    rigid = np.zeros((len(frames), 2)) if rigid is None else np.asarray(rigid, float)
    weights = [np.ones((len(frames), len(radius_axis(shape))))] if weights is None else weights
    return sum_frames(lambda f: frames[f], camera or Camera(), rigid, local, weights, shape_out or shape, threads)


def oracle(frames, rigid, weight, pixel_A) -> np.ndarray:
    """Σ w exp(2πi k·d) X / √Σ w² in double precision; ``weight`` of a frame at frequencies (1/Å)."""
    ny, nx = frames.shape[1:]
    ky, kx = np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)[None]
    if ny % 2 == 0:
        ky[ny // 2] *= -1  # RELION's sign at the Nyquist limit
    total, power = 0, 0
    for f, frame in enumerate(frames):
        w = weight(f, np.hypot(ky, kx) / pixel_A)
        total = total + w * np.fft.rfft2(frame.astype(float)) * np.exp(
            2j * np.pi * (kx * rigid[f][0] + ky * rigid[f][1])
        )
        power = power + w**2
    return np.fft.irfft2(total / np.sqrt(power), s=(ny, nx))


@pytest.mark.parametrize("shape", [(96, 130), (75, 64), (64, 77)])
def test_without_motion_and_weights_it_is_the_plain_sum(shape):
    frames = counts(5, shape)
    (image,) = summed(frames)
    assert image.shape == shape and image.dtype == np.float32
    np.testing.assert_allclose(image, frames.sum(0), atol=1e-4)
    still = np.zeros((5, *map(len, grid_nodes(shape)), 2))
    np.testing.assert_allclose(summed(frames, local=still)[0], frames.sum(0), atol=1e-4)


@pytest.mark.parametrize("how", ["rigid", "local"])
def test_whole_pixels_are_moved_as_they_are(how):
    scene = counts(1, (128, 160))[0]
    moves = np.array([[0, 0], [3, -2], [-5, 4]])  # x y, where the specimen has moved to
    frames = np.stack([np.roll(scene, (y, x), (0, 1)) for x, y in moves])
    if how == "rigid":
        (image,) = summed(frames, rigid=moves)
    else:
        grid = np.broadcast_to(moves[:, None, None], (3, *map(len, grid_nodes(scene.shape)), 2))
        (image,) = summed(frames, local=np.ascontiguousarray(grid, float))
    np.testing.assert_allclose(image[INSIDE, INSIDE], 3.0 * scene[INSIDE, INSIDE], atol=1e-3)


def test_what_comes_into_the_field_at_an_edge_is_its_mirror_image():
    frame = np.arange(40 * 50, dtype=np.float32).reshape(1, 40, 50) % 97
    (image,) = summed(frame, rigid=[[-3.0, 0.0]])
    np.testing.assert_allclose(image[:, :3], frame[0, :, 2::-1], atol=1e-3)


def test_fractions_and_weights_agree_with_a_plain_double_precision_sum():
    frames = counts(4, (120, 96), 1)
    rigid = np.array([[0, 0], [0.3, -0.45], [-0.25, 0.1], [0.49, 0.2]])
    decay = np.array([0.0, 20, 55, 140])  # Å²

    def weight(f, k):
        return np.exp(-decay[f] * k**2)

    axis = radius_axis((120, 96)) / 1.3
    table = np.stack([weight(f, axis) for f in range(4)])
    (image,) = summed(frames, rigid, weights=[table / np.sqrt((table**2).sum(0))])
    want = oracle(frames, rigid, weight, 1.3)
    assert np.abs(image - want)[2:-2, 2:-2].max() < 0.25  # the frame that wraps around, and its ringing
    assert np.std((image - want)[INSIDE, INSIDE]) < 5e-3 * want.std()


def test_white_noise_stays_white():
    frames = counts(6, (256, 256), 2)
    k = radius_axis((256, 256))
    table = np.exp(-np.arange(6)[:, None] * 8 * k**2)
    (image,) = summed(frames, rigid=np.random.default_rng(0).normal(0, 2, (6, 2)),
                      weights=[table / np.sqrt((table**2).sum(0))])  # fmt: skip
    power = np.abs(np.fft.rfft2(image - image.mean())) ** 2 / image.size / 3.0
    r = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    for low, high in ((0.02, 0.2), (0.2, 0.35), (0.35, 0.48)):
        assert power[(r > low) & (r < high)].mean() == pytest.approx(1, abs=0.03)


def warp(shape):
    """A strong local motion (gy, gx, 2) on the grid and at every pixel."""

    def at(y, x):
        v, u = y / shape[0] - 0.5, x / shape[1] - 0.5
        return np.stack([4 * u + 2 * v * v - 0.7, -3 * v + 2 * u + 0.4], -1)

    return at(*np.meshgrid(*grid_nodes(shape), indexing="ij")), at(*np.mgrid[: shape[0], : shape[1]].astype(float))


def test_splines_are_sampled_where_the_specimen_was():
    shape = (300, 340)
    rng = np.random.default_rng(3)
    coefficients = spline_filter(np.cumsum(np.cumsum(rng.normal(size=shape), 0), 1) / 20, 5, mode="mirror")
    grid, moved = warp(shape)
    out = np.ones(shape, np.float32)
    warp_add_kernel(coefficients.astype(np.float32), grid.astype(np.float32), GRID_PX, 0, 300, out)
    y, x = np.mgrid[:300, :340].astype(float)
    want = map_coordinates(
        coefficients, [y + moved[..., 1], x + moved[..., 0]], order=5, prefilter=False, mode="reflect"
    )
    error = (out - 1 - want)[8:-8, 8:-8]
    assert np.abs(error).max() < 5e-3 * want.std()


def test_what_local_motion_brings_in_at_an_edge_is_the_image_reflected():
    """At the last sample as many pixels outwards as inwards are the same."""
    shape = (70, 90)
    coefficients = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    nodes = [len(axis) for axis in grid_nodes(shape)]
    there, back = (np.zeros(shape, np.float32) for _ in range(2))
    for moved, out in (((2.5, 1.25), there), ((-2.5, -1.25), back)):
        grid = np.broadcast_to(np.float32(moved), (*nodes, 2)).copy()
        warp_add_kernel(coefficients, grid, GRID_PX, 0, 70, out)
    corners = np.ix_((0, -1), (0, -1))
    np.testing.assert_allclose(there[corners], back[corners], atol=1e-5)
    assert np.abs(there - back).max() > 0.1


def waves(shape, shift=0.0):
    """Waves up to two thirds of the Nyquist limit, displaced by ``shift`` (height, width, 2) x y."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    shift = np.zeros((*shape, 2)) if np.isscalar(shift) else shift
    x, y = x - shift[..., 0], y - shift[..., 1]
    return sum(np.cos(2 * np.pi * (a * x + b * y) + c) for a, b, c in ((0.33, 0.05, 1), (0.1, -0.3, 2), (0.2, 0.22, 0)))


def test_local_motion_is_undone():
    shape = (256, 256)
    grid, moved = warp(shape)
    y, x = np.mgrid[:256, :256].astype(float)
    inverse = moved
    for _ in range(30):  # what is seen at y x was where it moved from
        inverse = np.stack([
            map_coordinates(moved[..., a], [y - inverse[..., 1], x - inverse[..., 0]], order=3, mode="nearest") for a in (0, 1)
        ], -1)  # fmt: skip
    frames = np.stack([waves(shape), waves(shape, inverse)]).astype(np.float32)
    local = np.stack([np.zeros_like(grid), grid])
    (image,) = summed(frames, local=local)
    error = (image - 2 * waves(shape))[INSIDE, INSIDE]
    assert error.std() < 0.02 * waves(shape).std()
    plain = (frames.sum(0) - 2 * waves(shape))[INSIDE, INSIDE]
    assert plain.std() > 20 * error.std()


def test_rigid_and_constant_local_motion_are_the_same():
    frames = np.stack([waves((128, 160))] * 3).astype(np.float32)
    moves = np.array([[0, 0], [1.3, -0.6], [-0.4, 0.8]])
    grid = np.broadcast_to(moves[:, None, None], (3, *map(len, grid_nodes((128, 160))), 2))
    one, other = summed(frames, moves)[0], summed(frames, local=np.ascontiguousarray(grid))[0]
    assert (one - other)[INSIDE, INSIDE].std() < 0.02 * one.std()


def test_fourier_cropping_keeps_the_picture():
    y, x = np.mgrid[:120, :96]
    frame = (5 + np.cos(2 * np.pi * (3 * x / 96 + 2 * y / 120))).astype(np.float32)[None]
    y, x = np.mgrid[:60, :48]
    want = 5 + np.cos(2 * np.pi * (3 * x / 48 + 2 * y / 60))
    still = np.zeros((1, *map(len, grid_nodes((120, 96))), 2))
    for local in (None, still):
        (image,) = summed(frame, local=local, shape_out=binned_shape((120, 96), 2))
        np.testing.assert_allclose(image, want, atol=1e-4)
    assert binned_shape((3838, 3710), 3838 / 714) == (714, 690)  # though 3838 / (3838 / 714) is just below 714
    assert binned_shape((75, 64), 1) == (75, 64) and binned_shape((75, 64), 1.5) == (50, 42)


def test_gain_and_background():
    rng = np.random.default_rng(5)
    gain = rng.uniform(0.9, 1.1, (64, 96)).astype(np.float32)
    coarse = rng.uniform(0.8, 1.2, (4, 6)).astype(np.float32)
    frames = counts(3, (64, 96), 6)
    (image,) = summed(frames, camera=Camera(gain))
    np.testing.assert_allclose(image, (frames * gain).sum(0), atol=1e-4)
    field = spread(coarse / coarse.mean(), (64, 96))
    (image,) = summed(frames, camera=Camera(gain, field))
    removed = (frames * gain).sum(0) - image
    assert np.allclose(removed / field, (removed / field).mean(), rtol=1e-4)
    assert removed.mean() == pytest.approx((frames * gain).sum(0).mean(), rel=0.02)


@pytest.mark.parametrize("local", [False, True])
def test_sums_do_not_depend_on_threads(local):
    frames = counts(7, (200, 136), 7)
    grid, _ = warp((200, 136))
    motion = np.arange(7)[:, None, None, None] * grid[None] / 7 if local else None
    rigid = np.random.default_rng(1).normal(0, 2, (7, 2))
    one, three = (summed(frames, rigid, motion, threads=n)[0] for n in (1, 3))
    assert np.array_equal(one, three)


def test_no_frame_is_being_read_once_a_sum_has_failed(monkeypatch):
    reading = []

    def load(f):
        reading.append(f)
        time.sleep(0.05 if f else 0)
        reading.remove(f)
        return np.ones((64, 64), np.uint8)

    def fail(self, f, images):
        raise MemoryError

    monkeypatch.setattr("refmotion_nb.numerics.dewarp._Rigid.add", fail)
    with pytest.raises(MemoryError):
        sum_frames(load, Camera(), np.zeros((20, 2)), None, [np.ones((20, 99))], (64, 64), 3)
    assert not reading


# whole movies


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """Return a simulated folder whose motion STAR files hold local motion."""
    settings = replace(
        TINY, patch_alignment=True, speed_A_per_dose=3.0, rigid_error_A=0.1, correlation_distance_A=900.0
    )
    return simulate(settings, tmp_path_factory.mktemp("moving"))


def images(folder: Path, weights=None, movie: int = 0, **settings) -> list[np.ndarray]:
    data = rm.open_movies(folder / "MotionCorr/corrected_micrographs.star", folder)
    one = data.movies[movie]
    weights = weights or partial(frame_weights, None, one, data.groups[movie])
    return rm.MicrographCorrection(**settings).images(one, weights, 2)


def likeness(image: np.ndarray, folder: Path, number: int) -> float:
    """Correlation of particles cut from a micrograph with the views of the opposite half maps, 16 to 6 Å."""
    ref = folder / "Ref"
    data = rm.open_relion(folder / "Extract/particles.star", folder / "MotionCorr/corrected_micrographs.star",
                          rm.Reference(ref / "half1.mrc", ref / "half2.mrc", ref / "mask.mrc"), folder)  # fmt: skip
    m = rm.Session(data, 2).micrograph(f"mic{number:04d}", rm.MotionCorrection())
    box, k = m.spectra.box, m.opposite.shape[2] - 1
    r = np.hypot(np.arange(-k, k + 1)[:, None], np.arange(k + 1)[None]) / m.extent_A
    band = (r > 1 / 16) & (r < 1 / 6)
    sums = np.zeros(3)
    for (x, y), view in zip(m.placement.centre_px - box // 2, m.opposite):
        patch = -image[y : y + box, x : x + box]
        spectrum = np.fft.rfft2(patch - patch.mean())[np.arange(-k, k + 1) % box, : k + 1][band]
        v = view[band]
        sums += [(spectrum * v.conj()).real.sum(), (np.abs(spectrum) ** 2).sum(), (np.abs(v) ** 2).sum()]
    return sums[0] / np.sqrt(sums[1] * sums[2])


def test_particles_are_sharper_with_local_motion_undone(moving):
    for number in range(2):
        rigid, local = (
            likeness(images(moving.folder, movie=number, local_motion=on)[0], moving.folder, number)
            for on in (False, True)
        )
        assert local > 1.1 * rigid > 0


def test_a_micrograph_is_a_plain_sum_of_frames_sampled_where_the_specimen_was(moving):
    """All steps by other means: gain, hot pixels, motion at every pixel, splines of scipy, weights in Fourier space."""
    data = rm.open_movies(moving.folder / "MotionCorr/corrected_micrographs.star", moving.folder)
    movie = data.movies[0]
    detector = load_detector(movie)
    y, x = np.mgrid[: movie.height, : movie.width]
    moved = initial_displacement(movie, np.stack([x.ravel(), y.ravel()], 1) * movie.pixel_size_A) / movie.pixel_size_A
    ky, kx = np.fft.fftfreq(movie.height)[:, None], np.fft.rfftfreq(movie.width)[None]
    k = np.hypot(ky, kx) / movie.pixel_size_A
    k[0, 0] = 1e-6
    critical = 0.245 * k**-1.665 + 2.81  # Grant & Grigorieff 2015
    weights = np.exp(-0.5 * movie.dose_edges[1:, None, None] / critical)
    want = 0
    with open_movie(movie) as reader:
        for f in range(movie.n_frames):
            frame = detector.repair(reader.frame(f), f) * detector.gain.astype(float)
            weighted = np.fft.irfft2(np.fft.rfft2(frame) * weights[f] / np.sqrt((weights**2).sum(0)), s=frame.shape)
            at = [(y.ravel() + moved[:, f, 1]), (x.ravel() + moved[:, f, 0])]
            want = want + map_coordinates(weighted, at, order=5, mode="reflect").reshape(y.shape)
    found = images(moving.folder)[0]
    low = np.hypot(ky, kx) < 0.3  # beyond, splines lose some of what the plain sum samples by them, ours by phases
    found, want = (np.fft.irfft2(np.fft.rfft2(image) * low, s=image.shape)[INSIDE, INSIDE] for image in (found, want))
    assert np.std(found - want) < 0.01 * np.std(want)


def table_of(weight: np.ndarray, movie, group="all") -> xr.Dataset:
    """Dose weights (frame, frequency) as a run writes them, at frequencies up to 0.5 1/Å."""
    edges = movie.dose_edges
    return xr.Dataset(
        {"weight": (("group", "frame", "frequency"), (weight / weight.sum(0))[None]),
         "dose": (("group", "frame"), (0.5 * (edges[1:] + edges[:-1]))[None]),
         "frame_dose": (("group", "frame"), np.diff(edges)[None])},
        coords={"group": [group], "frame": np.arange(len(weight)), "frequency": np.linspace(0, 0.5, weight.shape[1])},
    )  # fmt: skip


def test_empirical_weights_replace_the_standard_curve(moving):
    data = rm.open_movies(moving.micrographs, moving.folder)
    movie = data.movies[0]
    first_only = np.full((movie.n_frames, 20), 1e-12)
    first_only[0] = 1
    found = images(moving.folder, partial(frame_weights, table_of(first_only, movie), movie, "opticsGroup1"))[0]
    with open_movie(movie) as reader:
        frame = load_detector(movie).repair(reader.frame(0), 0) * load_detector(movie).gain
    assert np.abs(found - frame)[INSIDE, INSIDE].max() < 1e-2  # frame 0 has not moved
    assert np.corrcoef(found.ravel(), images(moving.folder)[0].ravel())[0, 1] < 0.9


def run(folder: Path, out: Path, *more: str) -> int:
    listed = ["--micrographs", f"{folder}/MotionCorr/corrected_micrographs.star", "--root", f"{folder}"]
    return main(["micrographs", *listed, "--out", str(out), "--threads", "2", *more])


def read(path: Path) -> np.ndarray:
    with mrcfile.open(path) as file:
        return file.data.squeeze().copy()


def test_relions_table_leads_to_micrographs_and_their_motion(moving, tmp_path):
    out = tmp_path / "Corrected"
    assert run(moving.folder, out, "--save-nodw", "--binning", "2") == 0
    blocks = starfile.read(out / "corrected_micrographs.star")
    rows, before = blocks["micrographs"], starfile.read(moving.micrographs)["micrographs"]
    assert blocks["optics"]["rlnMicrographPixelSize"].tolist() == [3.2]
    assert rows["rlnAccumMotionTotal"].tolist() == before["rlnAccumMotionTotal"].tolist()
    for name, nodw, metadata in zip(
        rows["rlnMicrographName"], rows["rlnMicrographNameNoDW"], rows["rlnMicrographMetadata"]
    ):
        with mrcfile.open(name, permissive=False) as file:
            assert file.data.squeeze().shape == (256, 256) and float(file.voxel_size.x) == pytest.approx(3.2)
        assert read(nodw).std() > 0
        movie = rm.open_movies(out / "corrected_micrographs.star", moving.folder).movies[0]
        assert movie.binning == 2 and movie.pixel_size_A == 1.6 and Path(metadata).is_file()
    original = rm.open_movies(moving.micrographs, moving.folder).movies[0]
    np.testing.assert_allclose(movie.local_motion, original.local_motion)
    np.testing.assert_allclose(movie.global_shift, original.global_shift)
    assert np.array_equal(movie.hot_pixels, original.hot_pixels)
    # our own entrance takes them with the particles that were picked before, their coordinates in new pixels
    assert rm.ResultStore(out / "results.zarr").groups("micrographs") == ["micrographs/mic0000", "micrographs/mic0001"]
    assert "micrographs written" in (out / "run.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("out", ["Corrected", "../Corrected"])
def test_names_start_at_the_project_wherever_the_command_is_given(moving, tmp_path, monkeypatch, out):
    root = shutil.copytree(moving.folder, tmp_path / "project")
    (root / "below").mkdir()
    monkeypatch.chdir(root / "below")
    listed = ["--micrographs", "../MotionCorr/corrected_micrographs.star"]
    assert main(["micrographs", *listed, "--out", out, "--threads", "2"]) == 0
    given = ["--particles", "../Extract/particles.star", "--half1", "../Ref/half1.mrc", "--half2", "../Ref/half2.mrc"]
    assert main(["run", *listed, *given, *GIVEN, "--no-check-input", "--out", out, "--threads", "2"]) == 0
    rows = read_star(Path(out) / "corrected_micrographs.star")["micrographs"]
    images = read_star(Path(out) / "particles.star")["particles"]["rlnImageName"].str.partition("@")[2]
    for name in (*rows["rlnMicrographName"], *rows["rlnMicrographMetadata"], *images):
        assert (root / name).is_file() and ".." not in name and not name.startswith("/")
    assert len(rm.open_movies(Path(out) / "corrected_micrographs.star").movies) == 2


def test_the_sum_that_is_not_weighted_is_relions(moving):
    plain = images(moving.folder, save_nodw=True, local_motion=False)
    movie = rm.open_movies(moving.micrographs, moving.folder).movies[0]
    with open_movie(movie) as reader:
        detector = load_detector(movie)
        frames = np.stack([detector.repair(reader.frame(f), f) * detector.gain for f in range(movie.n_frames)])
    want = oracle(frames, -movie.global_shift, lambda f, k: np.ones_like(k), 1.6) * np.sqrt(movie.n_frames)
    assert np.std((plain[1] - want)[INSIDE, INSIDE]) < 0.01 * want.std()
    assert len(images(moving.folder)) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("binning", 2.0), ("local_motion", False), ("repair_hot_pixels", False)],
)
def test_settings_change_the_micrograph(moving, setting, value):
    standard, changed = images(moving.folder)[0], images(moving.folder, **{setting: value})[0]
    if setting == "binning":
        assert changed.shape == (256, 256) and changed.mean() == pytest.approx(standard.mean(), rel=1e-3)
        return
    different = np.abs(changed - standard) > 1e-3
    if setting == "local_motion":
        assert different.mean() > 0.5
    else:  # hot pixels come back where they were
        hot = rm.open_movies(moving.micrographs, moving.folder).movies[0].hot_pixels
        x, y = hot[0]
        assert changed[max(y - 12, 0) : y + 12, max(x - 12, 0) : x + 12].max() > standard.max() + 5


def test_a_binning_that_leaves_nothing_is_refused(moving, tmp_path, capsys):
    assert run(moving.folder, tmp_path / "out", "--binning", "100") == 1
    (line,) = said(capsys)
    assert re.search(r"the first: binning 100 leaves less than 16 px of .*mic0000.tif; give a smaller one", line)


def test_sixteen_bits(moving, tmp_path):
    assert run(moving.folder, tmp_path / "f2") == 0 and run(moving.folder, tmp_path / "f4", "--float16") == 0
    full, half = (read(tmp_path / name / "Micrographs/mic0000.mrc") for name in ("f2", "f4"))
    assert half.dtype == np.float16 and full.dtype == np.float32
    np.testing.assert_allclose(half, full, rtol=1e-3)


def test_what_is_finished_is_kept_and_what_is_not_is_done(moving, tmp_path):
    out = tmp_path / "out"
    assert run(moving.folder, out) == 0
    first, second = (out / f"Micrographs/mic000{i}.mrc" for i in range(2))
    before = read(second)
    stamp = first.stat().st_mtime_ns
    for lost in (second.unlink, lambda: second.write_bytes(second.read_bytes()[:-1])):
        lost()
        assert run(moving.folder, out) == 0
        assert first.stat().st_mtime_ns == stamp and np.array_equal(read(second), before)
    assert run(moving.folder, out, "--no-local-motion") == 0  # other settings: all anew
    assert first.stat().st_mtime_ns != stamp and not np.array_equal(read(second), before)
    weights = tmp_path / "dose_weights.nc"
    movie = rm.open_movies(moving.micrographs, moving.folder).movies[0]
    write_netcdf(weights, table_of(np.ones((movie.n_frames, 9)), movie))
    unweighted = read(first)
    assert run(moving.folder, out, "--no-local-motion", "--dose-weights", str(weights)) == 0
    assert not np.array_equal(read(first), unweighted)
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "by measured weights (of dose_weights.nc)" in report
    assert re.search(rf"dose weights</td>\s*<td[^>]*>{re.escape(str(weights))}</td>", report)
    noted = rm.ResultStore(out / "results.zarr").attrs["micrographs"]
    assert noted["settings"] == {"local_motion": False} and "binning" in noted["defaults"]  # what was given, no more


def test_a_movie_that_cannot_be_used_is_named_and_the_others_are_written(moving, tmp_path, capsys):
    folder = Path(shutil.copytree(moving.folder, tmp_path / "project"))
    movie = folder / "Movies/mic0001.tif"
    movie.write_bytes(movie.read_bytes()[:5000])
    assert run(folder, tmp_path / "out") == 1
    assert said(capsys)[-1].startswith("not everything was written")
    table = rm.ResultStore(tmp_path / "out/results.zarr").read("corrected_micrographs")
    assert table["written"].values.tolist() == [True, False] and "mic0001.tif" in str(table["reason"].values[1])
    assert len(starfile.read(tmp_path / "out/corrected_micrographs.star")["micrographs"]) == 1
    movie.unlink()
    listed, motion = folder / "MotionCorr/corrected_micrographs.star", folder / "MotionCorr/Movies/mic0001.star"
    last = listed.read_text(encoding="utf-8").rstrip()
    listed.write_text(f"{last}\n{last.splitlines()[-1].replace('mic0001', 'mic0002')}\n", encoding="utf-8")
    text = motion.read_text(encoding="utf-8").replace("mic0001", "mic0002")
    motion.with_name("mic0002.star").write_text(text, encoding="utf-8")
    assert run(folder, tmp_path / "out") == 1
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    (line,) = warned  # of thousands, too
    assert line.startswith("warning: mic0001, mic0002: its movie ") and line.endswith(
        "was not found (and 1 more like it)"
    )
    assert "was not found" in (tmp_path / "out/run.log").read_text(encoding="utf-8")
    report = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "1 of 3 micrographs were written whole" in report and "was not found" in report
    table = rm.ResultStore(tmp_path / "out/results.zarr").read("corrected_micrographs")
    assert table["micrograph"].values.tolist() == ["mic0000", "mic0001", "mic0002"]  # one kind of name, opened or not
    (folder / "Movies/mic0000.tif").unlink()
    assert run(folder, tmp_path / "none") == 1
    assert "none of its movies can be used" in said(capsys)[-1] and not (tmp_path / "none").exists()


def test_a_dose_that_leaves_no_signal_is_refused(moving, tmp_path, capsys):
    assert run(moving.folder, tmp_path / "out", "--dose-per-frame-e-A2", "1e9") == 1
    assert "e/Å² when it ends, more than any specimen stands; give dose_per_frame_e_A2" in said(capsys)[-1]
    assert not (tmp_path / "out").exists()  # micrographs of NaN used to be written


def test_particles_and_half_maps_are_not_asked_for_but_may_be_given(moving, tmp_path, capsys):
    assert run(moving.folder, tmp_path / "out", "--particles", str(moving.particles)) == 0
    assert "not needed for micrographs: --particles" in capsys.readouterr().err
    assert run(moving.folder, tmp_path / "out", "--dose-weights", "bfactors.star") == 1
    assert "give --half1" in said(capsys)[-1]
    write_bfactors(tmp_path / "bfactors.star", np.zeros(8), np.zeros(8))
    weights = ["--dose-weights", str(tmp_path / "bfactors.star"), "--half1", "Ref/half1.mrc"]  # from the root
    assert run(moving.folder, tmp_path / "out", *weights) == 0
    assert run(moving.folder, tmp_path / "out", "--binning", "0.5") == 1
    assert "binning" in said(capsys)[-1]


def test_options_that_change_nothing_here_are_named(moving, exposures, tmp_path, capsys):
    given = ["--skip-movies-with-wrong-frame-count", "--subtract-background"]
    assert run(moving.folder, tmp_path / "out", *given) == 0
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "without effect" in one]
    assert all(option in line for option in given)
    assert run(moving.folder, tmp_path / "out", "--mixed-frame-counts") == 0
    assert "without effect on micrographs: --mixed-frame-counts" in capsys.readouterr().err
    # where it lets shorter movies end earlier it has an effect, and so has the background of CryoSPARC's movies
    assert run(moving.folder, tmp_path / "out", "--mixed-frame-counts", "--last-frame", "99") == 0
    assert micrograph_of(exposures, tmp_path / "J9", "--subtract-background", "--orientation", "cryosparc") == 0
    assert "without effect" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "what"), [("--threads", "-1", "threads"), ("--device", "cuda", "CuPy"), ("--device", "x", "not known")]
)  # fmt: skip
def test_threads_and_device_are_those_of_a_run(moving, tmp_path, capsys, option, value, what):
    assert run(moving.folder, tmp_path / "out", option, value) == 1
    assert what in said(capsys)[-1] and not (tmp_path / "out").exists()


def test_one_command_at_a_time_writes_to_a_folder(moving, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with held_by_another(out):
        assert run(moving.folder, out) == 1
        assert "another run is writing to" in said(capsys)[-1]
        assert left_behind(out) == []
    assert run(moving.folder, out, "--device", "cpu", "--binning", "2") == 0


def test_how_micrographs_came_about_is_recorded_beside_what_a_run_notes(moving, tmp_path):
    rm.ResultStore(tmp_path / "results.zarr").update_attrs(command="of a run")
    assert run(moving.folder, tmp_path, "--binning", "2") == 0
    attrs = rm.ResultStore(tmp_path / "results.zarr").attrs
    assert attrs["command"] == "of a run"
    record = attrs["micrographs"]
    assert record["command"].startswith("refmotion micrographs --micrographs") and record["settings"]["binning"] == 2
    assert record["inputs"]["files"][0] == ["micrographs", str(moving.micrographs)] and record["inputs"]["movies"] == 2
    assert record["version"] == rm.__version__ and record["versions"]["numpy"] == np.__version__


def test_micrographs_begun_by_another_version_are_told(moving, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("refmotion_nb.stages.describe.__version__", "0.0.9")
        assert run(moving.folder, tmp_path, "--binning", "2") == 0
    assert "of refmotion_nb" not in capsys.readouterr().err
    assert run(moving.folder, tmp_path, "--binning", "2") == 0
    assert "warning: what version 0.0.9 of refmotion_nb finished in this folder" in capsys.readouterr().err


def test_micrographs_of_an_optics_group_with_two_pixel_sizes_are_two_groups(moving, tmp_path):
    data = rm.open_movies(moving.micrographs, moving.folder)
    mixed = replace(data, movies=(data.movies[0], replace(data.movies[1], binning=2.0)))
    rm.MicrographCorrection().run(mixed, None, tmp_path, image_root=tmp_path, threads=2)
    blocks = starfile.read(tmp_path / "corrected_micrographs.star")
    assert blocks["optics"]["rlnMicrographPixelSize"].tolist() == [1.6, 3.2]
    assert blocks["micrographs"]["rlnOpticsGroup"].tolist() == blocks["optics"]["rlnOpticsGroup"].tolist() == [1, 2]
    assert blocks["micrographs"]["rlnMicrographName"][0] == "./Micrographs/mic0000.mrc"
    nameless = {**mixed.relion, "optics": mixed.relion["optics"].drop(columns="rlnOpticsGroupName")}
    rm.MicrographCorrection().run(replace(mixed, relion=nameless), None, tmp_path, threads=2)
    assert starfile.read(tmp_path / "corrected_micrographs.star")["optics"]["rlnOpticsGroup"].tolist() == [1, 2]


def test_the_dose_noted_is_that_of_the_fractions_that_motion_is_listed_for(moving, tmp_path):
    data = rm.open_movies(moving.micrographs, moving.folder)
    source = data.relion["micrographs"]["rlnMicrographMetadata"][0]
    blocks = read_star(moving.folder / source)
    write_star(tmp_path / source, {**blocks, "general": {**blocks["general"], "rlnEERGrouping": 30}})
    anew = replace(data.movies[0], eer_grouping=60, dose_per_frame_e_A2=8.0)
    one = WrittenMicrograph(anew, 0, "Micrographs/mic0000.mrc", "", (512, 512), 1.6, 0.0, 1.0)
    write_relion(tmp_path / "out", replace(data, root=tmp_path), [one], None)
    assert read_star(tmp_path / "out/Micrographs/mic0000.star")["general"]["rlnMicrographDoseRate"] == 4.0


def test_other_sums_of_the_same_movies_are_not_listed(moving, tmp_path):
    data = rm.open_movies(moving.micrographs, moving.folder)
    others = {f"rlnMicrographName{which}": "MotionCorr/old.mrc" for which in ("NoDW", "Even", "Odd")}
    relion = {**data.relion, "micrographs": data.relion["micrographs"].assign(**others)}
    one = WrittenMicrograph(data.movies[0], 0, "Micrographs/mic0000.mrc", "", (512, 512), 1.6, 0.0, 1.0)
    write_relion(tmp_path, replace(data, relion=relion), [one], None)
    assert "old.mrc" not in (tmp_path / "corrected_micrographs.star").read_text(encoding="utf-8")


def test_the_pixel_size_is_that_of_the_image_written(moving, tmp_path):
    assert run(moving.folder, tmp_path, "--binning", "3") == 0
    with mrcfile.open(tmp_path / "Micrographs/mic0000.mrc") as file:
        assert file.data.squeeze().shape == (170, 170)
        assert float(file.voxel_size.x) == pytest.approx(1.6 * 512 / 170, abs=1e-5)
    blocks = starfile.read(tmp_path / "corrected_micrographs.star")
    assert blocks["optics"]["rlnMicrographPixelSize"][0] == pytest.approx(1.6 * 512 / 170, abs=1e-5)
    movie = rm.open_movies(tmp_path / "corrected_micrographs.star", moving.folder).movies[0]
    assert movie.binning == pytest.approx(512 / 170, abs=1e-5)


# CryoSPARC


@pytest.fixture(scope="module")
def exposures(moving, tmp_path_factory) -> dict:
    spline = {f"mic{i:04d}": np.random.default_rng(i).normal(0, 1.5, (2, 6, 5, 4)) for i in range(2)}
    return convert(moving.folder, tmp_path_factory.mktemp("cryosparc"), spline=spline) | {"spline": spline}


def test_exposures_become_exposures(exposures, tmp_path):
    out = tmp_path / "J9"
    given = ["--exposures", str(exposures["exposures"]), "--root", str(exposures["root"])]
    assert main(["micrographs", *given, "--out", str(out), "--save-nodw"]) == 0
    before, after = dataset_class().load(exposures["exposures"]), dataset_class().load(out / "exposures.cs")
    assert after["uid"].tolist() == before["uid"].tolist()
    replaced = ("micrograph_blob/", "micrograph_blob_non_dw/")
    for name in before.fields():
        if not name.startswith(replaced):
            assert np.array_equal(before[name], after[name]), name
    assert after["micrograph_blob/path"].tolist() == [f">Micrographs/mic000{i}.mrc" for i in range(2)]
    assert after["micrograph_blob/shape"].tolist() == [[512, 512]] * 2
    assert after["micrograph_blob/psize_A"] == pytest.approx(1.6)
    assert after["micrograph_blob/is_background_subtracted"].tolist() == [1, 1]
    assert all(after["micrograph_blob/vmin"] < after["micrograph_blob/vmax"])
    assert rm.open_exposures(out / "exposures.csg", exposures["root"]).movies  # the group leads to the same movies
    types = {name: kind for name, (_, kind, _) in read_csg(out / "exposures.csg").results.items()}
    assert (
        types["background_blob"] == "exposure.stat_blob"
        and types["micrograph_blob_non_dw"] == "exposure.micrograph_blob"
    )
    assert (
        types["rigid_motion"] == types["spline_motion"] == "exposure.motion"
        and types["movie_blob"] == "exposure.movie_blob"
    )
    assert after["micrograph_blob_non_dw/path"].tolist() == [f">Micrographs/mic000{i}_noDW.mrc" for i in range(2)]


def test_both_entrances_see_the_same_micrograph(exposures, moving):
    """CryoSPARC's rows run the other way; without splines the two are mirror images, but for the background."""
    data: MovieTable = rm.open_exposures(exposures["exposures"], exposures["root"])
    movie = replace(data.movies[0], spline_motion=None, background=None)
    weights = partial(frame_weights, None, movie, data.groups[0])
    stored = rm.MicrographCorrection(repair_hot_pixels=False).images(movie, weights, 2)[0]
    relion = images(moving.folder, local_motion=False, repair_hot_pixels=False)[0]
    assert np.abs(stored[::-1] - relion)[INSIDE, INSIDE].std() < 0.02 * relion.std()


def test_spline_motion_is_undone(exposures):
    data = rm.open_exposures(exposures["exposures"], exposures["root"])
    movie = data.movies[0]
    one, other = (
        rm.MicrographCorrection(local_motion=on).images(movie, partial(frame_weights, None, movie, ""), 2)[0]
        for on in (True, False)
    )
    assert abs(float(one.mean())) < 0.05 * one.std()  # the background is gone
    assert np.abs(one - other).mean() > 0.1 * other.std()


def test_the_weights_of_an_exposure_group_are_found_by_its_number(exposures):
    data = rm.open_exposures(exposures["exposures"], exposures["root"])
    movie, n = data.movies[0], data.movies[0].n_frames
    rows = [table_of(np.ones((n, 5)) * np.linspace(1, top, n)[:, None], movie, str(top)) for top in (1.0, 2.0, 9.0)]
    table = xr.concat(rows, "group").assign_coords(optics_group=("group", ["", "opticsGroup1_exposureGroup3",
                                                                           "opticsGroup2_exposureGroup4"]))  # fmt: skip
    found = frame_weights(table, movie, data.groups[0], np.array([0.1]))
    assert data.groups == ("exposureGroup4", "exposureGroup4")
    assert found[-1, 0] / found[0, 0] == pytest.approx(9)


def test_exposures_that_cannot_be_used(exposures, tmp_path):
    with pytest.raises(rm.InputError, match="orientation 'auto'; without particles, give"):
        rm.open_exposures(exposures["exposures"], orientation="auto")
    with pytest.raises(rm.InputError, match="does not exist"):
        rm.open_exposures(tmp_path / "none.cs")


def test_the_standard_curve_is_that_of_relions_micrographs(test_data):
    """RELION's shifts and formula; benchmarks/micrographs.py compares with the images RELION itself writes."""
    data = rm.open_movies(test_data / "apoferritin/MotionCorr/corrected_micrographs.star", test_data / "apoferritin")
    movie = data.movies[0]
    found = rm.MicrographCorrection().images(movie, partial(frame_weights, None, movie, ""), 2)[0]
    with open_movie(movie) as reader:
        detector = load_detector(movie)
        frames = np.stack([detector.repair(reader.frame(f), f) * detector.gain for f in range(movie.n_frames)])

    def weight(f, k):
        critical = 0.245 * np.maximum(k, 1e-6) ** -1.665 + 2.81
        return np.exp(-(f + 1) * 2.0 / (2 * critical))

    want = oracle(frames, -movie.global_shift, weight, 1.0)
    inside = slice(64, -64)
    assert np.std((found - want)[inside, inside]) < 0.01 * want.std()


# motion of particles


@pytest.fixture(scope="module")
def polished(tiny, tmp_path_factory) -> Path:
    """Return the output folder of a run on movies that were aligned as a whole."""
    out = tmp_path_factory.mktemp("polished") / "out"
    assert polish(tiny.folder, out, *GIVEN) == 0
    return out


def test_the_field_between_particles_is_where_a_gaussian_process_expects_it():
    """Draws of the prior: the error at other places is what kriging predicts of itself."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 4000, (60, 2))
    covariance = np.exp(-np.linalg.norm(places[:, None] - places[None], axis=-1) / 3000.0)
    root = np.linalg.cholesky(covariance)
    drawn = (root @ rng.standard_normal((60, 2000))).reshape(60, 1000, 2)
    found = motion_field(places[:50], drawn[:50], places[50:], 3000.0)
    own, across = covariance[:50, :50], covariance[50:, :50]
    expected = 1 - np.einsum("qp,pq->q", across, np.linalg.solve(own, across.T))
    error = ((found - drawn[50:]) ** 2).mean((1, 2))
    np.testing.assert_allclose(error, expected, rtol=0.15)
    assert error.mean() < 0.5  # of the variance
    np.testing.assert_allclose(motion_field(places[:50], drawn[:50], places[:50], 3000.0), drawn[:50], atol=0.1)
    assert np.abs(motion_field(places, drawn, np.array([[1e6, 0.0]]), 3000.0)).max() < 1e-6


def test_the_motion_of_particles_is_that_of_the_field_around_them(tiny, polished):
    """Each particle left out in turn; truth is known."""
    truth, found = tiny.truth(), ParticleMotion.of_run(polished)
    data = rm.open_movies(tiny.micrographs, tiny.folder)
    for movie, group in zip(data.movies, data.groups):
        tracks = found.of(movie)
        early = frame_weights(None, movie, group, np.array([0.1]))[:, 0]
        at = tracks["coordinate"].values
        nearest = np.linalg.norm(truth[f"{movie.micrograph}_pos"] * 1.6 - at[:, None], axis=-1).argmin(1)
        true = truth[f"{movie.micrograph}_total"][nearest]
        others = [np.delete(np.arange(len(at)), i) for i in range(len(at))]
        field = np.stack([
            displacement(movie, tracks.isel(particle=rest), found.distance_A, at[i : i + 1], early)[0]
            for i, rest in enumerate(others)
        ])  # fmt: skip
        before = trajectory_error_A(initial_displacement(movie, at), true, truth["dose_mid"])
        assert trajectory_error_A(field, true, truth["dose_mid"]) < 0.8 * before
        # particles stay at their coordinates
        moved = field - initial_displacement(movie, at)
        assert np.abs(np.einsum("f,pfa->pa", early / early.sum(), moved)).max() < 1e-6


def test_micrographs_that_move_as_their_particles_are_sharper(tiny, polished, tmp_path):
    assert run(tiny.folder, tmp_path / "out", "--tracks", str(polished)) == 0
    for number in range(2):
        with_tracks = read(tmp_path / f"out/Micrographs/mic{number:04d}.mrc")
        assert likeness(with_tracks, tiny.folder, number) > 1.01 * likeness(
            images(tiny.folder, movie=number)[0], tiny.folder, number
        )
    group = rm.ResultStore(tmp_path / "out/results.zarr").read("micrographs/mic0000")
    assert group.attrs["motion_of_particles"] and group["displacement"].shape == (5, 5, TINY.n_frames, 2)


def test_tracks_that_do_not_belong_to_the_movies_are_refused(tiny, polished, tmp_path, capsys):
    assert run(tiny.folder, tmp_path / "out", "--tracks", str(tmp_path)) == 1
    assert "holds no trajectories" in said(capsys)[-1]
    found = ParticleMotion.of_run(polished)
    movie = rm.open_movies(tiny.micrographs, tiny.folder).movies[0]
    assert found.of(replace(movie, micrograph="another")) is None  # nothing known: motion correction's is used
    mirrored = replace(movie, global_shift=movie.global_shift * [1, -1])
    with pytest.raises(rm.InputError, match="another motion of the whole frame"):
        found.of(mirrored)


# orientation


def micrograph_of(exposures: dict, out: Path, *more: str) -> int:
    given = ["--exposures", str(exposures["exposures"]), "--root", str(exposures["root"])]
    return main(["micrographs", *given, "--out", str(out), "--threads", "2", *more])


def test_what_auto_means_without_particles_is_said(exposures, moving, tmp_path, capsys):
    assert micrograph_of(exposures, tmp_path / "auto") == 0
    assert "orientation cryosparc is taken: there are no particles to compare" in capsys.readouterr().err
    assert rm.open_exposures(exposures["exposures"], exposures["root"], orientation="imported").movies[0].path.is_file()
    stored, relion = (
        rm.open_exposures(exposures["exposures"], exposures["root"], orientation=name).movies[0]
        for name in ("cryosparc", "relion")
    )  # locations and motion lie the same in both, and so do micrographs
    assert stored.rows_as_stored and relion.rows_as_stored
    assert np.array_equal(stored.global_shift, relion.global_shift)
    assert run(moving.folder, tmp_path / "out", "--orientation", "imported") == 1
    assert said(capsys)[-1] == "--orientation does not go with RELION's --micrographs; leave it out"


@pytest.fixture(scope="module")
def seen_both_ways(tiny, tmp_path_factory) -> dict:
    """Return CryoSPARC's results with particles in RELION's frame, and a run on them that finds the orientation."""
    folder = tmp_path_factory.mktemp("seen")
    project = convert(tiny.folder, folder, "relion")
    given = ["--exposures", str(project["exposures"]), "--particles", str(project["particles"]),
             "--volume", str(project["volumes"]), "--root", str(project["root"])]  # fmt: skip
    assert main(["run", *given, "--out", str(folder / "run"), "--threads", "2", *GIVEN]) == 0
    return project | {"run": folder / "run"}


def test_the_orientation_is_that_of_the_run_whose_tracks_are_given(seen_both_ways, tiny, polished, tmp_path, capsys):
    """Found on RELION's rows, undone on the rows as stored: the mirror image of the micrograph of RELION's entrance."""
    record = rm.ResultStore(seen_both_ways["run"] / "results.zarr").attrs["inputs"]
    assert record["orientation"] == "relion"
    tracks = ["--tracks", str(seen_both_ways["run"])]
    assert micrograph_of(seen_both_ways, tmp_path / "out", *tracks, "--no-repair-hot-pixels") == 0
    assert "orientation relion: as of the run in" in capsys.readouterr().err
    assert run(tiny.folder, tmp_path / "relion", "--tracks", str(polished), "--no-repair-hot-pixels") == 0
    stores = [rm.ResultStore(tmp_path / name / "results.zarr") for name in ("out", "relion")]
    stored, ours = (store.read("micrographs/mic0000")["displacement"].values for store in stores)
    local = np.ptp(ours, axis=(0, 1)).max()
    assert np.abs(stored[::-1] * [1, -1] - ours).max() < 0.05 * local
    assert np.abs(stored * [1, -1] - ours).max() > 0.5 * local
    for wrong in ("cryosparc", "imported"):
        assert micrograph_of(seen_both_ways, tmp_path / "no", *tracks, "--orientation", wrong) == 1
        assert "is of a run with orientation relion; leave --orientation out" in said(capsys)[-1]
    assert micrograph_of(seen_both_ways, tmp_path / "no", "--tracks", str(polished)) == 1
    assert "is of a run on RELION's input" in said(capsys)[-1]


def test_tracks_of_another_orientation_are_refused(seen_both_ways):
    found = ParticleMotion.of_run(seen_both_ways["run"])
    movies = [
        rm.open_exposures(seen_both_ways["exposures"], seen_both_ways["root"], orientation=name).movies[0]
        for name in ("relion", "imported")
    ]
    assert found.of(movies[0]) is not None
    with pytest.raises(rm.InputError, match="are of orientation relion, its rows lie the other way"):
        found.of(movies[1])


def test_a_run_that_does_not_record_its_orientation_needs_it_said(seen_both_ways, tmp_path, capsys):
    old = Path(shutil.copytree(seen_both_ways["run"], tmp_path / "old"))
    rm.ResultStore(old / "results.zarr").update_attrs(inputs={"program": "CryoSPARC"})
    assert micrograph_of(seen_both_ways, tmp_path / "out", "--tracks", str(old)) == 1
    assert "does not record the orientation of its run; give it as --orientation" in said(capsys)[-1]
    assert micrograph_of(seen_both_ways, tmp_path / "out", "--tracks", str(old), "--orientation", "relion") == 0
    with_tracks = rm.ResultStore(tmp_path / "out/results.zarr")
    assert with_tracks.read("micrographs/mic0000").attrs["motion_of_particles"]
    assert with_tracks.attrs["micrographs"]["inputs"]["orientation"] == "relion"
