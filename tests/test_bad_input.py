"""Input that cannot be used: one line that names the file and the remedy, exit code not 0, nothing half-written."""

import re

import mrcfile
import numpy as np
import pytest
import tifffile
from job import GIVEN, copied, error_A, held_by_another, inputs, left_behind, run, said, store, tracks
from relion_project import edit

from refmotion_nb.cli import main
from refmotion_nb.data.maps import read_map, write_map
from refmotion_nb.data.star import read_star

PARTICLES = "Extract/particles.star"
MOVIE = "Movies/mic0001.tif"
MOTION = "MotionCorr/Movies/mic0001.star"


@pytest.fixture
def project(tiny, tmp_path):
    return copied(tiny.folder, tmp_path)


# each spoils a project in one way


def particles(change):
    return lambda root: edit(root / PARTICLES, "particles", change)


def volume(name, change, pixel_size_A=None):
    def spoil(root):
        values, pixel = read_map(root / "Ref" / name)
        write_map(root / "Ref" / name, change(values), pixel_size_A or pixel)

    return spoil


def put_nan(values):
    values[3, 4, 5] = np.nan
    return values


def smaller(values):
    return values[8:-8, 8:-8, 8:-8]


def same(values):
    return values


def other_scale(root):
    for name in ("half1.mrc", "half2.mrc", "mask.mrc"):
        volume(name, same, 1.0)(root)


