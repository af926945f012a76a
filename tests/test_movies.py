"""Movies, gain references and defects: every format written by other people's code, read back and checked."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import imagecodecs
import mrcfile
import numpy as np
import pytest
import starfile
import tifffile
import zstandard
from cameras import load_detector

from refmotion_nb.data.movies import lzw, rawbytes, tiff
from refmotion_nb.data.movies.detector import make_detector
from refmotion_nb.data.movies.reader import check_movie, movie_shape, open_movie, read_image
from refmotion_nb.data.schema import Gain, InputError, Movie
from refmotion_nb.numerics.patches import cut_patches

N, H, W = 3, 45, 62


def write_tiff(path: Path, data: np.ndarray, **options) -> None:
    tifffile.imwrite(path, data, **({"photometric": "minisblack"} | options))


def movie_at(path: Path, shape=(N, H, W), **more) -> Movie:
    return Movie("mic", Path(path), *shape, pixel_size_A=1.0, dose_per_frame_e_A2=1.0, **more)


def frames_of(path: Path, shape=(N, H, W), **more) -> np.ndarray:
    with open_movie(movie_at(path, shape, **more)) as reader:
        frames = [reader.frame(f) for f in range(reader.n_frames)]
        assert all(f.flags.c_contiguous and f.dtype == reader.dtype and f.dtype.isnative for f in frames)
        return np.stack(frames)


def counts(dtype, shape=(N, H, W)) -> np.ndarray:
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(5)
    if dtype.kind == "f":
        return rng.normal(0, 3, shape).astype(dtype)
    return rng.integers(-5 if dtype.kind == "i" else 0, 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "f4"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 1}, {"rowsperstrip": 16}, {"rowsperstrip": H}, {"tile": (16, 32)}])
def test_tiff_is_read_with_its_rows_flipped(tmp_path, dtype, compression, layout):
    data = counts(dtype)
    write_tiff(tmp_path / "m.tif", data, compression=compression, **layout)
    np.testing.assert_array_equal(frames_of(tmp_path / "m.tif"), data[:, ::-1])
    assert movie_shape(tmp_path / "m.tif") == (N, H, W)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("options", [{"bigtiff": True}, {"byteorder": ">"}, {"bigtiff": True, "byteorder": ">"}])
@pytest.mark.parametrize("predictor", [False, True])
def test_big_tiff_byte_order_and_predictor(tmp_path, dtype, options, predictor):
    data = counts(dtype)
    layout = {"rowsperstrip": 10} if not predictor else {"tile": (16, 16)}
    compression = "lzw" if predictor else None
    write_tiff(
        tmp_path / "m.tif", data, compression=compression, predictor=predictor, **layout,
        **options,
    )  # fmt: skip
    np.testing.assert_array_equal(frames_of(tmp_path / "m.tif"), data[:, ::-1])


@pytest.mark.parametrize("rate", [0, 0.05, 0.8, 20, None])
@pytest.mark.parametrize("rows", [7, 300])
def test_lzw_of_all_entropies(tmp_path, rate, rows):
    rng = np.random.default_rng(6)
    shape = (2, 300, 517)
    data = (rng.integers(0, 256, shape) if rate is None else rng.poisson(rate, shape)).astype(np.uint8)
    write_tiff(tmp_path / "m.tif", data, compression="lzw", rowsperstrip=rows)
    np.testing.assert_array_equal(frames_of(tmp_path / "m.tif", shape), data[:, ::-1])


def test_damaged_lzw_is_read_or_refused_but_never_out_of_bounds():
    rng = np.random.default_rng(7)
    intact = imagecodecs.lzw_encode(counts("u1", (40, 50)))
    for _ in range(200):
        data = np.frombuffer(intact + bytes(lzw.PADDING), np.uint8).copy()
        data[rng.integers(0, len(intact), 5)] = rng.integers(0, 256, 5)
        fenced = np.full((42, 50), 77, np.uint8)
        lzw.decode_strips(data, np.array([0]), np.array([len(intact)]), 40, fenced[1:-1])
        assert (fenced[[0, -1]] == 77).all()
    random = rng.integers(0, 256, 500 + lzw.PADDING, np.uint8)
    assert not lzw.decode_strips(random, np.array([0]), np.array([500]), 40, np.empty((40, 50), np.uint8))


def test_packed_4bit_tiff_is_recognised_by_its_size(tmp_path, monkeypatch):
    data = counts("u1", (N, H, W)) % 16
    packed = data[..., 0::2] | data[..., 1::2] << 4
    write_tiff(tmp_path / "m.tif", packed)
    assert movie_shape(tmp_path / "m.tif") == (N, H, W // 2)
    monkeypatch.setattr(tiff, "_PACKED_4BIT", {(H, W // 2)})
    np.testing.assert_array_equal(frames_of(tmp_path / "m.tif"), data[:, ::-1])


def test_sizes_of_packed_4bit_movies():
    full = ((8184, 11520), (11520, 8184), (7420, 7676), (7676, 7420))  # K3 and K2, (height, width)
    assert {(h, w // 2) for h, w in full} == tiff._PACKED_4BIT


def pack(path: Path, how: str) -> Path:
    data = path.read_bytes()
    packed = path.with_name(path.name + "." + how)
    packed.write_bytes(
        {"bz2": bz2.compress, "zst": zstandard.compress, "gz": gzip.compress, "xz": lzma.compress}[how](data)
    )
    return packed


@pytest.mark.parametrize("how", ["", "bz2", "zst", "gz", "xz"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "f4", "u2", "f2"])
def test_mrc_modes_plain_and_compressed(tmp_path, dtype, how):
    data = counts(dtype)
    with mrcfile.new(tmp_path / "m.mrcs", data) as mrc:
        mrc.set_extended_header(np.zeros(1024, "V1"))
    path = pack(tmp_path / "m.mrcs", how) if how else tmp_path / "m.mrcs"
    np.testing.assert_array_equal(frames_of(path), data)
    assert movie_shape(path) == (N, H, W)
    check_movie(movie_at(path))


def test_a_large_compressed_movie_goes_to_a_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(rawbytes, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(rawbytes, "_CHUNK", 1000)
    data = counts("u2")
    mrcfile.new(tmp_path / "m.mrc", data).close()
    np.testing.assert_array_equal(frames_of(pack(tmp_path / "m.mrc", "zst")), data)


def test_a_large_compressed_movie_that_is_damaged_leaves_no_temporary_file_open(tmp_path, monkeypatch):
    monkeypatch.setattr(rawbytes, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(rawbytes, "_CHUNK", 1000)
    mrcfile.new(tmp_path / "m.mrc", counts("u2")).close()
    path = pack(tmp_path / "m.mrc", "gz")
    data = bytearray(path.read_bytes())
    data[-8:] = bytes(8)  # its checksum
    path.write_bytes(data)
    before = sorted(os.listdir("/proc/self/fd"))
    refuses(lambda: rawbytes.UnpackedBytes(path, 1 << 20), "cannot be unpacked")
    assert sorted(os.listdir("/proc/self/fd")) == before


def write_mrc(path: Path, data: np.ndarray, mode: int, order: str = "<", shape=None) -> None:
    words = np.zeros(256, f"{order}i4")
    words[:4] = [*(shape or data.shape)[::-1], mode]
    path.write_bytes(words.tobytes() + data.astype(data.dtype.newbyteorder(order)).tobytes())


@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
def test_big_endian_mrc_without_a_machine_stamp(tmp_path, mode, dtype):
    data = counts(dtype)
    write_mrc(tmp_path / "m.mrc", data, mode, ">")
    frames = frames_of(tmp_path / "m.mrc")
    np.testing.assert_array_equal(frames, data)
    patches = cut_patches(frames[0], np.ones(data.shape[1:], np.float32), np.array([[1, 2]]), 8, None)
    np.testing.assert_array_equal(patches[0], -data[0, 2:10, 1:9].astype(np.float32))


@pytest.mark.parametrize("signed", [False, True])
def test_imod_says_whether_bytes_are_signed(tmp_path, signed):
    data = np.full((N, H, W), 200, np.uint8)
    write_mrc(tmp_path / "m.mrc", data, 0)
    raw = bytearray((tmp_path / "m.mrc").read_bytes())
    raw[152:160] = np.array([1146047817, int(signed)], "<i4").tobytes()
    (tmp_path / "m.mrc").write_bytes(raw)
    assert (frames_of(tmp_path / "m.mrc") == (-56 if signed else 200)).all()


@pytest.mark.parametrize("width", [62, 61])
def test_mrc_with_two_pixels_to_the_byte(tmp_path, width):
    data = np.zeros((N, H, width + width % 2), np.uint8)
    data[..., :width] = counts("u1", (N, H, width)) % 16
    write_mrc(tmp_path / "m.mrc", data[..., 0::2] | data[..., 1::2] << 4, 101, shape=(N, H, width))
    np.testing.assert_array_equal(frames_of(tmp_path / "m.mrc", (N, H, width)), data[..., :width])


def test_frames_count_from_the_first_one_used(tmp_path):
    data = counts("u1")
    write_tiff(tmp_path / "m.tif", data)
    np.testing.assert_array_equal(frames_of(tmp_path / "m.tif", (2, H, W), first_frame=1), data[1:, ::-1])
    with open_movie(movie_at(tmp_path / "m.tif", (2, H, W), first_frame=1)) as reader:
        assert (reader.n_frames, reader.n_in_file, reader.height, reader.width) == (2, N, H, W)
        with pytest.raises(IndexError):
            reader.frame(2)


@pytest.mark.parametrize("name", ["m.tif", "m.mrc", "m.mrc.zst"])
def test_threads_read_the_same_as_one_thread(tmp_path, name):
    data = counts("u2", (8, 130, 140))
    if name == "m.tif":
        write_tiff(tmp_path / name, data, compression="lzw", rowsperstrip=7)
    else:
        mrcfile.new(tmp_path / "m.mrc", data).close()
        pack(tmp_path / "m.mrc", "zst")
    expected = data[:, ::-1] if name == "m.tif" else data
    with open_movie(movie_at(tmp_path / name, data.shape)) as reader, ThreadPoolExecutor(8) as pool:
        order = list(range(8)) * 8
        for f, frame in zip(order, pool.map(reader.frame, order)):
            np.testing.assert_array_equal(frame, expected[f])


# What is wrong is said in one line


def refuses(make, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and all(w in message for w in words), message


def test_missing_and_unknown_files(tmp_path):
    refuses(lambda: open_movie(movie_at(tmp_path / "no.tif")), "no.tif", "does not exist")
    refuses(lambda: check_movie(movie_at(tmp_path / "no.mrc.bz2")), "does not exist")
    for junk in (b"", b"hello", b"\xff" * 5000):
        (tmp_path / "junk.dm4").write_bytes(junk)
        refuses(lambda: open_movie(movie_at(tmp_path / "junk.dm4")), "junk.dm4", "neither")
    (tmp_path / "m.bz2").write_bytes(bz2.compress(b"\xff" * 5000))
    refuses(lambda: open_movie(movie_at(tmp_path / "m.bz2")), "neither")
    (tmp_path / "m.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"\xff" * 100)
    refuses(lambda: open_movie(movie_at(tmp_path / "m.zst")), "unpacked")


def test_wrong_frame_count_and_size(tmp_path):
    write_tiff(tmp_path / "m.tif", counts("u1"))
    refuses(lambda: open_movie(movie_at(tmp_path / "m.tif", (4, H, W))), "3 frames", "1 to 4", "skip")
    refuses(lambda: check_movie(movie_at(tmp_path / "m.tif", first_frame=1)), "2 to 4")
    refuses(lambda: check_movie(movie_at(tmp_path / "m.tif", (N, W, H))), "45 × 62", "62 × 45")
    mrcfile.new(tmp_path / "m.mrc", counts("u2")).close()
    refuses(lambda: check_movie(movie_at(pack(tmp_path / "m.mrc", "bz2"), (4, H, W))), "3 frames")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_truncated_tiff(tmp_path, keep, compression):
    write_tiff(tmp_path / "m.tif", counts("u2"), compression=compression, rowsperstrip=9)
    raw = (tmp_path / "m.tif").read_bytes()
    (tmp_path / "m.tif").write_bytes(raw[: int(keep * len(raw))])
    refuses(lambda: open_movie(movie_at(tmp_path / "m.tif")), "m.tif", "truncated", "copy it again")


def test_tiff_that_is_not_a_movie(tmp_path):
    write_tiff(tmp_path / "m.tif", np.zeros((H, W, 3), np.uint8), photometric="rgb")
    refuses(lambda: open_movie(movie_at(tmp_path / "m.tif")), "grey")
    write_tiff(tmp_path / "m.tif", np.zeros((H, W), np.float64))
    refuses(lambda: open_movie(movie_at(tmp_path / "m.tif")), "8, 16 or 32 bits")
    with tifffile.TiffWriter(tmp_path / "m.tif") as tif:
        tif.write(np.zeros((H, W), np.uint8))
        tif.write(np.zeros((H, W + 1), np.uint8))
    refuses(lambda: open_movie(movie_at(tmp_path / "m.tif")), "image 2 differs")
    (tmp_path / "m.tif").write_bytes(b"II*\0\0\0\0\0")
    refuses(lambda: open_movie(movie_at(tmp_path / "m.tif")), "no image")


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd"])
def test_damaged_strip(tmp_path, compression):
    write_tiff(tmp_path / "m.tif", counts("u1"), compression=compression, rowsperstrip=H)
    with tifffile.TiffFile(tmp_path / "m.tif") as tif:
        offset = tif.pages[1].dataoffsets[0]
    raw = bytearray((tmp_path / "m.tif").read_bytes())
    raw[offset : offset + 60] = b"\xff" * 60
    (tmp_path / "m.tif").write_bytes(raw)
    with open_movie(movie_at(tmp_path / "m.tif")) as reader:
        reader.frame(0)
        refuses(lambda: reader.frame(1), "m.tif", "image 2 is damaged")


@pytest.mark.parametrize(
    "layout", [{"tile": (16, 16)}, {"rowsperstrip": 9, "predictor": True}], ids=["tiles", "predictor"]
)
@pytest.mark.parametrize("byteorder", "<>")
def test_all_lzw_is_decoded_here(tmp_path, monkeypatch, layout, byteorder):
    """Where the data are damaged, what imagecodecs makes of them depends on what the memory held before."""
    data = counts("u2")
    write_tiff(tmp_path / "m.tif", data, compression="lzw", byteorder=byteorder, **layout)
    monkeypatch.delattr(imagecodecs, "lzw_decode")
    np.testing.assert_array_equal(frames_of(tmp_path / "m.tif"), data[:, ::-1])
    with tifffile.TiffFile(tmp_path / "m.tif") as tif:
        offset, raw = tif.pages[1].dataoffsets[0], bytearray((tmp_path / "m.tif").read_bytes())
    raw[offset : offset + 60] = b"\xff" * 60
    (tmp_path / "m.tif").write_bytes(raw)
    with open_movie(movie_at(tmp_path / "m.tif")) as reader:
        refuses(lambda: reader.frame(1), "m.tif", "image 2 is damaged")


@pytest.mark.parametrize("tag", ["ImageWidth", "StripOffsets", "StripByteCounts"])
def test_damaged_tiff_header(tmp_path, tag):
    """Numbers beyond what files and arrays hold are the file's fault, and no error of another kind."""
    write_tiff(tmp_path / "m.tif", counts("u1"), bigtiff=True, rowsperstrip=H)
    with tifffile.TiffFile(tmp_path / "m.tif") as tif:
        where = tif.pages[1].tags[tag]
        n, at = {3: 2, 4: 4, 16: 8}[where.dtype], where.valueoffset
    raw = bytearray((tmp_path / "m.tif").read_bytes())
    raw[at : at + n] = b"\xff" * n
    (tmp_path / "m.tif").write_bytes(raw)
    refuses(lambda: open_movie(movie_at(tmp_path / "m.tif")), "m.tif", "image 2", "copy")


