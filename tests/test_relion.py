import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from relion_project import MICROGRAPHS, PARTICLES, edit, make_project, motion_blocks, optics, reference

from refmotion_nb.data.check import check_dataset, left_out
from refmotion_nb.data.relion.micrographs import match_micrographs, short_names, strip_job
from refmotion_nb.data.relion.project import open_movies, open_relion, survey
from refmotion_nb.data.schema import InputError, Reference
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.stages.describe import describe_inputs


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def opened(root, **options):
    return open_relion(PARTICLES, MICROGRAPHS, reference(), root, **options)


def set_to(label, rows, value):
    def change(table):
        table[label] = table[label].astype(object)
        table.loc[rows, label] = value

    return change


def general(label, value):
    return lambda blocks: blocks["general"].update({label: value})


def without(*labels):
    return lambda table: table.drop(columns=list(labels))


def test_opens(project):
    data = opened(project)
    assert [movie.micrograph for movie in data.movies] == ["a", "b", "c"]
    movie = data.movies[0]
    assert movie.path == project / "Movies" / "a.mrcs" and movie.path.is_absolute()
    assert (movie.n_frames, movie.height, movie.width, movie.binning) == (4, 64, 96, 2.0)
    assert movie.voltage_kV == 200  # from the optics group: this motion STAR file has none
    np.testing.assert_allclose(movie.dose_edges, 0.5 + 1.5 * np.arange(5))
    table = data.tables[0]["particles"]
    particles = data.particles
    assert particles.sizes == {"particle": 30, "axis": 2, "angle": 3}
    np.testing.assert_allclose(particles["coordinate"], table[["rlnCoordinateX", "rlnCoordinateY"]] * 2)
    np.testing.assert_allclose(particles["euler"], table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]])
    np.testing.assert_allclose(particles["origin"], table[["rlnOriginXAngst", "rlnOriginYAngst"]])
    assert set(particles["half"].values) == {1, 2} and particles["coordinate"].attrs["units"] == "Å"
    assert (particles["ctf_scale"] == 1).all() and (particles["phase_shift"] == 0).all()
    group = data.optics[0]
    assert group.odd_zernike == (-0.23, 0.09) and group.even_zernike == () and group.beam_tilt_mrad == (0.1, 0.0)
    assert group.magnification == ((1.01, 0.0), (0.0, 0.99)) and not data.skipped
    movie, mine = next(data.micrographs())
    assert movie.micrograph == "a" and mine["stack_index"].values.tolist() == list(range(1, 11))


def test_root_is_found(project, monkeypatch):
    inside = Reference(*(project / path for path in ("Refine3D/job020/half1.mrc", "Refine3D/job020/half2.mrc")))
    data = open_relion(project / PARTICLES, project / MICROGRAPHS, inside)
    assert data.movies[0].path == project / "Movies/a.mrcs"
    monkeypatch.chdir(project)
    assert open_relion(PARTICLES, MICROGRAPHS, reference()).movies[0].path == project / "Movies/a.mrcs"


def test_root_is_found_by_names_that_are_there(project):
    edit(project / MICROGRAPHS, "micrographs", set_to("rlnMicrographMetadata", 0, ""))
    assert open_movies(project / MICROGRAPHS).root == project  # else an empty name leads to any folder


def test_optics_groups_need_no_names(project):
    for path in (PARTICLES, MICROGRAPHS):
        edit(project / path, "optics", without("rlnOpticsGroupName"))
    assert opened(project).optics[0].name == "1"
    assert open_movies(project / MICROGRAPHS, project).groups == ("1", "1", "1")


