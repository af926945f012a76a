"""Runs that end early, and memory that runs out: the same results as if nothing had happened."""

import errno
import gc
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
import xarray as xr
from job import GIVEN, copied, held_by_another, inputs, run, said, store
from two_frame_counts import shorten

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.cli.app import recorded_opening
from refmotion_nb.data import spool
from refmotion_nb.data.store import ResultStore
from refmotion_nb.data.synthetic.simulate import SimulationSettings, simulate
from refmotion_nb.demo import run_demo
from refmotion_nb.numerics.rays import cut_short
from refmotion_nb.stages import audit, correction, execute, session
from refmotion_nb.stages.alignment import MotionPrior
from refmotion_nb.stages.base import Cancelled, Silent
from refmotion_nb.stages.device import Device
from refmotion_nb.stages.search import Searched, still_moving
from refmotion_nb.views.app.roots import Roots

# three micrographs, so small that a whole job with search and validation takes two seconds
MINI = SimulationSettings(
    n_micrographs=3, size_px=320, n_frames=6, pixel_size_A=2.4, dose_per_frame_e_A2=5.0, box_px=72,
    particles_per_micrograph=8, hot_pixels=3, workers=2,
)  # fmt: skip
NAMES = ["mic0000", "mic0001", "mic0002"]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return simulate(MINI, tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def project(mini):
    return mini.folder


@pytest.fixture(scope="module")
def new_out(tmp_path_factory):
    """Return a function that returns new output folders: names of one length, since they end up in fields of tables."""
    numbers = iter(range(10, 100))
    return lambda: tmp_path_factory.mktemp(f"run{next(numbers)}", numbered=False) / "out"


@pytest.fixture
def out(new_out):
    return new_out()


@pytest.fixture(scope="module")
def calm(project, new_out):
    """Return the output folder of an undisturbed job with search and validation; do not change it."""
    out = new_out()
    assert run(project, out, "--until", "validate") == 0
    return out


@pytest.fixture(scope="module")
def quick(project, new_out):
    """Return the output folder of an undisturbed job with given hyperparameters; do not change it."""
    out = new_out()
    assert run(project, out, *GIVEN) == 0
    return out


@pytest.fixture
def only_new_garbage():
    """Let the collector look at nothing that is there already: then it is quick."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def opened(project):
    ref = project / "Ref"
    return rm.open_relion(
        project / "Extract/particles.star", project / "MotionCorr/corrected_micrographs.star",
        rm.Reference(ref / "half1.mrc", ref / "half2.mrc", ref / "mask.mrc"), project,
    )  # fmt: skip


# every file of two output folders, but for times


def assert_same(found, expected):
    """Two output folders hold the same: files byte for byte, but for the clock and the name of the folder itself."""
    assert listing(found) == listing(expected)
    for name in listing(expected):
        assert content(found, name) == content(expected, name), name


def listing(out):
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def content(out, name):
    path = out / name
    data = path.read_bytes().replace(str(out).encode(), b"OUT")
    if name in ("run.log", "report.html"):  # seconds, dates
        return None
    if path.suffix in (".mrc", ".mrcs"):  # the labels of a header tell when it was written
        return data[:220] + data[1024:]
    if path.suffix == ".csg":
        return [line for line in data.splitlines() if b"created" not in line]
    if name == "results.zarr/.zattrs":
        attrs = json.loads(data)
        attrs["settings"].pop("threads", None)
        return {key: value for key, value in attrs.items() if key not in ("seconds", "command")}
    if name == "results.zarr/particles/image_name/0":  # compressed
        return [text.replace(str(out), "OUT") for text in store(out).read("particles")["image_name"].values]
    return data


def test_two_undisturbed_runs_are_the_same_and_others_are_not(project, out, quick):
    assert run(project, out, *GIVEN) == 0
    assert_same(out, quick)
    stack = out / "Particles/mic0001.mrcs"
    stack.write_bytes(stack.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(AssertionError, match="mic0001"):
        assert_same(out, quick)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_threads_change_no_bit(project, out, calm, threads):
    assert run(project, out, "--threads", threads, "--until", "validate") == 0
    assert_same(out, calm)


# killed


def steps(log):
    """Return what a log says without the time of day."""
    return [line[20:] for line in log.splitlines()]


class Progress:
    """How far a run that was started again has come, in lines of the log of an undisturbed run."""

    def __init__(self, log, undisturbed):
        self.log, self.undisturbed = log, undisturbed
        self.offset = log.stat().st_size if log.exists() else 0
        self.at = self.read = 0

    def update(self):
        if self.log.exists():
            with open(self.log, encoding="utf-8") as file:
                file.seek(self.offset)
                lines = steps(file.read().rpartition("\n")[0])  # whole ones
            for line in lines[self.read :]:
                if line in self.undisturbed[self.at :]:
                    self.at += self.undisturbed[self.at :].index(line) + 1
            self.read = len(lines)
        return self.at


# python -m refmotion_nb, again and again, without the seconds that its imports take
STARTED = """
import os, runpy, sys
import refmotion_nb.stages.job, refmotion_nb.views.report
for _ in sys.stdin:
    child = os.fork()
    if not child:
        runpy.run_module("refmotion_nb", run_name="__main__", alter_sys=True)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.WIFSIGNALED(status), flush=True)
