"""The prior explorer: what it solves, what its sliders do, what its views show."""

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import panel as pn
import pytest
from bokeh.document import Document
from panel.io.server import set_curdoc

import refmotion_nb as rm
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.exploration import PriorExploration
from refmotion_nb.stages.places import Here
from refmotion_nb.stages.search import Searched, prior_from_attrs
from refmotion_nb.views import explorer_drawing as drawing
from refmotion_nb.views.app.engine import Viewer
from refmotion_nb.views.app.explorer import explorer_pane
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.explorer import ExplorerModel, paths_A
from refmotion_nb.views.explorer_sliders import Sliders
from refmotion_nb.views.explorer_style import style_sheet

POINTS = [Hyperparameters(0.2, 20.0, 900.0), Hyperparameters(8.0, 60.0, 4000.0), Hyperparameters(3000.0, 85.0, 16000.0)]


class Told:
    def __init__(self):
        self.facts = []

    def start(self, total, what):
        self.total, self.what = total, what

    def advance(self, n=1, **facts):
        self.facts.append(facts)

    def done(self):
        self.facts.append({"done": True})


@pytest.fixture(scope="module")
def session(tiny):
    return rm.Session(tiny.open(), threads=2)


@pytest.fixture(scope="module")
def exploration(session):
    return PriorExploration.prepare(session)


@pytest.fixture
def model(exploration):
    return ExplorerModel(exploration, best=Hyperparameters(2.0, 50.0, 3000.0))


def rms(one, other):
    return float(np.sqrt(((one - other) ** 2).sum(-1).mean()))


# the solution


@pytest.mark.parametrize("h", POINTS)
def test_it_is_what_the_search_computes(exploration, session, h):
    tracks = exploration.at(h)
    prior = exploration.prior.with_hyperparameters(h)
    m = exploration.micrograph
    power = m.score.movie_power * m.score.reference_power * m.score.unit**2
    (trial,), _ = Searched(Here(session), [m], ("mic0000",), 1, power, False).try_priors([prior])
    for name in ("cv_score", "activity_local", "activity_total"):
        assert tracks.attrs[name] == pytest.approx(getattr(trial, name), rel=1e-9), name
    assert prior_from_attrs(tracks.attrs).hyperparameters == h == rm.best(tracks)


@pytest.mark.parametrize("h", POINTS)
def test_it_is_converged_to_a_hundredth_of_an_angstrom(exploration, h):
    converged = exploration.solve(h, tolerance=1e-10).displacement_A[0]
    assert rms(exploration.solve(h).displacement_A[0], converged) < 0.01


def test_from_the_last_solution_it_is_the_same_to_a_hundredth_of_an_angstrom(exploration):
    before = exploration.at(POINTS[0])
    for h in (replace(POINTS[0], strength=0.25), replace(POINTS[0], distance_A=1200.0), POINTS[1]):
        near = exploration.near(h)
        assert rms(near["shift"].values, exploration.at(h)["shift"].values) < 0.01
        assert not np.array_equal(near["shift"], before["shift"])


def test_it_does_not_depend_on_the_way_there(exploration):
    first = exploration.at(POINTS[0])
    exploration.at(POINTS[2])
    np.testing.assert_array_equal(exploration.at(POINTS[0])["shift"], first["shift"])


def test_tracks_are_laid_out_as_the_stores(exploration, session):
    tracks = exploration.at(POINTS[1])
    n, frames = session.particle_count(exploration.name), 8
    assert tracks["shift"].sizes == {"particle": n, "frame": frames, "axis": 2}
    assert tracks["shift"].attrs["units"] == "Å" and {"rigid", "common", "coordinate", "row"} <= set(tracks)
    assert len(rm.plots.trajectories(tracks)) == 1 and len(rm.plots.local_trajectories(tracks)) == 1


def test_preparing_tells_how_far_it_is_and_takes_the_priors_scale(session):
    told, name = Told(), list(session)[1]
    found = PriorExploration.prepare(session, name, reporter=told)
    assert name in told.what and len(told.facts) == told.total + 1
    twice = replace(found.prior, grey_scale=0.5, scale_spread2=0.0)
    scaled = PriorExploration.prepare(session, name, prior=twice)
    assert abs(scaled.micrograph.windows.values).max() != pytest.approx(abs(found.micrograph.windows.values).max())


def test_what_cannot_be_explored_is_named(session):
    with pytest.raises(rm.InputError, match="no micrograph 'nowhere' with particles; the first there is"):
        PriorExploration.prepare(session, "nowhere")


def test_modes_of_passed_distances_are_given_up(exploration):
    from refmotion_nb.stages.alignment import MOST_DISTANCES

    for distance in np.geomspace(300, 30000, MOST_DISTANCES + 5):
        exploration.micrograph.geometry.modes(exploration.prior.with_hyperparameters(Hyperparameters(1, 50, distance)))
    assert len(exploration.micrograph.geometry._spatial) <= MOST_DISTANCES


# the sliders


