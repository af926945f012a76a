"""Dose, Correct and Results tabs, and the code for a notebook, on real sessions without a browser."""

import json
import threading
from dataclasses import replace

import numpy as np
import panel as pn
import pytest
import xarray as xr
from bokeh.models import Line
from fake_results import fake_dose_weights, fill

import refmotion_nb as rm
from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.cost import cost_of_correction
from refmotion_nb.stages.runs import Cancelled, Run
from refmotion_nb.views.app import figure, parts
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.notebook import code_of, notebook_of
from refmotion_nb.views.app.opening import Opening
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.tabs import correct, results
from refmotion_nb.views.app.tabs.correct import CorrectTab, progress_in_words
from refmotion_nb.views.app.tabs.dose import DoseTab
from refmotion_nb.views.app.tabs.results import ResultsTab
from refmotion_nb.views.app.written import files_in

FAST = {"target_particles": 10, "spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0}


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """Return an engine that has corrected and validated."""
    folder = tmp_path_factory.mktemp("app")
    engine = Engine(Roots([folder, tiny.folder]))
    opening = Opening("open_relion", {"particles": tiny.particles, "micrographs": tiny.micrographs,
                                      "references": tiny.references[0], "root": tiny.folder})  # fmt: skip
    engine.open(opening).wait(600)
    wait_for(lambda: engine.session is not None)
    engine.change(**FAST)
    engine.run("validate").wait(600)
    return engine


def wait_for(true):
    for _ in range(2000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


def shown(tab, figure):
    """Return the Bokeh figures that a figure shows once they are made."""
    show(tab, figure)
    return [pane.object for pane in figure.view.select(pn.pane.Bokeh)]


def show(tab, figure):
    """Refresh a tab until a figure shows what it is asked for."""

    def there():
        tab.refresh()
        return figure.up_to_date

    wait_for(there)


def owner():
    return Viewer("owner", True)


def test_the_dose_tab_shows_each_plot_of_what_was_measured(done):
    tab = DoseTab(done, owner())
    titles = set()
    for what in tab.what.options:
        tab.what.value = what
        titles.add(tuple(one.title.text for one in shown(tab, tab.figure)))
        assert tab.meaning.object
    assert len(titles) == len(tab.what.options)
    assert tab.status.object == "measured on 12 particles"


@pytest.mark.parametrize(("kind", "choice"), [(DoseTab, "what"), (CorrectTab, "drawn")])
def test_no_figure_is_there_under_the_name_of_another(done, kind, choice):
    tab = kind(done, owner())
    shown(tab, tab.figure)
    chosen = getattr(tab, choice)
    chosen.value = chosen.options[-1]
    assert tab.figure.view[0].object == "drawing …"


def test_edited_weights_are_saved_and_taken_by_the_next_correction(done):
    tab = DoseTab(done, owner())
    tab.refresh()
    tab.editor.frames.value = "1: 0"
    tab.editor.save.clicks += 1
    assert not tab.problem.visible, tab.problem.object
    saved = xr.load_dataset(done.out / "dose_weights_edited.nc")
    assert (saved["weight"].isel(frame=0) == 0).all() and done.dose_weights_file == done.out / "dose_weights_edited.nc"
    assert "dose_weights_file" in code_of(done)
    done.run("dose-weights").wait(600)
    assert (done.result("dose_weights")["weight"].isel(frame=0) == 0).all()
    tab.editor.back.clicks += 1
    done.run("dose-weights").wait(600)
    assert (done.result("dose_weights")["weight"].isel(frame=0) > 0).all(), "measured ones again"


@pytest.mark.parametrize("name", ["../../elsewhere.nc", "weights.txt", "dose_weights.nc"])
def test_weights_are_not_saved_elsewhere_or_over_results(done, name):
    before = (done.out / "dose_weights.nc").read_bytes()
    tab = DoseTab(done, owner())
    tab.refresh()
    tab.editor.path.value = name
    tab.editor.save.clicks += 1
    assert tab.problem.visible and done.dose_weights_file is None
    assert (done.out / "dose_weights.nc").read_bytes() == before


def test_who_looks_on_cannot_start_change_or_save(done):
    looker = Viewer("colleague", False)
    runs, settings = len(done.runs), dict(done.settings)
    dose, correct = DoseTab(done, looker), CorrectTab(done, looker)
    dose.refresh()
    correct.refresh()
    for button in (dose.start, correct.start, correct.whole, correct.cancel, dose.editor.save):
        button.clicks += 1
    correct.settings["float16"].widget.value = True
    assert len(done.runs) == runs and done.settings == settings
    assert "looking on" in correct.problem.object


def test_the_correct_tab_tells_cost_progress_and_trajectories(done, monkeypatch):
    asked_by = []
    monkeypatch.setattr(
        correct, "cost_of_correction", lambda *of: asked_by.append(threading.get_ident()) or cost_of_correction(*of)
    )
    tab = CorrectTab(done, owner())
    assert len(shown(tab, tab.figure)) == 1
    assert tab.micrograph.options == ["mic0000", "mic0001"]
    show(tab, tab.cost)
    assert tab.cost.view[0].object.startswith("All 2 micrographs lie in the output folder")
    assert tab.told.object == "2 of 2 micrographs done. The Results tab lists what was written."
    tab.settings["fourier_crop_to"].widget.value = 7
    show(tab, tab.cost)
    assert "give an even number" in tab.cost.view[0].object
    assert asked_by and threading.get_ident() not in asked_by, "all pages would wait"
    tab.settings["fourier_crop_to"].widget.value = 0
    assert done.settings == FAST


def test_progress_in_words():
    run = Run(None)
    run.start(5, "correcting particles")
    run.advance(micrograph="a")
    run.advance(micrograph="b")
    work = replace(run.snapshot.works[-1], started=0.0, first_s=20.0, settled=(1, 20.0), clock=lambda: 23.0)
    text = progress_in_words(run.snapshot, work)  # start-up, 20 s, counts neither in the rate nor in the time left
    assert text == "2 of 5 micrographs, 20 micrographs per minute, about 9 s left"
    run.cancel()
    with pytest.raises(Cancelled):
        run.follow(lambda: None)
    assert "goes on from there" in progress_in_words(run.snapshot, run.snapshot.works[-1])


def test_the_results_tab_shows_gains_maps_particles_and_files(done):
    tab = ResultsTab(done, owner())
    (fsc,) = shown(tab, tab.fsc)
    assert len(fsc.select({"type": Line})) >= 4
    assert [one.title.text for one in shown(tab, tab.maps)] == ["rigid", "both"] and len(shown(tab, tab.images)) == 15
    for words, said in ((tab.written, "24 of 24 particles written"), (tab.table, "FSC 0.143")):
        show(tab, words)
        assert said in words.view[0].object
    for name in (
        "report.html",
        "particles.star",
        "dose_weights.nc",
        "hyperparameters.json",
        "Particles",
        "Tracks",
        "Maps",
    ):
        assert f"<code>{done.out / name}</code>" in tab.files.object
    assert not tab.nothing.visible and tab.micrograph.value == "mic0000"
    assert "Refine particles.star in RELION" in tab.written.view[0].object


def test_particles_of_several_references_are_there_to_download(tmp_path):
    names = [f"particles_{i}.{end}" for end in ("star", "cs", "csg") for i in (1, 2)]
    for name in names:
        (tmp_path / name).touch()
    assert list(files_in(tmp_path, Roots([tmp_path]))) == names


def test_without_a_validation_the_results_tab_says_how_to_get_one(tmp_path):
    engine = Engine(Roots([tmp_path]), out=tmp_path / "out")
    fill(ResultStore(engine.out / "results.zarr"), micrographs=1).remove("validation")
    tab = ResultsTab(engine, owner())
    tab.refresh()
    assert tab.nothing.visible and "“Correct and validate”" in tab.nothing.object


def test_particles_are_shown_under_the_settings_of_their_run(done, monkeypatch):
    asked = []
    monkeypatch.setattr(results.plots, "particles", lambda *_, stage: asked.append(stage.settings()) or "drawn")
    again = Engine(done.roots, out=done.out)
    again.take(done.session.data)
    for engine in (done, again):  # from its run, from the folder
        before = dict(engine.settings)
        engine.change(fourier_crop_to=56, recenter=False)  # for the next run
        tab = ResultsTab(engine, owner())
        show(tab, tab.images)
        engine.settings = before
    used = done.last(rm.MotionCorrection).settings
    assert asked == [used, used] and used["recenter"] and not used["fourier_crop_to"]


def test_what_is_stored_is_drawn_once(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figure, "_made", lambda make, *_: drawn.append(make) or (lambda: parts.words("drawn")))
    engine = Engine(Roots([tmp_path]))
    store = fill(ResultStore(engine.out / "results.zarr"))
    dose, gained = DoseTab(engine, owner()), ResultsTab(engine, owner())
    for _ in range(3):
        show(dose, dose.figure), show(gained, gained.fsc), show(gained, gained.written)
    assert len(drawn) == 4 and dose.figure.view[0].object == gained.fsc.view[0].object == "drawn"
    store.write("dose_weights", fake_dose_weights(2))
    show(dose, dose.figure)
    assert len(drawn) == 5, "it was written anew"


def test_empty_tabs_say_what_to_do_next(tmp_path):
    engine = Engine(Roots([tmp_path]))
    for kind in (DoseTab, CorrectTab, ResultsTab):
        tab = kind(engine, owner())
        tab.refresh()
        assert "Data tab" in "".join(str(pane.object) for pane in tab.view.select(lambda one: hasattr(one, "object")))


def test_the_code_reproduces_the_run(done, tmp_path, monkeypatch):
    more = {"root": "P1", "first_frame": 1, "last_frame": 7, "hot_pixel_threshold": 6.0}
    monkeypatch.setattr(done, "opening", replace(done.opening, arguments={**done.opening.arguments, **more}))
    assert f"root={str(done.roots.folders[0] / 'P1')!r}," in code_of(done)  # it may be run from anywhere
    assert "last_frame=7" in code_of(done)
    assert "first_frame" not in code_of(done) and "hot_pixel" not in code_of(done)  # as they are without being said
    monkeypatch.undo()
    code = code_of(done)
    assert "rm.plots.fsc(job.validation)" in code and "'spatial_strength': 1.5" in code
    there = str(tmp_path / "again")
    names: dict = {}
    exec(compile(code.replace(str(done.out), there), "code", "exec"), names)
    assert (tmp_path / "again" / "report.html").exists()
    first, again = (rm.ResultStore(f"{out}/results.zarr").read("tracks/mic0001") for out in (done.out, there))
    np.testing.assert_array_equal(first["shift"], again["shift"])
    book = json.loads(notebook_of(code).read())
    assert book["cells"][0]["source"] == ["import refmotion_nb as rm"]
