"""Search, Priors and Compare of the app, without a browser: what the tabs hold for given snapshots of runs."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
import xarray as xr
from bokeh.models import GlyphRenderer, Line, Plot
from fake_results import fake_dose_weights, fake_search, fake_validation, text_of

import refmotion_nb as rm
from refmotion_nb.data.cryosparc.csfile import table, write_cs
from refmotion_nb.data.cryosparc.hyperparameters import write_hyperparameter_group
from refmotion_nb.data.store import ResultStore, write_netcdf
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.alignment import MotionPrior
from refmotion_nb.stages.reuse import read_prior, write_prior
from refmotion_nb.stages.runs import Run
from refmotion_nb.stages.search import prior_attrs
from refmotion_nb.views import plots
from refmotion_nb.views.app import comparing, in_force, search_state
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.exploring import explore
from refmotion_nb.views.app.live_rays import DIM, LiveRays, Rays, legend
from refmotion_nb.views.app.notebook import code_of
from refmotion_nb.views.app.rendering import rendered
from refmotion_nb.views.app.rights import seat
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.tabs.compare import CompareTab
from refmotion_nb.views.app.tabs.dose import DoseTab
from refmotion_nb.views.app.tabs.priors import PriorsTab
from refmotion_nb.views.app.tabs.search import SearchTab
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.plots import look

OWNER = Viewer("owner", True, True)


@pytest.fixture
def engine(tiny, tmp_path):
    engine = Engine(Roots([tmp_path]))
    engine.take(tiny.open())
    return engine


@pytest.fixture
def searching(engine):
    """A search of 12 rays that stands where a test puts it."""
    run = Run(rm.HyperparameterSearch())
    engine.session.runs.append(run)
    return run


def step(run, table, n, state="running"):
    """Let the run have taken ``n`` steps of a finished table."""
    some = table.isel(step=slice(n)).copy()
    walking = np.isfinite(table["cv_score"].values).sum(1) > n
    some["reason"] = "ray", np.where(walking, "", "no motion left")
    some["retired"] = "ray", ~walking
    score = some["cv_score"].values
    ray, at = np.unravel_index(np.nanargmin(score), score.shape)
    best = {"best_ray": int(ray), "best_step": int(at), "strength": float(some["strength"][ray, at]),
            "balance_deg": float(some["balance"][ray]), "distance_A": float(some["distance"][ray])}  # fmt: skip
    run._change(state=state, so_far=some.assign_attrs(best))


def shown_text(tab):
    panes = tab.going, tab.chosen, tab.status, tab.note, tab.warning
    return text_of(" ".join(pane.object for pane in panes if pane.visible))


def test_rays_are_all_there_before_the_first_step():
    rays = Rays(np.array([10.0, 85.0, 10.0]), np.array([1000.0, 1000.0, 4000.0]), 30000.0)
    assert len(rays.steps(None)["x"]) == 3 * rays.n_steps and np.isnan(rays.steps(None)["x"]).all()
    curves = rays.curves(None)
    assert [len(x) for x in curves["x"]] == [rays.n_steps] * 3
    assert rays.ends(None)["reason"] == ["", "", ""] and rays.best(None)["x"] == []
    assert rays.row[1] - rays.row[0] == 1 and rays.row[2] - rays.row[1] > 1, "a gap between distances"
    said = text_of(legend(rays))
    assert "10°" in said and "4000 Å" in said and "retired" in said


def test_rays_step_outwards_and_retire(engine, searching):
    tab, table = SearchTab(engine, OWNER), fake_search()
    searching.start(16, "searching hyperparameters")
    counts = []
    for n in (2, 8, table.sizes["step"]):
        step(searching, table, n)
        searching.advance(n, rays=12)
        tab.refresh()
        counts.append(int(np.isfinite(tab.live.steps.data["x"]).sum()))
        assert len(tab.live.lines.data["x"]) == 12
    assert counts == sorted(counts) and counts[0] == 24 and counts[-1] == int(np.isfinite(table["strength"]).sum())
    ends = tab.live.ends.data
    assert ends["reason"] == ["no motion left"] * 12 and ends["marker"] == ["x"] * 12
    ray, at = table.attrs["best_ray"], table.attrs["best_step"]
    assert tab.live.star.data["x"] == [float(table["strength"][ray, at])]
    np.testing.assert_allclose(tab.live.mapper.low, float(table["cv_score"].min()))


def test_why_a_ray_ends_is_said_in_few_words_beside_its_last_step():
    table = fake_search()
    table["reason"] = "ray", np.where(np.arange(12) < 1, "maximum strength reached", "no motion left")
    rays = Rays(table["balance"].values, table["distance"].values, 30000.0)
    assert rays.ends(table)["reason"] == ["maximum strength", *["no motion left"] * 11]


def test_words_say_what_stage_a_search_is_in(engine, searching):
    tab = SearchTab(engine, OWNER)
    searching._change(state="running")
    searching.start(4, "reading movies")
    searching.advance(1, micrograph="mic0000")
    tab.refresh()
    assert "1 of 3: reading movies, 1 of 4" in shown_text(tab)
    assert tab.start.disabled and not tab.pause.disabled and not tab.cancel.disabled
    searching.start(24, "searching hyperparameters")
    searching.advance(strength=0.03, rays=9, best=-0.04)
    tab.refresh()
    assert "2 of 3: searching, step 1 of at most 24, 9 rays still walk" in shown_text(tab)
    step(searching, fake_search(), 3)
    tab.refresh()
    assert "best strength so far" in shown_text(tab) and "RELION's s_vel" in shown_text(tab)
    assert "12 still walking" in shown_text(tab)
    searching.start(3, "refining the prior")
    tab.refresh()
    assert "3 of 3: refining the prior" in shown_text(tab)
    engine.pause()
    tab.refresh()
    assert "Paused." in shown_text(tab) and tab.pause.label == "Resume"
    engine.cancel()
    tab.refresh()
    assert "Stopping" in shown_text(tab) and tab.cancel.disabled and tab.pause.disabled


def test_a_cancelled_or_failed_search_says_so(engine, searching):
    tab = SearchTab(engine, OWNER)
    step(searching, fake_search(), 4, "cancelled")
    tab.refresh()
    assert "12 had not ended" in shown_text(tab)
    assert "was cancelled" in shown_text(tab) and tab.picture.visible and not tab.start.disabled
    searching._change(state="failed", error="no movie can be used; mount the disk", so_far=None)
    tab.refresh()
    assert "The search failed. no movie can be used; mount the disk" in shown_text(tab)
    assert not tab.picture.visible


def test_a_finished_search_is_told_with_its_warnings(engine, searching):
    tab, table = SearchTab(engine, OWNER), fake_search(retire=False).isel(step=slice(10))
    searching.result = table
    searching._change(state="done")
    tab.refresh()
    said = shown_text(tab)
    assert "searched along 12 rays" in said and "Raise max_strength" in said
    assert tab.choice.visible and tab.figures.visible and not tab.still.visible
    assert "made with these settings" in said
    engine.change(thoroughness="balanced")
    tab.refresh()
    assert "made with these settings" not in shown_text(tab)
    tab.choice.value = "Scores"
    until(lambda: tab.refresh() or tab.drawn.up_to_date)
    assert tab.still.visible and len(tab.drawn.view) == 1 and not tab.figures.visible
    shown = {type(one).__name__ for row in tab.drawn.view[0] for one in row}
    assert shown == {"Bokeh"}, "made in the thread: the loop only shows it"


def test_drawings_take_the_colours_of_a_dark_page():
    light, dark = (
        {line.glyph.line_color for line in rendered(plots.scores(fake_search()), dark).select({"type": GlyphRenderer})
         if isinstance(line.glyph, Line)}
        for dark in (False, True)
    )  # fmt: skip
    (figure, *_) = rendered(plots.scores(fake_search()), True).select({"type": Plot})
    assert figure.background_fill_color == palette(dark=True)["card"]
    assert light and not light & dark and dark <= set(palette(dark=True).values())


def test_given_hyperparameters_have_no_rays_to_show(engine):
    tab = SearchTab(engine, OWNER)
    in_force.use(seat(engine, OWNER), MotionPrior(Hyperparameters(3.0, 30.0, 2000.0)), "calibrated")
    table = xr.Dataset(attrs={"strength": 3.0, "balance_deg": 30.0, "distance_A": 2000.0})
    engine.session.adopt(rm.HyperparameterSearch(), "prior", result=table)
    tab.refresh()
    assert "Motion hyperparameters were given" in shown_text(tab) and not tab.picture.visible
    assert "takes given hyperparameters: total strength 3" in shown_text(tab) and tab.instead.visible
    tab._instead()
    assert engine.hyperparameters_file is None and tab.start.label == "Start search"


def test_the_empty_tab_says_what_to_do(tmp_path, tiny):
    engine = Engine(Roots([tmp_path]))
    tab, other = SearchTab(engine, OWNER), SearchTab(engine, Viewer("guest", False))
    tab.refresh()
    assert tab.empty.visible and "Open data" in tab.empty.object and tab.start.disabled
    assert not tab.told.visible and not tab.picture.visible
    engine.take(tiny.open())
    tab.refresh(), other.refresh()
    assert "Press Start search" in tab.empty.object and "Press" not in other.empty.object
    engine.session.runs.append(Run(rm.DoseWeights()))
    tab.refresh()
    assert "Waiting for what is going on now: measuring dose weights." in tab.note.object


def test_who_looks_on_cannot_start(engine):
    tab = SearchTab(engine, Viewer("guest", False))
    tab._start()
    assert tab.problem.visible and "looking on" in tab.problem.object and not engine.runs
    assert tab.start.disabled and all(field.widget.disabled for field in tab.fields.values())


def test_a_stored_search_is_shown_without_a_session(tmp_path):
    engine = Engine(Roots([tmp_path]))
    ResultStore(engine.out / "results.zarr").write("search", fake_search())
    tab = SearchTab(engine, OWNER)
    tab.refresh()
    assert "searched along 12 rays" in shown_text(tab) and len(tab.live.lines.data["x"]) == 12
    now = search_state.standing(engine)
    assert now.table is search_state.standing(engine).table, "read once"


def test_one_distance_can_be_looked_at():
    table = fake_search()
    live = LiveRays(Rays(table["balance"].values, table["distance"].values, 655.36))
    live.update(table, 2000.0)
    dimmed = np.array(live.lines.data["alpha"]) == DIM
    assert (dimmed == (table["distance"].values != 2000.0)).all()


def test_priors_are_explored_in_the_background_and_taken(engine):
    searched = MotionPrior(Hyperparameters(9.0, 40.0, 2500.0), 0.31, 5.5, 0.2)
    engine.session.adopt(rm.HyperparameterSearch(), result=xr.Dataset(attrs=prior_attrs(searched)))
    tab, other = PriorsTab(engine, OWNER), PriorsTab(engine, Viewer("guest", False))
    tab.refresh()
    assert list(tab.micrograph.options) == ["mic0000 (12 particles)", "mic0001 (12 particles)"]
    assert tab.empty.visible and "press Explore" in tab.empty.object and tab.use.disabled
    tab._explore()
    run = engine.explored
    assert "Preparing mic0000" in tab.status.object and tab.go.disabled
    model = run.wait(60)
    tab.refresh(), other.refresh()
    assert tab.pane.model is model is other.pane.model, "all pages show the one explorer"
    assert other.pane.sliders["strength"].disabled and not tab.pane.sliders["strength"].disabled
    model.move(strength=20.0, balance_deg=60.0, distance_A=3000.0)
    tab._use()
    assert in_force.given(engine) == model.wanted == Hyperparameters(20.0, 60.0, 3000.0)
    assert "takes given hyperparameters: total strength 20, balance 60°" in tab.force.object
    path, stage, key = engine.hyperparameters_file, rm.HyperparameterSearch(), engine.session.keys
    taken, seen = read_prior(path, stage, 4.0, key), searched.with_hyperparameters(model.wanted)
    np.testing.assert_equal(prior_attrs(taken), prior_attrs(seen), "what was seen, not typical values")
    assert f"hyperparameters_file={str(path)!r}" in code_of(engine)
    other._instead()
    assert in_force.given(engine) is not None and other.problem.visible
    tab._instead()
    assert in_force.given(engine) is None and "searches" in tab.force.object
    model.settle(20)
    explore(engine).wait(60)
    tab.refresh()
    assert tab.pane.model is not model and len(model._listeners) == 1, (
        "the other page's; what was replaced listens no more"
    )
    other.close()
    assert not model._listeners


def test_hyperparameters_and_weights_of_another_run_are_taken_from_files(engine, tmp_path_factory):
    folder, outside = engine.roots.folders[0], tmp_path_factory.mktemp("outside")
    priors, dose = PriorsTab(engine, OWNER), DoseTab(engine, OWNER)
    engine.change(spatial_strength=1.0)
    write_prior(
        folder / "other.json",
        MotionPrior(Hyperparameters(3.0, 30.0, 2000.0), 0.4),
        1.0,
        "calibrated",
        engine.session.keys,
    )
    write_hyperparameter_group(
        outside, {"spatial_strength": 1, "correlation_distance": 2, "acceleration_strength": 3}, None, 1.0
    )
    (folder / "out.cs").symlink_to(outside / "hyperparams.cs")
    write_netcdf(folder / "weights.nc", fake_dose_weights())
    write_netcdf(folder / "wrong.nc", fake_dose_weights().drop_vars("weight"))
    (outside / "refm.npy").touch()
    weights = {"refmotion_doseweights/path": [str(outside / "refm.npy")], "uid": np.array([1], np.uint64)}
    write_cs(folder / "names.cs", table(weights))
    for form, tab, name, refused in (
        (priors.reuse, priors, "", "no file is given"), (priors.reuse, priors, "out.cs", "outside the folders"),
        (priors.reuse, priors, "weights.nc", "not a text file"), (priors.reuse, priors, "other.json", ""),
        (dose.reuse, dose, "wrong.nc", "is no table of dose weights"), (dose.reuse, dose, "names.cs", "outside the folders"),
        (dose.reuse, dose, "weights.nc", ""),
    ):  # fmt: skip
        form.path.input.value = name
        form.use.clicks += 1
        assert refused in tab.problem.object and bool(refused) == tab.problem.visible
    assert engine.hyperparameters_file == folder / "other.json" and engine.dose_weights_file == folder / "weights.nc"
    assert engine.settings == {}, "those given before do not count any more"
    priors.refresh()
    assert "total strength 3, balance 30" in priors.force.object and "other.json" in priors.reuse.told.object
    priors.reuse.back.clicks += 1
    dose.reuse.back.clicks += 1
    assert engine.hyperparameters_file is engine.dose_weights_file is None


def test_weights_of_cryosparc_whose_frequencies_are_not_told_beside_them_are_told_theirs(engine):
    tab, path = DoseTab(engine, OWNER), engine.roots.folders[0] / "refm_empirical_dw.npy"
    np.save(path, np.ones((engine.session.data.movies[0].n_frames, 4)))
    tab.reuse.path.input.value = path.name
    for frequency, refused in ((None, "give dose_weights_last_frequency_per_A"), (-1.0, "is -1.0; give the frequency")):
        tab.last_frequency.value = frequency
        tab.reuse.use.clicks += 1
        assert refused in tab.problem.object and engine.dose_weights_file is None
    tab.last_frequency.value = 0.25
    tab.reuse.use.clicks += 1
    assert not tab.problem.visible and engine.given["dose_weights_last_frequency_per_A"] == 0.25
    assert "dose_weights_last_frequency_per_A=0.25," in code_of(engine)
    engine.change(spatial_strength=1.5, correlation_distance=3000.0, acceleration_strength=2.0)
    engine.run("dose-weights").wait(60)
    assert engine.result("dose_weights")["frequency"].values[-1] == 0.25
    tab.reuse.back.clicks += 1
    assert engine.dose_weights_last_frequency_per_A is None


def test_what_cannot_be_explored_is_told_in_place(tmp_path, tiny, engine):
    folder = tmp_path / "copy"
    shutil.copytree(tiny.folder, folder)
    data = type(tiny)(folder, tiny.settings, tiny.n_particles, tiny.rigid_error_A, tiny.fsc_resolutions_A).open()
    engine.take(data)
    next(iter(data.movies)).path.unlink()
    tab = PriorsTab(engine, OWNER)
    with pytest.raises(rm.InputError, match="no micrograph"):
        explore(engine, "nothing")
    run = explore(engine, data.movies[0].micrograph)
    with pytest.raises(rm.InputError):
        run.wait(60)
    tab.refresh()
    assert "cannot be explored" in tab.status.object and run.error in text_of(tab.status.object) and tab.pane is None


@pytest.fixture
def stores(tmp_path):
    """Two stored runs with different rays, frames and frequencies."""
    for name, every in (("a", 1), ("b", 3)):
        store = ResultStore(tmp_path / name / "results.zarr")
        store.write("search", fake_search().isel(ray=slice(None, None, every)).assign_attrs(best_ray=1))
        store.write("dose_weights", fake_dose_weights().isel(frame=slice(24 - every), frequency=slice(60 - every)))
        store.update_attrs(settings={"seed": every}, defaults={"seed": 0, "thoroughness": "fast"})
    store.write("validation", fake_validation())
    return tmp_path


def test_stored_runs_are_added_and_taken_away(stores):
    engine = Engine(Roots([stores]))
    tab = CompareTab(engine, OWNER)
    tab.refresh()
    assert tab.empty.visible and not tab.drawn.visible
    for folder in ("a", "b/results.zarr"):
        tab.folder.value = folder
        tab._add()
        assert not tab.problem.visible and tab.folder.value == ""
    assert list(engine.compared) == ["a", "b"] and len(tab.runs) == 2 and tab.drawn.visible
    for folder, why in (
        ("/etc", "outside the folders"),
        ("a", "compared already"),
        ("c", "no results"),
        (" ", "no folder"),
    ):
        tab.folder.value = folder
        tab._add()
        assert tab.problem.visible and why in tab.problem.object
    tab._remove("a")
    assert list(engine.compared) == ["b"]
    guest = CompareTab(engine, Viewer("guest", False))
    guest._remove("b")
    assert list(engine.compared) == ["b"] and guest.problem.visible
    assert len(look.colours("c")) == comparing.MOST + 1, "and the present run"


def test_runs_of_different_axes_are_compared(stores):
    engine = Engine(Roots([stores]))
    for name in ("a", "b"):
        comparing.add(engine, name)
    runs = comparing.sources(engine)
    panels = {what: len(comparing.drawing(runs, comparing.VIEWS[what])) for what in ("FCC", "Weights", "Rays")}
    assert panels == {"FCC": 2, "Weights": 4, "Rays": 6}, "three distances; one, and room for two"
    said = text_of(comparing.tables(runs))
    assert "seed 1 3" in said and "thoroughness" not in said
    assert "frames 23 21" in said and "a has not got as far as a validation." in said
    assert "b 3.84 Å (rigid) 3.15 Å (both) 0.69 Å" in said


def test_damaged_and_given_results_are_told_apart(stores):
    engine = Engine(Roots([stores]))
    for name in ("a", "b"):
        comparing.add(engine, name)
    engine.compared["a"].write("search", xr.Dataset(attrs={"strength": 1.0}))
    (stores / "b" / "results.zarr" / "search" / "cv_score" / ".zarray").write_text("{")
    with pytest.raises(rm.InputError, match=r"a was given its hyperparameters.*b cannot be read"):
        comparing.drawing(comparing.sources(engine), comparing.VIEWS["Rays"])
    assert "b cannot be read" in text_of(comparing.tables(comparing.sources(engine)))


def test_weights_from_a_file_are_left_out_where_there_is_nothing_to_draw(stores):
    engine = Engine(Roots([stores]))
    for name in ("a", "b"):
        comparing.add(engine, name)
    given = fake_dose_weights().drop_vars(["fcc", "b_factor"]).assign_attrs(from_file="edited.nc")
    engine.compared["a"].write("dose_weights", given)
    runs = comparing.sources(engine)
    panels = {what: len(comparing.drawing(runs, comparing.VIEWS[what])) for what in ("FCC", "Weights", "B-factors")}
    assert panels == {"FCC": 1, "Weights": 4, "B-factors": 2}
    said = text_of(comparing.tables(runs))
    assert "a has weights of a file, without fcc, b_factor" in said and "dose weights edited.nc measured" in said


def test_this_run_is_compared_too(engine, stores):
    engine.session.adopt(rm.HyperparameterSearch(seed=7), result=fake_search())
    engine.change(seed=9)  # for the next run
    comparing.add(engine, "a")
    assert list(comparing.sources(engine)) == [comparing.PRESENT, "a"]
    assert "seed 7 1" in text_of(comparing.tables(comparing.sources(engine)))


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