"""


def test_killed_at_random_moments(project, out, calm):
    undisturbed = steps((calm / "run.log").read_text(encoding="utf-8"))
    undisturbed = undisturbed[1 : undisturbed.index("")]
    rng = np.random.default_rng(3)
    command = [sys.executable, "-c", STARTED, "run", *inputs(project), "--out", str(out), "--threads", "2"]
    with subprocess.Popen(
        [*command, "--until", "validate"], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as starter:  # fmt: skip
        killed = 0
        for moment in np.sort(rng.integers(0, len(undisturbed), 6)):
            progress = Progress(out / "run.log", undisturbed)
            print(file=starter.stdin, flush=True)
            handle = os.pidfd_open(int(starter.stdout.readline()))
            while progress.update() < moment and not select.select([handle], [], [], 0.002)[0]:
                pass
            time.sleep(rng.uniform(0, 0.1))
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
            killed += starter.stdout.readline() == "True\n"
        starter.stdin.close()
    assert killed >= 4  # the last ones may have come too late
    assert run(project, out, "--until", "validate") == 0
    assert_same(out, calm)


KILLED = """
import os, signal, sys
import refmotion_nb.stages.job, refmotion_nb.views.report
from refmotion_nb.cli import main
real = {"replace": os.replace, "rename": os.rename}
def counted(name):
    def move(*paths):
        global left
        left -= 1
        if left == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            real[name](*paths)
        finally:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    return move
