"""Parameters of what is read: declared once, each of them changes the result as it should, nonsense is refused."""

import inspect
import os
import re
from collections import Counter
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import xarray as xr
from cryosparc_project import convert
from job import GIVEN, copied, error_A, inputs, left_behind, run, said, store, tracks
from relion_project import edit
from two_frame_counts import with_two_frame_counts

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.data.maps import write_stack
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.micrographs import Options
from refmotion_nb.data.schema import Gain, InputError
from refmotion_nb.data.synthetic.simulate import SimulationSettings, simulate
from refmotion_nb.stages.alignment import MotionPrior
from refmotion_nb.stages.inputs import GAIN, Inputs

PRIOR = MotionPrior(rm.Hyperparameters.from_strengths(1.5, 3000, 2), 0.5)
HYPERPARAMETERS = {"spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0}


def names():
    return [name for name in Inputs.param if name != "name"]


def opened(folder, **more):
    reference = rm.Reference(*(folder / f"Ref/{name}.mrc" for name in ("half1", "half2", "mask")))
    return rm.open_relion(
        folder / "Extract/particles.star", folder / "MotionCorr/corrected_micrographs.star", reference, folder, **more
    )


# declared once


@pytest.mark.parametrize("function", [rm.open_relion, rm.open_cryosparc])
def test_arguments_are_the_parameters(function):
    """Every parameter is a keyword of both programs' functions, with the same default; a gain is one object there."""
    keywords = {k: p.default for k, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    declared = {n: Inputs.param[n].default for n in names() if n not in GAIN[1:]}
    if function is rm.open_relion:
        del declared["orientation"]
    assert keywords == declared
    shared = {name: default for name, default in declared.items() if name != "orientation"}
    assert shared == {f: getattr(Options(), f) for f in shared} and set(Inputs().arguments()) == set(shared)


@pytest.mark.parametrize("command", ["run", "check"])
def test_every_parameter_is_an_option(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for name in names():
        assert f"--{name.replace('_', '-')}" in text, name
    assert text.startswith(f"usage: refmotion {command} --particles PARTICLES ")
    assert "Default: on." in text and not re.search(r"Default: (True|False|\.|\d+\.0\.)", text)


def test_options_reach_the_movies(tiny, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("refmotion_nb.cli.check.survey", lambda *files, **options: seen.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["check", *inputs(tiny.folder), "--dose-per-frame", "2", "--pre-exposure", "3.5", "--first-frame", "2",
              "--gain", "g.mrc", "--gain-flip-x", "--gain-rotate", "3", "--no-gain-invert", "--no-subtract-background",
              "--hot-pixel-threshold", "8"])  # fmt: skip
    assert seen["gain"] == Gain(seen["gain"].path, True, False, 3, False) and seen["gain"].path.name == "g.mrc"
    assert (seen["dose_per_frame_e_A2"], seen["pre_exposure_e_A2"], seen["first_frame"]) == (2.0, 3.5, 2)
    assert (
        seen["subtract_background"] is False
        and seen["hot_pixel_threshold"] == 8
        and seen["mixed_frame_counts"] is False
    )


def test_opening_is_told_where_it_takes_a_while(tiny, capsys, monkeypatch):
    assert main(["check", *inputs(tiny.folder)]) == 0 and capsys.readouterr().err == ""
    monkeypatch.setattr("refmotion_nb.cli.inputs.PATIENCE_S", 0.0)
    assert main(["check", *inputs(tiny.folder)]) == 0
    told = capsys.readouterr()
    assert "opening the input: " in told.err and " files" in told.err and "opening" not in told.out


def test_a_movie_is_opened_twice_to_be_checked(tiny, monkeypatch):
    paths, system = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *how: paths.append(str(path)) or system(path, *how))
    assert len(opened(tiny.folder).movies) == 2
    assert Counter(paths)[str(tiny.folder / "Movies/mic0001.tif")] == 2  # packed or not; its header


# each changes the result


def weights(folder, out, *more):
    assert run(folder, out, *GIVEN, "--until", "dose-weights", *more) == 0
    return store(out).read("dose_weights")


def test_doses(tiny, tmp_path):
    as_written = weights(tiny.folder, tmp_path / "a")
    other = weights(tiny.folder, tmp_path / "b", "--dose-per-frame", "1.5", "--pre-exposure", "10")
    np.testing.assert_allclose(as_written["dose"].values.ravel(), 4 * (np.arange(8) + 0.5))
    np.testing.assert_allclose(other["dose"].values.ravel(), 10 + 1.5 * (np.arange(8) + 0.5))


def test_a_gain_that_is_given(tiny, tmp_path):
    """A gain that lies otherwise: turned and mirrored back, nothing changes; left as it is, much does."""
    project = copied(tiny.folder, tmp_path)
    gain = mrcfile.read(project / "gain.mrc")
    turned = np.ascontiguousarray(np.rot90(gain)[:, ::-1])
    with mrcfile.new(project / "turned.mrc") as file:
        file.set_data(turned)
    back = [
        (x, y, turns) for x in (False, True) for y in (False, True) for turns in range(4)
        if np.array_equal(np.rot90(turned, -turns)[:: -1 if y else 1, :: -1 if x else 1], gain)
    ]  # fmt: skip
    assert back  # clockwise turns before mirrors, as the options say
    found = {}
    for name, given in {
        "own": None,
        "back": Gain(project / "turned.mrc", *back[0]),
        "as it is": project / "turned.mrc",
    }.items():
        assert rm.Job(opened(project, gain=given), tmp_path / name, dict(HYPERPARAMETERS)).run()
        found[name] = tracks(tmp_path / name)
    for name, track in found["own"].items():
        np.testing.assert_array_equal(track, found["back"][name])
        assert np.abs(track - found["as it is"][name]).max() > 0.1


def test_movies_of_two_frame_counts(tiny, tmp_path, capsys):
    project = with_two_frame_counts(tiny.folder, tmp_path / "project")
    assert run(project, tmp_path / "out", *GIVEN) == 1
    assert (
        "mic0001 (6); use skip_movies_with_wrong_frame_count to leave them out, or mixed_frame_counts to"
        in said(capsys)[0]
    )
    assert main(["check", *inputs(project), "--mixed-frame-counts"]) == 0
    assert "1 of 512 × 512 px, 6 frames" in capsys.readouterr().out
    assert run(project, tmp_path / "out", *GIVEN, "--skip-movies-with-wrong-frame-count") == 0
    assert list(tracks(tmp_path / "out")) == ["mic0000"]


@pytest.fixture(scope="module")
def cryosparc(tiny, tmp_path_factory):
    return convert(tiny.folder, tmp_path_factory.mktemp("cs"), "relion")


def cryosparc_error(tiny, given, out, **more):
    data = rm.open_cryosparc(**given, orientation="relion", **more)
    assert rm.Job(data, out, dict(HYPERPARAMETERS)).run()
    return error_A(tracks(out), tiny.truth()), data


def test_hot_pixels_are_found_where_none_are_listed(tiny, cryosparc, tmp_path):
    """A CryoSPARC project lists none: found, they are replaced as those that RELION lists for the same movies."""
    left, data = cryosparc_error(tiny, cryosparc, tmp_path / "left", hot_pixel_threshold=0.0)
    found, other = cryosparc_error(tiny, cryosparc, tmp_path / "found")
    assert all(movie.hot_pixel_threshold == 6 and not len(movie.hot_pixels) for movie in other.movies)
    assert rm.Session(data).keys.all != rm.Session(other).keys.all
    images, theirs = {}, opened(tiny.folder, subtract_background=False)  # the converted project's is flat
    assert all(movie.hot_pixel_threshold == 0 and len(movie.hot_pixels) == 3 for movie in theirs.movies)
    assert rm.Job(theirs, tmp_path / "relion", dict(HYPERPARAMETERS)).run()
    for name in ("left", "found", "relion"):
        images[name] = np.concatenate([mrcfile.read(p) for p in sorted((tmp_path / name / "Particles").glob("*.mrcs"))])
    apart = {name: np.sqrt(np.mean((images[name] - images["relion"]) ** 2)) for name in ("left", "found")}
    assert apart["found"] < 0.2 * apart["left"]
    assert abs(found - error_A(tracks(tmp_path / "relion"), tiny.truth())) < 0.02 and found < left + 0.02


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    """Two micrographs under very uneven light."""
    settings = SimulationSettings(
        n_micrographs=2, size_px=512, n_frames=8, pixel_size_A=1.6, dose_per_frame_e_A2=4.0, box_px=112,
        particles_per_micrograph=12, hot_pixels=0, illumination_spread=0.4, workers=2, seed=5,
    )  # fmt: skip
    return simulate(settings, tmp_path_factory.mktemp("lit"))


def test_an_estimated_background_leaves_particles_flat(lit, tmp_path):
    flat, error = {}, {}
    for name, switch in {"on": "--subtract-background", "off": "--no-subtract-background"}.items():
        assert run(lit.folder, tmp_path / name, *GIVEN, switch) == 0
        error[name] = error_A(tracks(tmp_path / name), lit.truth())
        images = np.concatenate([mrcfile.read(p) for p in sorted((tmp_path / name / "Particles").glob("*.mrcs"))])
        rim = np.concatenate([images[:, :20].mean((1, 2)) - images[:, -20:].mean((1, 2)),
                              images[:, :, :20].mean((1, 2)) - images[:, :, -20:].mean((1, 2))])  # fmt: skip
        flat[name] = np.sqrt(np.mean(rim**2))
    assert flat["on"] < 0.6 * flat["off"] and error["on"] < error["off"] + 0.01


def test_backgrounds_are_estimated_only_where_there_are_none(lit, cryosparc):
    on, off = opened(lit.folder), opened(lit.folder, subtract_background=False)
    assert all(movie.estimate_background for movie in on.movies) and rm.Session(on).keys.all != rm.Session(off).keys.all
    assert not any(movie.estimate_background for movie in off.movies)
    on = rm.open_cryosparc(**cryosparc, orientation="relion")
    assert all(movie.background is not None and not movie.estimate_background for movie in on.movies)
    off = rm.open_cryosparc(**cryosparc, orientation="relion", subtract_background=False)
    assert all(movie.background is None and not movie.estimate_background for movie in off.movies)


def test_relions_energy_keeps_the_background(lit, tmp_path):
    found = {}
    for name in ("on", "off"):
        data = opened(lit.folder, subtract_background=name == "on")
        assert rm.Job(data, tmp_path / name, {**HYPERPARAMETERS, "energy": "relion"}).run()
        found[name] = tracks(tmp_path / name)
    for name, track in found["on"].items():
        np.testing.assert_array_equal(track, found["off"][name])


# nonsense


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--first-frame", "0"], "--first-frame is 0; give a whole number from 1"),
        (["--first-frame", "9"], r"mic0000.tif: no frame is left from first_frame 9 .*; give a smaller first_frame"),
        (["--first-frame", "5", "--last-frame", "4"], "last_frame 4 comes before first_frame 5; swap them"),
        (
            ["--last-frame", "12"],
            r"last_frame is 12, but 8 frames were corrected; give a smaller .*\(and 1 more like it",
        ),
        (["--last-frame", "2"], "mic0000.tif has 2 frames .*; motion cannot be followed"),
        (["--eer-fractions", "16"], r"mic0000.tif is no EER movie, .*; leave eer_fractions out \(and 1 more"),
        (["--eer-fractions", "0"], "--eer-fractions is 0; give a whole number from 1"),
        (["--dose-per-frame", "0"], "--dose-per-frame-e-A2 is 0; give a number above 0"),
        (["--dose-per-frame", "nan"], "--dose-per-frame-e-A2 is nan; give a number above 0"),
        (["--pre-exposure", "-1"], "--pre-exposure-e-A2 is -1; give a number from 0"),
        (["--hot-pixel-threshold", "-2"], "--hot-pixel-threshold is -2; give a number from 0 to 30"),
        (["--gain-rotate", "4"], "--gain-rotate is 4; give a whole number from 0 to 3"),
        (["--gain-flip-y"], "the gain is to be turned, flipped or inverted; give gain too"),
        (["--root", "/nowhere"], "root /nowhere does not exist; give the folder of the project, or leave it out"),
        (["--root", "/dev/null"], "root /dev/null is not a folder; give"),
        (["--orientation", "relion"], "--orientation does not go with RELION's --micrographs; leave it out"),
        (["--mixed-frame-counts", "--skip-movies-with-wrong-frame-count"], "leaves movies out that mixed_.*; give one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_input_options_that_make_no_sense(tiny, tmp_path, options, expected, capsys):
    assert run(tiny.folder, tmp_path / "out", *GIVEN, *options) == 1
    lines = said(capsys)
    assert len(lines) == 1 and re.search(expected, lines[0]), lines
    assert not left_behind(tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"eer_fractions": 0}, "eer_fractions is 0; give 1 or more"),
        ({"first_frame": 0}, "first_frame is 0; give 1 or more"),
        ({"last_frame": -1}, "last_frame is -1; give 0 or more"),
        ({"hot_pixel_threshold": -1.0}, "hot_pixel_threshold is -1.0; give 0 or more"),
        ({"pre_exposure_e_A2": float("nan")}, "pre_exposure_e_A2 is nan; give 0 or more"),
        ({"dose_per_frame_e_A2": 0.0}, "dose_per_frame_e_A2 is 0.0; give a positive dose"),
    ],
)
def test_arguments_that_make_no_sense(tiny, more, expected):
    with pytest.raises(InputError, match=expected):
        opened(tiny.folder, **more)


def test_a_short_movie_is_named_with_its_remedies(tiny, tmp_path, capsys):
    project = with_two_frame_counts(tiny.folder, tmp_path / "project")
    assert run(project, tmp_path / "out", *GIVEN, "--last-frame", "7") == 1
    assert re.search("mic0001.tif: last_frame is 7, but 6 frames were corrected; give a smaller", said(capsys)[0])
    edit(project / "Extract/particles.star", "particles", lambda t: t[t["rlnMicrographName"].str.contains("mic0000")])
    assert run(project, tmp_path / "out", *GIVEN, "--last-frame", "7") == 0  # no particle is on the short one


def motion_of_both(data, *places):
    """Trajectories (particle, frame, 2) Å of the particles of mic0000, once for each movie, particles and optics."""
    mine = np.flatnonzero(data.particles["micrograph"] == "mic0000")
    names, settings = [f"{i}" for i in range(len(places))], rm.InputAudit(recenter=False)
    particles = [p.isel(particle=mine) for _, p, _ in places]
    particles = [p.assign(micrograph=("particle", [n] * len(mine)), optics=p["optics"] + i)
                 for i, (n, p) in enumerate(zip(names, particles))]  # fmt: skip
    movies = tuple(replace(movie, micrograph=name) for name, (movie, *_) in zip(names, places))
    optics = tuple(one for *_, one in places)
    session = rm.Session(
        replace(data, movies=movies, particles=xr.concat(particles, "particle"), optics=optics), threads=2
    )
    return [session.track(session.micrograph(name, settings), settings, PRIOR).displacement_A for name in names]


def test_particles_between_pixels_of_the_movie_are_where_they_are_said_to_be(tiny):
    """Boxes are cut at whole pixels of the movie; those of a micrograph binned 1.5 times lie between them."""
    data = opened(tiny.folder)
    movie, coordinate = data.movies[0], data.particles["coordinate"]
    pixel_A = 1.5 * movie.pixel_size_A
    odd = 2 * np.floor(coordinate / (2 * pixel_A)) + 1
    origin = data.particles["origin"] + odd * pixel_A - coordinate
    there = data.particles.assign(coordinate=odd * pixel_A, origin=origin)
    binned = replace(movie, binning=1.5), there, data.optics[0]
    found = motion_of_both(data, (movie, data.particles, data.optics[0]), binned)
    np.testing.assert_allclose(*found, atol=0.2)  # half a pixel is 0.8 Å


def test_a_movie_turned_by_a_quarter_holds_the_same_motion_turned(tiny, tmp_path):
    """So do gain, poses, defocus, beam tilt, astigmatism and magnification turn: their signs agree."""
    data, path = opened(tiny.folder), tmp_path / "turned.mrcs"
    movie, p, turn = data.movies[0], data.particles, np.array([[0, -1], [1, 0]])
    with open_movie(movie) as reader:
        frames = np.stack([reader.frame(f) for f in range(movie.n_frames)])
    write_stack(path, np.rot90(frames, -1, (1, 2)).astype(np.float32), movie.pixel_size_A)
    edge = np.array([movie.height - 1, 0])
    turned = replace(
        movie, path=path, gain=replace(movie.gain, rotate_quarter_turns=1), hot_pixels=movie.hot_pixels @ turn.T + edge,
        global_shift=movie.global_shift @ turn.T,
    )  # fmt: skip
    coordinate = p["coordinate"].values @ turn.T + edge * movie.pixel_size_A
    there = p.assign(
        coordinate=p["coordinate"].copy(data=coordinate), origin=p["origin"].copy(data=p["origin"].values @ turn.T),
        euler=p["euler"] - [0, 0, 90], defocus_angle=p["defocus_angle"] + 90,
    )  # fmt: skip
    magnification = np.array([[1.02, 0.01], [-0.005, 0.985]])
    optics = [
        replace(data.optics[0], beam_tilt_mrad=tuple(q @ [0.7, -0.4]), even_zernike=(0, 20 * sign, -9, 30 * sign),
                magnification=tuple(map(tuple, q @ magnification @ q.T)))
        for q, sign in ((np.eye(2), 1), (turn, -1))
    ]  # fmt: skip
    found = motion_of_both(data, (movie, p, optics[0]), (turned, there, optics[1]))
    np.testing.assert_allclose(found[0], found[1] @ turn, atol=0.05)  # turned boxes hold another outermost row
