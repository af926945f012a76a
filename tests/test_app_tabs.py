"""What tabs tell where something went wrong, what they read again, and whose figures are made; without a browser."""

import errno
import time
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
import xarray as xr
from fake_results import fake_dose_weights, fake_tracks, fake_validation

import refmotion_nb as rm
from refmotion_nb.data.files import sole
from refmotion_nb.data.store import write_netcdf
from refmotion_nb.stages.describe import describe_inputs
from refmotion_nb.stages.reuse import read_weights
from refmotion_nb.stages.runs import Cancelled, Run
from refmotion_nb.views.app import comparing, ending, written
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.figure import Figure, Same
from refmotion_nb.views.app.notebook import code_of
from refmotion_nb.views.app.page import Page
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.tabs import TABS, correct
from refmotion_nb.views.app.tabs.correct import CorrectTab
from refmotion_nb.views.app.tabs.dose import DoseTab
from refmotion_nb.views.app.tabs.results import ResultsTab, gained

OWNER = Viewer("owner", True, True)
NAUGHTY = "<script>alert(1)</script>"


@pytest.fixture
def engine(tiny, tmp_path):
    """An engine with data open; its output folder has results that nobody in this session made."""
    engine = Engine(Roots([tmp_path]))
    engine.take(tiny.open())
    store = rm.ResultStore(engine.out / "results.zarr")
    store.update_attrs(inputs=describe_inputs(engine.session.data))
    store.write("dose_weights", fake_dose_weights())
    store.write("validation", fake_validation())
    store.write(
        "particles",
        xr.Dataset(
            {
                "written": ("particle", [True, False]),
                "reason": ("particle", ["", NAUGHTY]),
                "micrograph": ("particle", ["a", NAUGHTY]),
            }
        ),
    )
    for name in engine.session:
        store.write(f"tracks/{name}", fake_tracks())
    return engine


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        Event().wait(0.01)


def ended(engine, how, stage=None, *inputs):
    """Leave a run among those of the session, of a job unless ``stage`` is given, that ``how`` was raised in."""
    run = Run(stage or rm.Job(engine.session, engine.out), inputs)
    engine.session.runs.append(run)

    def end():
        if how is not None:
            raise how

    with suppress(BaseException):
        run.follow(end)
    return run


# how runs ended


def test_a_job_that_fails_before_its_stage_is_told_on_the_tab_that_started_it(engine):
    tabs = dose, corrected, results = DoseTab(engine, OWNER), CorrectTab(engine, OWNER), ResultsTab(engine, OWNER)
    with sole(engine.out):
        run = engine.run("correct")
        assert run.watched, "the first unfinished result may be there before a page looks"
        until(lambda: run.snapshot.ended)
    for tab in tabs:
        tab.update()
    assert dose.ended.object == ""
    for tab in (corrected, results):
        assert "The run failed." in tab.ended.object and "another run is writing to" in tab.ended.object
        assert "wait for it, or choose another output folder on the Data tab" in tab.ended.object
    assert "2 micrographs from an earlier run" in corrected.told.object
    ended(engine, None, None, "validate")
    corrected.update()
    assert corrected.ended.object == "", "the next one went well"


def test_what_was_cancelled_is_told_as_cancelled(engine):
    tab = DoseTab(engine, OWNER)
    ended(engine, Cancelled(), None, "dose-weights")
    tab.update()
    assert "The run was cancelled." in tab.ended.object and "alert" not in tab.ended.object
    engine.session.adopt(rm.DoseWeights(), result=fake_dose_weights())
    tab.update()
    assert tab.ended.object == "" and tab.status.object