os.replace, os.rename = counted("replace"), counted("rename")
for moment in range(2, 60, 5):  # a run that was started again has less to do
    left, before = moment, moment % 2
    child = os.fork()
    if not child:
        os._exit(main(sys.argv[1:]))
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
print(moment)
"""


def test_killed_just_before_or_after_a_file_appears(project, out, quick):
    command = [sys.executable, "-c", KILLED, "run", *inputs(project), "--out", str(out), *GIVEN, "--threads", "2"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert int(done.stdout) > 14  # the first that ended by itself
    assert run(project, out, *GIVEN) == 0
    assert_same(out, quick)


def test_what_a_killed_run_left_is_removed(project, out, quick):
    for name in ("Particles/.mic0000.01234567.mrcs", ".particles.01234567.star", "results.zarr/..zattrs.01234567"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")
    (out / ".results.zarr.0123456789ab/shift").mkdir(parents=True)
    (out / "Particles/.mine.txt").write_bytes(b"whole")
    assert run(project, out, *GIVEN) == 0
    (out / "Particles/.mine.txt").unlink()
    assert_same(out, quick)


def test_two_runs_at_a_time_in_one_folder_are_refused(project, tmp_path, capsys):
    with held_by_another(tmp_path):
        assert run(project, tmp_path, *GIVEN) == 1
    assert said(capsys) == [f"another run is writing to {tmp_path}; wait for it, or choose another --out"]
    assert run(project, tmp_path, *GIVEN) == 0


def test_stages_called_from_python_hold_their_folder_as_jobs_do(opened, quick, tmp_path):
    results = store(quick)
    session, search, dose = rm.Session(opened), results.read("search"), results.read("dose_weights")
    with held_by_another(tmp_path):
        for stage in (rm.MotionCorrection(), rm.Validation()):
            with pytest.raises(rm.InputError, match=f"another run is writing to {tmp_path}; wait for it"):
                stage.run(session, search, dose, out=tmp_path)
    assert not list(tmp_path.iterdir())
    rm.MotionCorrection().run(session, search, dose, out=tmp_path)
    assert content(tmp_path, "particles.cs") == content(quick, "particles.cs")
    assert (tmp_path / "Particles/mic0002.mrcs").read_bytes()[1024:] == (quick / "Particles/mic0002.mrcs").read_bytes()[
        1024:
    ]


def test_a_folder_begun_by_another_version_is_told_and_continued(project, out, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("refmotion_nb.stages.describe.__version__", "0.0.9")
        assert run(project, out, *GIVEN) == 0
    assert "of refmotion_nb" not in capsys.readouterr().err
    before = content(out, "Particles/mic0001.mrcs")
    for _ in range(2):  # the second time it is no less so
        assert run(project, out, *GIVEN) == 0
        text = capsys.readouterr().err
        assert "warning: what version 0.0.9 of refmotion_nb finished in this folder is kept as far as it holds" in text
    assert content(out, "Particles/mic0001.mrcs") == before and store(out).attrs["earlier_versions"] == ["0.0.9"]


def test_results_hold_wherever_the_command_is_given(project, monkeypatch):
    keys = []
    for folder, up in ((project, "."), (project / "Ref", "..")):
        monkeypatch.chdir(folder)
        maps = rm.Reference(f"{up}/Ref/half1.mrc", f"{up}/Ref/half2.mrc", f"{up}/Ref/mask.mrc")
        data = rm.open_relion(f"{up}/Extract/particles.star", f"{up}/MotionCorr/corrected_micrographs.star", maps)
        keys.append(rm.Session(data).keys.all)
    assert keys[0] == keys[1]


def test_validation_moves_particles_as_they_were_written(project, out, new_out):
    cropped = [*GIVEN, "--fourier-crop-to", "32"]  # patches then, which validation reads anew, whole
    at_once = new_out()
    assert run(project, at_once, *cropped, "--until", "validate") == 0
    assert run(project, out, *cropped) == 0
    assert run(project, out, *cropped, "--until", "validate") == 0
    assert_same(out, at_once)


def test_a_stack_of_other_settings_is_not_taken_for_ones_own(project, out, quick, monkeypatch):
    assert run(project, out, *GIVEN) == 0
    with monkeypatch.context() as patch:  # a run with other settings ends when it has written one stack
        patch.setattr(correction, "write_tracks", stop)
        assert run(project, out, *GIVEN, "--recenter", "--no-repair-hot-pixels") == 130
    assert run(project, out, *GIVEN) == 0
    assert_same(out, quick)


def test_files_that_are_gone_are_written_again(project, out, quick):
    assert run(project, out, *GIVEN) == 0
    for name in ("Particles/mic0000.mrcs", "Tracks/mic0001_tracks.star", "Motion/mic0002_traj.npy", "particles.cs"):
        (out / name).unlink()
    assert run(project, out, *GIVEN) == 0
    assert_same(out, quick)


@pytest.mark.parametrize(
    "name",
    ["results.zarr/tracks/mic0001/.zattrs", "results.zarr/noise/mic0001/noise_power/0", "results.zarr/noise/mic0002",
     "results.zarr/dose_weights/weight/0.0.0", "Tracks/mic0000_tracks.star"],
)  # fmt: skip
def test_results_that_a_power_failure_left_empty_and_those_that_are_gone_are_made_again(project, out, quick, name):
    shutil.copytree(quick, out)
    path = out / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(b"")
    assert run(project, out, *GIVEN) == 0
    assert listing(out) == listing(quick)
    spoilt = [one for one in listing(quick) if one.startswith(name)]
    assert spoilt and all(content(out, one) == content(quick, one) for one in spoilt)


def stop(*_, **__):
    raise KeyboardInterrupt


# stopped


class StopsAt(Silent):
    """A reporter that cancels the work at its n-th advance."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def advance(self, n=1, **facts):
        self.left -= 1
        if not self.left:
            self.cancel()
        super().advance(n, **facts)