def test_options_replace_what_the_files_say(project):
    with pytest.raises(InputError, match=r"gain reference gain.mrc not found in .* .3 movies."):
        opened(project, gain=project / "gain.mrc")
    movie = opened(project, dose_per_frame_e_A2=2.0, pre_exposure_e_A2=1.0).movies[0]
    assert (movie.dose_per_frame_e_A2, movie.pre_exposure_e_A2) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("rlnRandomSubset"), "lacks rlnRandomSubset in data_particles; give the run_data.star"),
        (without("rlnAngleRot", "rlnAnglePsi"), "lacks rlnAngleRot, rlnAnglePsi in data_particles"),
        (without("rlnOriginXAngst"), "lacks rlnOriginXAngst, rlnOriginYAngst"),
        (set_to("rlnAngleTilt", [2, 7], np.nan), "rlnAngleTilt is not a number in rows 3, 8 .2 of 30. of data_part"),
        (set_to("rlnCoordinateX", [4], "oops"), "rlnCoordinateX is not a number in row 5 of data_particles; take"),
        (set_to("rlnRandomSubset", [0], 0), "no half set .* for row 1 of data_particles"),
        (set_to("rlnRandomSubset", slice(None), 2), "all particles are of half set 2"),
        (lambda table: table.assign(rlnPhaseShift=[np.nan, *[0.0] * 29]), "rlnPhaseShift is not a number in row 1 of"),
        (
            lambda table: table.assign(rlnVoltage=[*[200.0] * 28, 300, 300]),
            "rlnVoltage is not that of the optics group in rows 29, 30 .2 of 30.*; RELION would take it for the CTF",
        ),
        (set_to("rlnRandomSubset", [6], 1.5), "no half set .* for row 7 of data_particles"),
        (set_to("rlnRandomSubset", [6], 1e20), "no half set .* for row 7 of data_particles"),
        (set_to("rlnOpticsGroup", [3], 9), "no such group in data_optics for row 4"),
        (lambda table: table.iloc[:0], "holds no particles"),
        (
            lambda table: table.assign(rlnDefocusU=1.2, rlnDefocusV=1.1),
            "rlnDefocusU and rlnDefocusV are below 100 Å in every row; give particles whose CTF was estimated, in Å",
        ),
        (
            lambda table: table.assign(rlnAngleRot=0, rlnAngleTilt=0.0),
            "rlnAngleRot and rlnAngleTilt are 0 in every row, as 2D classification leaves them; give the run_data.star",
        ),
        (
            set_to("rlnMicrographName", slice(None), "MotionCorr/job002/Movies/z.mrc"),
            "no particle can be used: its micrograph is not in .*corrected_micrographs.star .30.;",
        ),
    ],
)
def test_each_bad_particle_file_has_its_line(project, change, said):
    edit(project / PARTICLES, "particles", change)
    with pytest.raises(InputError, match=said) as error:
        opened(project)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("label", "value", "said"),
    [
        ("rlnVoltage", 0, "rlnVoltage must be above 0 in every row of data_optics"),
        ("rlnImagePixelSize", np.nan, "rlnImagePixelSize must be above 0"),
        ("rlnImageSize", 16.5, "rlnImageSize 16.5 in data_optics is no whole number of pixels"),
        ("rlnImageSize", np.inf, "data_optics holds a value that is not a number"),
        ("rlnVoltage", 300000, "rlnVoltage 300000 in data_optics is in kV; correct it"),
        (
            "rlnMagMat00",
            0.0,
            "rlnMagMat00 to 11 of optics group one in data_optics magnify by 0; they should be close to 1",
        ),
        ("rlnMagMat11", np.nan, "beam tilt, Zernike coefficient or magnification of optics group one .* not a number"),
        ("rlnBeamTiltX", np.nan, "beam tilt, Zernike coefficient or magnification of optics group one .* not a number"),
        ("rlnOddZernike", "[0.1,nan]", "beam tilt, Zernike coefficient or magnification of optics group one .* not a"),
        ("rlnAmplitudeContrast", np.nan, "rlnAmplitudeContrast is not a number"),
    ],
)
def test_each_impossible_optics_group_has_its_line(project, label, value, said):
    edit(project / PARTICLES, "optics", lambda table: table.assign(**{label: value}))
    with pytest.raises(InputError, match=said) as error:
        opened(project)
    assert "\n" not in str(error.value)