def truncate(root):
    content = (root / MOVIE).read_bytes()
    (root / MOVIE).write_bytes(content[: len(content) // 2])


def gain_of(shape, name="gain.mrc"):
    def write(root):
        with mrcfile.new(root / name, np.ones(shape, np.float32), overwrite=True):
            pass

    return write


narrow_gain = gain_of((100, 512))


def float_movie(change, name="mic0001"):
    """Give the movie in 32-bit floating point, changed."""

    def spoil(root):
        frames = tifffile.imread(root / f"Movies/{name}.tif")[:, ::-1].astype(np.float32)
        with mrcfile.new(root / f"Movies/{name}.mrcs", np.zeros_like(frames)) as file:
            change(frames)
            file.data[...] = frames
        motion = root / f"MotionCorr/Movies/{name}.star"
        edit(motion, "general", lambda general: general.update(rlnMicrographMovieName=f"Movies/{name}.mrcs"))

    return spoil


def nan_in_frame_4(frames):
    frames[3, 100:300, 100:300] = np.nan


def no_counts(frames):
    frames[:] = 0


def nan_everywhere(root):
    for name in ("mic0000", "mic0001"):
        float_movie(nan_in_frame_4, name)(root)


def shorter_file(root):
    tifffile.imwrite(root / MOVIE, tifffile.imread(root / MOVIE)[:6])


def shorter(root):
    shorter_file(root)
    edit(root / MOTION, "general", lambda general: general.update(rlnImageSizeZ=6))
    edit(root / MOTION, "global_shift", lambda table: table.iloc[:6])


BAD = {
    "missing movie": (
        lambda root: (root / MOVIE).unlink(),
        "1 of 2 movies not found in .*: Movies/mic0001.tif; .*root",
    ),
    "truncated movie": (truncate, "mic0001.tif is truncated: .*; copy it again"),
    "gain of the wrong shape": (
        narrow_gain,
        r"gain.mrc: the gain reference is 100 × 512 .* frames are 512 × 512: give",
    ),
    "missing gain": (lambda root: (root / "gain.mrc").unlink(), r"gain reference gain.mrc not found .*; put it there"),
    "half maps of different size": (volume("half2.mrc", smaller), "half2.mrc has 96 × 96 × 96 voxels, .* 112 .*; give"),
    "half maps of different pixel size": (volume("half2.mrc", same, 1.7), "half2.mrc has 1.7 Å/px, .* 1.6; correct"),
    "maps of another pixel size": (
        other_scale,
        r"half1.mrc has 1 Å/px .* particles 1.6 .*movies of 1.6 Å/px.; correct",
    ),
    "half maps the same": (
        lambda root: (root / "Ref/half2.mrc").write_bytes((root / "Ref/half1.mrc").read_bytes()),
        "half1.mrc and .*half2.mrc are the same; give one of each",
    ),
    "mask above 1": (volume("mask.mrc", lambda v: 3 * v), "mask .*mask.mrc goes from 0 to 3; give a mask between"),
    "mask below 0": (volume("mask.mrc", lambda v: v - 1), "mask .*mask.mrc goes from -1 to 0; give a mask between"),
    "mask of another box": (volume("mask.mrc", smaller), "mask.mrc has 96 × 96 × 96 voxels, half map 1 112"),
    "empty mask": (volume("mask.mrc", lambda v: 0 * v), "mask .*mask.mrc is zero everywhere; make it again"),
    "missing half map": (lambda root: (root / "Ref/half1.mrc").unlink(), "half map 1 not found: .*half1.mrc; check"),
    "a picture for a half map": (
        lambda root: (root / "Ref/half2.mrc").write_bytes(b"\x89PNG no map" * 500),
        "half2.mrc is not an MRC map: .*; check the file",
    ),
    "NaN in a half map": (volume("half1.mrc", put_nan), "half1.mrc holds values that are not numbers; make it again"),
    "no half sets": (
        particles(lambda t: t.drop(columns="rlnRandomSubset")),
        "lacks rlnRandomSubset .*; give the run_d",
    ),
    "no poses": (
        particles(lambda t: t.drop(columns="rlnAnglePsi")),
        "particles.star lacks rlnAnglePsi in .*; give the",
    ),
    "one half set only": (
        particles(lambda t: t.assign(rlnRandomSubset=1)),
        "all particles are of half set 1; give both",
    ),
    "micrographs not listed": (
        particles(lambda t: t.assign(rlnMicrographName="MotionCorr/Movies/other.mrc")),
        r"no particle can be used: its micrograph is not in .*star .24.; give the micrographs",
    ),
    "empty selection": (particles(lambda t: t.iloc[:0]), "particles.star holds no particles; give a selection"),
    "NaN in all movies": (nan_everywhere, "mic0000.mrcs: frame 4 has 40000 values that are not finite, .*; write"),
    "movie shorter than its motion": (shorter_file, "mic0001.tif has 6 frames, but frames 1 to 8 .*skip movies"),
    "frame counts": (
        shorter,
        r"1 of 2 movies do not have 8 frames: mic0001 .6.; use skip_movies_with_wrong_frame_count",
    ),
}


@pytest.mark.filterwarnings("ignore:Data array contains NaN:RuntimeWarning")
@pytest.mark.parametrize("name", BAD)
def test_one_line_and_nothing_half_written(project, name, capsys):
    spoil, expected = BAD[name]
    spoil(project)
    assert run(project, project / "out", *GIVEN) == 1
    lines = said(capsys)
    assert len(lines) == 1 and re.search(expected, lines[0]), lines
    given = {"hyperparameters.json", "results.zarr/search/.zattrs", "results.zarr/search/.zgroup"}  # the values given
    assert set(left_behind(project / "out")) <= given
    if "results.zarr" not in {path.name for path in (project / "out").glob("*")}:  # nothing was begun
        assert not (project / "out").exists()


def test_a_refused_run_adds_nothing_to_the_log_of_another(project, capsys):
    out = project / "out"
    out.mkdir()
    with held_by_another(out):
        (out / "run.log").write_text("mine\n")
        assert run(project, out, *GIVEN) == 1
        BAD["truncated movie"][0](project)
        assert run(project, out, *GIVEN) == 1
    assert len(said(capsys)) == 2 and (out / "run.log").read_text() == "mine\n" and len(list(out.iterdir())) == 1


@pytest.mark.parametrize("name", ["hyperparameters", "dose-weights"])
def test_a_file_of_another_run_that_is_missing_leaves_no_folder(tiny, tmp_path, name, capsys):
    out = tmp_path / "deep/er/out"
    assert run(tiny.folder, out, f"--{name}", str(tmp_path / "none.json")) == 1
    assert len(said(capsys)) == 1 and not (tmp_path / "deep").exists()
    micrographs = ["micrographs", "--micrographs", str(tiny.micrographs), "--root", str(tiny.folder), "--out", str(out)]
    assert main([*micrographs, "--dose-weights", str(tmp_path / "none.nc")]) == 1
    assert len(said(capsys)) == 1 and not (tmp_path / "deep").exists()


def test_a_folder_in_place_of_a_file_is_told_by_its_name(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "hyperparameters.json").mkdir(parents=True)
    assert run(tiny.folder, out, *GIVEN) == 1
    assert said(capsys) == [f"{out}/hyperparameters.json: Is a directory; check the path"]


@pytest.mark.parametrize("name", ["particles.star", "Particles/mic0000.mrcs", "report.html"])
def test_files_of_others_are_not_overwritten(tiny, tmp_path, name, capsys):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    assert run(tiny.folder, tmp_path, *GIVEN) == 1
    assert said(capsys) == [f"{tmp_path / name} is of no earlier run and might be overwritten; move it elsewhere, or choose "
                            "another --out"]  # fmt: skip
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_micrographs_of_others_are_not_overwritten(tiny, tmp_path, capsys):
    (tmp_path / "corrected_micrographs.star").write_text("mine")
    given = ["micrographs", "--micrographs", str(tiny.micrographs), "--root", str(tiny.folder)]
    assert main([*given, "--out", str(tmp_path)]) == 1
    assert len(lines := said(capsys)) == 1 and "corrected_micrographs.star is of no earlier run" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["corrected_micrographs.star"]


def test_several_problems_are_one_line_each(project, capsys):
    for name in ("missing movie", "one half set only", "mask of another box"):
        BAD[name][0](project)
    assert run(project, project / "out", *GIVEN) == 1
    lines = said(capsys)
    assert len(lines) == 3 and len({line.split(";")[-1] for line in lines}) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing movie", "1 of 2 movies not found"),
        ("NaN in a half map", "not numbers"),
        ("empty mask", "zero everywhere"),
    ],
)
def test_check_tells_and_changes_nothing(project, name, expected, capsys):
    BAD[name][0](project)
    before = sorted(project.rglob("*"))
    assert main(["check", *inputs(project)]) == 1
    text = " ".join(capsys.readouterr().out.split())  # lines are broken
    assert expected in text and "Not ready" in text and "Problems (1)" in text
    assert sorted(project.rglob("*")) == before


