"""Hot pixels and backgrounds read off sums of frames: found where they are, and only there."""

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from scipy.stats import norm, poisson

from refmotion_nb.data.movies.look import look_at, sample_of
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.motion import read_motion
from refmotion_nb.data.schema import Background, Movie
from refmotion_nb.data.synthetic.images import illumination
from refmotion_nb.numerics.field import _limits, block_level, find_hot_pixels, smooth_background
from refmotion_nb.numerics.kernels_field import LEAST, MOST

H, W = 700, 900


def field(shape=(H, W), seed=3, spread=0.2, contrast=0.2):
    """Expected level (y, x) relative to its mean: light, and discs that are darker by ``contrast``, as particles are."""
    rng = np.random.default_rng(seed)
    level = illumination(shape, spread, rng)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for _ in range(shape[0] * shape[1] // 25000):
        cy, cx = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        level[(y - cy) ** 2 + (x - cx) ** 2 < 40**2] *= 1 - contrast
    return level


def camera(shape=(H, W), seed=4):
    """Gain (y, x) and bad pixels: two columns, and a rectangle."""
    gain = np.clip(1 + 0.05 * np.random.default_rng(seed).standard_normal(shape), 0.5, 2).astype(np.float32)
    bad = np.zeros(shape, bool)
    bad[:, 300:302] = bad[100:180, 500:640] = True
    return gain, bad


def as_set(xy):
    return {tuple(one) for one in np.asarray(xy).tolist()}


@pytest.mark.parametrize("threshold", [3, 6, 9])
def test_limits_are_those_of_poisson_counts(threshold):
    mean = np.geomspace(LEAST, MOST, len(_limits(threshold)))
    rare = norm.sf(threshold)
    for m, limit in zip(mean[::20], _limits(threshold)[::20]):
        count = np.ceil(m + limit * np.sqrt(m) - 1e-9)  # the smallest that is called hot
        assert poisson.sf(count - 1, m) <= rare * 1.001 or limit == threshold
        assert poisson.sf(count - 3, m) > rare or m < 1e-3
    assert np.all(_limits(threshold) >= threshold) and _limits(threshold)[-1] < 1.01 * threshold


@pytest.mark.parametrize("dose", [0.02, 0.4, 8.0, 300.0])  # electrons per pixel of the sum
def test_clean_movies_have_no_hot_pixels(dose):
    """At 4.5 standard deviations 2 of 630 000 are expected by chance, at 6 none."""
    gain, bad = camera()
    total = np.random.default_rng(5).poisson(dose * field() / gain).astype(np.float32)
    total[bad] = 1000 * dose
    assert len(find_hot_pixels(total, gain, bad, 6.0)) == 0
    assert len(find_hot_pixels(total, gain, bad, 4.5)) <= 8


def test_chance_is_as_it_is_said_to_be():
    gain, bad = np.ones((1500, 1500), np.float32), np.zeros((1500, 1500), bool)
    total = np.random.default_rng(6).poisson(2.0, gain.shape).astype(np.float32)
    found, expected = len(find_hot_pixels(total, gain, bad, 3.0)), gain.size * norm.sf(3.0)
    assert 0.05 * expected < found <= expected  # counts are whole numbers, so that fewer are as rare as that


@pytest.mark.parametrize("rate", [0.05, 0.2, 1.0])  # electrons per pixel and frame
def test_pixels_fifty_times_too_bright_are_found_in_eight_frames(rate):
    gain, bad = camera()
    rng = np.random.default_rng(7)
    expected = 8 * rate * field() / gain
    hot = rng.integers(0, (W, H), (40, 2))
    hot[:4] = [[0, 0], [W - 1, H - 1], [0, 300], [W - 1, 2]]  # corners and edges
    expected[hot[:, 1], hot[:, 0]] *= 50
    total = rng.poisson(expected).astype(np.float32)
    wanted = as_set(hot[~bad[hot[:, 1], hot[:, 0]]])
    found = as_set(find_hot_pixels(total, gain, bad, 6.0))
    assert found <= wanted and len(wanted - found) <= (4 if rate == 0.05 else 0)


def test_fewer_standard_deviations_find_fainter_ones():
    gain, bad = camera()
    rng = np.random.default_rng(8)
    expected = 8.0 * field() / gain
    hot = rng.integers(5, (W - 5, H - 5), (60, 2))
    expected[hot[:, 1], hot[:, 0]] *= 4
    total = rng.poisson(expected).astype(np.float32)
    few, more, most = (len(as_set(find_hot_pixels(total, gain, bad, t)) & as_set(hot)) for t in (9, 6, 4))
    assert few < 10 < more < most and most > 50


def test_clusters_are_found_whole_and_hide_nothing():
    gain, bad = np.ones((H, W), np.float32), np.zeros((H, W), bool)
    expected = np.full((H, W), 10.0)
    expected[200:203, 400:403] = expected[64:66, 63:65] = 500  # in one block, and across four
    expected[210, 410] = 60  # in the block of a much brighter one
    total = np.random.default_rng(9).poisson(expected).astype(np.float32)
    assert as_set(find_hot_pixels(total, gain, bad, 6.0)) == as_set(np.argwhere(expected > 10)[:, ::-1])


def test_values_need_not_be_electrons():
    """Scaled counts on a pedestal, below zero too: the same pixels are found."""
    gain, bad = np.ones((H, W), np.float32), np.zeros((H, W), bool)
    rng = np.random.default_rng(10)
    hot = rng.integers(0, (W, H), (10, 2))
    for pedestal in (1000.0, 0.0, -500.0):
        total = (pedestal + 25 * rng.standard_normal((H, W))).astype(np.float32)
        assert len(find_hot_pixels(total, gain, bad, 6.0)) == 0
        total[hot[:, 1], hot[:, 0]] += 400
        assert as_set(find_hot_pixels(total, gain, bad, 6.0)) == as_set(hot)


def test_nothing_is_hot_where_there_are_no_counts():
    gain, bad = np.ones((H, W), np.float32), np.zeros((H, W), bool)
    assert len(find_hot_pixels(np.zeros((H, W), np.float32), gain, bad, 6.0)) == 0
    assert len(find_hot_pixels(np.ones((H, W), np.float32), gain, np.ones_like(bad), 6.0)) == 0


def test_the_shared_movies_have_those_they_were_made_with(test_data):
    folder = test_data / "apoferritin"
    truth = np.load(folder / "truth.npz")
    for path in sorted((folder / "MotionCorr/Movies").glob("*.star")):
        movie = read_motion(path, path.stem, locate=lambda name: folder / name)
        movie = replace(movie, hot_pixels=np.zeros((0, 2), int), hot_pixel_threshold=6.0)
        with open_movie(movie) as reader:
            look = look_at(movie, reader, repair=True, flatten=False)
        assert as_set(look.detector.bad[:, ::-1]) == as_set(truth[f"{path.stem}_hot"].astype(int)), path.stem


# backgrounds


def background_of(level, gain, bad, seed=11):
    total = np.random.default_rng(seed).poisson(level / gain).astype(np.float32)
    blocks, _, count = block_level(total, gain, bad)
    return smooth_background(blocks, count)


def in_blocks(image, shape):
    """Mean of an image over equal blocks."""
    y, x = (np.arange(n + 1) * size // n for n, size in zip(shape, image.shape))
    return np.array([[image[a:b, c:d].mean() for c, d in zip(x, x[1:])] for a, b in zip(y, y[1:])])


def test_the_light_is_found_and_particles_are_left():
    gain, bad = camera()
    light = illumination((H, W), 0.25, np.random.default_rng(12))
    found = background_of(8 * light, gain, bad)
    truth = in_blocks(light, found.shape)
    assert np.abs(found - truth / truth.mean()).max() < 0.02 and np.ptp(truth) > 0.5 and found.dtype == np.float32
    # one crowded corner, a fifth darker: what is not the rule does not bend the whole
    crowded = light.copy()
    crowded[:200, :200] *= 0.8
    assert np.abs(background_of(8 * crowded, gain, bad) - found)[4:, 4:].max() < 0.02


def test_background_is_scale_free_and_slow():
    gain, bad = camera()
    blocks, _, count = block_level(field(seed=13).astype(np.float32), gain, bad)
    found = smooth_background(blocks, count)
    np.testing.assert_allclose(smooth_background(1e4 * blocks, count), found, rtol=1e-5)
    assert found.mean() == pytest.approx(1)
    waves = np.zeros_like(blocks) + 1.0
    waves[::2] += 0.3  # alternating blocks are no background
    assert np.ptp(smooth_background(waves, np.ones_like(waves))) < 0.15


def test_no_background_without_a_level():
    assert smooth_background(np.full((9, 9), -3.0), np.ones((9, 9))) is None
    assert smooth_background(np.zeros((9, 9)), np.ones((9, 9))) is None
    np.testing.assert_array_equal(smooth_background(np.full((1, 2), 7.0), np.ones((1, 2))), 1.0)


# before the frames are used


@pytest.fixture
def movie(tmp_path):
    rng = np.random.default_rng(14)
    expected = np.broadcast_to(2 * illumination((256, 320), 0.3, rng), (20, 256, 320)).copy()
    expected[:, 40, 50] *= 60
    with mrcfile.new(tmp_path / "m.mrcs") as file:
        file.set_data(rng.poisson(expected).astype(np.uint8).astype(np.int16))
    return Movie("m", tmp_path / "m.mrcs", 20, 256, 320, 1.0, 1.0, hot_pixel_threshold=6.0, estimate_background=True)


def looked(movie, repair=True, flatten=True):
    with open_movie(movie) as reader:
        return look_at(movie, reader, repair, flatten)


def test_what_is_asked_for_is_found_out(movie, tmp_path):
    look = looked(movie)
    np.testing.assert_array_equal(look.detector.bad, [[40, 50]])
    assert look.background.shape == (4, 5) and np.ptp(look.background) > 0.3
    look = looked(replace(movie, hot_pixel_threshold=0.0, estimate_background=False))
    assert not len(look.detector.bad) and look.background is None and not look.frames
    look = looked(movie, repair=False, flatten=False)
    assert look.detector is None and look.background is None and not look.frames
    np.save(tmp_path / "b.npy", np.array([[1.0, 3.0]]))
    look = looked(replace(movie, estimate_background=False, background=Background(tmp_path / "b.npy")))
    np.testing.assert_allclose(look.background, [[0.5, 1.5]])


def test_every_frame_is_decoded_once(movie, monkeypatch):
    with open_movie(movie) as reader:
        read: list[int] = []
        decode = reader.frame
        monkeypatch.setattr(reader, "frame", lambda f: read.append(f) or decode(f))
        look = look_at(movie, reader, True, True)
        assert len(look.frames) == 8 and read == sample_of(reader) == [1, 3, 6, 8, 11, 13, 16, 18]
        frames = [look.frame(reader, f) for f in range(20)]
        assert sorted(read) == list(range(20)) and not look.frames
        for f, frame in enumerate(frames):
            expected = decode(f).copy()
            assert frame[40, 50] in expected[38:43, 48:53] and frame[40, 50] < 20
            expected[40, 50] = frame[40, 50]
            np.testing.assert_array_equal(frame, expected)


def test_the_sample_fits_into_memory(movie):
    with open_movie(movie) as reader:
        reader.height = 1 << 20  # so that a frame takes 0.7 GB
        assert sample_of(reader) == [10]
        reader.height, reader.n_frames = 256, 3
        assert sample_of(reader) == [0, 1, 2]
        assert isinstance(reader.path, Path)