def test_a_failure_is_told_once_and_with_its_remedy(engine):
    tab = CorrectTab(engine, OWNER)
    full = OSError(errno.ENOSPC, "No space left on device", "/out/<a>.mrcs")
    job = ended(engine, full, None, "correct")
    run = ended(engine, full, rm.MotionCorrection())
    run.start(2, "correcting particles")
    job.ended_at = run.ended_at + 1e-6  # of which it was a part
    tab.update()
    assert tab.ended.object == "" and "0 of 2 micrographs done, then it failed: /out/&lt;a&gt;.mrcs" in tab.told.object
    assert "make room and start it again" in tab.told.object
    ended(engine, MemoryError("Unable to allocate 16 GiB"), None, "validate")
    tab.update()
    assert "Unable to allocate 16 GiB); end other programs or choose a smaller cache_size_GB" in tab.ended.object
    ended(engine, ZeroDivisionError("1 / 0"), None, "validate")
    tab.update()
    assert "ZeroDivisionError: 1 / 0" in tab.ended.object and "then it failed" not in tab.told.object


def test_movies_that_fail_alike_are_one_line_on_every_page(engine, monkeypatch):
    gone = {f"mic<{i}>": f"/data/mic<{i}>.tif is truncated; copy it again" for i in range(3000)}
    monkeypatch.setattr(engine.session, "failed", gone)
    run = ended(engine, None, rm.MotionCorrection())
    run.start(3000, "correcting particles")
    tab = CorrectTab(engine, OWNER)
    tab.update()
    assert (
        "3000 left out" in tab.failed.object
        and "mic&lt;2&gt; and 2997 more</b>: /data/mic&lt;0&gt;.tif" in tab.failed.object
    )
    assert len(tab.failed.object) < 300


def test_trajectories_are_offered_from_the_first_micrograph_to_the_last(engine, monkeypatch):
    tab = CorrectTab(engine, OWNER)
    monkeypatch.setattr(tab, "_stored", lambda: [f"mic{i:04d}" for i in range(3000)])
    tab._trajectories(None)
    assert len(tab.micrograph.options) == 20 and tab.micrograph.options[::19] == ["mic0000", "mic2999"]


def test_nothing_is_told_while_the_next_one_goes_on(engine):
    ended(engine, rm.InputError("no; try another"), None, "correct")
    assert ending.last_ended(engine, rm.MotionCorrection, "correct").error == "no; try another"
    engine.session.runs.append(Run(rm.Job(engine.session, engine.out), ("correct",)))
    assert ending.last_ended(engine, rm.MotionCorrection, "correct") is None


# what cannot be read, and what was entered


def test_a_damaged_result_is_told_on_the_tab(engine):
    (engine.store.path / "dose_weights" / "weight" / ".zarray").write_text("{")
    page = Page(engine, OWNER)
    page.front.value = TABS.index(DoseTab)
    problem = page.tab(page.active).problem
    assert problem.visible and "weight" in problem.object
    engine.store.write("dose_weights", fake_dose_weights())
    page.refresh(force=True)
    assert not problem.visible


def test_what_could_not_be_read_is_looked_at_again_after_a_while(engine, monkeypatch):
    file = engine.store.path / "dose_weights" / "weight" / ".zarray"
    whole = file.read_text()
    file.write_text("{")
    page = Page(engine, OWNER)
    page.front.value = TABS.index(DoseTab)
    problem = page.tab(page.active).problem
    file.write_text(whole)  # by nobody whom the engine knows
    page.refresh()
    assert problem.visible, "it is not looked at all the time"
    monkeypatch.setattr("refmotion_nb.views.app.page.AGAIN_S", 0.0)
    page.refresh()
    assert not problem.visible


def test_what_is_being_replaced_is_looked_at_once_more(engine, monkeypatch):
    tab, calls = DoseTab(engine, OWNER), []

    def refresh():
        calls.append(1)
        if len(calls) == 1:
            raise rm.InputError("half there")

    monkeypatch.setattr(tab, "refresh", refresh)
    tab.update()
    assert len(calls) == 2 and not tab.problem.visible


def test_factors_that_are_none_are_told_below_their_field(engine):
    tab = DoseTab(engine, OWNER)
    tab.update()
    tab.editor.frames.value = "first: 0"
    assert tab.editor.wrong.visible and "is no frame with a factor" in tab.editor.wrong.object
    tab.what.value = "Weights"
    tab.update()
    assert not tab.problem.visible and "What share of the sum" in tab.meaning.object, "the rest goes on"
    tab.editor.frames.value = "1: 0"
    assert not tab.editor.wrong.visible