def test_an_optics_group_listed_twice_is_one_only_if_it_is_the_same(project):
    edit(project / PARTICLES, "optics", lambda t: pd.concat([t, t]).assign(rlnMtfFileName="mtf.star"))
    edit(project / PARTICLES, "optics", lambda t: t.assign(rlnMicrographOriginalPixelSize=1.0))
    write_star(
        project / "mtf.star", {"": pd.DataFrame({"rlnResolutionInversePixel": [0.0, 0.5], "rlnMtfValue": [1.0, 0.5]})}
    )
    data = opened(project)
    assert data.optics[0].mtf.value == (1.0, 0.5) and len(data.tables[0]["optics"]) == 1  # which is written back
    edit(project / MICROGRAPHS, "optics", lambda t: pd.concat([t, t]))
    assert len(open_movies(MICROGRAPHS, project).relion["optics"]) == 1
    for file, label in ((PARTICLES, "rlnImagePixelSize"), (MICROGRAPHS, "rlnVoltage")):
        edit(project / file, "optics", lambda t, label=label: t.assign(**{label: [200, 300]}))
        with pytest.raises(
            InputError, match=f"{file}: optics group 1 is listed twice in data_optics, with different values"
        ):
            opened(project)


def test_micrographs_need_no_optics_group_where_there_is_one(project):
    edit(project / MICROGRAPHS, "optics", lambda t: t.assign(rlnOpticsGroup=7))
    edit(project / MICROGRAPHS, "micrographs", without("rlnOpticsGroup"))
    assert open_movies(MICROGRAPHS, project).relion["micrographs"]["rlnOpticsGroup"].tolist() == [7, 7, 7]
    edit(project / MICROGRAPHS, "optics", lambda t: pd.concat([t, t.assign(rlnOpticsGroup=8)]))
    with pytest.raises(InputError, match="lacks rlnOpticsGroup in data_micrographs"):
        opened(project)


def test_what_particles_do_not_say_of_their_ctf_their_optics_group_may(project):
    edit(project / PARTICLES, "optics", lambda table: table.assign(rlnPhaseShift=60.0, rlnCtfBfactor=25.0))
    edit(project / PARTICLES, "particles", lambda table: table.assign(rlnPhaseShift=np.arange(30.0), rlnVoltage=200.0))
    particles = opened(project).particles
    assert (particles["ctf_b_factor"].values == 25.0).all() and (particles["ctf_scale"].values == 1.0).all()
    assert particles["phase_shift"].values.tolist() == particles["row"].values.tolist()  # their own, where they have it


def test_the_voltage_may_be_known_of_particles_only(project):
    edit(project / MICROGRAPHS, "optics", lambda table: table.drop(columns="rlnVoltage"))
    assert {movie.voltage_kV for movie in opened(project).movies} == {200.0}


def test_duplicates_are_told(project):
    assert not [note for note in opened(project).notes if "earlier" in note]
    edit(project / PARTICLES, "particles", lambda table: pd.concat([table, table.iloc[[0, 3]]], ignore_index=True))
    (note,) = (note for note in opened(project).notes if "earlier" in note)
    assert note.startswith("2 of 32 particles lie where an earlier one lies") and "half set" not in note

    def other_half(table):
        table.loc[31, "rlnRandomSubset"] = 3 - table.loc[3, "rlnRandomSubset"]
        return table

    edit(project / PARTICLES, "particles", other_half)
    assert any("1 of them are in the other half set" in note for note in opened(project).notes)


def test_subtracted_particles_are_told(project):
    names = [f"{i + 1:06d}@Subtract/job045/Particles/subtracted_rank1_opticsgroup1.mrcs" for i in range(30)]
    edit(project / PARTICLES, "particles", lambda table: table.assign(rlnImageOriginalName=table["rlnImageName"]))
    assert not opened(project).notes
    edit(project / PARTICLES, "particles", lambda table: table.assign(rlnImageName=names))
    (note,) = opened(project).notes
    assert "30 of 30 particles" in note and "subtracted: movies hold all of it" in note and "--revert" in note


def test_relion_30_files_are_refused_with_the_remedy(project):
    blocks = read_star(project / PARTICLES)
    write_star(project / PARTICLES, {"": blocks["particles"]})
    with pytest.raises(InputError, match=r"before RELION 3.1; convert it \(relion_convert_star --i run_data.star"):
        opened(project)


