"""What runs of stages leave behind, in the foreground and in the background."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import param
import pytest
import xarray as xr

import refmotion_nb as rm
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.numerics.threads import side_by_side
from refmotion_nb.stages import kept, runs
from refmotion_nb.stages import session as sessions
from refmotion_nb.stages.base import Cancelled, Silent, Stage
from refmotion_nb.stages.runs import Run
from refmotion_nb.stages.search import default_prior
from refmotion_nb.views.reprs import session_page


class Counting(Stage):
    """Counts to three, and waits before each step until it is let go on."""

    def run(self, session, *, gate=None, reporter=None):
        reporter.start(3, "counting")
        for i in range(3):
            if gate is not None:
                assert gate.acquire(timeout=20)
            reporter.advance(micrograph=f"m{i}")
        reporter.show(lambda: xr.Dataset())
        reporter.done()
        return xr.Dataset(attrs={"counted": 3})


class Failing(Stage):
    """Fails."""

    def run(self, session, reporter=None):
        raise rm.InputError("no movie; give one")


@pytest.fixture
def session(tiny):
    return rm.Session(tiny.open())


def test_a_run_in_the_foreground_is_among_the_runs_of_the_session(session):
    stage = Counting()
    result = stage.run(session)
    (run,) = session.runs
    assert run is stage.ran and run.result is result and run.state == "done" and run.seconds > 0
    (work,) = run.snapshot.works
    assert (work.what, work.done, work.total) == ("counting", 3, 3) and work.seconds is not None
    assert run.snapshot.micrographs == ("m0", "m1", "m2") and run.snapshot.so_far is None


def test_an_unfinished_result_is_worked_out_for_who_watches(session):
    Counting().run(session)
    assert session.runs[0].snapshot.so_far is None
    gate = threading.Semaphore(0)
    run = session.submit(stage := Counting(), gate=gate)
    run.watched = True
    gate.release(3)
    run.wait(20)
    assert stage.ran is run and run.snapshot.so_far is not None


def test_a_submitted_run_can_be_paused_and_cancelled(session):
    gate = threading.Semaphore(0)
    run, after = session.submit(Counting(), gate=gate), session.submit(Counting())
    while run.state == "waiting":
        threading.Event().wait(0.005)
    run.pause()
    assert run.state == "paused" and after.state == "waiting"
    gate.release()
    with pytest.raises(TimeoutError, match="paused"):
        run.wait(0.05)
    run.cancel()
    with pytest.raises(Cancelled):
        run.wait(20)
    assert run.state == "cancelled" and run.snapshot.works[0].done == 1
    assert after.wait(20).attrs["counted"] == 3, "those behind it have their turn"


class Settled(Stage):
    """Returns its setting, once it is let go on."""

    setting = param.Integer(1)

    def run(self, session, gate=None, reporter=None):
        if gate is not None:
            assert gate.acquire(timeout=20)
        reporter.start(1, "returning")
        reporter.advance()
        return xr.Dataset(attrs={"setting": self.setting})


def test_what_is_no_stage_is_not_submitted(session):
    with pytest.raises(rm.InputError, match=r"stage is .*; give a stage or a job"):
        session.submit(xr.Dataset())
    assert not session.runs


def test_a_submitted_stage_runs_with_the_settings_that_it_had(session):
    gate, stage = threading.Semaphore(0), Settled()
    runs = [session.submit(stage, gate)]
    stage.setting = 2  # for the next run, while the first one goes on and before the others had their turn
    runs.append(session.submit(stage))
    stage.setting = 3
    gate.release()
    assert [run.wait(20).attrs["setting"] for run in runs] == [run.settings["setting"] for run in runs] == [1, 2]
    assert stage.ran is runs[1] and session.found(stage) is None


def test_a_stage_that_two_threads_run_has_a_run_in_each(session, monkeypatch):
    stage, inside, gate = Settled(), threading.Event(), threading.Event()
    one_thread = runs.one_blas_thread

    def slow():
        if threading.current_thread() is beside:  # between the making of a run and its use
            inside.set()
            assert gate.wait(20)
        return one_thread()

    monkeypatch.setattr(runs, "one_blas_thread", slow)
    beside = threading.Thread(target=stage.run, args=(session,))
    beside.start()
    assert inside.wait(20)
    stage.run(session)
    gate.set()
    beside.join(20)
    assert [run.state for run in session.runs] == ["done", "done"]


class Holding(Stage):
    """Holds an array while it works."""

    def run(self, session, reporter=None):
        array = np.zeros(10)
        self.held = weakref.ref(array)
        reporter.start(1, "holding")
        reporter.advance(micrograph="m0")
        return array


def test_what_a_cancelled_run_was_at_work_on_is_not_kept(session, monkeypatch):
    def stop(*_, **__):
        raise Cancelled

    stage = Holding()
    monkeypatch.setattr(Silent, "advance", stop)
    with pytest.raises(Cancelled):
        stage.run(session)
    gc.collect()
    assert stage.ran.state == "cancelled" and stage.held() is None


def test_a_run_within_another_has_its_clock_and_state(monkeypatch):
    monkeypatch.setattr(runs, "START_UP", 0.0)  # else a busy machine may take both reports for start-up
    begun = time.perf_counter()
    outer = Run(Counting())
    outer._change(state="running")
    outer.watched = True
    inner = Run(Counting(), (), outer)
    assert inner.watched, "from its first result on"
    inner._change(state="running")
    inner.start(4, "counting")
    inner.advance()
    inner.advance()
    inner.pause()
    assert outer.state == inner.state == "paused"
    rate = inner.snapshot.works[0].rate_per_s
    time.sleep(0.05)
    assert rate is not None and inner.snapshot.works[0].rate_per_s == rate, "the clock stands still"
    outer.resume()
    assert inner.state == "running" and inner.snapshot.works[0].elapsed_s < time.perf_counter() - begun - 0.05
    inner.done()
    assert inner.snapshot.works[0].seconds < time.perf_counter() - begun - 0.05


def test_a_session_that_ran_something_is_freed(session):
    for _ in range(50):  # the thread has just ended, or is just about to
        session.submit(Counting()).wait(20)
    runs = [session.submit(Counting()) for _ in range(50)]
    assert all(run.wait(20).attrs["counted"] == 3 for run in runs)
    others = rm.Session(session.data)
    others.submit(Counting()).wait(20)
    gone, worker = weakref.ref(others), others._worker
    if worker is not None:
        worker.join(5)
    del others, worker
    gc.collect()
    assert gone() is None


BUSY = """import sys, threading
import numpy as np
import scipy.fft
import refmotion_nb as rm
from refmotion_nb.stages.base import Stage
class Busy(Stage):
    def run(self, session, reporter=None):
        reporter.start(1000, "transforming")
        while True:
            scipy.fft.fft(np.zeros((500, 4096)), workers=1)
            begun.set()
            reporter.advance()