def test_text_of_others_is_no_html(engine):
    engine.dose_weights_file = engine.out / f"{NAUGHTY.replace('/', '_')}.nc"
    dose = DoseTab(engine, OWNER)
    dose.update()
    assert "&lt;script&gt;" in dose.status.object
    dose.editor.path.value = "<b>.nc"
    dose.editor.save.clicks += 1
    assert "takes &lt;b&gt;.nc" in dose.editor.told.object
    validation = fake_validation().assign_coords(combination=[NAUGHTY, "+ weights", "+ trajectories", "both"])
    assert "<script" not in gained(validation) and "<script" not in written.in_words(
        engine.store.read("particles"), engine.out, [NAUGHTY]
    )


def test_it_is_said_where_the_weights_shown_are_from_not_those_chosen(engine):
    tab = DoseTab(engine, OWNER)
    engine.session.adopt(rm.DoseWeights(), result=fake_dose_weights())
    tab.update()
    measured = tab.status.object
    assert measured.startswith("measured on ") and tab.editor.back.disabled
    write_netcdf(engine.roots.folders[0] / "weights.nc", fake_dose_weights())
    engine.use_dose_weights(Path("weights.nc"))
    tab.update()
    assert tab.status.object == f"{measured}; the next run takes weights.nc"
    assert "takes weights.nc" in tab.editor.told.object and not tab.editor.back.disabled
    engine.session.adopt(
        rm.DoseWeights(), result=read_weights(engine.dose_weights_file, engine.session.data.movies, 1, 1.0)
    )
    tab.update()
    assert tab.status.object == "from weights.nc"
    engine.use_dose_weights(None)
    tab.update()
    assert tab.status.object == "from weights.nc" and tab.editor.told.object == ""


def test_words_give_way_to_a_figure_and_come_back(engine):
    tab = DoseTab(Engine(Roots([engine.out.parent]), out=engine.out / "none"), OWNER)
    tab.engine.session = engine.session
    tab.update()
    assert "Nothing measured yet" in tab.figure.view[0].object
    run = Run.of_result(rm.DoseWeights(), (), fake_dose_weights())
    for _ in range(2):  # the very same table again
        engine.session.runs.append(run)
        until(lambda: tab.update() or tab.figure.up_to_date)
        assert len(tab.figure.view[0]) == 2
        engine.session.runs.remove(run)
        tab.update()
        assert "Nothing measured yet" in tab.figure.view[0].object


# what is read again


def test_nothing_is_read_again_while_nothing_changes(engine, monkeypatch):
    tabs = [CorrectTab(engine, OWNER), ResultsTab(engine, OWNER)]
    for tab in tabs:
        tab.update()
    until(lambda: [tab.update() for tab in tabs] and all(one.up_to_date for tab in tabs for one in tab._figures))

    def again(*_, **__):
        raise AssertionError("worked out again")

    monkeypatch.setattr(rm.ResultStore, "groups", again)
    monkeypatch.setattr(correct, "cost_of_correction", again)
    monkeypatch.setattr(rm.ResultStore, "read", again)
    engine.changed()
    for tab in tabs:
        tab.update()
    assert "job.run('validate')" in code_of(engine)
    monkeypatch.undo()
    engine.store.remove("tracks/mic0000")
    tabs[0].update()
    assert tabs[0].micrograph.options == ["mic0001"]


# figures


@pytest.fixture
def gate(engine):
    """Keep the thread of the figures busy until it is set."""
    gate, begun = Event(), Event()
    Figure(engine).show("first", lambda: begun.set() or gate.wait(20))
    begun.wait(20)
    yield gate
    gate.set()