def test_the_motion_of_one_micrograph_is_no_table_of_micrographs(project):
    with pytest.raises(InputError, match=r"a.star is the motion of one micrograph; give corrected_micrographs.star"):
        open_movies("MotionCorr/job002/Movies/a.star", project)


def test_files_of_tomography_are_told(project):
    write_star(project / MICROGRAPHS, {"global": pd.DataFrame({"rlnTomoName": ["TS_01"], "rlnVoltage": [300.0]})})
    edit(project / PARTICLES, "particles", lambda t: t.rename(columns={"rlnMicrographName": "rlnTomoName"}))
    told = survey(project / PARTICLES, project / MICROGRAPHS, reference(), project).problems
    assert [line.partition(" is of tomography (rlnTomoName)")[0] for line in told] == [
        f"{project / PARTICLES}", f"{project / MICROGRAPHS}",
    ]  # fmt: skip


def test_missing_movies_are_one_line(project):
    for name in ("a", "c"):
        (project / f"Movies/{name}.mrcs").unlink()
    with pytest.raises(
        InputError, match=r"2 of 3 movies not found in .*: Movies/a.mrcs, Movies/c.mrcs; .* root"
    ) as error:
        opened(project)
    assert "\n" not in str(error.value)


def test_a_missing_movie_without_particles_is_only_listed(project):
    edit(project / PARTICLES, "particles", lambda table: table[~table["rlnMicrographName"].str.contains("/c.mrc")])
    (project / "Movies/c.mrcs").unlink()
    data = opened(project)
    assert len(data.movies) == 2
    assert [(skip.row, skip.micrograph) for skip in data.skipped] == [(-1, "MotionCorr/job002/Movies/c.mrc")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda blocks: blocks["general"].pop("rlnMicrographDoseRate"), "has no dose rate; give dose_per_frame_e_A2"),
        (lambda blocks: blocks["general"].update(rlnMicrographDoseRate=-1), "has no dose rate"),
        (lambda blocks: blocks["general"].pop("rlnImageSizeX"), "lacks rlnImageSizeX in data_general"),
        (lambda blocks: blocks["general"].update(rlnImageSizeX="wide"), "not a whole motion STAR file"),
        (lambda blocks: blocks.pop("global_shift"), "has no data_global_shift"),
        (
            lambda blocks: blocks.update(global_shift=blocks["global_shift"].assign(rlnMicrographShiftX=np.nan)),
            "the shift of frame 1 in data_global_shift is not a number; run motion correction again",
        ),
        (
            general("rlnMicrographOriginalPixelSize", 0),
            "rlnMicrographOriginalPixelSize is 0; it has to be above 0: correct it",
        ),
        (
            general("rlnMicrographBinning", 0),
            "b.star: rlnMicrographBinning is 0; it has to be above 0: correct it, or run motion",
        ),
        (general("rlnMicrographBinning", -2), "rlnMicrographBinning is -2; it has"),
        (general("rlnMicrographMovieName", ""), "b.star lacks rlnMicrographMovieName in data_general; give motion"),
        (general("rlnVoltage", 0), "rlnVoltage is 0; it has to be above 0"),
        (
            general("rlnMicrographPreExposure", -3.5),
            "rlnMicrographPreExposure is -3.5, not a dose; give pre_exposure_e_A2",
        ),
        (general("rlnMicrographDoseRate", -2), "rlnMicrographDoseRate is -2, not a dose; give dose_per_frame_e_A2"),
        (
            general("rlnImageSizeZ", 3.5),
            "rlnImageSizeZ is 3.5; it has to be a whole number above 0: correct it, or run motion",
        ),
        (general("rlnImageSizeX", -96), "rlnImageSizeX is -96; it has to be a whole number"),
        (general("rlnMicrographStartFrame", 1.5), "rlnMicrographStartFrame is 1.5; it has to be a whole number"),
        (general("rlnMicrographStartFrame", 0), "rlnMicrographStartFrame is 0; it has to be a whole number"),
        (general("rlnEERGrouping", 0), "rlnEERGrouping is 0; it has to be a whole number"),
        (
            lambda blocks: blocks["global_shift"].__setitem__("rlnMicrographFrameNumber", [1, 1, 2, 3]),
            "frame 1 is in data_global_shift twice; run",
        ),
        (
            general("rlnMicrographPreExposure", np.nan),
            "PreExposure is nan, not a dose; give",
        ),
        (
            lambda blocks: blocks.update(
                hot_pixels=pd.DataFrame({"rlnCoordinateX": [3, np.nan], "rlnCoordinateY": [1, 2]})
            ),
            "row 2 of data_hot_pixels is no place; run motion correction again",
        ),
        (lambda blocks: blocks["general"].update(rlnMotionModelVersion=1), "has 0 coefficients, not 36"),
        (
            lambda blocks: (
                blocks["general"].update(rlnMotionModelVersion=1)
                or blocks.update(
                    local_motion_model=pd.DataFrame(
                        {"rlnMotionModelCoeffsIdx": range(36), "rlnMotionModelCoeff": np.nan}
                    )
                )
            ),
            "data_local_motion_model holds a coefficient that is not a number",
        ),
        (lambda blocks: blocks["general"].update(rlnMicrographStartFrame=9), "StartFrame 9 is not one of its 4"),
        (
            lambda blocks: blocks["general"].update(rlnMicrographGainName="g.mrc"),
            "gain reference g.mrc not found .* .1 m",
        ),
        (lambda blocks: blocks["general"].update(rlnImageSizeX=90), "90"),
    ],
)
def test_each_bad_motion_file_has_its_line(project, change, said):
    blocks = motion_blocks("b")
    change(blocks)
    write_star(project / "MotionCorr/job002/Movies/b.star", blocks)
    with pytest.raises(InputError, match=said) as error:
        opened(project)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("unknown", [-1, ""])