def test_relions_units_and_strengths_agree(model):
    h = model.move_relion(s_vel=0.6, s_div=5000.0, s_acc=2.0)
    dose = model.exploration.dose_per_frame_e_A2
    assert h == Hyperparameters.from_relion(0.6, 5000.0, 2.0, dose) and model.relion == pytest.approx(
        (0.6, 5000.0, 2.0)
    )
    other = model.move_relion(s_vel=0.3)
    assert other.spatial_strength == pytest.approx(4 * h.spatial_strength)
    assert other.acceleration_strength == pytest.approx(h.acceleration_strength)
    model.move(balance_deg=0)
    assert model.relion[2] == np.inf and model.move_relion(s_div=900.0).balance_deg == 0
    model.settle(20)


def test_sliders_end_at_their_limits(model):
    assert model.move(strength=1e9, balance_deg=120, distance_A=1.0) == Hyperparameters(30000.0, 90.0, 200.0)
    model.settle(20)
    sliders = Sliders(model)
    ends = sliders.to_place(model.wanted)
    for name, position in ends.items():
        low, high = sliders.all[name].ends
        assert low <= position <= high, name


def test_what_a_browser_rounds_is_no_move(model):
    sliders = Sliders(model)
    at = sliders.to_place(model.wanted)["distance_A"]
    assert sliders.by_hand("distance_A", round(at, 2)) is None and model.wanted == model.best
    moved = sliders.by_hand("distance_A", round(at, 2) + 0.01)
    assert moved.distance_A == pytest.approx(10 ** (round(at, 2) + 0.01)) and model.wanted == moved
    assert set(sliders.to_place(moved, but="distance_A")) == {"s_div"}
    model.settle(20)


def test_stale_moves_are_dropped(model, monkeypatch):
    """While one solution is under way only the newest of the positions passed counts."""
    solved, going, go_on = [], threading.Event(), threading.Event()
    solve = model.exploration.near

    def slowly(h):
        solved.append(h.strength)
        going.set()
        assert go_on.wait(20)
        return solve(h)

    monkeypatch.setattr(model.exploration, "near", slowly)
    model.move(strength=3.0)
    assert going.wait(20)
    for strength in (4.0, 5.0, 6.0, 7.0):
        model.move(strength=strength)
    go_on.set()
    snapshot = model.settle(20)
    assert solved == [3.0, 7.0] and snapshot.now.hyperparameters.strength == 7.0
    assert [t.hyperparameters.strength for t in snapshot.trail] == [2.0, 3.0, 7.0]


def test_an_error_is_shown_and_the_next_move_works(model, monkeypatch):
    def broken(h):
        raise RuntimeError("singular <matrix>")

    with monkeypatch.context() as patch:
        patch.setattr(model.exploration, "near", broken)
        model.move(strength=5.0)
        assert "singular" in model.settle(20).error
        assert "singular &lt;matrix&gt;" in drawing.text(model, model.snapshot)
    model.move(strength=6.0)
    assert model.settle(20).error == "" and model.snapshot.now.hyperparameters.strength == 6.0


def test_back_to_best_pin_and_unpin(model, exploration):
    model.move(strength=900.0)
    model.settle(20)
    model.pin()
    assert model.back_to_best() == model.best
    snapshot = model.settle(20)
    assert snapshot.pinned.hyperparameters.strength == 900.0 and snapshot.pinned_tracks is not snapshot.tracks
    assert "Pinned: strength 900" in " ".join(model.words())
    assert 'class="beneath"' in drawing.trajectories(model, snapshot)
    model.unpin()
    assert 'class="beneath"' not in drawing.trajectories(model, model.snapshot)
    alone = ExplorerModel(exploration)  # no search: the best tried here
    for strength in (0.5, 3000.0):
        alone.move(strength=strength)
        alone.settle(20)
    alone.back_to_best()
    assert alone.settle(20).now.cv_score == min(t.cv_score for t in alone.snapshot.trail)


# what is seen


def test_a_move_changes_the_drawn_trajectories(model):
    before = drawing.trajectories(model, model.snapshot)
    model.move(strength=500.0)
    snapshot = model.settle(20)
    after = drawing.trajectories(model, snapshot)
    tracks = re.compile(r'<g class="tracks">.*?</g>')
    assert tracks.search(before)[0] != tracks.search(after)[0]
    assert len(re.findall("<circle", after)) == snapshot.tracks.sizes["particle"]
    assert paths_A(snapshot.tracks, True)[:, 0] == pytest.approx(0)


def test_words_say_what_the_numbers_mean(model):
    said = " ".join(model.words())
    assert "this is what the search chose" in said and "lower is better" in said and "s_div 3000" in said
    assert "Not moved by sliders: errors of whole-frame alignment (σ) 1 Å; drift strength" in said
    assert "local motion fades over 10 e/Å², to 15 % of its start. A search" in said
    model.move(strength=30000.0, balance_deg=5.0)
    model.settle(20)
    said = " ".join(model.words())
    assert "holds all particles still" in said and "than what the search chose (strength 2, balance 50°" in said