@pytest.mark.parametrize("tag", ["StripOffsets", "StripByteCounts"])
def test_text_in_place_of_numbers_in_a_tiff_header(tmp_path, tag):
    write_tiff(tmp_path / "m.tif", counts("u1"), rowsperstrip=1 + H // 2)
    with tifffile.TiffFile(tmp_path / "m.tif") as tif:
        where = tif.pages[0].tags[tag].offset
    raw = bytearray((tmp_path / "m.tif").read_bytes())
    raw[where + 2] = 2
    (tmp_path / "m.tif").write_bytes(raw)
    refuses(lambda: open_movie(movie_at(tmp_path / "m.tif")), "m.tif", "image 1 has a damaged header; copy")


@pytest.mark.parametrize("how", ["bz2", "zst", "gz", "xz"])
def test_damaged_compressed_mrc(tmp_path, how):
    mrcfile.new(tmp_path / "m.mrc", np.random.default_rng(0).normal(size=(N, H, W)).astype(np.float32)).close()
    path = pack(tmp_path / "m.mrc", how)
    raw = bytearray(path.read_bytes())
    for at in (12, len(raw) // 2):
        raw[at : at + 40] = b"\xff" * 40
        path.write_bytes(raw)
        refuses(lambda: open_movie(Movie("m", path, N, H, W, 1.0, 1.0)), path.name, "copy it again")


def test_truncated_mrc(tmp_path):
    mrcfile.new(tmp_path / "m.mrc", counts("u2")).close()
    raw = (tmp_path / "m.mrc").read_bytes()
    (tmp_path / "m.mrc").write_bytes(raw[: 1024 + 2 * H * W * 2 + 10])
    refuses(lambda: open_movie(movie_at(tmp_path / "m.mrc")), "3 frames", "holds 2", "copy it again")
    for how in ("bz2", "zst", "gz", "xz"):
        refuses(lambda: open_movie(movie_at(pack(tmp_path / "m.mrc", how))), "truncated")  # noqa: B023
        whole = tmp_path / "whole.mrc"
        whole.write_bytes(raw)
        cut = pack(whole, how)
        cut.write_bytes(cut.read_bytes()[:-200])
        refuses(lambda: open_movie(movie_at(cut)), "whole.mrc", "copy it again")  # noqa: B023
    (tmp_path / "m.mrc").write_bytes(raw[:500])
    refuses(lambda: open_movie(movie_at(tmp_path / "m.mrc")), "truncated")
    write_mrc(tmp_path / "m.mrc", counts("i2"), 3)
    refuses(lambda: open_movie(movie_at(tmp_path / "m.mrc")), "mode 3")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_values_that_are_not_finite(tmp_path, value, dtype):
    data = counts(dtype)
    data[1, 7, 9] = value
    write_mrc(tmp_path / "m.mrc", data, 2 if dtype == "f4" else 12)
    with open_movie(movie_at(tmp_path / "m.mrc")) as reader:
        reader.frame(0)
        refuses(lambda: reader.frame(1), "frame 2", "1 values", "x 9, y 7")


def test_large_finite_values_are_no_error(tmp_path):
    write_mrc(tmp_path / "m.mrc", np.full((N, H, W), 3e38, np.float32), 2)
    assert frames_of(tmp_path / "m.mrc").min() > 2e38


# Gain, defects and hot pixels


@pytest.fixture
def blank(tmp_path) -> Movie:
    write_mrc(tmp_path / "blank.mrc", np.zeros((1, H, W), np.int8), 0)
    return movie_at(tmp_path / "blank.mrc", (1, H, W))


def gain_of(movie: Movie, image: np.ndarray, name: str = "gain.mrc", **options) -> np.ndarray:
    path = Path(movie.path).parent / name
    if name.endswith(".mrc"):
        mrcfile.new(path, image, overwrite=True).close()
    else:
        write_tiff(path, image, compression="lzw")
    detector = load_detector(replace(movie, gain=Gain(path, **options)))
    assert detector.gain.dtype == np.float32 and detector.gain.shape == (H, W)
    return detector.gain


@pytest.mark.parametrize("dtype", ["f4", "f2", "i2", "u2", "i1"])
def test_gain_lies_as_the_frames_do(blank, dtype):
    gain = counts("u1", (H, W)).astype(dtype) + np.ones((), dtype)
    np.testing.assert_array_equal(gain_of(blank, gain), gain)
    if dtype != "f2":
        np.testing.assert_array_equal(gain_of(blank, gain, "gain.tif"), gain[::-1])
        np.testing.assert_array_equal(gain_of(blank, gain, "my.gain"), gain[::-1])


def test_gain_is_turned_then_flipped(blank):
    gain = counts("u2", (H, W)).astype(np.float32) + 1
    np.testing.assert_array_equal(gain_of(blank, gain, flip_x=True), gain[:, ::-1])
    np.testing.assert_array_equal(gain_of(blank, gain, flip_y=True), gain[::-1])
    np.testing.assert_array_equal(gain_of(blank, gain, rotate_quarter_turns=2), gain[::-1, ::-1])
    # clockwise with the first row on top: what was left is then on top. relion_run_motioncorr --gain_rot does the same
    turned = np.ascontiguousarray(gain.T)
    np.testing.assert_array_equal(gain_of(blank, turned, rotate_quarter_turns=1), gain[:, ::-1])
    np.testing.assert_array_equal(gain_of(blank, turned, rotate_quarter_turns=3, flip_y=True), gain)


def test_inverted_gain_and_zero_gain(blank):
    gain = counts("u2", (H, W)).astype(np.float32) + 1
    gain[3, 4] = gain[20, 30] = 0
    detector_gain = gain_of(blank, gain, invert=True)
    good = gain > 0
    np.testing.assert_allclose(detector_gain[good], (gain.mean(dtype=float) / gain[good]), rtol=1e-5)
    detector = load_detector(replace(blank, gain=Gain(blank.path.parent / "gain.mrc")))
    assert detector.bad.dtype == np.int32 and detector.bad.tolist() == [[3, 4], [20, 30]]
    for k in range(2):
        assert detector.gain[tuple(detector.bad[k])] == pytest.approx(
            gain.flat[detector.sources[k][: detector.n_sources[k]]].mean(), rel=1e-5
        )


def test_bad_gains(blank, tmp_path):
    refuses(lambda: load_detector(replace(blank, gain=Gain(tmp_path / "no.mrc"))), "no.mrc", "does not exist")
    refuses(lambda: check_movie(replace(blank, gain=Gain(tmp_path / "no.mrc"))), "no.mrc", "does not exist")
    refuses(lambda: gain_of(blank, np.ones((W, H), np.float32)), "62 × 45", "45 × 62", "turn")
    refuses(lambda: gain_of(blank, np.ones((2 * H, 2 * W), np.float32)), "90 × 124", "45 × 62")
    refuses(lambda: gain_of(blank, np.zeros((H, W), np.float32)), "0 everywhere")
    gain = np.ones((H, W), np.float32)
    gain[0, 0] = np.nan
    mrcfile.new(tmp_path / "nan.mrc").close()
    write_mrc(tmp_path / "nan.mrc", gain[None], 2)
    refuses(lambda: load_detector(replace(blank, gain=Gain(tmp_path / "nan.mrc"))), "nan.mrc", "not finite")


def test_defects_as_text_and_as_maps(blank, tmp_path):
    (tmp_path / "defects.txt").write_text("# x y width height\n3 5 2 1  # a pair\n\n60 40 10 3\n")
    expected = np.zeros((H, W), bool)
    expected[5, 3:5] = expected[40:43, 60:] = True
    mrcfile.new(tmp_path / "map.mrc", expected.astype(np.int8)).close()
    write_tiff(tmp_path / "map.tif", expected[::-1].astype(np.uint8))
    for name in ("defects.txt", "map.mrc", "map.tif"):
        detector = load_detector(replace(blank, defects=tmp_path / name))
        np.testing.assert_array_equal(detector.bad, np.argwhere(expected))
    assert detector.gain is None


def test_bad_defects_and_hot_pixels(blank, tmp_path):
    path = tmp_path / "defects.txt"
    for text in ("1 2 3\n", "1 2 a 4\n", "5 5 1 1 1\n", "1 2 3 inf\n", "BadColumns 3\n"):
        path.write_text("\n" + text)
        refuses(lambda: load_detector(replace(blank, defects=path)), "defects.txt, line 2", "x y width height")
    for text in ("62 0 1 1", "0 45 1 1", "-1 0 1 1", "0 0 0 3"):
        path.write_text(text)
        refuses(lambda: load_detector(replace(blank, defects=path)), "line 1", "62 × 45")
    path.write_text(f"0 0 {W} {H}")
    refuses(lambda: load_detector(replace(blank, defects=path)), "no good pixel")
    refuses(lambda: load_detector(replace(blank, defects=tmp_path / "no.txt")), "does not exist")
    mrcfile.new(tmp_path / "map.mrc", np.zeros((W, H), np.int8)).close()
    refuses(lambda: load_detector(replace(blank, defects=tmp_path / "map.mrc")), "62 × 45", "45 × 62")
    refuses(lambda: load_detector(replace(blank, hot_pixels=np.array([[1, 1], [62, 3]]))), "x 62, y 3")


def test_repair_takes_good_neighbours_and_nothing_else(blank):
    hot = np.array([[0, 0], [61, 44], [30, 20], [31, 20]])
    detector = load_detector(replace(blank, hot_pixels=hot))
    assert detector.bad.tolist() == [[0, 0], [20, 30], [20, 31], [44, 61]]
    where = np.arange(H * W, dtype=np.uint16).reshape(H, W)
    chosen = []
    for f in range(200):
        frame = where.copy()
        assert detector.repair(frame, f) is frame
        values = frame[detector.bad[:, 0], detector.bad[:, 1]].astype(int)
        y, x = np.divmod(values, W)
        assert (np.abs(np.stack([y, x], 1) - detector.bad).max(1) <= 2).all()
        assert not set(values) & set(where[detector.bad[:, 0], detector.bad[:, 1]].tolist())
        frame[detector.bad[:, 0], detector.bad[:, 1]] = where[detector.bad[:, 0], detector.bad[:, 1]]
        np.testing.assert_array_equal(frame, where)
        chosen.append(values)
    assert [len(set(v)) for v in np.transpose(chosen)] == [8, 23, 23, 8]  # all good neighbours take their turn


def test_repair_is_the_same_whatever_the_order_and_leaves_read_only_frames_alone(blank):
    movie = replace(blank, hot_pixels=np.array([[5, 5], [6, 5], [40, 30]]))
    frame = counts("u2", (H, W))
    first = load_detector(movie)
    again = load_detector(replace(movie, hot_pixels=movie.hot_pixels[::-1]))
    expected = {f: first.repair(frame.copy(), f) for f in range(10)}
    for f in reversed(range(10)):
        np.testing.assert_array_equal(again.repair(frame.copy(), f), expected[f])
    fixed = frame.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(first.repair(fixed, 3), expected[3])
    np.testing.assert_array_equal(fixed, frame)
    with pytest.raises(ValueError, match="detector"):
        first.repair(frame[1:], 0)


@pytest.mark.parametrize("reach", [2, 4])
def test_a_large_defect_is_filled_with_the_noise_around_it(reach):
    bad = np.zeros((300, 400), bool)
    bad[60:160, 100:300] = bad[:, 50] = bad[290:, 380:] = True
    rng = np.random.default_rng(1)
    frame = rng.poisson(5.0, bad.shape).astype(np.uint8)
    frame[bad] = 255
    gain = rng.uniform(0.8, 1.2, bad.shape).astype(np.float32)
    detector = make_detector(bad, gain, reach)
    detector.repair(frame, 0)
    filled = frame[60:160, 100:300]
    assert filled.mean() == pytest.approx(5.0, abs=0.3) and filled.var() == pytest.approx(5.0, abs=0.6)
    assert abs(np.corrcoef(filled[:, :-1].ravel(), filled[:, 1:].ravel())[0, 1]) < 0.1  # no streaks
    assert detector.gain[bad].min() > 0.8 and detector.gain[bad].max() < 1.2
    np.testing.assert_array_equal(detector.gain[~bad], gain[~bad])


def test_gain_times_counts_is_unbiased_at_bad_pixels():
    rng = np.random.default_rng(2)
    gain = rng.uniform(0.9, 1.1, (64, 64)).astype(np.float32)
    bad = np.zeros((64, 64), bool)
    bad[::8, ::8] = True
    detector = make_detector(bad, gain, 2)
    at = tuple(detector.bad.T)
    mean = np.mean([(detector.repair(rng.poisson(20 / gain), f) * detector.gain)[at] for f in range(300)])
    assert mean == pytest.approx(20, rel=0.01)


# Real data


def test_hot_pixels_of_real_data_are_hot_in_relions_row_order(test_data):
    root = test_data / "apoferritin"
    truth = np.load(root / "truth.npz")
    for k in range(2):
        name = f"mic{k:04d}"
        star = starfile.read(root / f"MotionCorr/Movies/{name}.star", always_dict=True)["hot_pixels"]
        hot = star.to_numpy().astype(int)
        assert {tuple(v) for v in hot} == {tuple(v) for v in truth[f"{name}_hot"]}
        movie = movie_at(root / f"Movies/{name}.tif", (24, 1024, 1024), hot_pixels=hot, gain=Gain(root / "gain.mrc"))
        check_movie(movie)
        with open_movie(movie) as reader:
            total = np.zeros((1024, 1024))
            mended = np.zeros((1024, 1024))
            detector = load_detector(movie)
            for f in range(reader.n_frames):
                frame = reader.frame(f)
                total += frame
                mended += detector.repair(frame, f) * detector.gain
        x, y = hot.T
        assert (total[y, x] > total.mean() + 6 * total.std()).all()
        assert (np.abs(mended[y, x] - mended.mean()) < 5 * mended.std()).all()
        # the gain lies on the movie: it flattens it, flipped it does not
        raw = load_detector(replace(movie, gain=Gain(root / "gain.mrc", flip_y=True))).gain
        assert np.corrcoef(total.ravel(), detector.gain.ravel())[0, 1] < -0.1
        assert abs(np.corrcoef(total.ravel(), raw.ravel())[0, 1]) < 0.05


def test_images_are_read_as_movies_are(tmp_path):
    image = counts("f4", (H, W))
    write_tiff(tmp_path / "i.tif", image)
    np.testing.assert_array_equal(read_image(tmp_path / "i.tif"), image[::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "i.tif", flip_tiff=False), image)
