"""How panels of plots are laid out: what a row shares, and that it fits a notebook on a small screen."""

import holoviews as hv
import numpy as np
import pytest
import xarray as xr
from app_browser import Browser
from bokeh.embed import json_item
from bokeh.resources import INLINE
from fake_results import N_FRAMES, fake_dose_weights, fake_search, fake_tracks, fake_validation
from test_plots import elements, panels

from refmotion_nb import plots

RUNS = {
    "search": {"one": fake_search(), "two": fake_search(False)},
    "dose": {"one": fake_dose_weights(), "two": fake_dose_weights()},
    "tracks": {"one": fake_tracks(), "two": fake_tracks(3)},
    "maps": {"one": fake_validation(), "two": fake_validation()},
}


def search_that_ends_in_words():
    table = fake_search()
    reasons = np.where(table["retired"].values, "no motion left", "maximum strength reached")
    return table.assign(reason=("ray", reasons))


def correlation():
    at = np.linspace(-8, 8, 33)
    hill = xr.DataArray(-(at[:, None] ** 2 + at**2), dims=("y", "x"), coords={"y": at, "x": at})
    return xr.Dataset({"correlation": hill})


@pytest.mark.parametrize("draw", [plots.rays, plots.scores, plots.score_surface])
def test_many_distances_stand_in_several_rows(draw):
    table = fake_search()  # of three distances
    more = xr.concat([table, table.assign(distance=table["distance"] * 100)], "ray", combine_attrs="override")
    plot = draw({"six": more, "three": table})
    assert plot._max_cols == 3 and len(panels(plot)) == 9
    places = [at for at, panel in enumerate(panels(plot)) if "yaxis" not in panel.opts.get().kwargs]
    assert places == [0, 3, 6]  # each row tells its heights


def test_runs_that_went_not_equally_far_share_the_numbers_beneath():
    def numbers(search):
        return [panel.opts.get("plot").kwargs["xticks"] for panel in panels(plots.rays(search))]

    table = fake_search()
    halfway = table.isel(step=slice(3)).assign_attrs(best_step=0)
    assert numbers(halfway)[0] != numbers(table)[0]
    assert numbers({"halfway": halfway, "end": table}) == numbers(table) * 2  # as the panels share the axis


def test_runs_begin_in_rows_of_their_own():
    table = fake_search()
    one_only = table.isel(ray=table["distance"].values == table["distance"].values[0]).assign_attrs(best_ray=0)
    assert [type(panel) is hv.Empty for panel in panels(plots.scores({"one": one_only, "three": table}))] == [
        False, True, True, False, False, False,
    ]  # fmt: skip


def test_colour_bars_are_told_once_in_a_row():
    def bars(plot, kind):
        drawn = [one for one in elements(plot, kind) if one.vdims]
        return [one.opts.get("plot").kwargs["colorbar"] for one in drawn]

    tracks, short = fake_tracks(), fake_tracks().isel(frame=slice(0, 10))
    assert bars(plots.trajectories(tracks), hv.Segments) == [True]
    plot = plots.local_trajectories({"a": tracks, "b": short, "c": tracks})
    assert bars(plot, hv.Segments) == [False, True, False]
    limits = {one.opts.get("plot").kwargs["clim"] for one in elements(plot, hv.Segments) if one.vdims}
    assert limits == {(1, N_FRAMES)}  # of all, as there is one bar
    assert bars(plots.fcc(RUNS["dose"]), hv.Image) == [False, True] and bars(
        plots.fcc(RUNS["dose"]["one"]), hv.Image
    ) == [True]


def test_standard_curves_of_other_doses_are_told_apart():
    whole = RUNS["dose"]["one"]
    plot = plots.weights({"whole": whole, "later": whole.assign(dose=whole["dose"] + 1)})
    curves = [curve for curve in elements(panels(plot)[0], hv.Curve) if type(curve) is hv.Curve]
    colours = {curve.label: curve.opts.get("style").kwargs["color"] for curve in curves}
    for name in ("whole", "later"):
        assert colours[f"Grant & Grigorieff · {name}"] == colours[name]


WIDE = {
    "rays": lambda: plots.rays(RUNS["search"]),
    "scores": lambda: plots.scores(RUNS["search"]),
    "ends": lambda: plots.scores(search_that_ends_in_words()),
    "surface": lambda: plots.score_surface(fake_search()),
    "trajectories": lambda: plots.trajectories(RUNS["tracks"]),
    "motion": lambda: plots.motion(RUNS["tracks"]),
    "path": lambda: plots.path({"with whole frames moved": fake_tracks(), "with the prior": fake_tracks(1)}),
    "fcc": lambda: plots.fcc(RUNS["dose"]),
    "fcc curves": lambda: plots.fcc_curves(RUNS["dose"]),
    "fsc": lambda: plots.fsc(RUNS["maps"]),
    "correlation": lambda: plots.correlation({name: correlation() for name in "abc"}),
}


@pytest.fixture(scope="module")
def screen(chromium):
    """Return a browser, and a page with Bokeh's scripts as wide as JupyterLab leaves of 1366 px."""
    browser = Browser(chromium)
    page = browser.blank(viewport={"width": 920, "height": 700})
    page.set_content(f"<!DOCTYPE html><html><head>{INLINE.render()}</head><body></body></html>")
    yield browser, page
    browser.close()


SHOW = """item => {
    document.body.innerHTML = "<div id='figure'></div>"
    window.drawn = false
    Bokeh.embed.embed_item(item, "figure").then(views => [...views][0].model.document.is_idle
        ? window.drawn = true : [...views][0].model.document.idle.connect(() => window.drawn = true))
}"""


@pytest.mark.browser
@pytest.mark.parametrize("name", WIDE)
def test_nothing_scrolls_sideways_beside_the_side_bar_of_a_small_screen(screen, name):
    browser, page = screen
    page.evaluate(SHOW, json_item(hv.renderer("bokeh").get_plot(WIDE[name]()).state))
    page.wait_for_function("window.drawn", polling=50)
    assert page.evaluate(
        "document.documentElement.scrollHeight > 150 && document.getElementById('figure').clientHeight > 150"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 920
    assert not browser.wrong, "\n".join(browser.wrong)
