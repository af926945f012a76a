import gzip

import mrcfile
import numpy as np
import pandas as pd
import pytest

from refmotion_nb.data.maps import check_reference, load_reference, map_header, read_map, write_map, write_stack
from refmotion_nb.data.schema import InputError, Reference
from refmotion_nb.data.star import write_star
from refmotion_nb.stages.references import _mask_radius


@pytest.fixture
def volume():
    return np.random.default_rng(1).normal(size=(8, 8, 8)).astype(np.float32)


@pytest.fixture
def reference(tmp_path, volume):
    mask = np.zeros((8, 8, 8), np.float32)
    mask[2:6, 2:6, 2:6] = 1
    for name, data in (("half1", volume), ("half2", volume[::-1]), ("mask", mask)):
        write_map(tmp_path / f"{name}.mrc", data, 1.25)
    return Reference(tmp_path / "half1.mrc", tmp_path / "half2.mrc", tmp_path / "mask.mrc")


def test_volume_round_trip_and_header(tmp_path, volume):
    write_map(tmp_path / "a.mrc", volume, 0.885)
    assert mrcfile.validate(tmp_path / "a.mrc")
    with mrcfile.open(tmp_path / "a.mrc") as file:
        header = file.header
        assert (header.mode, header.ispg, header.mz) == (2, 1, 8) and file.is_volume()
        np.testing.assert_allclose([header.dmin, header.dmax], [volume.min(), volume.max()], rtol=1e-3)
        np.testing.assert_allclose([header.dmean, header.rms], [volume.mean(), volume.std()], rtol=1e-4)
    data, pixel_size_A = read_map(tmp_path / "a.mrc")
    assert data.dtype == np.float32 and pixel_size_A == pytest.approx(0.885)
    np.testing.assert_array_equal(data, volume)


@pytest.mark.parametrize(("float16", "mode"), [(False, 2), (True, 12)])
def test_stack_header(tmp_path, float16, mode):
    images = np.random.default_rng(2).normal(size=(5, 6, 6))
    write_stack(tmp_path / "sub" / "a.mrcs", images, 1.5, float16=float16)
    with mrcfile.open(tmp_path / "sub" / "a.mrcs") as file:
        assert file.is_image_stack() and file.header.mode == mode and file.data.shape == (5, 6, 6)
        np.testing.assert_allclose(file.voxel_size.x, 1.5)
        np.testing.assert_allclose(file.data, images, atol=2e-3)
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["a.mrcs"]


def test_a_stack_of_one_image(tmp_path):
    write_stack(tmp_path / "a.mrcs", np.ones((1, 6, 6)), 1.5)
    with mrcfile.open(tmp_path / "a.mrcs") as file:
        assert (file.header.nz, file.header.mz, file.header.ispg) == (1, 1, 0)


def test_nobody_waits_until_a_stack_is_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(np.memmap, "flush", lambda *_: pytest.fail("a map of a file waits for the disk"))
    write_stack(tmp_path / "a.mrcs", np.ones((2, 6, 6)), 1.5)


def test_what_16_bits_cannot_hold_is_said(tmp_path):
    with pytest.raises(InputError, match="does not fit into 16 bits"):
        write_stack(tmp_path / "a.mrcs", np.full((1, 2, 2), 1e6), 1.0, float16=True)
    assert not list(tmp_path.iterdir())


def test_reference_loads(reference, tmp_path):
    assert check_reference(reference) == (8, 1.25)
    rows = {"rlnSpectralIndex": range(5), "rlnFourierShellCorrelationCorrected": [1, 0.9, 0.5, 0.1, 0.0]}
    write_star(tmp_path / "post.star", {"fsc": pd.DataFrame(rows)})
    loaded = load_reference(Reference(reference.half1, reference.half2, postprocess=tmp_path / "post.star"))
    assert loaded.box_size == 8 and loaded.mask.min() == 1
    np.testing.assert_allclose(loaded.fsc, rows["rlnFourierShellCorrelationCorrected"])
    assert load_reference(reference).mask.sum() == 64
    spoil(reference.mask, lambda d, a: (d * 1.001 - 0.0005, a))  # as real masks overshoot, by rounding
    mask = load_reference(reference).mask
    assert mask.min() == 0 and mask.max() == 1


def spoil(path, make):
    data, pixel_size_A = read_map(path)
    write_map(path, *make(data, pixel_size_A))


def first_is(value):
    def make(data, pixel_size_A):
        data[0, 0, 0] = value
        return data, pixel_size_A

    return make