# one movie of several: the others are done, it is named, and its particles stand in the table


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (nan_in_frame_4, "mic0001.mrcs: frame 4 has 40000 values that are not finite"),
        (no_counts, "mic0001.mrcs holds no"),
    ],
)
def test_one_bad_movie_does_not_stop_the_others(project, spoil, expected, capsys):
    float_movie(spoil)(project)
    out = project / "out"
    assert run(project, out) == 1
    output = capsys.readouterr().err
    warned = [line for line in output.splitlines() if line.startswith("warning: mic0001: ")]
    assert len(warned) == 1 and expected in warned[0] and "refmotion: not everything was written" in output
    assert list(tracks(out)) == ["mic0000"] and [p.name for p in (out / "Particles").iterdir()] == ["mic0000.mrcs"]
    table = store(out).read("particles")
    mine = table["micrograph"].values == "mic0001"
    assert mine.sum() == 12 and not table["written"].values[mine].any() and table["written"].values[~mine].all()
    assert all(expected in reason for reason in table["reason"].values[mine])
    assert len(read_star(out / "particles.star")["particles"]) == 12
    assert "mic0001" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("energy", ["calibrated", "relion"])
def test_movies_that_fail_before_the_last_stage_are_told_too(project, energy, capsys):
    float_movie(no_counts)(project)
    assert run(project, project / "out", *GIVEN, "--until", "dose-weights", "--energy", energy) == 1
    assert "warning: mic0001: " in capsys.readouterr().err


