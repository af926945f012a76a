"""A served app and a browser to look at it with; the fixtures are for all modules (see conftest.py)."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
WAIT_MS = 60_000  # at most; a busy machine is slow, and kernels may be compiled


class Served:
    """An app served from a thread of this process: ``engine`` is what all its pages look at."""

    def __init__(self, engine: Any, access: Any):
        self.engine = engine
        self.url: str = access.link()  # everybody's: looks on
        self.owner_url: str = access.link(owner=True)

    def until(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """Wait for something of the engine, and return it."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.05)
        return found


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(folder: Path, **access: Any) -> Iterator[Served]:
    """Serve an app that may use ``folder``; ``access`` are arguments of ``Access``."""
    import panel as pn

    from refmotion_nb.views.app.engine import Engine
    from refmotion_nb.views.app.roots import Roots
    from refmotion_nb.views.app.serve import Access, serve

    engine, where = Engine(Roots([folder])), Access(**{"port": free_port(), **access})
    serve(engine, where, threaded=True)
    served = Served(engine, where)
    try:
        served.until(lambda: Path(where.unix_socket).is_socket() if where.unix_socket else _answers(served.url))
        yield served
    finally:
        engine.cancel()
        _stop_servers()
        pn.state.reset()


def _stop_servers() -> None:
    """Stop Panel's servers; what browsers keep open is closed first, or it would be found unclosed by a later test."""
    import panel as pn

    async def close(server: Any) -> None:
        for client in list(server._tornado._clients):
            client._socket.close()
        while server._tornado._clients:
            await asyncio.sleep(0.01)
        await server._http.close_all_connections()

    threads = list(pn.state._threads.values())
    for server, *_ in pn.state._servers.values():
        asyncio.run_coroutine_threadsafe(close(server), server.io_loop.asyncio_loop).result(30)
    pn.state.kill_all_servers()
    for thread in threads:
        thread.join(30)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status == 200
    return False


class Browser:
    """Opens pages as separate people would; what went wrong in them is collected in ``wrong``."""

    def __init__(self, chromium: Any):
        self._chromium = chromium
        self._contexts: list[Any] = []
        self.wrong: list[str] = []

    def open(self, url: str, **options: Any) -> Any:
        """Return a page (of Playwright) in a browser session of its own, once the tabs are there."""
        page = self.blank(**options)
        page.goto(url)
        page.get_by_role("button", name="Data", exact=True).wait_for()
        return page

    def blank(self, **options: Any) -> Any:
        """Return an empty page in a browser session of its own."""
        context = self._chromium.new_context(**{"viewport": {"width": 1366, "height": 768}, **options})
        context.set_default_timeout(WAIT_MS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", lambda line: self.wrong.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.wrong.append(error.stack or str(error)))
        page.on("request", self._request)
        return page

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            self.wrong.append(f"request to {request.url}")

    def close(self) -> None:
        for context in self._contexts:
            context.close()


def turn_to(page: Any, tab: str) -> None:
    """Bring a tab to the front."""
    page.get_by_role("button", name=tab, exact=True).first.click()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("no Chromium is installed to look at the app with")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    """A browser; at the end nothing may have gone wrong in its pages, and nothing may have been asked of other hosts."""
    browser = Browser(chromium)
    yield browser
    browser.close()
    assert not browser.wrong, "\n".join(browser.wrong)


@pytest.fixture(scope="module")
def app(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An app of this module, with the tiny example open; ``app.engine.out`` is a folder of its own."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copytree(tiny.folder, folder / "tiny")
    with serving(folder) as served:
        served.engine.take(type(tiny)(folder / "tiny", tiny.settings, tiny.n_particles, tiny.rigid_error_A,
                                      tiny.fsc_resolutions_A).open())  # fmt: skip
        yield served


@pytest.fixture(scope="module")
def people(chromium: Any) -> Iterator[Browser]:
    """A browser whose pages stay open for the tests of a module: to open one takes seconds."""
    browser = Browser(chromium)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def owners_page(app: Served, people: Browser) -> Any:
    """The page that ``owner`` returns."""
    return people.open(app.owner_url)


@pytest.fixture
def owner(people: Browser, owners_page: Any) -> Iterator[Any]:
    """The owner's page as earlier tests have left it, with Data in front; nothing may go wrong in it."""
    turn_to(owners_page, "Data")
    yield owners_page
    assert not people.wrong, "\n".join(people.wrong)
