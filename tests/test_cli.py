"""Whole jobs through the command line, on a small simulated set."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import xarray as xr
from job import GIVEN, MICROGRAPHS, copied, error_A, inputs, run, said, store, tracks

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.data.check import check_dataset
from refmotion_nb.data.relion.results import read_bfactors, read_tracks
from refmotion_nb.data.star import read_star
from refmotion_nb.data.store import read_hyperparameters, read_netcdf
from refmotion_nb.stages import correction


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Return the output folder of one whole job; do not change it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert run(tiny.folder, out) == 0
    return out


@pytest.fixture(scope="module")
def quick(tiny, tmp_path_factory):
    """Return the output folder of a job with given hyperparameters; do not change it."""
    out = tmp_path_factory.mktemp("quick") / "out"
    assert run(tiny.folder, out, *GIVEN) == 0
    return out


def stacks(out):
    return {path.name: path for path in sorted((out / "Particles").iterdir())}


def test_a_job_says_what_it_runs_on(tiny, tmp_path):
    told = []
    settings = {"threads": 2, "spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0}
    rm.Job(tiny.open(), tmp_path / "out", settings, say=told.append).run("hyperparameters")
    assert sum(line.startswith("running on the CPU, 2 threads") for line in told) == 1


def pixels(path):
    with mrcfile.open(path) as file:
        return file.data.copy(), file.header.mode.item(), float(file.voxel_size.x), file.is_image_stack()


# what a whole job leaves


def test_all_outputs_are_there(finished):
    expected = {
        "results.zarr", "hyperparameters.json", "particles.star", "Particles", "Tracks", "bfactors.star",
        "dose_weights.nc", "report.html", "run.log", "particles.cs", "particles.csg", "Motion", "hyperparams.cs",
        "hyperparams.csg", "refm_empirical_dw.npy", "refm_fcc.npy",
    }  # fmt: skip
    assert {path.name for path in finished.iterdir()} == expected
    assert list(stacks(finished)) == [f"{name}.mrcs" for name in MICROGRAPHS]
    assert not [path for path in finished.rglob(".*") if path.is_file() and not path.name.startswith(".z")]


def test_stacks_have_right_headers(finished, tiny):
    for path in stacks(finished).values():
        images, mode, pixel, is_stack = pixels(path)
        assert images.shape == (12, 112, 112) and mode == 2 and is_stack
        assert pixel == pytest.approx(tiny.settings.pixel_size_A, rel=1e-6)
        assert np.isfinite(images).all() and abs(images.mean()) < 1
        ring = np.hypot(*np.mgrid[-56:56, -56:56]) > 51
        np.testing.assert_allclose(images[:, ring].std(axis=1), 1, atol=0.1)


def test_particle_table_names_every_image(finished, tiny):
    ours, given = read_star(finished / "particles.star"), read_star(tiny.particles)
    optics, particles = ours["optics"], ours["particles"]
    assert float(optics["rlnImagePixelSize"][0]) == pytest.approx(1.6) and int(optics["rlnImageSize"][0]) == 112
    assert len(particles) == len(given["particles"]) == 24
    assert set(given["particles"].columns) <= set(particles.columns)
    for label in ("rlnAngleRot", "rlnAnglePsi", "rlnDefocusU", "rlnRandomSubset"):
        np.testing.assert_allclose(particles[label].astype(float), given["particles"][label].astype(float))
    number, stack = zip(*(name.split("@") for name in particles["rlnImageName"]))
    assert {s.rsplit("/", 1)[1] for s in stack} == set(stacks(finished))
    for name in set(stack):
        assert sorted(int(n) for n, s in zip(number, stack) if s == name) == list(range(1, 13))
    # recentred: coordinate and origin moved by the same whole pixels
    binned = tiny.settings.pixel_size_A
    for axis in "XY":
        coordinate = particles[f"rlnCoordinate{axis}"] - given["particles"][f"rlnCoordinate{axis}"]
        origin = particles[f"rlnOrigin{axis}Angst"] - given["particles"][f"rlnOrigin{axis}Angst"]
        np.testing.assert_allclose(coordinate * binned, origin, atol=1e-3)
        assert (particles[f"rlnOrigin{axis}Angst"].abs() <= 0.5 * binned + 1e-6).all()


def test_trajectories_are_better_than_rigid(finished, tiny):
    found = tracks(finished)
    assert list(found) == list(MICROGRAPHS) and all(t.shape == (12, 8, 2) for t in found.values())
    assert error_A(found, tiny.truth()) < 0.5 * tiny.rigid_error_A


def test_weights_and_bfactors(finished):
    dose = read_netcdf(finished / "dose_weights.nc")
    np.testing.assert_allclose(dose["weight"].sum("frame"), 1, rtol=1e-5)
    b_factor, log_scale = read_bfactors(finished / "bfactors.star")
    assert b_factor.shape == log_scale.shape == (8,)
    assert b_factor.max() == 0 and (np.isfinite(log_scale)).all()
    # RELION counts 57 shells of a box of 112 where there are 56 from the origin to Nyquist
    np.testing.assert_allclose(b_factor, -dose["b_factor"][0] * (57 / 56) ** 2, atol=1e-5)


def test_results_open_with_xarray(finished):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(finished / "results.zarr", engine="zarr", consolidated=False)
    groups = {f"/{kind}/{name}" for kind in ("tracks", "noise") for name in MICROGRAPHS}
    assert groups | {"/search", "/dose_weights", "/particles"} <= set(tree.groups)
    search = tree["search"].to_dataset()
    assert search["cv_score"].dims == ("ray", "step") and search["distance"].attrs["units"] == "Å"
    shift = tree["tracks/mic0001/shift"]
    np.testing.assert_allclose(shift.values, tracks(finished)["mic0001"], atol=1e-5)
    assert shift.dims == ("particle", "frame", "axis") and shift.attrs["units"] == "Å"
    tree.close()


def test_hyperparameters_are_those_of_the_search(finished):
    found = read_hyperparameters(finished / "hyperparameters.json")
    search = store(finished).read("search")
    assert found["strength"] == pytest.approx(search.attrs["strength"])
    assert found["score"] == pytest.approx(search.attrs["cv_score"])
    assert found["spatial_strength"] == pytest.approx(found["strength"] * np.cos(np.deg2rad(found["balance_deg"])))
    assert set(json.loads((finished / "hyperparameters.json").read_text())["relion"]) >= {"s_vel", "s_div", "s_acc"}


def test_report_and_log(finished):
    report = (finished / "report.html").read_text(encoding="utf-8")
    assert "mic0001" in report and "<svg" in report
    assert "http-equiv" not in report and 'src="http' not in report and "<script src" not in report
    log = (finished / "run.log").read_text(encoding="utf-8")
    assert "searching hyperparameters" in log and "micrograph mic0001, particles 12" in log and "report.html" in log


def test_every_particle_is_accounted_for(finished):
    table = store(finished).read("particles")
    assert table.sizes["particle"] == 24 and table["written"].values.all()
    assert table["row"].values.tolist() == list(range(24)) and not "".join(table["reason"].values)
    names = read_star(finished / "particles.star")["particles"]["rlnImageName"].tolist()
    assert table["image_name"].values.tolist() == names


# stopping, going on, reusing


def test_rerun_does_nothing_again(tiny, tmp_path, quick, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in stacks(quick).values()}
    monkeypatch.setattr("refmotion_nb.stages.session.load_micrograph", lambda *_, **__: pytest.fail("a movie is read"))
    assert run(tiny.folder, quick, *GIVEN) == 0
    assert {path: path.stat().st_mtime_ns for path in stacks(quick).values()} == before
    assert "dose weights: taken from the earlier run" in capsys.readouterr().err


def test_rerun_of_a_search_does_nothing_again(tiny, finished, monkeypatch, capsys):
    monkeypatch.setattr("refmotion_nb.stages.session.load_micrograph", lambda *_, **__: pytest.fail("a movie is read"))
    assert run(tiny.folder, finished) == 0
    assert "hyperparameters: taken from the earlier run" in capsys.readouterr().err


def interrupted(monkeypatch, problem):
    """Make the stack of the second micrograph fail, once the first is finished."""
    real = correction.write_stack

    def write(path, *args, **options):
        if path.name == "mic0001.mrcs":
            while not (path.parents[1] / "results.zarr/tracks/mic0000").exists():
                time.sleep(0.01)
            raise problem
        real(path, *args, **options)

    monkeypatch.setattr(correction, "write_stack", write)


def test_an_error_without_a_number_is_told_by_its_words(monkeypatch, capsys):
    def lost(options):
        raise OSError("Stream is closed")

    monkeypatch.setattr("refmotion_nb.cli.demo.run", lost)
    assert main(["demo"]) == 1 and said(capsys) == ["Stream is closed; check the path"]


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped; what was finished is kept, the same command goes on from there"),
        (
            OSError(errno.ENOSPC, "No space left on device", "mic0001.mrcs"),
            1,
            "No space left .*run the same command again",
        ),
        (MemoryError("Unable to allocate 16 GiB"), 1, "memory is full .*16 GiB.*run the same command again"),
    ],
    ids=["stopped", "disk full", "memory full"],
)
def test_what_was_finished_stays_and_a_rerun_goes_on(tiny, tmp_path, quick, monkeypatch, capsys, problem, code, line):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupted(patch, problem)
        assert run(tiny.folder, out, *GIVEN) == code
    lines = said(capsys)
    assert len(lines) == 1 and re.search(line, lines[0]), lines
    assert list(stacks(out)) == ["mic0000.mrcs"] and list(tracks(out)) == ["mic0000"]
    assert store(out).groups("tracks") == ["tracks/mic0000"]
    assert not (out / "particles.star").exists()
    np.testing.assert_array_equal(pixels(out / "Particles/mic0000.mrcs")[0], pixels(stacks(quick)["mic0000.mrcs"])[0])
    first = (out / "Particles/mic0000.mrcs").stat().st_mtime_ns
    assert run(tiny.folder, out, *GIVEN) == 0
    assert (out / "Particles/mic0000.mrcs").stat().st_mtime_ns == first
    for name, path in stacks(quick).items():
        np.testing.assert_array_equal(pixels(stacks(out)[name])[0], pixels(path)[0])
    assert not list(out.rglob(".*.mrcs"))


def test_stopped_before_the_command_has_begun(monkeypatch, capsys):
    monkeypatch.setattr("refmotion_nb.cli.parsed", interrupt)
    assert main(["check"]) == 130 and said(capsys)[0].startswith("stopped")


def test_who_has_read_enough_is_told_nothing_more(tiny, monkeypatch, capfd):
    """As in ``refmotion check ... | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["check", *inputs(tiny.folder)]) == 141
    assert not capfd.readouterr().err


