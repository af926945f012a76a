"""Dose, Correct and Results as a browser shows them; what is read in pages is what people see there."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from threading import Event

import pytest
from app_browser import turn_to

import refmotion_nb as rm
from refmotion_nb.stages.runs import Cancelled, Run

pytestmark = pytest.mark.browser

GIVEN = {"spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0}  # no search
TITLE = """text => Bokeh.documents.some(one => [...one._all_models.values()]
    .some(model => model.type == "Title" && model.text.includes(text)))"""

LEGEND = """text => Bokeh.documents.some(one => [...one._all_models.values()]
    .some(model => model.type == "LegendItem" && JSON.stringify(model.label).includes(text)))"""


@pytest.fixture
def gate(monkeypatch):
    """Return what a stage waits for once its first micrograph is done: it goes on when it is set.

    The second one is not worked on by a correction that is cancelled then: it is read until that has been heard.
    """
    passing, cancelled, advance, read = Event(), Event(), Run.advance, rm.Session.micrograph

    def gated(self, n=1, **facts):
        advance(self, n, **facts)
        if type(self.stage) in (rm.DoseWeights, rm.MotionCorrection) and "micrograph" in facts:
            assert passing.wait(60)
            try:
                advance(self, 0)  # is it cancelled?
            except Cancelled:
                cancelled.set()
                raise

    def reads(self, name, settings, *factors):
        found = read(self, name, settings, *factors)
        if type(settings) is rm.MotionCorrection and name != next(iter(self)):
            assert passing.wait(60) and cancelled.wait(60)
            time.sleep(0.5)
        return found

    monkeypatch.setattr(Run, "advance", gated)
    monkeypatch.setattr(rm.Session, "micrograph", reads)
    yield passing
    passing.set()
    cancelled.set()


def test_dose_weights_fill_in_while_they_are_measured(app, owner, gate):
    app.engine.change(**GIVEN)
    turn_to(owner, "Dose")
    owner.get_by_text("Nothing measured yet").wait_for()
    owner.get_by_role("button", name="Measure dose weights").click()
    owner.get_by_text("1 of 2 micrographs measured").wait_for()
    owner.wait_for_function(TITLE, arg="FCC", polling=100)  # of the first micrograph alone
    assert app.engine.last(rm.DoseWeights).state == "running"
    gate.set()
    owner.get_by_text("measured on 24 particles").wait_for()
    owner.get_by_role("button", name="B-factor and scale").click()
    owner.wait_for_function(TITLE, arg="B-factor of each frame", polling=100)
    assert app.engine.result("dose_weights")["fcc"].notnull().any()


def test_a_correction_is_cancelled_and_goes_on_where_it_stopped(app, owner, browser, gate):
    app.engine.change(**GIVEN)
    gate.set()
    app.engine.run("dose-weights").wait(60)  # so that the cost is known
    gate.clear()
    other = browser.open(app.url)
    for page in (owner, other):
        turn_to(page, "Correct")
        page.get_by_text("2 micrographs, 24 particles").wait_for()
        page.get_by_text("s per micrograph as measured").wait_for()
        page.get_by_text("of disk;").wait_for()
    assert other.get_by_role("button", name="Correct all particles").is_disabled()
    owner.get_by_role("button", name="Correct all particles").click()
    for page in (owner, other):
        page.get_by_text("1 of 2 micrographs", exact=True).wait_for()
        page.wait_for_function(TITLE, arg="Local motion", polling=100)  # of the micrograph that is finished
    owner.get_by_role("button", name="Cancel", exact=True).last.click()
    app.until(
        lambda: any(run.stopping for run in app.engine.runs)
    )  # else the rest may be done before the click has arrived
    gate.set()
    for page in (owner, other):
        page.get_by_text("Cancelled after 1 of 2 micrographs; what is finished is kept").wait_for()
        page.get_by_text("(1 lie in the output folder already)").wait_for()
    kept = app.engine.store.groups("tracks/")
    assert len(kept) == 1
    written = (app.engine.out / "Particles" / f"{kept[0].removeprefix('tracks/')}.mrcs").stat().st_mtime_ns
    owner.get_by_role("button", name="Correct all particles").click()
    owner.get_by_text("2 of 2 micrographs done, 1 of them from an earlier run.").wait_for()
    assert (app.engine.out / "Particles" / f"{kept[0].removeprefix('tracks/')}.mrcs").stat().st_mtime_ns == written


def test_results_show_what_was_gained_and_the_files(app, owner):
    app.engine.change(**GIVEN)
    turn_to(owner, "Correct")
    owner.get_by_role("button", name="Correct and validate").click()
    turn_to(owner, "Results")
    owner.get_by_role("cell", name="trajectories, empirical weights").wait_for()
    owner.wait_for_function(TITLE, arg="both", polling=100)  # the map
    owner.wait_for_function(f"({LEGEND})('trajectories')", polling=100)  # of the FSC
    owner.get_by_text("24 of 24 particles written").wait_for()
    with owner.expect_download() as download:
        owner.get_by_role("link", name="particles.star").click()
    star = download.value.path().read_bytes()
    assert star == (app.engine.out / "particles.star").read_bytes() and b"_rlnImageName" in star
    for name in ("results.zarr", "run.log", "..%2Frefmotion-results%2Fparticles.star", "%2Fetc%2Fpasswd", ".."):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{app.url}files/{name}")
        refused.value.close()
    code = owner.get_by_label("Code")
    assert "rm.plots.fsc(job.validation)" in code.input_value()