@pytest.mark.parametrize(
    ("which", "make", "said"),
    [
        ("half2", lambda d, a: (d[:6, :6, :6], a), "half map 2 .*half2.mrc has 6 × 6 × 6 voxels, half map 1 8 × 8 × 8"),
        ("half2", lambda d, a: (d, 1.3), "half map 2 .* has 1.3 Å/px, half map 1 1.25"),
        ("mask", lambda d, a: (d[:4, :4, :4], a), "mask .* has 4 × 4 × 4 voxels"),
        ("mask", lambda d, a: (d * 2 - 0.5, a), "mask .* goes from -0.5 to 1.5"),
        ("half1", lambda d, a: (d[:6], a), "half map 1 .* is not a cube"),
        ("half1", first_is(np.nan), "half map 1 .* values that are not numbers"),
        ("half1", lambda d, a: (d * 0, a), "half map 1 .* is zero everywhere"),
        ("half1", lambda d, a: (d[::-1], a), "are the same"),
    ],
)
def test_each_bad_reference_has_its_line(reference, which, make, said):
    spoil(getattr(reference, which), make)
    with pytest.raises(InputError, match=said) as error:
        load_reference(reference)
    assert "\n" not in str(error.value)


def test_missing_map_and_missing_pixel_size(reference, tmp_path):
    with pytest.raises(InputError, match="half map 2 not found"):
        load_reference(Reference(reference.half1, tmp_path / "none.mrc"))
    with pytest.raises(InputError) as error:
        load_reference(Reference(tmp_path / "a.mrc", tmp_path / "b.mrc", tmp_path / "c.mrc"))
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "half map 1 not found", "half map 2 not found", "mask not found",
    ]  # fmt: skip
    with mrcfile.open(reference.half1, "r+") as file:
        file.header.cella = (0, 0, 0)
    with pytest.raises(InputError, match=r"has no pixel size; set it .relion_image_handler .* --force_header_angpix"):
        load_reference(reference)  # with --angpix alone RELION leaves the header as it is


def test_not_a_map(tmp_path):
    (tmp_path / "a.mrc").write_text("hello")
    with pytest.raises(InputError, match="MRC map"):
        read_map(tmp_path / "a.mrc")
    write_map(tmp_path / "b.mrc", np.ones((8, 8, 8)), 1.0)
    (tmp_path / "b.mrc").write_bytes((tmp_path / "b.mrc").read_bytes()[:1500])
    with pytest.raises(InputError, match="ends too early"):
        read_map(tmp_path / "b.mrc")
    with mrcfile.new(tmp_path / "c.mrc") as file:
        file.set_data(np.ones((8, 8, 8), np.complex64))
        file.voxel_size = 1.0
    with pytest.raises(InputError, match="mode is not that of a map"):
        read_map(tmp_path / "c.mrc")


def test_compressed_maps(tmp_path, volume):
    write_map(tmp_path / "a.mrc", volume, 1.5)
    whole = gzip.compress((tmp_path / "a.mrc").read_bytes())
    (tmp_path / "a.mrc.gz").write_bytes(whole)
    np.testing.assert_array_equal(read_map(tmp_path / "a.mrc.gz")[0], volume)
    for name, content in (
        ("short", whole[:-100]),
        ("shorter", whole[:400]),
        ("damaged", whole[:90] + bytes(9) + whole[99:]),
    ):
        (tmp_path / f"{name}.mrc.gz").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.mrc.gz is not a readable MRC map"):
            read_map(tmp_path / f"{name}.mrc.gz")


def test_a_header_may_leave_the_sampling_blank(tmp_path, volume):
    write_map(tmp_path / "a.mrc", volume, 1.5)
    with mrcfile.open(tmp_path / "a.mrc", "r+") as file:
        file.header.mx = file.header.my = file.header.mz = 0
    assert map_header(tmp_path / "a.mrc")[1] == 1.5


def test_fsc_of_another_box(reference, tmp_path):
    rows = pd.DataFrame({"rlnSpectralIndex": [0], "rlnFourierShellCorrelationCorrected": [1.0]})
    write_star(tmp_path / "post.star", {"fsc": rows})
    with pytest.raises(InputError, match="FSC of 1 shells"):
        load_reference(Reference(reference.half1, reference.half2, postprocess=tmp_path / "post.star"))


def test_real_reference(test_data):
    folder = test_data / "apoferritin" / "Ref"
    loaded = load_reference(
        Reference(folder / "half1.mrc", folder / "half2.mrc", folder / "mask.mrc", folder / "postprocess.star")
    )
    assert loaded.half1.shape == (192, 192, 192) and loaded.pixel_size_A == 1.0
    assert np.argmax(loaded.fsc < 0.143) == 50


def test_the_radius_of_a_mask_reaches_its_farthest_voxel(reference):
    """Of a cube that is the corner: some view shows it along x."""
    assert _mask_radius(load_reference(reference)) == pytest.approx(
        2 * np.sqrt(3) * 1.25
    )  # voxels -2 to 1 from the centre