def test_output_that_a_full_disk_does_not_take_is_an_error(tiny, monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["check", *inputs(tiny.folder)]) == 1
    assert said(capsys)[-1].startswith("No space left on device; make room")


def interrupt(*_):
    raise KeyboardInterrupt


KILLED = """
import os, signal, sys, time
from refmotion_nb.cli import main
real = os.replace
def replace(source, target):
    if str(target).endswith("mic0001.mrcs"):
        out = os.path.dirname(os.path.dirname(target))
        while not os.path.exists(f"{out}/results.zarr/tracks/mic0000"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
main(sys.argv[1:])
"""


def test_a_killed_run_leaves_whole_files_and_a_rerun_goes_on(tiny, tmp_path, quick):
    command = [sys.executable, "-c", KILLED, "run", *inputs(tiny.folder), "--out", str(tmp_path), *GIVEN]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert "mic0000.mrcs" in stacks(tmp_path) and "mic0001.mrcs" not in stacks(tmp_path)
    first = stacks(tmp_path)["mic0000.mrcs"].stat().st_mtime_ns
    assert run(tiny.folder, tmp_path, *GIVEN) == 0
    assert stacks(tmp_path)["mic0000.mrcs"].stat().st_mtime_ns == first
    for name, path in stacks(quick).items():
        np.testing.assert_array_equal(pixels(stacks(tmp_path)[name])[0], pixels(path)[0])


