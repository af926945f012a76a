import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from relion_project import PARTICLES, make_project

from refmotion_nb.data.files import listed_from
from refmotion_nb.data.relion import results as results
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.star import read_star, write_star


def tables(root):
    return read_star(make_project(root) / PARTICLES)


def test_tracks_round_trip(tmp_path):
    tracks = np.random.default_rng(7).normal(size=(3, 5, 2)).round(6)
    results.write_tracks(tmp_path / "sub/a_tracks.star", tracks)
    np.testing.assert_array_equal(results.read_tracks(tmp_path / "sub/a_tracks.star"), tracks)
    assert read_star(tmp_path / "sub/a_tracks.star")["general"] == {"rlnParticleNumber": 3}


def test_incomplete_tracks(tmp_path):
    path = tmp_path / "a_tracks.star"
    results.write_tracks(path, np.zeros((3, 5, 2)))
    text = path.read_text()
    path.write_text(text[: text.index("data_2")])
    with pytest.raises(InputError, match="does not hold the tracks it announces"):
        results.read_tracks(path)
    path.write_text(text[: len(text) - 30])
    with pytest.raises(InputError, match="is the file complete"):
        results.read_tracks(path)


def test_relions_tracks_read_and_written_alike(test_data, tmp_path):
    files = sorted((test_data / "apoferritin/RelionPolish/Movies").glob("*_tracks.star"))
    assert len(files) == 6
    for path in files:
        tracks = results.read_tracks(path)
        results.write_tracks(tmp_path / path.name, tracks)
        np.testing.assert_array_equal(results.read_tracks(tmp_path / path.name), tracks)
        blocks, ours = read_star(path), read_star(tmp_path / path.name)
        assert list(blocks) == list(ours) and len(blocks) == len(tracks) + 1
        pd.testing.assert_frame_equal(blocks["0"], ours["0"])


def test_bfactors(test_data, tmp_path):
    b_factor, log_scale = results.read_bfactors(test_data / "apoferritin/RelionPolish/bfactors.star")
    assert b_factor.shape == (24,) and b_factor[0] == -181.36405 and log_scale[3] == 0.004709
    results.write_bfactors(tmp_path / "bfactors.star", b_factor, log_scale)
    np.testing.assert_array_equal(results.read_bfactors(tmp_path / "bfactors.star"), (b_factor, log_scale))
    with pytest.raises(InputError, match="has no data_perframe_bfactors"):
        results.read_bfactors(test_data / "apoferritin/movies.star")


def test_priors(test_data, tmp_path):
    path = test_data / "apoferritin/RelionPolish/opt_params_all_groups.txt"
    assert results.read_priors(path) == results.Priors(s_vel=5.8305, s_div=221250, s_acc=5.25)
    for text, said in (
        ("1 2", "does not hold"),
        ("1 0 2", "must be positive"),
        ("inf 5000 2", "must be"),
        ("1 nan 2", "must be"),
    ):
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(InputError, match=said):
            results.read_priors(tmp_path / "a.txt")


def test_postprocess(test_data):
    path = test_data / "apoferritin/Ref/postprocess.star"
    reference, fsc = results.open_postprocess(path)
    assert reference.half1 == test_data.absolute() / "apoferritin/Ref/half1.mrc" and reference.mask.is_file()
    assert fsc.shape == (97,) and fsc[22] == 0.853618 and reference.postprocess == path
    reference, _ = results.open_postprocess(path, "/somewhere")
    assert str(reference.half2) == "/somewhere/Ref/half2.mrc"