def test_what_relion_was_not_told_is_no_error(project, unknown):
    blocks = motion_blocks("b")
    blocks["general"].update(rlnMicrographPreExposure=unknown, rlnVoltage=unknown, rlnMicrographBinning=unknown)
    write_star(project / "MotionCorr/job002/Movies/b.star", blocks)
    movie = opened(project).movies[1]
    assert (movie.pre_exposure_e_A2, movie.voltage_kV, movie.binning) == (0.0, 200.0, 1.0)


def test_a_dose_that_is_given_wins_over_one_that_is_none(project):
    blocks = motion_blocks("b")
    blocks["general"].update(rlnMicrographPreExposure=-7, rlnMicrographDoseRate=np.nan)
    write_star(project / "MotionCorr/job002/Movies/b.star", blocks)
    movie = opened(project, dose_per_frame_e_A2=2.0, pre_exposure_e_A2=1.0).movies[1]
    assert (movie.dose_per_frame_e_A2, movie.pre_exposure_e_A2) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("block", "label", "value", "said"),
    [
        ("optics", "rlnVoltage", 0, "rlnVoltage must be above 0 in every row of data_optics"),
        ("optics", "rlnVoltage", "high", "rlnVoltage must be above 0"),
        ("micrographs", "rlnMicrographName", "", "row 1 of data_micrographs has no rlnMicrographName; take it out"),
        ("micrographs", "rlnOpticsGroup", 7, "no such group in data_optics for MotionCorr/job002/Movies/a.mrc"),
    ],
)
def test_each_impossible_micrograph_table_has_its_line(project, block, label, value, said):
    edit(project / MICROGRAPHS, block, lambda table: table.assign(**{label: value}))
    with pytest.raises(InputError, match=said) as error:
        opened(project)
    assert "\n" not in str(error.value)


def test_missing_motion_files(project):
    for name in ("a", "b"):
        (project / f"MotionCorr/job002/Movies/{name}.star").unlink()
    with pytest.raises(InputError, match=r"Movies/a.star, the motion .* was not found; .*and 1 more like it"):
        opened(project)
    edit(project / MICROGRAPHS, "micrographs", without("rlnMicrographMetadata"))
    with pytest.raises(InputError, match=r"lacks rlnMicrographMetadata; give corrected_micrographs.star"):
        opened(project)