def test_what_was_cut_short_since_is_written_again(tiny, tmp_path, quick):
    """By a machine that went down before all was on the disk, or a copy that was not finished."""
    out = tmp_path / "out"
    assert run(tiny.folder, out, *GIVEN) == 0
    with open(out / "Particles/mic0000.mrcs", "r+b") as file:
        file.truncate(5000)
    kept = (out / "Particles/mic0001.mrcs").stat().st_mtime_ns
    assert run(tiny.folder, out, *GIVEN) == 0
    np.testing.assert_array_equal(pixels(out / "Particles/mic0000.mrcs")[0], pixels(stacks(quick)["mic0000.mrcs"])[0])
    assert (out / "Particles/mic0001.mrcs").stat().st_mtime_ns == kept


def test_results_that_were_deleted_are_computed_again(tiny, tmp_path):
    out = tmp_path / "out"
    assert run(tiny.folder, out, *GIVEN) == 0
    shutil.rmtree(out / "results.zarr")
    (out / "hyperparameters.json").unlink()
    assert run(tiny.folder, out, *GIVEN) == 0 and (out / "results.zarr").is_dir()


def test_a_run_that_is_told_to_end_says_so_and_cleans_up(tiny, tmp_path):
    told = KILLED.replace("SIGKILL", "SIGTERM").replace("\nmain(", "\nsys.exit(main(").rstrip() + ")"
    command = [sys.executable, "-c", told, "run", *inputs(tiny.folder), "--out", str(tmp_path), *GIVEN]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "refmotion: stopped; what was finished is kept" in ended.stderr and "Traceback" not in ended.stderr
    assert (tmp_path / "run.log").read_text().splitlines()[-1].endswith("stopped: told to end (SIGTERM)")
    assert "mic0000.mrcs" in stacks(tmp_path) and not list((tmp_path / "Particles").glob(".*"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # as it was, after every command of this process


def test_other_settings_are_not_taken_for_the_same(tiny, tmp_path, quick):
    out = tmp_path / "out"
    assert run(tiny.folder, out, *GIVEN) == 0
    stronger = ["--spatial-strength", "150", "--correlation-distance", "3000", "--acceleration-strength", "200"]
    assert run(tiny.folder, out, *stronger) == 0
    assert any(np.abs(tracks(out)[name] - t).max() > 0.05 for name, t in tracks(quick).items())


@pytest.mark.parametrize(
    ("until", "there"),
    [
        ("hyperparameters", {"hyperparameters.json"}),
        ("dose-weights", {"hyperparameters.json", "dose_weights.nc"}),
    ],
)
def test_until(tiny, tmp_path, until, there):
    assert run(tiny.folder, tmp_path, *GIVEN, "--until", until) == 0
    assert {path.name for path in tmp_path.iterdir()} == there | {"results.zarr", "report.html", "run.log"}


def test_a_validation_shows_the_gain_and_stands_as_long_as_what_it_was_made_of(tiny, tmp_path, monkeypatch, capsys):
    validate = [*GIVEN, "--until", "validate", "--write-maps", "both"]
    assert run(tiny.folder, tmp_path, *validate) == 0
    first = store(tmp_path).read("validation")
    at = [
        f"{name} {value:.2f} Å" for name, value in zip(first["combination"].values, first["resolution_0143"].values[0])
    ]
    assert f"FSC 0.143                   {', '.join(at)}" in capsys.readouterr().err
    assert first.sizes["combination"] == 4 and first["symmetry"].values.tolist() == ["O"]
    gain = first["fsc_corrected"].sel(combination="both") - first["fsc_corrected"].sel(combination="rigid")
    middle = (first["frequency"] > 1 / 12) & (first["frequency"] < 1 / 6)
    assert float(gain.where(middle).mean()) > 0
    with monkeypatch.context() as context:
        context.setattr(rm.Validation, "run", lambda *a: pytest.fail("validated again"))
        assert run(tiny.folder, tmp_path, *validate) == 0
    assert "validation: taken from the earlier run" in capsys.readouterr().err
    (tmp_path / "Maps/both.mrc").unlink()
    assert run(tiny.folder, tmp_path, *validate) == 0 and (tmp_path / "Maps/both.mrc").exists()
    xr.testing.assert_identical(store(tmp_path).read("validation"), first)
    (tmp_path / "Maps/mine.mrc").touch()
    assert run(tiny.folder, tmp_path, *GIVEN) == 0  # and no word of maps
    assert store(tmp_path).has("validation") and (tmp_path / "Maps/both_half1.mrc").exists()
    assert run(tiny.folder, tmp_path, *GIVEN, "--no-split-motion") == 0
    assert store(tmp_path).read("validation") is None  # of other trajectories than those written now
    assert [path.name for path in (tmp_path / "Maps").iterdir()] == ["mine.mrc"]


def test_hyperparameters_and_weights_of_another_run_give_the_same_tracks(tiny, tmp_path, finished):
    files = [f"{finished}/hyperparameters.json", f"{finished}/dose_weights.nc"]
    assert run(tiny.folder, tmp_path, "--hyperparameters", files[0], "--dose-weights", files[1]) == 0
    for name, expected in tracks(finished).items():
        np.testing.assert_allclose(tracks(tmp_path)[name], expected, atol=1e-5)
    for name, path in stacks(finished).items():
        np.testing.assert_allclose(pixels(stacks(tmp_path)[name])[0], pixels(path)[0], atol=1e-4)


def test_relions_units_are_the_same_prior(tiny, tmp_path, quick):
    relion = json.loads((quick / "hyperparameters.json").read_text())["relion"]
    options = [
        word for name in ("s_vel", "s_div", "s_acc") for word in (f"--{name.replace('_', '-')}", str(relion[name]))
    ]
    assert run(tiny.folder, tmp_path, *options) == 0
    for name, expected in tracks(quick).items():
        np.testing.assert_allclose(tracks(tmp_path)[name], expected, atol=1e-5)


# what the options change


def test_float16(tiny, tmp_path, quick):
    assert run(tiny.folder, tmp_path, *GIVEN, "--float16") == 0
    for name, path in stacks(quick).items():
        images, mode, _, _ = pixels(stacks(tmp_path)[name])
        assert mode == 12 and images.dtype == np.float16
        np.testing.assert_array_equal(images, pixels(path)[0].astype(np.float16))


def test_fourier_crop(tiny, tmp_path, quick, capsys):
    assert run(tiny.folder, tmp_path, *GIVEN, "--fourier-crop-to", "84") == 0
    assert "24 of 24, in boxes of 84 px of 2.133 Å\n" in capsys.readouterr().err
    optics = read_star(tmp_path / "particles.star")["optics"]
    assert int(optics["rlnImageSize"][0]) == 84
    assert float(optics["rlnImagePixelSize"][0]) == pytest.approx(1.6 * 112 / 84)
    small, _, pixel, _ = pixels(stacks(tmp_path)["mic0000.mrcs"])
    large = pixels(stacks(quick)["mic0000.mrcs"])[0]
    assert small.shape == (12, 84, 84) and pixel == pytest.approx(1.6 * 112 / 84, rel=1e-6)
    a = np.fft.rfft2(small)[:, 1:20, 1:20]
    b = np.fft.rfft2(large)[:, 1:20, 1:20]
    likeness = (a * b.conj()).sum((1, 2)).real / np.sqrt((abs(a) ** 2).sum((1, 2)) * (abs(b) ** 2).sum((1, 2)))
    assert likeness.min() > 0.9999
    for one, two in zip(sorted(quick.glob("Tracks/*.star")), sorted(tmp_path.glob("Tracks/*.star")), strict=True):
        assert np.abs(read_tracks(one) - read_tracks(two)).max() < 1e-3  # Å


def test_patches_are_kept_no_finer_than_what_is_written(tiny, tmp_path):
    session = rm.Session(tiny.open(), 2)
    given = {"spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0, "threads": 2}
    job = rm.Job(session, tmp_path / "small", {**given, "fourier_crop_to": 84})
    assert job.run()

    def kept():
        micrographs = [session.kept.get(key) for key in session.kept]
        assert session.spool.held_bytes == sum(m.nbytes for m in micrographs) + session._tracks_bytes
        return [m.spectra.box for m in micrographs]

    assert kept() == [84] * len(MICROGRAPHS)
    rm.MotionCorrection().run(session, job.search, job.dose, tmp_path / "large")  # which is not to be had of these
    assert kept() == [112] * len(MICROGRAPHS)
    assert rm.Job(tiny.open(), tmp_path / "whole", given).run()
    for name, path in stacks(tmp_path / "whole").items():
        large = pixels(stacks(tmp_path / "large")[name])[0]
        np.testing.assert_allclose(large, pixels(path)[0], atol=1e-3)  # of the noise


def test_threads_change_nothing(tiny, tmp_path, quick):
    assert main(["run", *inputs(tiny.folder), "--out", str(tmp_path), "--threads", "1", *GIVEN]) == 0
    for name, path in stacks(quick).items():
        np.testing.assert_array_equal(pixels(stacks(tmp_path)[name])[0], pixels(path)[0])


def test_the_fsc_of_postprocess_names_the_maps(tiny, tmp_path):
    by_fsc = [*inputs(tiny.folder)[:6], "--fsc", f"{tiny.postprocess}"]
    assert main(["run", *by_fsc, "--out", str(tmp_path), *GIVEN, "--until", "dose-weights"]) == 0


@pytest.mark.parametrize("maps", [[], ["--half1", "Ref/half1.mrc", "--half2", "Ref/half2.mrc"]])
def test_the_root_leads_to_all_files_of_the_project(tiny, maps, capsys):
    names = ["--particles", "Extract/particles.star", "--micrographs", "MotionCorr/corrected_micrographs.star"]
    assert main(["check", *names, *maps, "--fsc", "Ref/postprocess.star", "--root", f"{tiny.folder}"]) == 0
    assert "FSC 0.143 at" in capsys.readouterr().out


def test_a_mask_given_beside_fsc_wins(tiny, tmp_path, capsys):
    names = ["--particles", f"{tiny.particles}", "--micrographs", f"{tiny.micrographs}", "--root", f"{tiny.folder}"]
    assert main(["check", *names, "--fsc", f"{tiny.postprocess}", "--mask", f"{tiny.half_maps[0]}"]) in (0, 1)
    assert f"mask {tiny.half_maps[0]}" in " ".join(capsys.readouterr().out.split())
    assert main(["check", *names, "--fsc", f"{tiny.postprocess}", *(2 * ["--mask", f"{tiny.mask}"])]) == 1
    told = capsys.readouterr().out
    assert "2 --mask for 1 --fsc; give one for each, or none" in told and "Not ready" in told


def test_no_acceleration_prior_is_a_prior(tiny, tmp_path, capsys):
    options = ["--spatial-strength", "2", "--correlation-distance", "3000", "--until", "hyperparameters"]
    assert run(tiny.folder, tmp_path, *options, "--acceleration-strength", "0") == 0
    assert read_hyperparameters(tmp_path / "hyperparameters.json")["balance_deg"] == 0
    assert run(tiny.folder, tmp_path, "--spatial-strength", "0", *options[2:], "--acceleration-strength", "0") == 1
    assert "are both 0; give one above 0" in said(capsys)[-1]


@pytest.mark.parametrize(("words", "rc", "told"), [
    ([b"run", b"--out", b"caf\xe9"], 1, "refmotion: caf\\udce9 is not UTF-8; rename it (convmv --notest -f latin1 -t utf-8)"),
    ([b"check", b"--particles", "Å.star".encode(), b"--micrographs", b"m.star", b"--half1", b"a", b"--half2", b"b"], 1,
     "\\xc5.star does not exist"),
])  # fmt: skip
def test_bytes_and_terminals_of_other_encodings(tmp_path, words, rc, told):
    done = subprocess.run([sys.executable.encode(), b"-m", b"refmotion_nb", *words], cwd=tmp_path, capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    text = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == rc and told in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_numbers_are_told_with_digits_that_say_something(tiny, tmp_path, capsys):
    options = ["--spatial-strength", "1.5", "--correlation-distance", "1e300", "--acceleration-strength", "2"]
    assert run(tiny.folder, tmp_path, *options, "--until", "dose-weights") == 0
    assert "strength 2.5, balance 53.1°, distance 1×10³⁰⁰ Å" in capsys.readouterr().err
    attrs = store(tmp_path).read("dose_weights").attrs
    assert all(len(str(attrs[name])) <= 6 for name in ("fitted_from_A", "fitted_to_A", "extent_A")), attrs


def test_check(tiny, capsys):
    assert main(["check", *inputs(tiny.folder)]) == 0
    text = capsys.readouterr().out
    assert "24 on 2 micrographs" in text and "Ready to process." in text and "512 × 512 px, 8 frames, 1.6 Å/px" in text
    assert "  output " not in text, "as fine as they were refined"


def test_check_tells_of_particles_finer_than_those_refined(tiny):
    data = tiny.open()
    binned = replace(data, optics=tuple(replace(one, pixel_size_A=3.2, box_size=56) for one in data.optics))
    (text,) = (text for name, text in check_dataset(binned, (), (), "").facts if name == "output")
    assert text.startswith(
        "boxes of 112 px of 1.6 Å as the movies; --fourier-crop-to 56 writes those of the particles, with 25 %"
    )


def test_simulate(tmp_path, capsys):
    size = ["--n-micrographs", "1", "--size-px", "256", "--n-frames", "3", "--pixel-size-A", "2.4", "--box-px", "72"]
    assert main(["simulate", "--out", str(tmp_path), *size, "--particles-per-micrograph", "3", "--edge-px", "44"]) == 0
    assert "3 particles on 1 movies" in capsys.readouterr().out
    assert "simulating" in (tmp_path / "simulate.log").read_text()
    assert main(["simulate", "--out", str(tmp_path), "--box-px", "71"]) == 1
    assert said(capsys) == ["box_px, second_box_px, size_px and height_px must be even"]


@pytest.mark.parametrize("command", ["simulate", "demo"])
def test_a_simulation_leaves_the_movies_of_a_project_alone(tmp_path, command, capsys):
    project = tmp_path if command == "simulate" else tmp_path / "simulated"
    (project / "Movies").mkdir(parents=True)
    (project / "Movies/mic0000.tif").write_text("mine")
    assert main([command, "--out", str(tmp_path)]) == 1
    assert said(capsys) == [f"{project} holds other files (Movies), which simulated ones would join or replace; give an empty "
                            "folder, or one that does not exist yet"]  # fmt: skip
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [project / "Movies/mic0000.tif"]
    assert (project / "Movies/mic0000.tif").read_text() == "mine"


def test_switches_of_a_simulation_go_both_ways(tmp_path):
    size = ["--n-micrographs", "1", "--size-px", "256", "--n-frames", "3", "--pixel-size-A", "2.4", "--box-px", "72"]
    for switch, local in (("--patch-alignment", True), ("--no-patch-alignment", False)):
        out = tmp_path / switch.strip("-")
        assert (
            main(["simulate", "--out", str(out), *size, "--particles-per-micrograph", "3", "--edge-px", "44", switch])
            == 0
        )
        assert ("local_motion_model" in read_star(out / "MotionCorr/Movies/mic0000.star")) is local


def test_particles_that_cannot_be_used_stand_in_the_table_with_their_reason(tiny, tmp_path, capsys):
    project = copied(tiny.folder, tmp_path)
    path = project / "Extract/particles.star"
    text = path.read_text().replace("mic0001.mrc", "elsewhere.mrc")
    path.write_text(text)
    out = tmp_path / "out"
    assert run(project, out, *GIVEN) == 0
    table = store(out).read("particles")
    left = ~table["written"].values
    assert left.sum() == 12 and set(table["reason"].values[left]) == {
        f"its micrograph is not in {project}/MotionCorr/corrected_micrographs.star"
    }
    assert len(read_star(out / "particles.star")["particles"]) == 12