def test_postprocess_that_is_none(tmp_path):
    write_star(
        tmp_path / "a.star", {"general": {"rlnMaskName": "m.mrc"}, "fsc": pd.DataFrame({"rlnSpectralIndex": [0]})}
    )
    both = "its data_general lacks rlnUnfilteredMapHalf1 and rlnUnfilteredMapHalf2"
    with pytest.raises(InputError, match=f"a.star does not name its half maps: {both}; give"):
        results.open_postprocess(tmp_path / "a.star")
    with pytest.raises(InputError, match="has no FSC: its data_fsc lacks rlnFourierShellCorrelationCorrected; give"):
        results.read_fsc(tmp_path / "a.star")
    shells = pd.DataFrame({"rlnSpectralIndex": [0, 1, 3], "rlnFourierShellCorrelation": [1.0, 0.9, 0.8]})
    write_star(tmp_path / "b.star", {"fsc": shells})
    with pytest.raises(InputError, match="row 3 of data_fsc has rlnSpectralIndex 3; is"):
        results.read_fsc(tmp_path / "b.star")
    write_star(tmp_path / "c.star", {"optics": {"rlnVoltage": 300}})
    with pytest.raises(InputError, match="has no FSC: it has no table data_fsc; give"):
        results.read_fsc(tmp_path / "c.star")


def test_postprocess_without_a_mask(tiny, tmp_path):
    """RELION writes no FSC that is corrected then, and names no mask."""
    blocks = read_star(tiny.postprocess)
    del blocks["general"]["rlnMaskName"]
    unmasked = "rlnFourierShellCorrelationUnmaskedMaps"
    blocks["fsc"] = blocks["fsc"][["rlnSpectralIndex", "rlnResolution", "rlnAngstromResolution", unmasked]]
    write_star(tmp_path / "post.star", blocks)
    reference, fsc = results.open_postprocess(tmp_path / "post.star", tiny.folder)
    assert reference.mask is None and fsc.tolist() == blocks["fsc"][unmasked].tolist()


def test_text_in_place_of_numbers(tmp_path):
    results.write_bfactors(tmp_path / "bfactors.star", np.array([-1.5, -2.5]), np.array([0.0, -0.5]))
    damaged = (tmp_path / "bfactors.star").read_text().replace("-2.5", "-2.x")
    (tmp_path / "bfactors.star").write_text(damaged)
    with pytest.raises(
        InputError, match=r"bfactors.star: rlnBfactorUsedForSharpening is not a number .*-2.x.*; is the file"
    ):
        results.read_bfactors(tmp_path / "bfactors.star")
    columns = {"rlnSpectralIndex": [0, 1], "rlnFourierShellCorrelationCorrected": ["1.0", "0.9x"]}
    write_star(tmp_path / "post.star", {"fsc": pd.DataFrame(columns)})
    with pytest.raises(InputError, match=r"post.star: rlnFourierShellCorrelationCorrected is not a number .*0.9x"):
        results.read_fsc(tmp_path / "post.star")


def test_particles_keep_their_columns(tmp_path):
    blocks = tables(tmp_path)
    second = blocks["optics"].assign(rlnOpticsGroup=2, rlnOpticsGroupName="two")
    blocks["optics"] = pd.concat([blocks["optics"], second], ignore_index=True)
    rows = [4, 0, 7]
    names = [f"{i + 1}@Polish/a_shiny.mrcs" for i in range(3)]
    origin = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    path = tmp_path / "out" / "particles.star"
    results.write_particles(path, blocks, rows, names, pixel_size_A={1: 1.25}, box_size={1: 32},
                            coordinate_px=origin * 100, origin_A=origin)  # fmt: skip
    written = read_star(path)
    group = written["optics"].iloc[0]
    assert len(written["optics"]) == 1
    assert (group["rlnImagePixelSize"], group["rlnImageSize"], group["rlnCtfDataAreCtfPremultiplied"]) == (1.25, 32, 0)
    assert group["rlnOddZernike"] == "[-0.23,0.09]"
    changed = ["rlnImageName", "rlnCoordinateX", "rlnCoordinateY", "rlnOriginXAngst", "rlnOriginYAngst"]
    kept = blocks["particles"].iloc[rows].reset_index(drop=True)
    assert list(written["particles"].columns) == list(kept.columns)
    pd.testing.assert_frame_equal(written["particles"].drop(columns=changed), kept.drop(columns=changed))
    assert written["particles"]["rlnImageName"].tolist() == names
    np.testing.assert_allclose(written["particles"][["rlnOriginXAngst", "rlnOriginYAngst"]], origin)
    np.testing.assert_allclose(written["particles"][["rlnCoordinateX", "rlnCoordinateY"]], origin * 100)
    assert "rlnCtfDataAreCtfPremultiplied" not in blocks["optics"].columns  # the input tables stay as they were


