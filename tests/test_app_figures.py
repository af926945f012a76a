"""Every figure of the app has the page's colours and fonts, whatever document it gets into; what is sent arrives."""

import asyncio
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import panel as pn
import pytest
from bokeh.core.properties import value
from bokeh.document import Document
from bokeh.io.doc import patch_curdoc
from bokeh.models import Axis, Glyph, Plot
from fake_results import fake_dose_weights, fake_search, fake_validation, fill
from panel.io import document
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from refmotion_nb.data.store import ResultStore
from refmotion_nb.views import plots
from refmotion_nb.views.app import comparing
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.exploring import explore
from refmotion_nb.views.app.figure import _laid_out
from refmotion_nb.views.app.page import Page
from refmotion_nb.views.app.rendering import panels, rendered
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.sending import leave_none_behind
from refmotion_nb.views.app.tabs import TABS
from refmotion_nb.views.app.tabs.dose import PLOTS
from refmotion_nb.views.drawing_style import palette
from refmotion_nb.views.figure_colours import figure_theme

TITLES = [tab.title for tab in TABS]
FONT = "system-ui, sans-serif"


def test_making_a_figure_leaves_the_document_that_is_worked_on_alone():
    page, theme = Document(), figure_theme()
    page.theme = theme
    with patch_curdoc(page):
        rendered(plots.scores(fake_search()))
    assert page.theme is theme and not page.callbacks.session_destroyed_callbacks


def figures_on(page, title, least):
    """Return the Bokeh figures of a tab, once all that was asked for is made."""
    page.front.value = TITLES.index(title)
    tab = page.tab(page.active)
    end = time.monotonic() + 60
    while True:
        page.refresh(force=True)
        models = [pane.object for pane in tab.view.select(pn.pane.Bokeh)]
        found = [one for model in models for one in model.references() if isinstance(one, Plot)]
        if len(found) >= least and all(figure.up_to_date for figure in tab._figures if figure._key is not None):
            return models, found
        assert time.monotonic() < end, f"{title} shows {len(found)} figures"
        time.sleep(0.02)


def check(models, found, colours):
    for plot in found:
        assert (plot.background_fill_color, plot.border_fill_color) == (colours["card"],) * 2
        for axis in plot.select({"type": Axis}):
            assert axis.axis_label_text_color == colours["text"]
            assert axis.axis_line_color == axis.major_label_text_color == colours["muted"]
    for model in {one for root in models for one in root.references()}:
        for name in type(model).properties():
            if name.endswith("text_font") and not name.startswith("hover"):
                wanted = value(FONT) if isinstance(model, Glyph) else FONT  # a bare name would be that of a column
                assert getattr(model, name) == wanted, f"{type(model).__name__}.{name}"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_figure_has_the_colours_and_fonts_of_the_page(tmp_path, tiny, dark):
    """No page is in a document here: the figures have them by themselves."""
    engine = Engine(Roots([tmp_path]))
    fill(ResultStore(engine.out / "results.zarr"))
    page = Page(engine, Viewer("owner", True, True), dark)
    for title, least in {"Search": 3, "Dose": 2, "Correct": 1, "Results": 1, "Compare": 1}.items():
        check(*figures_on(page, title, least), palette(dark))
    engine = Engine(Roots([tmp_path]), out=tmp_path / "empty")
    engine.take(tiny.open())
    page = Page(engine, Viewer("owner", True, True), dark)
    check(*figures_on(page, "Data", 1), palette(dark))
    explore(engine).wait(60)
    check(*figures_on(page, "Priors", 3), palette(dark))
    page.close()