begun = threading.Event()
ref = sys.argv[1] + "/Ref/"
reference = rm.Reference(ref + "half1.mrc", ref + "half2.mrc", ref + "mask.mrc")
rm.Session(rm.open_relion(sys.argv[2], sys.argv[3], reference, sys.argv[1])).submit(Busy())
begun.wait(30)
"""


def test_a_run_in_the_background_ends_before_python_does(tiny):
    program = [sys.executable, "-c", BUSY, *map(str, (tiny.folder, tiny.particles, tiny.micrographs))]
    done = subprocess.run(program, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")  # else: aborted


def test_what_a_session_lets_go_of_is_found_again(session):
    settings = rm.HyperparameterSearch()
    before = session.micrograph("mic0000", settings)
    assert session.spool.held_bytes > 0
    session.let_go()
    assert session.spool.held_bytes == 0
    assert (session.micrograph("mic0000", settings).own == before.own).all()


def test_references_are_prepared_once_for_all_who_ask_at_a_time(session, monkeypatch):
    prepared, together = [], threading.Barrier(2)

    def prepare(*_):
        prepared.append(1)
        time.sleep(0.02)
        return []

    def ask():
        together.wait(20)
        session.references(False)

    monkeypatch.setattr(sessions, "prepare_references", prepare)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(prepared) == 1


def test_a_session_is_shown_while_a_run_adds_to_it(session):
    class Growing(dict):
        def items(self):
            for one in super().items():
                self[f"another than {len(self)}"] = "no movie"
                yield one

    session.failed, session.seconds = Growing(a="no movie"), Growing(b=1.0)
    assert "no movie" in str(session_page(session))


def test_a_run_cancelled_before_its_turn_does_nothing(session):
    gate = threading.Semaphore(0)
    first, second = session.submit(Counting(), gate=gate), session.submit(Counting())
    second.cancel()
    gate.release(3)
    first.wait(20)
    with pytest.raises(Cancelled):
        second.wait(20)
    assert second.snapshot.works == ()


def test_failures_are_told_to_who_waits(session):
    run = session.submit(Failing())
    with pytest.raises(rm.InputError, match="give one"):
        run.wait(20)
    assert run.error == "no movie; give one"
    wrong = session.submit(Counting(), "too", "much")
    with pytest.raises(TypeError):
        wrong.wait(20)


def test_a_job_takes_what_stages_found_on_its_session(session, tmp_path):
    search = rm.HyperparameterSearch(target_particles=10).run(session)
    job = rm.Job(session, tmp_path / "out", {"target_particles": 10})
    assert session.submit(job, "correct").wait(120) is True
    assert job.search is search and [run.name for run in session.runs].count("HyperparameterSearch") == 1
    names = [run.name for run in session.runs]
    assert names[1] == "Job" and {"InputAudit", "DoseWeights", "MotionCorrection"} <= set(names[2:])
    again = rm.Job(session, tmp_path / "again", {"target_particles": 10})
    again.run("dose-weights")
    assert [run.name for run in session.runs].count("DoseWeights") == 1
    xr.testing.assert_identical(again.dose, job.dose)


def test_a_job_in_an_old_folder_shows_its_results_as_runs(session, tmp_path, tiny):
    rm.Job(session, tmp_path / "out", {"target_particles": 10}).run("dose-weights")
    other = rm.Session(tiny.open())
    rm.Job(other, tmp_path / "out", {"target_particles": 10}).run("dose-weights")
    search = other.latest(rm.HyperparameterSearch)
    assert search.seconds == 0 and "cv_score" in search.result
    assert other.latest(rm.DoseWeights).inputs == (search.result,)


def test_unfinished_searches_have_rays_that_grow(session):
    seen = []

    class Watch:
        def start(self, total, what):
            session.runs[-1].watched = True

        def advance(self, n=1, **facts):
            seen.append(session.runs[-1].snapshot.so_far)

        def done(self):
            pass

    result = rm.HyperparameterSearch(target_particles=10).run(session, reporter=Watch())
    tables = [table for table in seen if table is not None]
    steps = [table.sizes["step"] for table in tables]
    assert steps == sorted(steps) and 1 <= steps[0] <= result.sizes["step"]
    xr.testing.assert_equal(tables[0]["cv_score"], result["cv_score"].isel(step=slice(steps[0])))


def test_no_ray_walks_any_more_while_the_prior_is_refined(session, monkeypatch):
    monkeypatch.setattr(runs, "SHOW_EVERY_S", 1e3)  # only what begins a piece of work is shown
    refining = []

    class Watch:
        def start(self, total, what):
            self.what, session.runs[-1].watched = what, True

        def advance(self, n=1, **facts):
            if self.what == "refining the prior":
                refining.append(session.runs[-1].snapshot.so_far)

        def done(self):
            pass

    rm.HyperparameterSearch(target_particles=10).run(session, reporter=Watch())
    assert len(refining) == 3 and all((table["reason"] != "").all() for table in refining)


# where work is done


def test_two_micrographs_are_worked_on_at_a_time_and_come_in_order(tiny):
    session, both, inside, most = rm.Session(tiny.open(), 2), threading.Barrier(2), [], []

    def task(session, m):
        inside.append(m.movie.micrograph)
        most.append(len(inside))
        both.wait(timeout=60)  # until another one is there
        inside.remove(m.movie.micrograph)
        return m.n

    names = 2 * list(session)
    found = list(session.place.each(names, rm.MotionCorrection(), task))
    assert found == [(name, session.particle_count(name)) for name in names] and max(most) == 2
    assert 0 < session.seconds["reading movies"] < 60


def test_trajectories_that_two_threads_find_at_a_time_count_once(session, monkeypatch):
    stage, both, find = rm.MotionCorrection(), threading.Barrier(2), sessions.track
    prior = default_prior(Hyperparameters(100.0, 50.0, 3000.0), stage)
    m = session.micrograph(next(iter(session)), stage)
    held = session.spool.held_bytes

    def found_together(*arguments):
        both.wait(timeout=60)
        return find(*arguments)

    monkeypatch.setattr(sessions, "track", found_together)
    one, other = side_by_side(lambda _: session.track(m, stage, prior), range(2), 2)
    assert np.array_equal(one.displacement_A, other.displacement_A)
    assert session.spool.held_bytes == held + one.displacement_A.nbytes


def test_a_micrograph_whose_keeping_is_interrupted_counts_nothing(session, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kept, "settled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.micrograph(next(iter(session)), rm.MotionCorrection())
    assert session.spool.held_bytes == len(session.kept) == 0


def test_a_micrograph_that_failed_is_not_used_though_it_was_kept_before(session):
    settings = rm.HyperparameterSearch()
    name, other = [name for name, _ in session.walk(list(session), settings)]
    assert len(session.kept) == 2
    session.failed[name] = "its movie is gone"  # as read with other settings
    assert [(one, m is None) for one, m in session.walk(list(session), settings)] == [(name, True), (other, False)]


def test_once_it_is_stopped_what_is_being_read_is_not_worked_on(tiny, monkeypatch):
    session, go, begun, read = rm.Session(tiny.open(), 2), threading.Event(), [], rm.Session.micrograph
    first, second = session

    def reads(self, name, *settings):
        found = read(self, name, *settings)
        assert name == first or go.wait(60)
        return found

    monkeypatch.setattr(rm.Session, "micrograph", reads)
    found = session.place.each([first, second], rm.MotionCorrection(), lambda _, m: begun.append(m.movie.micrograph))
    assert next(found) == (first, None)
    threading.Timer(0.3, go.set).start()
    found.close()
    assert go.is_set() and begun == [first]
