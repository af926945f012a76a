"""The MTFs of detectors: read, compared with each other, and seen in views and maps as RELION takes them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from relion_project import MICROGRAPHS, PARTICLES, edit, make_project, reference

import refmotion_nb as rm
from refmotion_nb.data.relion.mtf import read_mtf
from refmotion_nb.data.relion.project import open_relion, survey
from refmotion_nb.data.schema import Mtf
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.numerics.fourier import band_indices
from refmotion_nb.stages.session import Session

FREQUENCY = np.linspace(0, 0.5, 51)  # per px
CURVES = {"mtf_a.star": 1 - FREQUENCY, "mtf_b.star": 1 - 1.6 * FREQUENCY}


@pytest.fixture
def project(tmp_path):
    root = make_project(tmp_path)
    for name, value in CURVES.items():
        write_mtf(root / name, FREQUENCY, value)
    return root


def write_mtf(path, frequency, value):
    write_star(path, {"": pd.DataFrame({"rlnResolutionInversePixel": frequency, "rlnMtfValue": value})})


def name_mtfs(root, *files, pixel_size_A=1.25):
    """Give the particles an optics group for each file, their movies having pixels of so many Å."""
    blocks = read_star(root / PARTICLES)
    groups = pd.concat([blocks["optics"].iloc[:1]] * len(files), ignore_index=True)
    groups["rlnOpticsGroup"] = np.arange(len(files)) + 1
    groups["rlnOpticsGroupName"] = [f"group{i + 1}" for i in range(len(files))]
    groups["rlnMtfFileName"] = files
    if pixel_size_A:
        groups["rlnMicrographOriginalPixelSize"] = pixel_size_A
    which = pd.factorize(blocks["particles"]["rlnMicrographName"])[0] % len(files) + 1
    write_star(root / PARTICLES, {"optics": groups, "particles": blocks["particles"].assign(rlnOpticsGroup=which)})


def opened(root):
    return open_relion(PARTICLES, MICROGRAPHS, reference(), root)


def test_one_detector_is_in_the_half_maps_too(project):
    name_mtfs(project, "mtf_a.star", "mtf_a.star")
    data = opened(project)
    for one in data.optics:
        assert one.relative_mtf is None
        np.testing.assert_allclose(one.mtf.at(FREQUENCY / 1.25), CURVES["mtf_a.star"])
    assert one.mtf.at(9.0) == 0.5, "constant beyond the last frequency"
    assert "MTF mtf_a.star" in str(survey(PARTICLES, MICROGRAPHS, reference(), project))


def test_several_detectors_are_compared_with_their_mean(project):
    name_mtfs(project, "mtf_a.star", "mtf_b.star", "mtf_b.star")
    k = FREQUENCY / 1.25
    a, b, c = (one.relative_mtf.at(k) for one in opened(project).optics)
    np.testing.assert_allclose(a + b + c, 3, rtol=1e-6)
    np.testing.assert_allclose(a / b, CURVES["mtf_a.star"] / CURVES["mtf_b.star"], rtol=1e-5)
    assert (b == c).all()


def test_a_file_that_is_not_there(project):
    name_mtfs(project, "mtf_a.star", "none.star")
    with pytest.raises(
        rm.InputError, match=r"none\.star does not exist; check the path \(rlnMtfFileName in data_optics of"
    ):
        opened(project)
    name_mtfs(project, "none.star")
    data = opened(project)
    assert len(data.notes) == 1 and "none.star does not exist" in data.notes[0] and "energy relion" in data.notes[0]
    with pytest.raises(rm.InputError, match=r"takes the MTF of the detector, and none\.star of optics group group1"):
        Session(data).references(True)


@pytest.mark.parametrize(
    ("files", "pixel_size_A", "said"),
    [(("mtf_a.star", "mtf_b.star", "None"), 1.25, "optics group group3 names no MTF, others do"),
     (("mtf_a.star", "mtf_b.star"), 0, "lacks rlnMicrographOriginalPixelSize")],
)  # fmt: skip
def test_what_tables_lack_is_told(project, files, pixel_size_A, said):
    name_mtfs(project, *files, pixel_size_A=pixel_size_A)
    with pytest.raises(rm.InputError, match=said):
        opened(project)


@pytest.mark.parametrize(
    ("frequency", "value", "said"),
    [([0, 0.5], [1, 0], "no MTF"), ([0.5, 0.5], [1, 1], "no MTF"), ([0.5], [1], "no MTF"), ([0, 0.5], [1, np.nan], "no MTF"),
     ([0, 0.5], [1, "x"], "not a number")],
)  # fmt: skip
def test_each_bad_file_has_its_line(tmp_path, frequency, value, said):
    write_mtf(tmp_path / "mtf.star", frequency, value)
    with pytest.raises(rm.InputError, match=said):
        read_mtf(tmp_path / "mtf.star", 1.0)


def test_another_star_file_is_none(project):
    with pytest.raises(rm.InputError, match="lacks rlnResolutionInversePixel and rlnMtfValue"):
        read_mtf(project / PARTICLES, 1.0)


def test_groups_without_one_are_as_before(project):
    name_mtfs(project, "None", "None")
    assert (
        all(one.mtf is None and one.relative_mtf is None for one in opened(project).optics)
        and not opened(project).notes
    )
    edit(project / PARTICLES, "optics", lambda table: table.assign(rlnMtfFileName=""))
    assert opened(project).optics[0].mtf_file == ""


@pytest.mark.parametrize("energy", ["calibrated", "relion"])
def test_views_are_multiplied_by_what_half_maps_lack_or_as_relion_polishes(tiny, energy):
    data = tiny.open()
    whole, relative = Mtf((0.0, 0.3), (1.0, 0.4)), Mtf((0.0, 0.3), (1.0, 1.5))
    one = replace(data.optics[0], mtf_file="mtf.star", mtf=whole, relative_mtf=relative)
    settings = rm.MotionCorrection(energy=energy)
    plain, seen = (
        Session(each, 2).micrograph("mic0000", settings)
        for each in (data, replace(data, optics=(one, *data.optics[1:])))
    )
    k = plain.own.shape[2] - 1
    ky, kx = band_indices(k)
    expected = (whole if energy == "relion" else relative).at(np.hypot(ky, kx) / plain.extent_A)
    for name in ("own", "opposite"):
        np.testing.assert_allclose(getattr(seen, name), getattr(plain, name) * expected, rtol=1e-5)
    np.testing.assert_array_equal(seen.ctf, plain.ctf)
