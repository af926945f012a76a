"""How runs show themselves: bars, panels, reprs; without a browser."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from itertools import count

import pytest
import xarray as xr
from conftest import TINY
from fake_results import fake_search
from jupyter_client.manager import start_new_kernel

import refmotion_nb as rm
from refmotion_nb.cli.console import Console
from refmotion_nb.stages.base import Cancelled, Stage
from refmotion_nb.stages.runs import Run, Silent, Work
from refmotion_nb.views import progress as module
from refmotion_nb.views.progress import Bar
from refmotion_nb.views.run_words import how_far, state_of, told
from refmotion_nb.views.widgets.run_panel import RunPanel

SCRIPT = """
import refmotion_nb as rm
from refmotion_nb.stages.base import Stage

class Step(Stage):
    def run(self, reporter=None):
        reporter.start(2, "stepping")
        reporter.advance(best=-0.123456)
        if {fail}:
            raise rm.InputError("no more")
        reporter.advance(best=-0.2)
        reporter.done()

{ask}
Step().run()
"""


class Gated(Stage):
    """Waits before each step until it is let go on, and shows rays after each."""

    def run(self, session, gate, reporter=None):
        reporter.start(4, "searching hyperparameters")
        for i in range(4):
            assert gate.acquire(timeout=20)
            reporter.show(fake_search)
            reporter.advance(strength=10.0**i, rays=9 - i, best=-0.1)
        reporter.done()
        return fake_search()


def script(ask="", fail=False):
    code = textwrap.dedent(SCRIPT).format(ask=ask, fail=fail)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture
def session(tiny):
    return rm.Session(tiny.open(), threads=1)


@pytest.fixture
def usual():
    yield
    rm.progress("auto")


def reached(run, done):
    while not run.snapshot.works or run.snapshot.works[-1].done < done:
        assert not run.ends_within(0.005)


def text_of(panel):
    return re.sub("<[^>]+>", " ", panel.head.value)


def test_a_script_says_nothing_unless_asked():
    quiet = script()
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    asked = script('rm.progress("bar")')
    assert asked.returncode == 0 and asked.stdout == ""
    assert "stepping: 100%" in asked.stderr and "2/2" in asked.stderr and "best score −0.2" in asked.stderr


def test_a_bar_is_closed_when_the_run_fails():
    failed = script('rm.progress("bar")', fail=True)
    bar, _, traceback = failed.stderr.partition("Traceback")
    assert "1/2" in bar and bar.endswith("\n") and "no more" in traceback


def test_what_can_be_asked_for(usual):
    with pytest.raises(rm.InputError, match="auto, panel, bar, off"):
        rm.progress("loud")
    with pytest.raises(rm.InputError, match="needs a notebook"):
        rm.progress("panel")
    rm.progress("bar")
    assert type(rm.DoseWeights().new_reporter()) is Bar and type(rm.Job.new_reporter()) is Bar
    rm.progress("off")
    rm.Validation  # noqa: B018  (attaches again)
    assert type(rm.DoseWeights().new_reporter()) is Silent


class Shell:
    """An IPython shell: of a kernel when it has a parent message."""

    def __init__(self, allow_stdin=None):
        if allow_stdin is not None:
            self.kernel = self
        self.get_parent = lambda: {"content": {"allow_stdin": allow_stdin}}


@pytest.mark.parametrize(
    ("shell", "server", "kind"),
    [(None, True, "Silent"), (Shell(), False, "Bar"), (Shell(True), True, "Panel"), (Shell(True), False, "Bar"),
     (Shell(False), True, "Silent")],
    ids=["script", "terminal", "notebook", "console", "executed with nobody there"],
)  # fmt: skip
def test_the_reporter_suits_who_is_there(monkeypatch, shell, server, kind):
    monkeypatch.setattr(module, "_shell", lambda: shell)
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    if server:
        monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert type(module.automatic()).__name__ == kind


def test_a_panel_tells_how_a_run_goes(session):
    gate = threading.Semaphore(0)
    run = session.submit(Gated(), gate)
    panel = RunPanel(run, buttons=True)
    gate.release()
    reached(run, 1)
    panel.update()
    assert "1 of 4 steps" in text_of(panel) and "left" not in text_of(panel)  # start-up says nothing about speed
    gate.release()
    reached(run, 2)
    panel.update()
    text = text_of(panel)
    assert "Gated running for" in text.replace("  ", " ") and "2 of 4 steps" in text and "per minute" in text
    assert "left" in text and "8 rays walking" in text and 'aria-valuenow="50"' in panel.head.value
    assert panel.rays.value.count("<svg") == 2 and "retired: local activity 0.0" in panel.rays.value
    gate.release(2)
    run.wait(20)
    panel.update()
    assert text_of(panel).split()[:2] == ["Gated", "done"] and panel.cancel.disabled and panel.pause.disabled
    assert "4 of 4 steps in" in text_of(panel) and "progressbar" not in panel.head.value


def test_buttons_pause_resume_and_cancel(session):
    gate = threading.Semaphore(0)
    run = session.submit(Gated(), gate)
    panel = RunPanel(run, buttons=True)
    gate.release()
    reached(run, 1)
    panel.pause.click()
    assert run.state == "paused" and panel.pause.description == "Resume" and "paused, begun" in text_of(panel)
    assert "left" not in text_of(panel)
    panel.pause.click()
    assert run.state == "running" and panel.pause.description == "Pause"
    panel.cancel.click()
    assert "stopping at its next report" in text_of(panel) and panel.cancel.disabled and panel.pause.disabled
    gate.release(3)
    with pytest.raises(Cancelled):
        run.wait(20)
    panel.update()
    assert "cancelled after" in text_of(panel) and run.snapshot.works[0].done == 2


def test_a_real_search_cancelled_by_its_button_stays_so_and_leaves_a_session_to_work_on(session):
    shown = threading.Event()

    class Click:
        def start(self, total, what):
            if what == "searching hyperparameters":
                assert shown.wait(20)
                panel.cancel.click()

        def advance(self, n=1, **facts):
            pass

        def done(self):
            pass

    search = rm.HyperparameterSearch(target_particles=10)
    run = session.submit(search, reporter=Click())
    panel = RunPanel(run, buttons=True)
    shown.set()
    first = session.submit(rm.HyperparameterSearch(target_particles=10))
    with pytest.raises(Cancelled):
        run.wait(60)
    assert "cv_score" in first.wait(60)
    panel.update()
    assert run.state == "cancelled" and "cancelled after" in text_of(panel)
    assert session.latest(rm.HyperparameterSearch) is first and repr(search).startswith(
        "HyperparameterSearch: cancelled"
    )


def test_the_thread_of_a_panel_ends_with_the_run_or_when_it_is_closed(session):
    gate = threading.Semaphore(0)
    run = session.submit(Gated(), gate)
    panel, closed = RunPanel(run), RunPanel(run)
    threads = [threading.Thread(target=one._keep_up) for one in (panel, closed)]
    for thread in threads:
        thread.start()
    closed.close()
    threads[1].join(20)
    assert not threads[1].is_alive() and threads[0].is_alive()
    gate.release(4)
    threads[0].join(20)
    assert not threads[0].is_alive() and run.wait(20) is not None


def test_pages_of_runs(session):
    gate = threading.Semaphore(0)
    run, after = session.submit(stage := Gated(), gate), session.submit(behind := Gated(), gate)
    gate.release()
    reached(run, 1)
    assert (
        repr(run).startswith("Gated: running for")
        and "1 of 4 steps" in repr(run)
        and "progressbar" in run._repr_html_()
    )
    assert repr(behind).startswith("Gated: waiting for") and repr(after).startswith("Gated: waiting for")
    run.pause()
    assert repr(stage).startswith("Gated: paused, begun")
    text = repr(session)
    assert "2 runs" in text and "paused, begun" in text and "searching hyperparameters: 1 of 4 steps" in text
    run.cancel()
    gate.release(8)
    after.wait(20)
    assert "result: dimensions" in repr(after) and "12 rays" in repr(after) and "<svg" in after._repr_html_()
    assert "cancelled after" in repr(session) and "done in" in repr(session)


def test_a_job_passes_unfinished_results_on_to_who_watches_it(session):
    class Outer(Stage):
        def run(self, session, gate, reporter=None):
            return Gated().run(session, gate, reporter=reporter)

    gate = threading.Semaphore(0)
    run = session.submit(Outer(), gate)
    run.watched = True
    gate.release(4)
    run.wait(20)
    assert [one.name for one in session.runs] == ["Outer", "Gated"] and run.snapshot.so_far is not None


def test_what_was_found_done_does_not_count_as_speed():
    run = Run(Gated())
    run.start(10, "correcting particles")
    run.advance(8, from_an_earlier_run=8)
    assert run.snapshot.works[-1].rate_per_s is None and "left" not in how_far(run.snapshot.works[-1])
    run.advance(micrograph="m8")
    (work,) = run.snapshot.works
    assert (work.done, work.found, work.units) == (9, 8, "micrographs") and work.rate_per_s is None
    assert how_far(work) == "9 of 10 micrographs" and state_of(run).startswith("waiting for")


def test_what_is_compiled_for_the_first_micrograph_does_not_make_the_time_left_longer():
    seconds = [0.0]
    work = Work("correcting particles", 100, clock=lambda: seconds[0])
    seconds[0] = 20.0
    work = work.advanced(1, {"micrograph": "m0"})
    assert work.rate_per_s is None and work.seconds_left is None
    for i in range(1, 20):
        seconds[0] += 1
        work = work.advanced(1, {"micrograph": f"m{i}"})
    assert work.rate_per_s == pytest.approx(1) and work.seconds_left == pytest.approx(80)
    ended = replace(work, seconds=seconds[0])
    assert ended.rate_per_s == pytest.approx(20 / 39) and ended.seconds_left is None


def test_workers_that_end_all_at_once_do_not_make_the_time_left_shorter():
    seconds = [0.0]
    work = Work("correcting particles", 100, clock=lambda: seconds[0])
    for burst in range(1, 4):  # four at a time, 30 s each
        for i in range(4):
            seconds[0] = 30.0 * burst + 0.1 * i
            work = work.advanced(1, {"micrograph": f"m{burst}{i}"})
        assert work.seconds_left is None if burst == 1 else work.seconds_left == pytest.approx((100 - 4 * burst) * 7.5)


def test_a_bar_takes_no_speed_from_what_was_found_done(monkeypatch):
    bar = Bar()
    bar.start(100, "correcting particles")
    bar.advance(90, from_an_earlier_run=90)
    assert (bar._bar.n, bar._bar.initial) == (90, 90) and not bar._bar.format_dict["rate"]
    bar.done()


def test_a_bar_takes_no_speed_from_what_comes_before_the_first_is_done(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("refmotion_nb.stages.runs.time.perf_counter", lambda: seconds[0])
    bar = Bar()
    bar.start(3000, "correcting particles")
    seconds[0] = 60.0  # each was looked at
    bar.advance(1500, from_an_earlier_run=1500)
    assert not bar._bar.format_dict["rate"]
    for i in range(31):  # the first after references were prepared
        seconds[0] = 100.0 + 2.0 * i
        bar.advance(micrograph="m")
        assert bar._bar.format_dict["rate"] == (0 if i <= 10 else pytest.approx(0.5))
    inner = bar._bar
    assert "1531/3000" in str(inner) and "<48:58, " in str(inner)  # not days
    bar.done()
    assert inner.format_dict["rate"] == pytest.approx(31 / 100)


def test_facts_in_words():
    assert told({"micrograph": "m<1>", "failed": "its movie is truncated"}) == (
        "micrograph m<1>, could not be used: its movie is truncated"
    )
    assert told({"kept_in_memory_MB": 12.34, "something_new": 3}) == "12.3 MB in memory, something new 3"


def test_the_first_step_of_rays_shows_as_points(session):
    run = Run(Gated())
    run.result = fake_search().isel(step=slice(1)).assign_attrs(best_ray=0, best_step=0)
    assert run._repr_html_().count("<circle") == 2 * 12


def test_rays_of_users_are_escaped(session):
    run = Run(Gated())
    rays = fake_search()
    rays["reason"] = rays["reason"].astype(object).where(~rays["retired"], "<script>x</script>")
    run.result = rays
    assert "<script>" not in run._repr_html_() and isinstance(rays, xr.Dataset)


def test_an_interrupt_keeps_what_is_finished_and_a_session_to_work_on(session, tmp_path):
    search = rm.HyperparameterSearch(target_particles=10).run(session)
    dose = rm.DoseWeights(target_particles=10).run(session, search)

    class Interrupt:
        def start(self, total, what):
            pass

        def advance(self, n=1, **facts):
            if "micrograph" in facts:
                signal.raise_signal(signal.SIGINT)

        def done(self):
            pass

    correction = rm.MotionCorrection()
    with pytest.raises(KeyboardInterrupt):
        correction.run(session, search, dose, tmp_path, Interrupt())
    assert session.runs[-1].state == "cancelled" and repr(correction).startswith("MotionCorrection: cancelled")
    assert len(list(tmp_path.glob("Particles/*.mrcs"))) == 1
    table = correction.run(session, search, dose, tmp_path)
    assert bool(table["written"].all()) and session.runs[-1].snapshot.facts["from_an_earlier_run"] == 1


KERNEL = """
import threading
import refmotion_nb as rm
from refmotion_nb.stages.base import Stage
rm.Session