def other_frame_count(project, name="b", n_frames=3):
    blocks = motion_blocks(name)
    blocks["general"]["rlnImageSizeZ"] = n_frames
    write_star(project / f"MotionCorr/job002/Movies/{name}.star", blocks)


def test_other_frame_counts(project):
    other_frame_count(project)
    with pytest.raises(InputError, match=r"1 of 3 movies do not have 4 frames: b \(3\); use skip_movies_with_wrong"):
        opened(project)
    data = opened(project, skip_movies_with_wrong_frame_count=True)
    assert [movie.micrograph for movie in data.movies] == ["a", "c"] and data.particles.sizes["particle"] == 20
    assert {skip.reason for skip in data.skipped} == {"its movie has 3 frames, most have 4"}
    assert [skip.row for skip in data.skipped] == list(range(1, 30, 3))
    assert [movie.n_frames for movie in opened(project, mixed_frame_counts=True).movies] == [4, 3, 4]
    other_frame_count(project, n_frames=5)  # longer ones, too
    found = opened(project, skip_movies_with_wrong_frame_count=True)
    assert {skip.reason for skip in found.skipped} == {"its movie has 5 frames, most have 4"}


def test_a_movie_too_short_to_follow_motion_in_matters_where_it_has_particles(project):
    other_frame_count(project, "c", 2)
    with pytest.raises(
        InputError, match=r"c.mrcs has 2 frames \(1 movies have fewer than 3\); motion cannot be followed"
    ):
        opened(project, mixed_frame_counts=True)
    edit(project / PARTICLES, "particles", lambda table: table[~table["rlnMicrographName"].str.endswith("c.mrc")])
    assert len(opened(project).movies) == 3


def test_a_movie_shorter_than_its_motion(project):
    path = project / "Movies/c.mrcs"
    other = make_project(project / "other") / "Movies/c.mrcs"
    from refmotion_nb.data.maps import read_map, write_stack

    write_stack(path, read_map(other)[0][:2], 1.0)
    with pytest.raises(InputError, match=r"c.mrcs has 2 frames"):
        opened(project)
    data = opened(project, skip_movies_with_wrong_frame_count=True)
    assert [movie.micrograph for movie in data.movies] == ["a", "b"]
    assert data.skipped[0].reason == "its movie has 2 frames, motion correction saw more"


@pytest.mark.parametrize(
    "path, reason",
    [
        ("Movies/b.mrcs", r"its movie \S*/b.mrcs was not found"),
        (
            "MotionCorr/job002/Movies/b.star",
            r"\S*b.star, the motion STAR file of a micrograph, was not found; give root",
        ),
    ],
)
def test_movies_that_cannot_be_used_may_be_left_out(project, path, reason):
    (project / path).unlink()
    with pytest.raises(
        InputError, match=r"not found.*(b\.mrcs|give root).*; or leave them out by skip_unusable_movies$"
    ):
        opened(project)
    data = opened(project, skip_unusable_movies=True)
    assert [movie.micrograph for movie in data.movies] == ["a", "c"] and data.particles.sizes["particle"] == 20
    assert [skip.row for skip in data.skipped] == list(range(1, 30, 3))
    assert all(re.match(reason, skip.reason) for skip in data.skipped)


def test_movies_left_out_for_like_reasons_are_one_line_wherever_they_are_told(project):
    for name in "ab":
        (project / f"Movies/{name}.mrcs").unlink()
    data = opened(project, skip_unusable_movies=True)
    ((reason, names),) = left_out(data).items()
    assert re.fullmatch(r"its movie \S*/a.mrcs was not found \(and 1 more like it\)", reason) and len(names) == 20
    (noted,) = describe_inputs(data)["skipped"]
    assert noted["reason"] == reason and (noted["particles"], noted["n_micrographs"]) == (20, 2)
    assert dict(check_dataset(data, (), (), "").facts)["left out"] == f"{reason} (20)"