@pytest.mark.parametrize("at_once", [1, 2])
def test_cancelled_at_any_report_it_goes_on_from_there(project, opened, out, quick, monkeypatch, at_once):
    monkeypatch.setattr(execute, "choose", lambda *_, **__: Device(at_once=at_once))
    given = {"spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0}
    # among the micrographs of the check of the input, of the grey scale, of the dose weights, of the correction
    reports = ((2, 0), (4, 0), (3, 0), (4, 0), (3, 0), (4, 0), (2, 1), (2, 2), (2, 3))
    for n, told in reports if at_once == 1 else (*reports[:6], (2, 1), (1, 1)):
        with pytest.raises(Cancelled):
            rm.Job(opened, out, given, image_root=project).run(reporter=StopsAt(n))
        finished = len(store(out).groups("tracks"))
        assert finished == told if at_once == 1 else told <= finished <= 3 * told  # those under way are ended
        assert store(out).groups("tracks") == [f"tracks/{name}" for name in NAMES[:finished]]
        assert sorted(path.name for path in (out / "Particles").glob("*")) == [f"{n}.mrcs" for n in NAMES[:finished]]
        assert not (out / "particles.star").exists()
    assert run(project, out, *GIVEN) == 0
    assert_same(out, quick)


# a movie that fails


def spoil(path):
    """Damage the data of a frame in the middle of a TIFF movie; nothing else tells."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[3]
        start, length = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start : start + length] = b"\xff" * length
    path.write_bytes(data)


def reads(monkeypatch):
    """Return a list that names every micrograph from now on when it is read."""
    names, real = [], session.load_micrograph
    monkeypatch.setattr(
        session, "load_micrograph", lambda movie, *a, **o: names.append(movie.micrograph) or real(movie, *a, **o)
    )
    return names


def test_one_movie_fails_and_only_it_is_done_when_it_was_repaired(project, tmp_path, out, monkeypatch, capsys):
    here = copied(project, tmp_path)
    movie = here / "Movies/mic0001.tif"
    whole = movie.read_bytes()
    spoil(movie)
    assert run(here, out, "--until", "validate") == 1
    text = capsys.readouterr().err
    assert len([line for line in text.splitlines() if line.startswith("warning: mic0001: ")]) == 1
    assert "refmotion: not everything was written" in text
    assert store(out).groups("tracks") == ["tracks/mic0000", "tracks/mic0002"]
    assert store(out).read("search").attrs["micrographs"] == ["mic0000", "mic0002"]
    table = store(out).read("particles")
    assert set(table["micrograph"].values[~table["written"].values]) == {"mic0001"}
    assert run(here, out) == 1  # nothing changed
    movie.write_bytes(whole)
    before = {name: content(out, f"Particles/{name}.mrcs") for name in ("mic0000", "mic0002")}
    times = {name: (out / f"Particles/{name}.mrcs").stat().st_mtime_ns for name in before}
    names = reads(monkeypatch)
    capsys.readouterr()
    assert run(here, out) == 0
    assert names == ["mic0001"]
    text = capsys.readouterr().err
    assert "hyperparameters: taken from the earlier run" in text and "dose weights: taken from" in text
    assert {name: (out / f"Particles/{name}.mrcs").stat().st_mtime_ns for name in before} == times
    assert store(out).read("particles")["written"].values.all()
    assert (out / "Particles/mic0001.mrcs").exists()


def test_a_movie_that_was_used_and_changed_puts_the_rest_in_question(project, tmp_path, out, monkeypatch):
    here = copied(project, tmp_path)
    assert run(here, out, *GIVEN) == 0
    written = {name: (out / f"Particles/{name}.mrcs").stat().st_mtime_ns for name in NAMES}
    os.utime(here / "Movies/mic0001.tif", (0, 0))
    names = reads(monkeypatch)
    assert run(here, out, *GIVEN) == 0
    assert names[:3] == NAMES  # for the dose weights
    # which came out as they were, so that the particles of the others still hold
    again = [name for name in NAMES if (out / f"Particles/{name}.mrcs").stat().st_mtime_ns != written[name]]
    assert again == ["mic0001"]


def test_a_movie_that_changes_once_it_was_read_is_read_again_by_the_next_run(
    project, tmp_path, out, new_out, monkeypatch
):
    here, compare, fresh = copied(project, tmp_path), audit.InputAudit._compare, new_out()

    def then_it_changes(stage, of, m):
        if m.movie.micrograph == "mic0001":
            shutil.copy(here / "Movies/mic0002.tif", m.movie.path)
        return compare(stage, of, m)

    monkeypatch.setattr(audit.InputAudit, "_compare", then_it_changes)
    assert run(here, out, *GIVEN) == 0
    monkeypatch.undo()
    assert run(here, out, *GIVEN) == run(here, fresh, *GIVEN) == 0
    assert_same(out, fresh)


def test_a_movie_that_was_not_used_but_is_exposed_otherwise_now_is_measured_too(project, tmp_path, out, new_out):
    here = copied(project, tmp_path)
    more = "--max-strength", "1", "--target-particles", "8", "--mixed-frame-counts"
    assert run(here, out, *more) == 0
    (used,) = store(out).read("dose_weights").attrs["micrographs"]
    shorten(here, next(name for name in NAMES if name != used), 5)
    fresh = new_out()
    for folder in (out, fresh):
        assert run(here, folder, *more) == 0
    found, expected = (store(folder).read("dose_weights") for folder in (out, fresh))
    assert found.sizes["group"] == 3 and found.identical(expected)


def test_a_job_that_is_run_again_warns_once(opened, out):
    job = rm.Job(opened, out, {"max_strength": 1.0, "target_particles": 8, "threads": 2})
    for _ in range(2):
        assert job.run("hyperparameters")
        (line,) = job.warnings
        assert line.startswith("activity has not come near zero") and store(out).attrs["warnings"] == [line]


def test_a_whole_number_is_the_same_setting_with_and_without_a_point(project):
    ref = project / "Ref"
    sessions = [
        rm.Session(rm.open_relion(
            project / "Extract/particles.star", project / "MotionCorr/corrected_micrographs.star",
            rm.Reference(ref / "half1.mrc", ref / "half2.mrc"), project, hot_pixel_threshold=kind(7), pre_exposure_e_A2=kind(1),
        )) for kind in (int, float)
    ]  # fmt: skip
    assert sessions[0].keys.all == sessions[1].keys.all
    stages = [rm.MotionCorrection(window_reach_A=kind(12)) for kind in (int, float)]
    prior = MotionPrior(rm.Hyperparameters(1.0, 50.0, 3000.0))
    assert stages[0].key() == stages[1].key() and stages[0].track_key(prior) == stages[1].track_key(prior)


def test_the_table_of_particles_does_not_tell_in_which_order_micrographs_were_done():
    columns = {"row": [0, 1], "reference": 0, "micrograph": ["a", "b"], "image_name": "", "box": [80, 64],
               "pixel_size_A": [1.0, 1.25]}  # fmt: skip
    written = pd.DataFrame(columns)
    one = SimpleNamespace(data=SimpleNamespace(skipped=()))
    first, other = (correction.particles_table(one, rows, []) for rows in (written, written[::-1]))
    assert first.identical(other) and first.attrs == {"box": [80, 64], "pixel_size_A": [1.0, 1.25]}


def test_particles_left_out_on_opening_are_no_failure(project, tmp_path, out):
    here = copied(project, tmp_path)
    path = here / "Extract/particles.star"
    path.write_text(path.read_text().replace("mic0001.mrc", "elsewhere.mrc"))
    spoil(here / "Movies/mic0001.tif")  # nobody asks for it
    assert run(here, out, *GIVEN) == 0
    spoil(here / "Movies/mic0002.tif")
    assert run(here, out, *GIVEN) == 1


class Unlucky:
    """Stand in for ``load_micrograph``: some micrographs cannot be used."""

    def __init__(self, *names):
        self.names, self.real = names, session.load_micrograph

    def __call__(self, movie, *args, **options):
        if movie.micrograph in self.names:
            raise rm.InputError(f"{movie.micrograph} is damaged; copy it again")
        return self.real(movie, *args, **options)


def test_others_take_the_place_of_micrographs_that_fail(opened, monkeypatch):
    search = rm.HyperparameterSearch(target_particles=10, max_strength=1.0)
    first = search.run(opened)
    assert len(first.attrs["micrographs"]) == 2 and first.attrs["n_particles"] == 16
    (other,) = set(NAMES) - set(first.attrs["micrographs"])
    monkeypatch.setattr(session, "load_micrograph", Unlucky(first.attrs["micrographs"][0]))
    stage_session = rm.Session(opened)
    found = search.run(stage_session)
    assert found.attrs["micrographs"] == [first.attrs["micrographs"][1], other] and found.attrs["n_particles"] == 16
    xr.testing.assert_identical(search.run(stage_session), found)  # what failed is known already
    dose = rm.DoseWeights(target_particles=10).run(rm.Session(opened), found)
    assert set(dose.attrs["micrographs"]) == {first.attrs["micrographs"][1], other}
    monkeypatch.setattr(session, "load_micrograph", Unlucky(*NAMES))
    with pytest.raises(rm.InputError, match="no movie can be used; the first: mic0000 is damaged"):
        search.run(opened)


def test_maps_without_a_micrograph_that_failed_do_not_stand_once_it_can_be_used(project, out, monkeypatch):
    """As after a worker that died: nothing that was read has changed."""
    given = *GIVEN, "--symmetry", "O", "--until", "validate"
    with monkeypatch.context() as patch:
        patch.setattr(session, "load_micrograph", Unlucky("mic0001"))
        assert run(project, out, *given) == 1
    before = store(out).read("validation")
    assert run(project, out, *given) == 0
    after = store(out).read("validation")
    assert not before.identical(after)
    names = reads(monkeypatch)
    assert run(project, out, *given) == 0
    assert not names and store(out).read("validation").identical(after)


# what the parameters of the search change


@pytest.fixture(scope="module")
def searched(project):
    """Return a function that searches with other settings than a short search's, movies read once."""
    ref = project / "Ref"
    data = rm.open_relion(
        project / "Extract/particles.star", project / "MotionCorr/corrected_micrographs.star",
        rm.Reference(ref / "half1.mrc", ref / "half2.mrc", ref / "mask.mrc"), project,
    )  # fmt: skip
    one = rm.Session(data, threads=2)
    return lambda **settings: rm.HyperparameterSearch(**{"max_strength": 3.0, **settings}).run(one)


@pytest.mark.parametrize(("thoroughness", "rays"), [("fast", 9), ("balanced", 16), ("extensive", 36)])
def test_thoroughness(searched, thoroughness, rays):
    found = searched(thoroughness=thoroughness)
    assert found.sizes["ray"] == rays
    assert len(set(zip(found["balance"].values, found["distance"].values))) == rays


def test_max_strength(searched):
    weak, far = searched(max_strength=0.3), searched(max_strength=30000.0)
    assert weak["strength"].max() == pytest.approx(0.3) and 3 < far["strength"].max() <= 30000.0
    assert weak.attrs["strength"] < far.attrs["strength"]
    (warning,) = still_moving(weak)
    assert "on 9 of 9 rays: at the maximum total prior strength (0.3)" in warning
    assert warning.endswith("Raise max_strength.") and not still_moving(far)
    for row in far["activity_local"].values:  # each ends as soon as two steps were quiet
        quiet = row[np.isfinite(row)] < 0.05
        assert (quiet[1:] & quiet[:-1]).tolist() == [False] * (quiet.size - 2) + [True]
    last = weak["activity_local"].values[:, -1].max()
    assert f"still move up to {last:.3g} Å" in warning


def test_a_trial_is_scored_on_all_micrographs_and_moves_as_they_do_on_average():
    facts = [np.array([[2.0], [1.0], [4.0]]), np.array([[4.0], [3.0], [8.0]])]  # cross term, local and total activity
    place = SimpleNamespace(apply=lambda function, *columns: facts, values=lambda held: held)
    prior = MotionPrior(rm.Hyperparameters(1.0, 50.0, 3000.0))
    ((trial,), _) = Searched(place, [None, None], ("a", "b"), 20, 4.0, False).try_priors([prior])
    assert (trial.cv_score, trial.activity_local, trial.activity_total) == (-3.0, 2.0, 6.0)


def test_activity_near_zero():
    table = np.array([[0.5, 0.01, 0.02], [0.5, 0.3, np.nan], [0.9, 0.4, 0.06], [0.9, 0.4, 0.04]])
    score = np.where(np.isfinite(table), -1.0, np.nan)
    moving, last = cut_short(table, score, np.array([True, True, False, False]))
    assert moving.tolist() == [False, False, True, False] and last.tolist() == [0.02, 0.3, 0.06, 0.04]


def test_a_ray_that_still_moves_but_was_best_long_ago_is_not_told():
    activity = np.full((2, 7), 0.5)
    score = np.array([[-1, -2, -3, -2, -1, 0, 0], [-1, -2, -3, -4, -3, -2, -1.0]])  # best 4 and 3 steps before the end
    assert cut_short(activity, score, np.zeros(2, bool))[0].tolist() == [False, True], "four steps are a decade"


def test_alignment_fraction(searched):
    half, most = searched(), searched(alignment_fraction=0.8)
    assert most.attrs["k_cut_per_A"] == pytest.approx(half.attrs["k_cut_per_A"] * np.sqrt(0.8 / 0.5))
    assert most.attrs["k_out_per_A"] == half.attrs["k_out_per_A"]
    assert not np.allclose(most["cv_score"], half["cv_score"], rtol=1e-3)  # other shells are held out
    assert most["activity_local"][0, 0] < half["activity_local"][0, 0]  # more data, less noise in the trajectories


def test_which_components_final_trajectories_use_is_no_matter_of_the_search(project, searched, out, capsys):
    ways = [searched(all_fourier_components=on, max_strength=0.2) for on in (True, False)]
    assert ways[0].identical(ways[1])
    more = "--until", "hyperparameters", "--max-strength", "0.2"
    assert run(project, out, *more) == run(project, out, *more, "--no-all-fourier-components") == 0
    assert "hyperparameters: taken from the earlier run" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "micrographs"), [(1, 1), (8, 1), (9, 2), (17, 3), (5000, 3)])