def test_only_the_newest_of_what_a_figure_was_asked_for_is_made_and_others_get_their_turn(engine, gate):
    made = []
    mine, theirs, gone = Figure(engine), Figure(engine), Figure(engine)
    for i in range(10):
        mine.show(i, lambda i=i: made.append(i) or "text")
        if i == 0:
            gone.show("gone", lambda: made.append("gone"))
            theirs.show("other", lambda: made.append("other") or "text")
    gone.close()
    gate.set()
    until(lambda: len(made) >= 2 and mine._made and theirs._made)
    assert made == [9, "other"], "in the place that it had, but the newest"
    mine.show(9, lambda: made.append("again"))
    assert mine.up_to_date and made == [9, "other"]


def test_what_was_made_is_shown_though_something_newer_is_wanted_unless_it_was_cleared(engine, gate):
    figure, goes_on = Figure(engine), Event()
    figure.show("old", lambda: "# old")
    version = engine.version
    gate.set()
    until(lambda: figure._made and engine.version > version)
    figure.show("new", lambda: goes_on.wait(20) and "# new")
    assert figure.view[0].object == "# old" and not figure.up_to_date
    figure.clear()
    goes_on.set()
    figure.show("other", lambda: "# other")
    until(lambda: figure.show("other", lambda: "") or figure.up_to_date)
    assert figure.view[0].object == "# other"


def test_what_a_closed_page_waits_for_is_not_made(engine, gate):
    page, made = Page(engine, OWNER), []
    page.tab(TABS.index(DoseTab)).figure.show("late", lambda: made.append(1))
    page.close()
    last = Figure(engine)
    last.show("last", lambda: "text")
    gate.set()
    until(lambda: last._made)
    assert not made


def test_a_key_stands_for_the_very_same_result():
    one, other = fake_dose_weights(), fake_dose_weights()
    assert Same(one) == Same(one) != Same(other) and hash(Same(one)) == hash(Same(one))


# what was written


def test_files_listed_are_those_of_the_output_folder_and_nothing_else_can_be_had(engine, tmp_path_factory):
    out, secret = engine.out, tmp_path_factory.mktemp("secret") / "report.html"
    secret.write_text("secret")
    (out / "particles.star").write_text("data_")
    (out / "report.html").symlink_to(secret)
    (out / "Tracks").mkdir()
    tab = ResultsTab(engine, OWNER)
    tab.served = True
    tab.update()
    assert '<a href="files/particles.star" download="particles.star">' in tab.files.object
    assert f"<code>{out / 'Tracks'}</code>" in tab.files.object and "report.html" not in tab.files.object
    assert written.find(engine, "particles.star") == out / "particles.star"
    for name in ("report.html", "../secret", "..", "", "run.log", str(secret), "results.zarr/.zattrs"):
        with pytest.raises(rm.InputError):
            written.find(engine, name)
    engine.write_to(out.parent / "another")
    store = rm.ResultStore(engine.out / "results.zarr")
    store.update_attrs(inputs=describe_inputs(engine.session.data))
    store.write("particles", rm.ResultStore(out / "results.zarr").read("particles"))
    (engine.out / "particles.star").write_text("data_")
    tab.update()
    assert f"<code>{engine.out / 'particles.star'}</code>" in tab.files.object


def test_maps_are_in_order_and_every_reference_has_its_fsc(tmp_path):
    (tmp_path / "Maps").mkdir()
    for name in ("both_2", "rigid_2_half1", "rigid_1", "both_1", "weights_1", "rigid_2"):
        (tmp_path / "Maps" / f"{name}.mrc").touch()
    (tmp_path / "Maps" / "outside.mrc").symlink_to("/etc/hostname")
    assert [path.stem for path in written.maps_in(tmp_path, Roots([tmp_path]))] == [
        "rigid_1",
        "weights_1",
        "both_1",
        "rigid_2",
        "both_2",
    ]
    one = fake_validation()
    two = xr.concat([one.isel(reference=[0])] * 2, "reference").assign_coords(reference=[0, 1])
    assert len(comparing.every_fsc({"": one.isel(reference=[0])})) == 1
    assert len(comparing.every_fsc({"a": two, "b": one.isel(reference=[0])})) == 2