def test_panels_of_the_app_share_axes_and_one_tells_the_heights_of_its_row():
    few = fake_search()
    few = few.isel(ray=few["distance"].values == few["distance"].values[0]).assign_attrs(best_ray=0)
    drawn = panels(plots.scores({"few": few, "all": fake_search()}), larger=1.5)
    assert [one is None for one in drawn.figures] == [False, True, True, False, False, False] and drawn.columns == 3
    shown = [one for one in drawn.figures if one is not None]
    assert len({one.y_range.id for one in shown}) == len({one.x_range.id for one in shown}) == 1
    assert [one.toolbar_location for one in shown] == ["right", None, None, "right"] and not drawn.told
    narrow = next(iter(plots.scores(few))).opts.get("plot").kwargs["frame_width"]
    assert {one.frame_width for one in shown} == {round(1.5 * narrow)}
    assert [len(row) for row in _laid_out(drawn)] == [1, 3], "a legend pushes no panel of another row away"


def test_panels_that_tell_their_own_heights_stand_one_below_the_other_where_there_is_no_room():
    drawn = panels(plots.b_factors(fake_dose_weights()))
    assert drawn.told and [one.toolbar_location for one in drawn.figures] == ["right"] * 2
    assert type(_laid_out(drawn)) is pn.FlexBox


def test_frequencies_of_the_picture_and_of_the_curves_of_fcc_are_their_own():
    picture, curves = panels(PLOTS["FCC"](fake_dose_weights())).figures
    assert picture.x_range is not curves.x_range


def test_the_fsc_of_one_reference_is_as_wide_as_there_is_room():
    (one,) = panels(comparing.every_fsc({"": fake_validation()})).figures
    assert one.sizing_mode == "stretch_width"
    two = panels(comparing.every_fsc({"": fake_validation(2)})).figures
    assert [one.sizing_mode for one in two] == ["fixed", "fixed"]


class Connection:
    """To a browser that takes a while; ``taken`` are the messages that came, ``free`` lets it go on."""

    def __init__(self):
        self._socket, self.protocol = self, self
        self.taken, self.free = [], asyncio.Event()

    def create(self, kind, events):
        """Return events as a message."""
        return list(events)


def test_a_message_that_is_laid_aside_while_another_is_sent_is_sent_too(monkeypatch):
    leave_none_behind()

    def send(connection, events=None, msg=None):
        connection.taken += msg
        return [asyncio.ensure_future(connection.free.wait())]

    monkeypatch.setitem(document.extra_socket_handlers, Connection, send)

    async def scene():
        doc, connection = Document(), Connection()
        document.schedule_write_events(doc, [connection], ["one"])
        await asyncio.sleep(0)
        assert connection.taken == ["one"]
        asyncio.get_running_loop().call_soon(document.schedule_write_events, doc, [connection], ["two"])
        connection.free.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert connection.taken == ["one", "two"] and doc not in document._WRITE_BLOCK

    with ThreadPoolExecutor(1) as beside:  # this thread may have a loop, of a browser's
        beside.submit(asyncio.run, scene()).result()


class Leaving(WebSocketHandler):
    """The socket of a browser that leaves with the first part of a message."""

    def __init__(self):
        self.ws_connection, self.parts = self, []

    def is_closing(self):
        """Return whether it has left."""
        return bool(self.parts)

    def write_message(self, part, binary):
        """Take a part, and fail."""
        self.parts.append(part)
        return asyncio.get_running_loop().create_task(self._gone())

    async def _gone(self):
        raise WebSocketClosedError


def test_a_browser_that_leaves_in_the_middle_of_a_message_is_no_error():
    leave_none_behind()
    wrong = []

    async def scene():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        doc, connection = Document(), Connection()
        connection._socket = Leaving()
        message = SimpleNamespace(header_json="header", metadata_json="{}", content_json="{}", _buffers=[])
        connection.create = lambda kind, events: message
        document.schedule_write_events(doc, [connection], ["one"])
        for _ in range(20):
            await asyncio.sleep(0)
        assert connection._socket.parts == ["header"] and doc not in document._WRITE_BLOCK
        gc.collect()

    with ThreadPoolExecutor(1) as beside:
        beside.submit(asyncio.run, scene()).result()
    assert not wrong