def test_priors_of_origins_move_along(tmp_path):
    blocks = tables(tmp_path)
    particles = blocks["particles"]
    blocks["particles"] = particles.assign(
        rlnOriginXPriorAngst=particles["rlnOriginXAngst"] + 2.0, rlnOriginYPriorAngst=particles["rlnOriginYAngst"] - 1.0
    )
    origin = np.random.default_rng(6).normal(size=(30, 2)).round(6)
    results.write_particles(tmp_path / "a.star", blocks, range(30), ["1@a.mrcs"] * 30, pixel_size_A={1: 1.0},
                            box_size={1: 32}, coordinate_px=origin, origin_A=origin)  # fmt: skip
    written = read_star(tmp_path / "a.star")["particles"]
    found = written[["rlnOriginXPriorAngst", "rlnOriginYPriorAngst"]].to_numpy()
    np.testing.assert_allclose(found - origin, np.broadcast_to([2.0, -1.0], (30, 2)), atol=1e-6)


def test_pixel_size_by_optics_group(tmp_path):
    blocks = tables(tmp_path)
    blocks["optics"] = pd.concat([blocks["optics"], blocks["optics"].assign(rlnOpticsGroup=2)], ignore_index=True)
    blocks["particles"]["rlnOpticsGroup"] = np.arange(30) % 2 + 1
    path = tmp_path / "a.star"
    at = {"coordinate_px": np.zeros((30, 2)), "origin_A": np.zeros((30, 2)), "box_size": {1: 32, 2: 32}}
    results.write_particles(path, blocks, range(30), ["1@a.mrcs"] * 30, pixel_size_A={1: 1.0, 2: 1.1}, **at)
    assert read_star(path)["optics"]["rlnImagePixelSize"].tolist() == [1.0, 1.1]
    with pytest.raises(InputError, match="no particles to write"):
        results.write_particles(path, blocks, [], [], pixel_size_A={}, **at)


@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
def test_relion_reads_written_particles_and_their_stack(tmp_path):
    from refmotion_nb.data.maps import write_stack

    images = np.random.default_rng(8).normal(size=(3, 32, 32)).astype(np.float32)
    write_stack(tmp_path / "a.mrcs", images, 1.25)
    results.write_particles(tmp_path / "a.star", tables(tmp_path), [0, 1, 2], [f"{i}@a.mrcs" for i in (3, 1, 2)],
                            pixel_size_A={1: 1.25}, box_size={1: 32}, coordinate_px=np.zeros((3, 2)),
                            origin_A=np.zeros((3, 2)))  # fmt: skip
    command = ["relion_stack_create", "--i", "a.star", "--o", "b"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    import mrcfile

    with mrcfile.open(tmp_path / "b.mrcs") as file:
        np.testing.assert_array_equal(file.data, images[[2, 0, 1]])
    assert read_star(tmp_path / "b.star")["optics"]["rlnImageSize"].tolist() == [32]


def test_folders_are_listed_from_the_project_whatever_leads_there(tmp_path, monkeypatch):
    (tmp_path / "project/below").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "project")
    (tmp_path / "project/Polish").symlink_to(tmp_path / "scratch")
    monkeypatch.chdir(tmp_path / "project/below")
    for root in (tmp_path / "project", tmp_path / "link", Path("..")):
        assert listed_from(tmp_path / "project/A", root) == listed_from(Path("../A"), root) == "A"
        assert listed_from(Path("A"), root) == "below/A"
        assert listed_from(tmp_path / "else", root) == f"{tmp_path}/else"
    assert listed_from(tmp_path / "project/Polish", tmp_path / "project") == "Polish"
    assert listed_from(Path("../A"), None) == f"{tmp_path}/project/A"