def test_target_particles(searched, target, micrographs):
    found = searched(target_particles=target, max_strength=0.2)
    assert found.attrs["n_particles"] == 8 * micrographs and len(found.attrs["micrographs"]) == micrographs


def test_seed(searched):
    chosen = {seed: searched(target_particles=1, seed=seed, max_strength=0.2) for seed in range(4)}
    assert len({tuple(found.attrs["micrographs"]) for found in chosen.values()}) > 1
    xr.testing.assert_identical(searched(target_particles=1, seed=3, max_strength=0.2), chosen[3])


def test_the_micrographs_of_the_search_are_listed(calm, project, tmp_path, capsys):
    log = (calm / "run.log").read_text(encoding="utf-8")
    assert " searched on mic0000, mic0001, mic0002\n" in log
    assert run(project, tmp_path, "--until", "hyperparameters", "--target-particles", "1", "--max-strength", "0.3") == 0
    (name,) = store(tmp_path).read("search").attrs["micrographs"]
    text = capsys.readouterr().err
    assert f"8 particles of {name}\n" in text and "warning: activity has not come near zero on 9 of 9 rays" in text


# memory


def many(data, times):
    """Return a dataset in which every movie stands several times."""
    movies, particles = [], []
    for i in range(times):
        movies += [replace(movie, micrograph=f"{movie.micrograph}_{i}") for movie in data.movies]
        names = np.array([f"{name}_{i}" for name in data.particles["micrograph"].values])
        particles.append(data.particles.assign(micrograph=("particle", names)))
    return replace(data, movies=tuple(movies), particles=xr.concat(particles, "particle"))


