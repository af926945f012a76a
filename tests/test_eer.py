"""EER: every electron where the truth has it, whatever the coding, the raster and the grouping."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import imagecodecs
import mrcfile
import numpy as np
import pytest
import tifffile
from cameras import load_detector

from refmotion_nb.data.movies.eer import PADDING, decode_eer, eer_info, is_eer
from refmotion_nb.data.movies.reader import check_movie, movie_shape, open_movie
from refmotion_nb.data.schema import Gain, InputError, Movie

H, W = 24, 40
RAW = 11
CODINGS = {65000: (8, 2, 2), 65001: (7, 2, 2), 65002: (5, 1, 2)}


def movie_at(path: Path, n: int, upsampling=1, grouping=1, sensor=(H, W), **more) -> Movie:
    height, width = (int(s * upsampling) if upsampling > 0 else s // 2 for s in sensor)
    return Movie(
        "mic", Path(path), n, height, width, pixel_size_A=1.0, dose_per_frame_e_A2=1.0, eer_upsampling=upsampling,
        eer_grouping=grouping, **more,
    )  # fmt: skip


def electrons_of(rng, rate: float = 0.03) -> np.ndarray:
    """Random electrons: (y, x, sub-pixel y, sub-pixel x), the latter two from 0 to 3."""
    y, x = np.nonzero(rng.random((H, W)) < rate)
    return np.stack([y, x, *rng.integers(0, 4, (2, y.size))])


def encode(electrons: np.ndarray, bits: tuple[int, int, int]) -> bytes:
    """Write codes one bit after the other, as the format says and not as the decoder reads."""
    skip_bits, x_bits, y_bits = bits
    most = 2**skip_bits - 1
    written = ""

    def put(value: int, n: int) -> None:
        nonlocal written
        written += format(value, f"0{n}b")[::-1] if n else ""

    after = 0
    for y, x, sub_y, sub_x in electrons.T.tolist():
        gap = y * W + x - after
        while gap >= most:
            put(most, skip_bits)
            gap -= most
        put(gap, skip_bits)
        put((sub_x >> (2 - x_bits)) ^ (1 << x_bits >> 1), x_bits)
        put((sub_y >> (2 - y_bits)) ^ (1 << y_bits >> 1), y_bits)
        after = y * W + x + 1
    gap = H * W - after
    while gap >= most:
        put(most, skip_bits)
        gap -= most
    if gap:
        put(gap, skip_bits)
    written += "0" * (-len(written) % 16)
    return bytes(int(written[i : i + 8][::-1], 2) for i in range(0, len(written), 8))


def write_eer(path: Path, streams: list[bytes], compression=65001, big=True, sum_first=False) -> Path:
    """Write a little-endian TIFF or BigTIFF of electron streams, each in two strips when long enough."""
    entry, word = ("<HHQQ", "<Q") if big else ("<HHII", "<I")
    out = bytearray(b"II+\0\x08\0\0\0" + bytes(8) if big else b"II*\0" + bytes(4))
    link = 8 if big else 4
    pages: list[tuple[int, bytes]] = [(1, bytes(H * W))] * sum_first + [(compression, s) for s in streams]
    for kind, data in pages:
        parts = [data[: len(data) // 2], data[len(data) // 2 :]] if kind == 65000 else [data]
        offsets = []
        for part in parts:
            offsets.append(len(out))
            out += part + bytes(len(part) % 2)
        counts = [len(p) for p in parts]
        if len(parts) > 1:
            where = len(out)
            out += struct.pack(f"<{2 * len(parts)}{'Q' if big else 'I'}", *offsets, *counts)
            half = len(parts) * (8 if big else 4)
            at_offsets, at_counts = where, where + half
        else:
            at_offsets, at_counts = offsets[0], counts[0]
        letter = 16 if big else 4
        tags = [(256, 4, 1, W), (257, 4, 1, H), (259, 3, 1, kind), (273, letter, len(parts), at_offsets),
                (279, letter, len(parts), at_counts)]  # fmt: skip
        if kind == 65002:
            tags += [(65007 + k, 3, 1, n) for k, n in enumerate(CODINGS[65002])]
        out[link : link + struct.calcsize(word)] = struct.pack(word, len(out))
        out += struct.pack("<Q" if big else "<H", len(tags)) + b"".join(struct.pack(entry, *t) for t in tags)
        link = len(out)
        out += bytes(8 if big else 4)
    path.write_bytes(out)
    return path


def rendered(electrons: np.ndarray, upsampling: int, sensor=(H, W)) -> np.ndarray:
    y, x, sub_y, sub_x = electrons.astype(int)
    if upsampling == -1:
        image = np.zeros((sensor[0] // 2, sensor[1] // 2), int)
        np.add.at(image, (y // 2, x // 2), 1)
    else:
        image = np.zeros((sensor[0] * upsampling, sensor[1] * upsampling), int)
        np.add.at(image, (y * upsampling + sub_y * upsampling // 4, x * upsampling + sub_x * upsampling // 4), 1)
    return image


@pytest.fixture
def electrons() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [electrons_of(rng) for _ in range(RAW)]


@pytest.fixture
def path(tmp_path, electrons) -> Path:
    return write_eer(tmp_path / "m.eer", [encode(e, CODINGS[65001]) for e in electrons])


@pytest.mark.parametrize("compression", CODINGS)
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("upsampling", [-1, 1, 2, 4])
def test_every_coding_raster_and_grouping(tmp_path, electrons, compression, big, upsampling):
    bits = CODINGS[compression]
    path = write_eer(tmp_path / "m.eer", [encode(e, bits) for e in electrons], compression, big)
    assert is_eer(path)
    if upsampling == 4 and min(bits[1:]) < 2:
        with open_movie(movie_at(path, RAW, 4)) as reader, pytest.raises(InputError, match="at most 2"):
            reader.frame(0)
        return
    for grouping in (1, 2, 4, 11):
        n = RAW // grouping  # an incomplete last group is left out
        assert movie_shape(path, upsampling, grouping) == (n, *rendered(electrons[0], upsampling).shape)
        with open_movie(movie_at(path, n, upsampling, grouping)) as reader:
            assert reader.dtype == np.uint8 and reader.n_in_file == n
            for f in range(n):
                expected = sum(rendered(e, upsampling) for e in electrons[f * grouping : (f + 1) * grouping])
                frame = reader.frame(f)
                assert frame.dtype == np.uint8 and frame.flags.c_contiguous
                np.testing.assert_array_equal(frame, expected)


def test_relions_3_means_four_times_the_raster(path, electrons):
    movie = replace(movie_at(path, RAW, 4), eer_upsampling=3)
    with open_movie(movie) as reader:
        np.testing.assert_array_equal(reader.frame(0), rendered(electrons[0], 4))


def test_first_frame_counts_groups(path, electrons):
    with open_movie(movie_at(path, 2, grouping=3, first_frame=1)) as reader:
        np.testing.assert_array_equal(reader.frame(0), sum(rendered(e, 1) for e in electrons[3:6]))


def test_groups_too_large_for_a_byte_are_counted_in_two(tmp_path):
    full = np.stack([*np.divmod(np.arange(H * W), W), *np.zeros((2, H * W), int)])
    path = write_eer(tmp_path / "m.eer", [encode(full, CODINGS[65001])] * 300)
    with open_movie(movie_at(path, 1, grouping=300)) as reader:
        assert reader.dtype == np.uint16 and (reader.frame(0) == 300).all()
    with open_movie(movie_at(path, 4, -1, grouping=64)) as reader:
        assert reader.dtype == np.uint16 and (reader.frame(3) == 256).all()
    with open_movie(movie_at(path, 1, grouping=255)) as reader:
        assert reader.dtype == np.uint8 and (reader.frame(0) == 255).all()


def padded(stream: bytes) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(stream + bytes(PADDING), np.uint8)
    return data, np.array([0, len(data)])


def test_vector_of_the_specification():
    stream = padded(b"\x03\x1b\xfc\xb1\x35\xfb")
    sensor = np.zeros((20, 16), np.uint8)
    decode_eer(*stream, sensor, 20, 16, 7, 1, 1, 0)
    assert np.flatnonzero(sensor).tolist() == [3, 17, 233, 311]
    fine = np.zeros((40, 32), np.uint8)
    decode_eer(*stream, fine, 20, 16, 7, 1, 1, 1)
    assert np.argwhere(fine).tolist() == [[0, 7], [3, 3], [29, 18], [39, 14]]


@pytest.mark.parametrize("bits", [(7, 2, 2), (8, 2, 2), (7, 1, 1), (9, 2, 1)])
def test_agrees_with_another_decoder(electrons, bits):
    stream = encode(electrons[0], bits)
    for shift in range(min(bits[1:]) + 1):
        mine, theirs = np.zeros((2, H << shift, W << shift), np.uint8)
        decode_eer(*padded(stream), mine, H, W, *bits, shift)
        imagecodecs.eer_decode(stream, theirs.shape, *bits, superres=shift, out=theirs)
        np.testing.assert_array_equal(mine, theirs)
        assert mine.sum() == electrons[0].shape[1]


@pytest.mark.parametrize("compression", CODINGS)
@pytest.mark.parametrize("upsampling", [-1, 1, 2, 4])
def test_known_electrons(test_data, compression, upsampling):
    path = test_data / "eer" / f"pyprep_synth_256_{compression}.eer"
    with np.load(path.with_name(path.stem + "_truth.npz")) as truth:
        expected = [rendered(truth[f"f{k}"], upsampling, (256, 256)) for k in range(24)]
    for grouping in (1, 5):
        n = 24 // grouping
        movie = movie_at(path, n, upsampling, grouping, (256, 256))
        check_movie(movie)
        with open_movie(movie) as reader:
            for f in range(n):
                np.testing.assert_array_equal(reader.frame(f), sum(expected[f * grouping : (f + 1) * grouping]))


def test_threads_read_the_same_as_one_thread(path, electrons):
    expected = [rendered(e, 2) for e in electrons]
    with open_movie(movie_at(path, RAW, 2)) as reader, ThreadPoolExecutor(8) as pool:
        order = list(range(RAW)) * 10
        for f, frame in zip(order, pool.map(reader.frame, order)):
            np.testing.assert_array_equal(frame, expected[f])


def test_info(path):
    info = eer_info(path)
    assert (info.n_frames, info.height, info.width) == (RAW, H, W)


def test_a_sum_before_the_electrons_is_passed_over(tmp_path, electrons):
    path = write_eer(tmp_path / "m.eer", [encode(e, CODINGS[65001]) for e in electrons], sum_first=True)
    with open_movie(movie_at(path, RAW)) as reader:
        np.testing.assert_array_equal(reader.frame(0), rendered(electrons[0], 1))


def refuses(make, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and all(w in message for w in words), message


def test_bad_movies(tmp_path, path, electrons):
    refuses(lambda: open_movie(movie_at(path, RAW + 1)), "11 frames", "1 to 12")
    refuses(lambda: open_movie(movie_at(path, 1, grouping=12)), "11 raw frames", "12")
    refuses(lambda: open_movie(movie_at(path, 1, grouping=0)), "grouping 0")
    refuses(lambda: open_movie(replace(movie_at(path, RAW), eer_upsampling=2)), "48 × 80", "24 × 40", "upsampling")
    refuses(lambda: movie_shape(path, 5), "upsampling 5")
    tifffile.imwrite(tmp_path / "i.tif", np.zeros((3, H, W), np.uint8), photometric="minisblack")
    refuses(lambda: eer_info(tmp_path / "i.tif"), "no EER frames")
    mrcfile.new(tmp_path / "i.mrc", np.zeros((H, W), np.int8)).close()
    refuses(lambda: eer_info(tmp_path / "i.mrc"), "not an EER movie")
    assert not is_eer(tmp_path / "i.tif") and not is_eer(tmp_path / "i.mrc")
    whole = path.read_bytes()
    for keep in (0.3, 0.7, 0.999):
        (tmp_path / "cut.eer").write_bytes(whole[: int(keep * len(whole))])
        refuses(lambda: open_movie(movie_at(tmp_path / "cut.eer", RAW)), "cut.eer", "copy it again")


def test_damaged_streams(tmp_path, electrons):
    streams = [encode(e, CODINGS[65001]) for e in electrons]
    for bad in (streams[1][:10], b"\xff" * 2 * len(streams[1])):
        path = write_eer(tmp_path / "m.eer", [streams[0], bad])
        with open_movie(movie_at(path, 2)) as reader:
            reader.frame(0)
            refuses(lambda: reader.frame(1), "raw frame 2 is damaged")


# Gain


def gain_of(movie: Movie, image: np.ndarray, name: str, **options) -> np.ndarray:
    path = Path(movie.path).parent / name
    if name.endswith(".mrc"):
        mrcfile.new(path, image, overwrite=True).close()
    else:  # a camera's .gain is a TIFF with the acquisition in tag 65001
        tifffile.imwrite(path, image, compression="lzw", extratags=[(65001, 7, 11, b"<metadata/>", True)])
    gain = load_detector(replace(movie, gain=Gain(path, **options))).gain
    assert gain.dtype == np.float32
    return gain


@pytest.fixture
def gain() -> np.ndarray:
    return np.random.default_rng(4).uniform(0.5, 2, (H, W)).astype(np.float32)


def test_gain_multiplies_and_mrc_is_inverted(path, gain):
    movie = movie_at(path, RAW)
    inverse = gain.mean(dtype=float) / gain
    np.testing.assert_array_equal(gain_of(movie, gain, "g.gain"), gain)  # rows as in the file, unlike TIFF movies
    np.testing.assert_allclose(gain_of(movie, gain, "g.gain", invert=True), inverse, rtol=1e-5)
    np.testing.assert_allclose(gain_of(movie, gain, "g.mrc"), inverse, rtol=1e-5)
    np.testing.assert_array_equal(gain_of(movie, gain, "g.mrc", invert=False), gain)
    np.testing.assert_allclose(gain_of(movie, gain, "g.tif"), inverse[::-1], rtol=1e-5)
    np.testing.assert_array_equal(gain_of(movie, gain, "g.gain", flip_y=True), gain[::-1])


def test_zero_in_an_inverted_gain_is_a_defect(path, gain):
    gain[5, 6] = 0
    path_of_gain = path.parent / "g.mrc"
    mrcfile.new(path_of_gain, gain).close()
    detector = load_detector(replace(movie_at(path, RAW), gain=Gain(path_of_gain)))
    assert detector.bad.tolist() == [[5, 6]] and 0.4 < detector.gain[5, 6] < 3
    reach = np.abs(np.stack(np.divmod(detector.sources[0], W), 1) - [5, 6]).max()
    assert reach in (3, 4)  # wider than elsewhere, electrons being few


def test_gain_of_another_raster(path, gain):
    fine = gain.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(gain_of(movie_at(path, RAW, 2), gain, "g.gain"), fine)
    np.testing.assert_array_equal(gain_of(movie_at(path, RAW, 4), gain, "g.gain"), gain.repeat(4, 0).repeat(4, 1))
    np.testing.assert_allclose(gain_of(movie_at(path, RAW), fine, "g.gain"), 4 * gain, rtol=1e-6)  # summed, as RELION
    inverse = gain.mean(dtype=float) / gain
    np.testing.assert_allclose(gain_of(movie_at(path, RAW), fine, "g.mrc"), inverse, rtol=1e-5)
    refuses(lambda: gain_of(movie_at(path, RAW), gain[1:], "g.gain"), "23 × 40", "24 × 40")