def test_text_escapes(model, monkeypatch):
    monkeypatch.setattr(model.exploration, "name", "<script>alert(1)</script>")
    assert "<script>" not in drawing.trajectories(model, model.snapshot) + drawing.text(model, model.snapshot)


def test_colours_are_the_reports_on_light_and_dark():
    assert palette(False)["c0"] == "#0072b2" and palette(True)["c0"] == "#56b4e9"
    sheet = style_sheet()
    for rule in (
        ".rm-explorer .tracks path",
        ".rm-explorer .mark.end",
        ".rm-explorer .legend span",
        ".rm-explorer .beneath",
    ):
        assert rule in sheet, rule
    assert '[data-jp-theme-light="false"] .rm-explorer,' in sheet and palette(True)["text"] in sheet


def test_the_widget_follows_its_sliders(model):
    explorer = rm.PriorExplorer(model)
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()
    assert "strength 2" in repr(explorer) and rm.best(explorer.tracks) == model.best
    from refmotion_nb.views.widgets.explorer import Panel

    panel = Panel(model)
    before = panel.picture.value
    panel.sliders["strength"].value = 2.7
    assert explorer.hyperparameters.strength == pytest.approx(10**2.7) and rm.best(explorer.tracks).strength > 500
    assert panel.picture.value != before and panel.readouts["strength"].value.startswith("501 ")
    assert 10 ** panel.sliders["s_vel"].value == pytest.approx(model.relion[0])
    panel.pin.value = True
    assert model.snapshot.pinned is not None
    panel.best.click()
    assert explorer.tracks.attrs["strength"] == 2.0 and panel.sliders["strength"].value == pytest.approx(np.log10(2))
    explorer.move(s_vel=0.7)
    assert explorer.tracks.attrs["strength"] != 2.0


def test_a_page_without_widgets_has_a_picture_which_they_hide(model, monkeypatch):
    explorer, shown = rm.PriorExplorer(model), []
    monkeypatch.setattr("refmotion_nb.views.widgets.explorer.display", lambda item, raw=False: shown.append(item))
    explorer._ipython_display_()
    widget, still = shown
    assert widget is explorer.box and still["text/plain"] == repr(explorer)
    html = still["text/html"]
    assert (
        html.startswith('<div class="rm-still">')
        and html.count("<svg") == 3
        and "sliders need a running notebook" in html
    )
    assert drawing.text(model, model.snapshot) in html and len(html) < 100_000
    assert ".rm-still { display: none }" in explorer.box.children[0].value


def test_who_looks_on_moves_no_slider_of_the_pane(model):
    pane = explorer_pane(model, viewer=Viewer("guest", False))
    at = pane.sliders["strength"].value
    for name, value in (("strength", 2.7), ("s_vel", 0.3)):
        pane.sliders[name].value = value
    pane.pin.value = pane.motion.value = True
    pane.magnified.value = model.magnifications[-1]
    pane.best.clicks += 1
    assert model.wanted == model.best and model.snapshot.version == 0 and model._thread is None
    assert pane.sliders["strength"].value == at and not (pane.pin.value or pane.motion.value)


def test_the_pane_follows_its_sliders_and_the_other_session(model):
    one, other = explorer_pane(model), explorer_pane(model, dark=True)
    assert isinstance(pn.panel(one), pn.FlexBox)
    before = one.map.paths.data["x1"]
    one.sliders["strength"].value = 2.7
    model.settle(20)
    assert not np.array_equal(one.map.paths.data["x1"], before)
    np.testing.assert_array_equal(one.map.paths.data["x1"], other.map.paths.data["x1"])
    assert len(before) == 12 * 7 and before.dtype == np.float32
    assert other.sliders["strength"].value == pytest.approx(2.7) and len(model.snapshot.trail) == 2
    assert one.trails[0].now.data["y"] == [model.snapshot.now.cv_score]
    one.pin.value = True
    assert other.pin.value and len(other.map.pinned.data["x0"]) == 12 * 7
    one.motion.value = True
    assert model.snapshot.whole and other.motion.value and "All motion" in other.map.figure.title.text
    assert one.map.dots.glyph.fill_color == palette(False)["text"]
    one.dark = True
    assert one.map.dots.glyph.fill_color == palette(True)["text"]


def test_a_page_is_asked_to_draw_on_its_own_loop_only(model):
    """Bokeh loses what another thread asks of a document just when it is held no more: the page would stand still for good."""
    document, asked = Document(), []
    context = SimpleNamespace(request=SimpleNamespace(arguments={}))
    document._session_context = lambda: context  # as one that is served

    def ask(call):
        asked.append(threading.get_ident())
        call()

    document.add_next_tick_callback = ask

    async def scene():
        with set_curdoc(document):
            pane = explorer_pane(model)
        document.add_root(pane.map.figure)
        await asyncio.to_thread(model.pin)
        await asyncio.sleep(0.01)
        assert pane.pin.value and asked == [threading.get_ident()]

    with ThreadPoolExecutor(1) as beside:  # this thread may have a loop, of a browser's
        beside.submit(asyncio.run, scene()).result()