def peak_MB(work):
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_any_cache_gives_the_same_search_and_a_small_one_takes_little_memory(opened, tmp_path):
    data = many(opened, 5)
    search = rm.HyperparameterSearch(max_strength=0.2, window_reach_A=70.0, dose_profile=False, split_motion=False)
    found, peak = {}, {}
    for cache_MB in (0, 15, 1e4):
        one = rm.Session(data, 2, cache_MB * 1e6, tmp_path)
        one.references(False)
        found[cache_MB], peak[cache_MB] = peak_MB(lambda one=one: search.run(one))
        assert one.spool.peak_bytes <= cache_MB * 1e6 and one.spool.spilled_bytes == 0
        assert not list(tmp_path.iterdir())
    xr.testing.assert_identical(found[0], found[1e4])
    xr.testing.assert_identical(found[15], found[1e4])
    # 9, 21 and 42 MB: two micrographs in hand and the windows of one take 9 MB beside the cache
    assert peak[0] < 13 and peak[15] < 15 + 13 and peak[1e4] > 2 * 13


def test_a_micrograph_that_is_kept_does_not_hold_the_memory_of_a_larger_one_read_before(opened):
    micrograph = opened.particles["micrograph"].values
    large, others = (np.flatnonzero((micrograph == NAMES[0]) == first) for first in (True, False))
    particles = opened.particles.isel(particle=np.concatenate([np.repeat(large, 20), others]))
    one = rm.Session(replace(opened, particles=particles), 2, 8e6)
    sizes = [m.spectra.stored.nbytes for _, m in one.walk(NAMES, rm.HyperparameterSearch())]
    assert [name for name, *_ in one.kept] == NAMES[1:] and sizes[0] > 8e6
    for key, size in zip(one.kept, sizes[1:]):
        held = one.kept.get(key).spectra.stored
        while getattr(held, "base", None) is not None:
            held = held.base
        assert held.nbytes == size