def test_damaged_movies_may_be_left_out_but_not_all(project):
    for name in "abc":
        movie = project / f"Movies/{name}.mrcs"
        movie.write_bytes(movie.read_bytes()[:-100])
        if name != "c":
            with pytest.raises(InputError, match=r"a\.mrcs is truncated.*; or leave them out by skip_unusable_movies$"):
                opened(project)
            assert [movie.micrograph for movie in opened(project, skip_unusable_movies=True).movies] == list(
                "abc"["abc".index(name) + 1 :]
            )
    with pytest.raises(InputError, match=r"a\.mrcs is truncated.* \(and 2 more like it\)$"):  # nothing would be left
        opened(project)
    with pytest.raises(InputError, match=r"none of 3 movies can be used; the first: \S*a\.mrcs"):
        opened(project, skip_unusable_movies=True)


def test_a_gain_that_is_not_there_is_no_reason_to_leave_all_movies_out(project):
    with pytest.raises(InputError, match=r"none\.mrc"):
        opened(project, skip_unusable_movies=True, gain=project / "none.mrc")


def test_a_micrograph_listed_twice(project):
    edit(project / MICROGRAPHS, "micrographs", lambda table: pd.concat([table, table.iloc[[0]]]))
    assert len(opened(project).movies) == 3
    edit(project / MICROGRAPHS, "micrographs", set_to("rlnMicrographMetadata", [3], "MotionCorr/job002/Movies/b.star"))
    with pytest.raises(
        InputError, match=r"lists MotionCorr/job002/Movies/a.mrc twice, with different motion; take one out"
    ):
        opened(project)


def test_particles_without_a_place_are_skipped_with_the_reason(project):
    edit(project / PARTICLES, "particles", set_to("rlnMicrographName", [5], "MotionCorr/job002/Movies/z.mrc"))
    edit(project / PARTICLES, "particles", set_to("rlnCoordinateX", [0, 3], [-30.0, -5.0]))  # the box reaches 20 Å
    data = opened(project)
    assert data.particles.sizes["particle"] == 28 and 3 in data.particles["row"]
    assert [(skip.row, skip.reason) for skip in data.skipped] == [
        (0, "it lies outside its movie"),
        (5, f"its micrograph is not in {project / MICROGRAPHS}"),
    ]


def test_bad_references(project):
    with pytest.raises(InputError, match="half map 2 not found"):
        open_relion(PARTICLES, MICROGRAPHS, dataclasses.replace(reference(), half2=Path("none.mrc")), project)
    with pytest.raises(InputError, match="1 particle files for 2 references"):
        open_relion(PARTICLES, MICROGRAPHS, [reference(), reference()], project)
    with pytest.raises(InputError, match="no reference given"):
        open_relion(PARTICLES, MICROGRAPHS, [], project)


def test_several_references(project):
    edit(project / PARTICLES, "optics", lambda table: table.assign(rlnImagePixelSize=5.0))
    write_star(project / "second.star", {**read_star(project / PARTICLES), "optics": optics()})
    data = open_relion([PARTICLES, "second.star"], MICROGRAPHS, [reference(), reference()], project)
    assert data.particles["reference"].values.tolist() == [0] * 30 + [1] * 30
    assert data.particles["optics"].values.tolist() == [0] * 30 + [1] * 30
    assert [one.pixel_size_A for one in data.optics] == [5.0, 2.5] and len(data.tables) == 2


def test_older_origins_in_pixels(project):
    def older(table):
        return table.rename(columns={"rlnOriginXAngst": "rlnOriginX", "rlnOriginYAngst": "rlnOriginY"})

    new = opened(project)
    edit(project / PARTICLES, "particles", older)
    np.testing.assert_allclose(opened(project).particles["origin"], new.particles["origin"] * 2.5)


def test_matching_ignores_job_folders():
    assert strip_job("MotionCorr/job002/Movies/a.mrc") == "Movies/a.mrc"
    assert strip_job("/home/x/CtfFind/job0123/a.mrc") == "a.mrc"
    assert strip_job("MotionCorr/Movies/a.mrc") == "MotionCorr/Movies/a.mrc"
    listed = ["MotionCorr/job002/M/a.mrc", "MotionCorr/job002/M/b.mrc", "MotionCorr/job009/M/b.mrc"]
    wanted = ["CtfFind/job003/M/a.mrc", "CtfFind/job003/M/b.mrc", "MotionCorr/job009/M/b.mrc", "M/a.mrc"]
    assert match_micrographs(wanted, listed) == {wanted[0]: 0, wanted[2]: 2, wanted[3]: 0}