def test_one_particle_without_counts_leaves_the_others_to_be_corrected_by_the_energy_of_relion(project):
    rows = read_star(project / PARTICLES)["particles"]
    first = rows[rows["rlnMicrographName"].str.contains("mic0001")].iloc[0]
    x, y = int(first["rlnCoordinateX"]), int(first["rlnCoordinateY"])

    def nothing_there(frames):
        frames[:, max(0, y - 75) : y + 75, max(0, x - 75) : x + 75] = 0

    float_movie(nothing_there)(project)
    assert run(project, project / "out", *GIVEN, "--energy", "relion") == 0
    assert all(np.isfinite(found).all() for found in tracks(project / "out").values())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shorter, "its movie has 6 frames, most have 8"),
        (shorter_file, "its movie has 6 frames, motion correction saw more"),
    ],
)
def test_movies_with_another_frame_count_are_skipped_if_asked_for(project, tiny, spoil, reason):
    spoil(project)
    out = project / "out"
    assert run(project, out, *GIVEN, "--skip-movies-with-wrong-frame-count") == 0
    table = store(out).read("particles")
    left = ~table["written"].values
    assert left.sum() == 12 and set(table["reason"].values[left]) == {reason}
    assert table["micrograph"].values[left].tolist() == ["MotionCorr/Movies/mic0001.mrc"] * 12
    found = tracks(out)
    assert list(found) == ["mic0000"] and error_A(found, tiny.truth()) < tiny.rigid_error_A


def test_particles_near_the_edge_are_kept_and_those_beyond_it_listed(project, capsys):
    def move(table):
        table.loc[0, "rlnCoordinateX"] = 3.0
        table.loc[1, "rlnCoordinateY"] = 5000.0
        table.loc[2, ["rlnCoordinateX", "rlnOriginXAngst"]] = 2.0, 8.0

    edit(project / PARTICLES, "particles", move)
    out = project / "out"
    assert run(project, out, *GIVEN) == 0
    table = store(out).read("particles")
    assert table["written"].values[0] and table["reason"].values[1] == "it lies outside its movie"
    assert table["written"].values.sum() == 23
    told = capsys.readouterr().err
    assert re.search("left out +1: it lies outside its movie\n", told)
    assert (
        "1 of 23 particles have their centres outside their movies (the first: row 3 of its file, on mic0000)" in told
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("narrow.mrc", r"narrow.mrc: the gain reference is 100 × 512"), ("defects.txt", "line 1: the defect")],
)
def test_a_camera_that_does_not_fit_is_told_before_earlier_results_are_touched(project, name, expected, capsys):
    out = project / "out"
    assert run(project, out, *GIVEN) == 0
    before = {name: (out / name).read_bytes() for name in left_behind(out)}
    gain_of((100, 512), "narrow.mrc")(project)
    (project / "defects.txt").write_text("9000 0 1 1\n")
    key = {"narrow.mrc": "rlnMicrographGainName", "defects.txt": "rlnMicrographDefectFile"}[name]
    gain_of((512, 512), "flat.mrc")(project)
    for motion in (project / "MotionCorr/Movies").glob("*.star"):
        edit(motion, "general", lambda general: general.update({"rlnMicrographGainName": "flat.mrc", key: name}))
    capsys.readouterr()
    assert run(project, out, *GIVEN) == 1
    assert len(lines := said(capsys)) == 1 and re.search(expected, lines[0]), lines
    assert {name: (out / name).read_bytes() for name in left_behind(out)} == before