@pytest.mark.usefixtures("only_new_garbage")
def test_a_job_holds_the_tracks_of_no_more_than_two_micrographs(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "choose", lambda *_, **__: Device(at_once=1))  # else of those that are ahead, too
    alive, most = [], []

    def counted(make):
        def made(*arguments, **more):
            found = make(*arguments, **more)
            if isinstance(found, xr.Dataset) and "shift" in found:
                alive.append(weakref.ref(found))
                gc.collect()
                most.append(sum(one() is not None for one in alive))
            return found

        return made

    monkeypatch.setattr(correction, "tracks_table", counted(correction.tracks_table))
    monkeypatch.setattr(ResultStore, "read", counted(ResultStore.read))
    given = {"spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0, "threads": 2}
    for _ in range(2):  # made, then read by a rerun, each once
        most.clear()
        assert rm.Job(opened, tmp_path / "out", given).run()
        assert len(most) == 3 and max(most) <= 2  # of three: the one in hand, the one before it


def test_spool(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 50_000)
    kept = spool.Spool(10_000, tmp_path)
    rng = np.random.default_rng(0)
    given = [
        rng.normal(size=(k, 10, 10)).astype(t) for k, t in ((10, "f4"), (9, "f8"), (0, "f8"), (30, "f8"), (90, "f4"))
    ]
    arrays = [kept.keep(array.copy()) for array in given]
    for array, expected in zip(arrays, given):
        assert array.dtype == expected.dtype and type(array) is np.ndarray
        np.testing.assert_array_equal(array, expected)
    assert kept.held_bytes == 4000 and kept.spilled_bytes == 7200 + 24000 + 36000
    assert not list(tmp_path.iterdir())  # files without a name
    part = arrays.pop(1)[3:5]  # a view holds what it is a part of
    assert kept.spilled_bytes == 7200 + 24000 + 36000
    np.testing.assert_array_equal(part, given[1][3:5])
    del part
    assert kept.spilled_bytes == 24000 + 36000
    arrays[0] = kept.keep(np.zeros((50, 50), "f4")[:25])  # of which all 10 kB would stay
    assert kept.held_bytes == 5000
    assert kept.reserve(5000) and not kept.reserve(1)
    del arrays, array
    assert (kept.held_bytes, kept.spilled_bytes, kept.peak_bytes) == (5000, 0, 10_000)


def test_the_app_goes_on_with_a_demo(out, monkeypatch):
    monkeypatch.chdir(out.parent)
    table = run_demo(Path("out"), Silent(), "cpu", MINI)
    assert "24 particles of mouse apoferritin" in table
    found = recorded_opening(out).open(Roots([out]))
    assert sorted(movie.micrograph for movie in found.movies) == NAMES and found.references[0].half1.is_file()


def test_the_report_of_a_demo_says_how_to_repeat_it(out, monkeypatch):
    monkeypatch.setattr(SimulationSettings, "demo", lambda: MINI)
    monkeypatch.chdir(out.parent)
    assert main(["demo", "--out", "out", "--device", "cpu"]) == 0
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "refmotion demo \\\n  --out out \\\n  --device cpu" in report
    assert "simulated movies, so that the true motion is known: rigid motion is off by " in report
    assert "refmotion demo --out out --device cpu" in (out / "run.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "until, own, shared",
    [("hyperparameters", 1, 2), ("dose-weights", 2, 2), ("correct", 2, 3), ("validate", 3, 3)],
)
def test_what_the_last_stage_reads_is_not_kept(opened, out, monkeypatch, until, own, shared):
    monkeypatch.setattr(audit, "ENOUGH", 1)  # the check reads one micrograph, the search two, correction all
    settings = {"target_particles": 9, "max_strength": 0.3, "threads": 2}
    job = rm.Job(opened, out, settings)
    job.run(until)
    assert len(job.session.kept) == own
    session = rm.Session(opened, 2)
    rm.Job(session, out.with_name("shared"), settings).run(until)
    assert len(session.kept) == shared  # who shares a session may want to go on


def test_a_full_disk_is_one_line(project, out, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool.os, "pwrite", full)
    assert run(project, out, "--cache-size-GB", "0.000001", "--until", "hyperparameters") == 1
    (line,) = said(capsys)
    found = re.match(f"{out}: No space left on device for (.*) beyond cache_size_GB; make room and run", line)
    assert re.fullmatch(r"[1-9]\d* [kM]B", found[1])


def test_a_disk_that_is_full_before_the_last_stack_is_one_line_and_the_others_are_kept(
    project, out, quick, monkeypatch, capsys
):
    last, stack, write = [], correction.write_stack, os.pwrite

    def write_stack(path, *what, **how):
        if path.name == "mic0002.mrcs":
            last.append(get_ident())
        stack(path, *what, **how)

    def full(file, *what):
        if get_ident() in last:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, *what)

    monkeypatch.setattr(correction, "write_stack", write_stack)
    monkeypatch.setattr("os.pwrite", full)  # through a map it would be a signal that ends the process
    assert run(project, out, *GIVEN) == 1
    (line,) = said(capsys)
    assert line.startswith(
        f"{out}/Particles/mic0002.mrcs: No space left on device; make room and run the same command again"
    )
    assert sorted(path.name for path in (out / "Particles").iterdir()) == ["mic0000.mrcs", "mic0001.mrcs"]
    monkeypatch.undo()
    assert run(project, out, *GIVEN) == 0
    assert_same(out, quick)


SPILLING = """
import os, signal, sys
import numpy as np
from refmotion_nb.data.spool import Spool
kept = Spool(0, sys.argv[1])
array = kept.keep(np.ones(10**6))
assert kept.spilled_bytes == 8 * 10**6 and array.sum() == 10**6
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_nothing_of_what_went_to_disk(tmp_path):
    done = subprocess.run([sys.executable, "-c", SPILLING, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL and not list(tmp_path.iterdir())
