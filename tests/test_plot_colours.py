"""Plots in the colours of the page: what changes on dark pages, what does not, and that browsers do it."""

import re
import subprocess
import sys
from io import StringIO

import holoviews as hv
import panel as pn
import pytest
from bokeh.models import GlyphRenderer, Line, Plot, WheelZoomTool
from bokeh.resources import INLINE
from fake_results import fake_dose_weights, fake_search, fake_tracks, fake_validation

from refmotion_nb import plots
from refmotion_nb.views.app.rendering import rendered
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.figure_colours import coated
from refmotion_nb.views.plots.page import _FOLLOWS

LIGHT, DARK = palette(), palette(dark=True)
MADE = {"search": fake_search, "dose": fake_dose_weights, "tracks": fake_tracks, "maps": fake_validation}
DRAWN = [(plots.scores, "search"), (plots.rays, "search"), (plots.fcc, "dose"), (plots.weights, "dose"),
         (plots.trajectories, "tracks"), (plots.fsc, "maps")]  # fmt: skip


def changes(plot):
    return {(type(one.model).__name__, one.name): (one.light, one.dark) for one in coated(hv.render(plot))}


@pytest.mark.parametrize(("function", "kind"), DRAWN, ids=[function.__name__ for function, _ in DRAWN])
def test_background_words_and_lines_change_on_dark_pages(function, kind):
    plot = function(MADE[kind]())
    found = changes(plot)
    assert (
        found["figure", "background_fill_color"]
        == found["figure", "border_fill_color"]
        == (LIGHT["card"], DARK["card"])
    )
    assert found["Title", "text_color"][1] == DARK["text"]
    axis = "LogAxis" if kind == "search" else "LinearAxis"
    assert found[axis, "axis_label_text_color"] == (LIGHT["text"], DARK["text"])
    assert (
        found["Grid", "grid_line_color"] == (LIGHT["grid"], DARK["grid"])
        if ("Grid", "grid_line_color") in found
        else True
    )
    figures = list(hv.render(plot).select({"type": Plot}))
    assert figures and all(_FOLLOWS in figure.tags for figure in figures)


def test_colours_given_by_opts_stay():
    plot = plots.fsc(fake_validation()).opts(hv.opts.Curve(color="#123456"), hv.opts.Overlay(bgcolor="#fedcba"))
    model = hv.render(plot)
    coloured = coated(model)
    assert model.background_fill_color == "#fedcba" and model.border_fill_color == LIGHT["card"]
    assert not any(one.name == "background_fill_color" and one.model is model for one in coloured)
    lines = [one for one in model.select({"type": GlyphRenderer}) if isinstance(one.glyph, Line)]
    assert len(lines) == 4 and {one.glyph.line_color for one in lines} == {"#123456"}
    assert not {one.model.id for one in coloured if one.name == "line_color"} & {one.glyph.id for one in lines}


def test_the_app_has_its_figures_for_one_kind_of_page():
    for dark, colours in ((False, LIGHT), (True, DARK)):
        figure = rendered(plots.fsc(fake_validation()), dark)
        assert figure.background_fill_color == colours["card"] and figure.tags == []


def test_other_peoples_plots_are_left_alone_unless_asked():
    bars = hv.Bars([("a", 1), ("b", 2)], "run", "error").opts(title="theirs")
    plots.fsc(fake_validation())
    assert "document_ready" not in shown(bars)
    ours = plots.follow_page(bars)
    assert "document_ready" in shown(ours) and "document_ready" not in shown(bars)
    assert ours.opts.get("plot").kwargs["title"] == "theirs"
    both = plots.follow_page(hv.Curve([1, 2]) * hv.Scatter([1, 2]) + hv.Curve([3, 4]))
    assert all(_FOLLOWS in figure.tags for figure in hv.render(both).select({"type": Plot}))


def test_other_peoples_plots_keep_their_hooks_and_let_the_wheel_scroll_the_page():
    hooked = []
    curve = hv.Curve([1, 2]).opts(hooks=[lambda plot, element: hooked.append(element)])
    several = plots.follow_page(hv.HoloMap({1: curve, 2: curve}, "number"))
    assert not isinstance(hv.render(several).toolbar.active_scroll, WheelZoomTool) and hooked
    wanted = plots.follow_page(curve.opts(active_tools=["wheel_zoom"], clone=True))
    assert isinstance(hv.render(wanted).toolbar.active_scroll, WheelZoomTool)


def shown(plot):
    """Return what a notebook is sent to show a plot."""
    data, _ = hv.Store.renderers["bokeh"].components(plot, comm=False)
    return data["text/html"]


def test_nothing_is_sent_before_something_is_drawn():
    code = "import holoviews as hv; import refmotion_nb as rm; rm.plots; assert not hv.Store.loaded_backends()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.browser
def test_a_browser_follows_the_page_and_its_theme(browser):
    file = StringIO()
    pn.pane.HoloViews(plots.scores(fake_search())).save(file, resources=INLINE)
    page = browser.blank()
    without_icons = re.sub("<link[^>]*>", "", file.getvalue())  # of another host
    page.set_content(without_icons.replace("<html", "<html data-jp-theme-light='false'", 1))
    figures = "Bokeh.documents[0].roots().flatMap(r => [...r.references()]).filter(m => m.type == 'Figure')"

    def wait_for(colours):
        page.wait_for_function(f"""() => {{
            if (!window.Bokeh || !Bokeh.documents.length) return false
            const figures = {figures}
            return figures.length == 3 && figures.every(f =>
                f.background_fill_color == '{colours["card"]}' && f.title.text_color == '{colours["text"]}')
        }}""")  # fmt: skip

    wait_for(DARK)
    page.evaluate("document.documentElement.dataset.jpThemeLight = 'true'")
    wait_for(LIGHT)
    page.evaluate("document.documentElement.dataset.jpThemeLight = 'false'")
    wait_for(DARK)
