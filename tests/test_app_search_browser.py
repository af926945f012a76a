"""Search, Priors and Compare as a browser shows them."""

from __future__ import annotations

import json
from contextlib import suppress
from threading import Semaphore

import numpy as np
import pytest
from app_browser import turn_to
from fake_results import fake_dose_weights, fake_search

import refmotion_nb as rm
from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.runs import Run

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")

# what the Bokeh figures of a page hold: the data of every source with such columns
SOURCES = """columns => Bokeh.documents.flatMap(one => [...one._all_models.values()])
    .filter(one => one.type == "ColumnDataSource" && columns.every(name => name in one.data))
    .map(one => Object.fromEntries(columns.map(name => [name, Array.from(one.data[name])])))"""


def finite(values):
    return [value for value in values if isinstance(value, int | float) and np.isfinite(value)]


@pytest.fixture
def steps(monkeypatch):
    """Return what searches ask before each further step of their rays: as many as are released."""
    allowed, advance = Semaphore(0), Run.advance

    def gated(self, n=1, **facts):
        advance(self, n, **facts)
        if type(self.stage) is rm.HyperparameterSearch and "strength" in facts:
            assert allowed.acquire(timeout=60)

    monkeypatch.setattr(Run, "advance", gated)
    yield allowed
    allowed.release(1000)


def dots(page, steps, more_than=0):
    """Return how many steps of rays a page shows: more than before, after a few more have been taken."""
    count = f"({SOURCES})(['score', 'balance', 'y', 'x'])[0]?.x.filter(Number.isFinite).length"
    for _ in range(8):  # not every step is shown
        steps.release()
        with suppress(sync_api.TimeoutError):
            page.wait_for_function(f"{count} > {more_than}", timeout=2000, polling=100)
            break
    return page.evaluate(count)


def test_a_search_is_run_and_rays_retire(app, owner, browser, steps):
    other = browser.open(app.url)
    for page in (owner, other):
        turn_to(page, "Search")
    assert other.get_by_role("button", name="Start search").is_disabled()
    owner.get_by_role("button", name="Start search").click()
    other.get_by_text("searching hyperparameters").first.wait_for()
    earlier = dots(other, steps)
    assert 0 < earlier < dots(other, steps, more_than=earlier)
    assert app.engine.last(rm.HyperparameterSearch).state == "running"
    steps.release(1000)
    for page in (owner, other):
        page.get_by_text("Motion hyperparameters were searched along 9 rays").wait_for()
        (ends,) = page.evaluate(SOURCES, ["reason", "marker", "x"])
        assert len(ends["reason"]) == 9 and len(finite(ends["x"])) == 9
        assert set(ends["reason"]) <= {"no motion left", "maximum strength"}
        (steps,) = page.evaluate(SOURCES, ["score", "balance", "y", "x"])[:1]
        assert len(finite(steps["x"])) > 90
    assert app.engine.last(rm.HyperparameterSearch).state == "done"
    other.set_viewport_size({"width": 800, "height": 768})
    other.get_by_text("Rays, the best first").click()
    assert other.locator("table.reasons tr").count() == 1 + 9
    other.wait_for_function("document.documentElement.scrollWidth == 800", polling=100)
    owner.get_by_role("button", name="Score surface", exact=True).click()
    owner.get_by_text("drawing").first.wait_for(state="hidden")


def test_a_prior_slider_moves_trajectories(app, owner):
    turn_to(owner, "Priors")
    owner.get_by_role("button", name="Explore", exact=True).click()
    owner.get_by_text("Prior explorer: mic0000").wait_for()
    model = app.until(lambda: app.engine.explored.result)
    before = owner.evaluate(SOURCES, ["x0", "frame"])[0]
    handle = owner.locator(".noUi-handle:visible").first  # of the strength
    for _ in range(20):
        handle.press("ArrowRight")
    app.until(lambda: model.snapshot.version > 0 and model.settle(20))
    owner.wait_for_function(f"before => JSON.stringify(({SOURCES})(['x0', 'frame'])[0]) != before", arg=_json(before),
                            polling=100)  # fmt: skip
    owner.get_by_role("button", name="Use these hyperparameters").click()
    owner.get_by_text("The next run takes given hyperparameters").wait_for()
    assert app.engine.hyperparameters_file is not None
    owner.get_by_role("button", name="Search instead").click()
    owner.get_by_text("The next run searches its hyperparameters").wait_for()
    assert not app.engine.settings


def test_two_runs_are_compared(app, owner):
    folder = app.engine.roots.folders[0]
    for name in ("one", "two"):
        store = ResultStore(folder / name / "results.zarr")
        store.write("search", fake_search())
        store.write("dose_weights", fake_dose_weights())
        store.update_attrs(settings={"seed": len(name)})
    turn_to(owner, "Compare")
    for name in ("one", "two", "/etc"):
        owner.get_by_label("Results folder").fill(name)
        owner.get_by_role("button", name="Add", exact=True).click()
        owner.get_by_text(f"{folder}/{name}" if name != "/etc" else "outside the folders").first.wait_for()
    owner.get_by_role("button", name="Weights", exact=True).click()
    owner.get_by_text("What each e/Å² counts").wait_for()
    owner.get_by_text("drawing").first.wait_for(state="hidden")
    assert list(app.engine.compared) == ["one", "two"]
    owner.wait_for_function(
        """() => Bokeh.documents.some(one => [...one._all_models.values()]
        .some(model => model.type == "Title" && model.text.startsWith("Weight at")))""",
        polling=100,
    )


def _json(value):
    return json.dumps(value, separators=(",", ":"))