# what is asked for


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--spatial-strength", "1"], "correlation_distance, acceleration_strength not given; give all three"),
        (["--s-vel", "1", "--s-acc", "2"], "s_div not given; give all three of s_vel, s_div, s_acc"),
        (
            [*GIVEN, "--s-vel", "1", "--s-div", "5000", "--s-acc", "2"],
            "both as strengths and in RELION's units; give one",
        ),
        ([*GIVEN, "--hyperparameters", "other.json"], "both as values and as a file; give one"),
        (["--hyperparameters", "missing.json"], "missing.json does not"),
        (
            ["--hyperparameters", "LIST"],
            "list.json does not hold hyperparameters; give the hyperparameters.json of a run",
        ),
        (["--hyperparameters", "/dev/null"], "does not hold hyperparameters; give the hyperparameters.json of a run"),
        ([*GIVEN, "--dose-weights", "missing.nc"], "missing.nc does not exist"),
        (
            [*GIVEN, "--fourier-crop-to", "113"],
            "fourier_crop_to 113: the box in movie pixels is 112; give an even number",
        ),
        ([*GIVEN, "--fourier-crop-to", "61"], "fourier_crop_to 61: .*; give an even number"),
        (["--max-strength", "-1"], "--max-strength is -1; give a number above 0.1"),
        (["--alignment-fraction", "2"], "--alignment-fraction is 2; give a number above 0, up to 1"),
        (["--alignment-fraction", "0"], "--alignment-fraction is 0; give a number above 0, up to 1"),
        (["--threads", "-1"], "--threads is -1; give a whole number from 0"),
        (["--window-reach-A", "0.5"], "--window-reach-A is 0.5; give a number from 1 to 200"),
        (["--spatial-strength", "inf"], "--spatial-strength is inf; give a number from 0"),
        (
            ["--dose-per-frame-e-A2", "1e9"],
            r"mic0000.tif would have had 8e\+09 e/Å² .*; give .* \(and 1 more like it\)",
        ),
        (["--pre-exposure-e-A2", "3000"], r"mic0000.tif would have had 3032 e/Å² .*; give .* \(and 1 more like it\)"),
        (["--first-frame", "0"], "--first-frame is 0; give a whole number from 1"),
        (
            ["--s-vel", "1e300", "--s-div", "5000", "--s-acc", "1e300"],
            "s_vel .* and s_acc .* are strengths of 0; give smaller ones",
        ),
        (
            ["--s-vel", "0.5", "--s-div", "5000", "--s-acc", "1e-300"],
            "s_acc 1e-300 is a strength of inf; give a larger one",
        ),
        (["--device", "cuda"], "device cuda: .*refmotion-nb.cuda12.*, or give cpu or auto"),
        (["--gain", "no-gain.mrc"], "no-gain.mrc.* not found .*; put it there, or give gain"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_settings_that_make_no_sense(tiny, tmp_path, options, expected, capsys):
    (tmp_path / "list.json").write_text("[1, 2]")
    options = [option.replace("LIST", f"{tmp_path}/list.json") for option in options]
    assert run(tiny.folder, tmp_path / "out", *options) == 1
    lines = said(capsys)
    assert len(lines) == 1 and re.search(expected, lines[0]), lines
    assert not [name for name in left_behind(tmp_path / "out") if name.startswith(("Particles", "particles", "Tracks"))]


def test_an_output_that_is_no_folder(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tiny.folder, tmp_path / "file") == 1
    assert said(capsys) == [f"{tmp_path}/file is not a folder; check the path, or choose another --out"]


def test_an_unknown_symmetry(tiny, tmp_path, capsys):
    assert run(tiny.folder, tmp_path / "out", *GIVEN, "--until", "validate", "--symmetry", "Q7") == 1
    lines = said(capsys)
    assert len(lines) == 1 and "Q7" in lines[0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "no half maps; give --half1, --half2 and --mask, or --fsc postprocess.star"),
        (["--half1", "a.mrc"], "1 --half1 but 0 --half2; give both of every reference"),
        (
            ["--half1", "a.mrc", "--half2", "b.mrc", "--mask", "c.mrc", "--mask", "d.mrc"],
            "2 --mask for 1 references; give",
        ),
        (["--half1", "a.mrc", "--half2", "b.mrc"] * 2, "1 particle files for 2 references; give one for each"),
    ],
)
def test_references_that_are_not_given(tiny, tmp_path, more, expected, capsys):
    assert main(["run", *inputs(tiny.folder)[:6], *more, "--out", str(tmp_path / "out")]) == 1
    assert expected in "\n".join(said(capsys))
    assert not left_behind(tmp_path / "out")