def test_short_names_are_unique():
    assert short_names(["J/job001/M/a.mrc", "J/job001/M/b.x.mrc"]) == ["a", "b.x"]
    assert short_names(["J/job001/M/a.mrc", "J/job001/N/a.mrc"]) == ["M_a", "N_a"]
    assert short_names(["J/job001/M/a.mrc", "J/job002/M/a.mrc"]) == ["J_job001_M_a", "J_job002_M_a"]
    # one name within the job, and another's base name
    assert short_names(["J/job001/M/x_a.mrc", "J/job001/x/a.mrc", "J/job001/y/a.mrc"]) == ["x_a", "x_a_2", "y_a"]
    assert short_names(["M/a.tif", "M/a.tif"]) == ["M_a", "M_a_2"]  # imported twice
    # none is hidden
    assert short_names(["../A/a.tif", "../B/a.tif", "M/.b.tif", "M/.."]) == ["_A_a", "_B_a", "b", "_"]


def test_survey_goes_on_after_the_first_problem(project):
    (project / "Movies/a.mrcs").unlink()
    edit(project / PARTICLES, "particles", set_to("rlnAngleTilt", [2], np.nan))
    other_frame_count(project)
    missing = dataclasses.replace(reference(), half2=Path("no-half.mrc"), mask=Path("none.mrc"))
    check = survey(PARTICLES, MICROGRAPHS, missing, project)
    assert not check.ok and len(check.problems) == 5
    text = str(check)
    for part in ("rlnAngleTilt", "1 of 3 movies not found", "do not have 4 frames", "half map 2 not found",
                 "mask not found", "Not ready"):  # fmt: skip
        assert part in text
    assert max(map(len, text.splitlines())) <= 118 + len(str(project))


def test_survey_of_nothing(tmp_path):
    check = survey(tmp_path / "a.star", tmp_path / "b.star")
    assert len(check.problems) == 2 and "none" in str(check)


def test_survey_of_a_whole_project(project):
    check = survey(PARTICLES, MICROGRAPHS, reference(), project)
    assert check.ok and "Ready to process." in str(check)


def test_survey_of_real_metadata(test_data):
    folder = test_data / "relion_tutorial_10204"
    check = survey(folder / "Refine3D/job025/run_data.star", folder / "MotionCorr/job002/corrected_micrographs.star")
    data = check.dataset
    assert len(data.movies) == 24 and data.particles.sizes["particle"] == 4501 and not data.skipped
    assert len(check.problems) == 2  # the movies and their gain reference, each in one line
    assert check.problems[0].startswith("24 of 24 movies not found") and "Movies/gain.mrc" in check.problems[1]
    group = data.optics[0]
    assert (
        len(group.odd_zernike) == 6 and len(group.even_zernike) == 9 and group.magnification[0] == (1.002162, 0.001487)
    )
    np.testing.assert_allclose(data.particles["coordinate"][0], np.array([675.717651, 135.74706]) * 0.885)
    assert all(movie.local_motion is not None and len(movie.hot_pixels) > 50 for movie in data.movies)


def test_opens_a_real_project(test_data):
    maps = Reference(Path("Ref/half1.mrc"), Path("Ref/half2.mrc"), Path("Ref/mask.mrc"), Path("Ref/postprocess.star"))
    data = open_relion(
        "Extract/particles.star", "MotionCorr/corrected_micrographs.star", maps, test_data / "apoferritin"
    )
    truth = np.load(test_data / "apoferritin/truth.npz")
    for movie, part in data.micrographs():
        assert set(map(tuple, movie.hot_pixels)) == set(map(tuple, truth[f"{movie.micrograph}_hot"]))
        from_truth = part["coordinate"].values - truth[f"{movie.micrograph}_pos"] * movie.pixel_size_A
        assert len(from_truth) == 38 if movie.micrograph == "mic0000" else len(from_truth) >= 35
        assert np.ptp(from_truth, axis=0).max() < 8  # picked on the aligned sum: all moved by about the same