class Step(Stage):
    def run(self, session=None, gate=None, reporter=None):
        reporter.start(2, "stepping")
        reporter.advance()
        if gate is not None:
            assert gate.wait(20)
        reporter.advance()
        reporter.done()
        return 1

"""
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def kernel():
    manager, client = start_new_kernel(env={**os.environ, "JPY_SESSION_NAME": "a.ipynb"})
    said_by(client, KERNEL, lambda _: True)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def said_by(kernel, code, until):
    """Run a cell and return the messages that come, until there is one that ``until`` is true of and the cell is done."""
    kernel.execute(textwrap.dedent(code), allow_stdin=True)
    said, idle = [], False
    while not (idle and any(map(until, said))):
        said.append(message := kernel.get_iopub_msg(timeout=60))
        idle = idle or (message["msg_type"] == "status" and message["content"]["execution_state"] == "idle")
    return said


def shown_first(said):
    return next(one["content"]["data"] for one in said if one["msg_type"] == "display_data")


def page(message):
    return message["msg_type"] == "update_display_data" and "text/html" in message["content"]["data"]


def test_a_kernel_shows_a_panel_and_leaves_a_page(kernel):
    said = said_by(kernel, "_ = Step().run()", page)
    assert VIEW in shown_first(said) and "Step: done in" in next(filter(page, said))["content"]["data"]["text/plain"]
    sent = [one["content"]["data"]["state"] for one in said if one["msg_type"] == "comm_open"]
    assert not any(state.get("_view_name") == "HBoxView" for state in sent), "buttons are dead while the kernel is busy"
    assert any("interrupt the kernel" in state.get("value", "") for state in sent)


def test_a_submitted_run_shows_itself_from_the_background(kernel, tiny):
    code = f"""
    reference = rm.Reference(*{[*map(str, tiny.half_maps)]!r}, mask={str(tiny.mask)!r})
    data = rm.open_relion({str(tiny.particles)!r}, {str(tiny.micrographs)!r}, reference, {str(tiny.folder)!r})
    session, gate = rm.Session(data, threads=1), threading.Event()
    session.submit(Step(), gate)
    """
    said = said_by(kernel, code, lambda one: one["msg_type"] == "display_data")
    assert VIEW in shown_first(said) and not {"error", "stream", "update_display_data"} & {m["msg_type"] for m in said}
    later = said_by(kernel, "gate.set()", page)
    assert "2 of 2 steps" in next(filter(page, later))["content"]["data"]["text/plain"]
    assert not {"error", "stream"} & {m["msg_type"] for m in later}


def test_an_interrupted_cell_says_so_in_one_line(kernel):
    code = """
    import signal
    threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    Step().run(gate=threading.Event())
    """
    said = said_by(kernel, code, lambda one: one["msg_type"] == "error")
    (error,) = [one["content"] for one in said if one["msg_type"] == "error"]
    assert error["ename"] == "KeyboardInterrupt" and error["traceback"] == [
        "Step was stopped; what was finished is kept"
    ]
    assert "Step: cancelled after" in next(filter(page, said))["content"]["data"]["text/plain"]


def test_input_that_cannot_be_used_is_told_in_one_line(kernel):
    said = said_by(kernel, "import refmotion_nb as rm\nrm.progress('loud')", lambda one: one["msg_type"] == "error")
    ((line,),) = [one["content"]["traceback"] for one in said if one["msg_type"] == "error"]
    assert line == "InputError: progress 'loud' is not known; give one of auto, panel, bar, off"


def test_a_simulation_shows_how_far_it_is(usual, capsys, tmp_path):
    rm.progress("bar")
    rm.simulate(replace(TINY, n_micrographs=1, particles_per_micrograph=4), tmp_path)
    assert "simulating: 100%" in (said := capsys.readouterr().err) and "2/2" in said


def test_bars_in_the_file_of_a_batch_system_are_drawn_now_and_then(tmp_path, monkeypatch, capsys):
    seconds = count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))
    with Console(tmp_path / "run.log") as console:
        console.start(1000, "correcting particles")
        for i in range(1000):
            console.advance(micrograph=f"mic{i}")
    written = capsys.readouterr().err
    assert written.count("\r") < 150 and "1000/1000" in written