@pytest.mark.parametrize(
    "words", [["run"], ["fly"], ["run", "--until", "tomorrow"], [], ["simulate", "--out", "x", "--seed", "y"]]
)
def test_command_lines_that_cannot_be_read(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and re.fullmatch(r"refmotion: .*; usage: refmotion( [a-z]+)? --help", line)


@pytest.mark.parametrize(
    ("words", "command"),
    [(["check", "--particles", "a", "b"], "refmotion check"), (["--no-recenter", "run"], "refmotion")],
)
def test_words_that_no_command_takes(words, command, capsys):
    with pytest.raises(SystemExit):
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"refmotion: unrecognized arguments: .*; usage: {command} --help", line)


@pytest.mark.parametrize("option", ["--out", "--root", "--hyperparameters"])
def test_an_empty_path_is_not_the_current_folder(tiny, tmp_path, monkeypatch, option, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(tiny.folder, tmp_path / "out", option, "")
    assert stop.value.code == 2 and f"argument {option}: is empty; give a path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["run", "simulate", "demo"])
def test_an_output_that_cannot_be_written(tiny, tmp_path, command, capsys):
    (tmp_path / "file").write_text("a file where a folder should be")
    more = inputs(tiny.folder) if command == "run" else []
    assert main([command, *more, "--out", str(tmp_path / "file" / "out")]) == 1
    lines = said(capsys)
    assert (
        len(lines) == 1
        and "file/out cannot be written to (Not a directory); check the path, or choose another --out" in lines[0]
    )


@pytest.mark.parametrize("what", ["particles", "link", "micrographs", "half map 1", "movie"])
def test_an_output_folder_where_an_input_would_be_overwritten(project, what, capsys):
    out = project / {"particles": "Extract", "link": "out", "micrographs": "MotionCorr"}.get(what, "out")
    if what == "link":
        out.mkdir()
        (project / PARTICLES).rename(out / "particles.star")
        (project / PARTICLES).symlink_to(out / "particles.star")
    elif what == "half map 1":
        (out / "Maps").mkdir(parents=True)
        (project / "Ref/half1.mrc").rename(out / "Maps/half1.mrc")
        (project / "Ref/half1.mrc").symlink_to(out / "Maps/half1.mrc")
    elif what == "movie":
        (out / "Micrographs").mkdir(parents=True)
        (project / MOVIE).rename(out / "Micrographs/mic0001.mrc")
        edit(project / MOTION, "general", lambda one: {**one, "rlnMicrographMovieName": "out/Micrographs/mic0001.mrc"})
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    if what in ("micrographs", "movie"):
        table = str(project / "MotionCorr/corrected_micrographs.star")
        assert main(["micrographs", "--micrographs", table, "--root", str(project), "--out", str(out)]) == 1
    else:
        assert run(project, out, *GIVEN) == 1
    (line,) = said(capsys)
    named = "particles" if what == "link" else what
    assert f" ({named}) is read and would be overwritten; move it elsewhere, or choose another --out" in line
    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and path.name != "run.log"}
    assert after == before


def test_weights_that_end_before_the_movie_does(tiny, project, capsys):
    short = project / "weights"
    shorter(project)
    edit(project / PARTICLES, "particles", lambda t: t[t["rlnMicrographName"].str.contains("mic0001")])
    assert run(project, short, *GIVEN, "--until", "dose-weights") == 0
    out = project / "out"
    assert run(tiny.folder, out, *GIVEN, "--dose-weights", f"{short}/dose_weights.nc") == 1
    lines = said(capsys)
    assert len(lines) == 1 and "weights are for 0 to 24 e/Å², the movie has 0 to 32; measure" in lines[0]
    assert "mic0000" in lines[0] and not (out / "Particles").exists()


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("--dose-weights", "weights.nc", "weights.nc does not exist; check the path"),
        ("--dose-weights", "Extract", "Extract is a folder; give a file in it"),
        ("--hyperparameters", "gain.mrc", "gain.mrc"),
    ],
)
def test_files_of_another_run_are_looked_at_before_any_movie(
    tiny, tmp_path, monkeypatch, option, name, expected, capsys
):
    monkeypatch.setattr("refmotion_nb.stages.session.load_micrograph", None)  # reading a movie would be a TypeError
    assert run(tiny.folder, tmp_path / "out", option, str(tiny.folder / name)) == 1
    assert len(lines := said(capsys)) == 1 and expected in lines[0]
