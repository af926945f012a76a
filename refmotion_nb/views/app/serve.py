"""The app as a server, or within a notebook."""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from hmac import compare_digest
from importlib import resources
from pathlib import Path
from typing import Any

import panel as pn
from tornado.web import RequestHandler

from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.stages.session import Session
from refmotion_nb.views.app.design import DARK, Dark, Light, Look, variables
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.page import Page
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.written import ADDRESS, Download


def app(
    data: Dataset | Session | None = None, out: str | Path | None = None, browse: Iterable[str | Path] = (".",)
) -> Any:
    """Return the app on a session, or on data, as something to display: what it computes, the session holds.

    ``out`` is where results are written, ``browse`` names the folders that may be read and written.
    """
    pn.extension(inline=True)  # style sheets too: without it a notebook asks another host for them
    engine = Engine(Roots(browse), out=None if out is None else Path(out).resolve())
    if data is not None:
        engine.take(data)
    return Page(engine, Viewer("notebook", True, True), pn.config.theme == DARK).follow().layout


THEME = "rm-theme"  # cookie, or part of the address where no cookies are kept
UNUSED = ("bokeh-gl", "es-module-shims")  # scripts that Bokeh and Panel would have each page load


@dataclass(frozen=True)
class Access:
    """Where the app is reached and by whom.

    Who comes by ``owner_link``, or has logged in under a name in ``owners``, runs and gives others the right; everybody
    else looks on.
    """

    port: int = 5006
    address: str = "127.0.0.1"
    prefix: str = ""  # of all paths, behind a proxy
    origins: tuple[str, ...] = ()  # HOST:PORT that browsers reach it by, beside its own address
    login: dict[str, Any] = field(default_factory=dict)  # arguments of ``pn.serve``: basic_auth, oauth_provider…
    owners: tuple[str, ...] = ()
    open_to_all: bool = False  # also without a login beyond this machine
    everybody_runs: bool = False  # whoever reaches it is an owner: something in front of it has a login
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def check(self) -> None:
        """Refuse what lets strangers in.

        Raises
        ------
        InputError
            Others can reach it without a login, or owners are named whose names nobody checks.
        """
        password = self.login.get("basic_auth")
        if self.everybody_runs and not is_loopback(self.address):
            raise InputError(
                f"with --everybody-runs whoever reaches {self.address} may run; leave --address out, so that only what is in "
                "front of the app (Jupyter, a proxy with a login) reaches it"
            )
        if not (is_loopback(self.address) or self.login or self.open_to_all):
            raise InputError(
                f"address {self.address} can be reached from other machines, without a login; give --basic-auth or "
                "--oauth-provider, or --open-to-all if everybody may look on"
            )
        if self.owners and not self.login:
            raise InputError(
                "--owner names who logs in; give --basic-auth FILE or --oauth-provider too, or leave it out"
            )
        if self.owners and password and not Path(password).is_file():
            raise InputError(
                "with one password for all, anybody can log in under the name of an --owner; give --basic-auth a file of "
                '{"name": "password"}, or leave --owner out and use the link'
            )

    @property
    def cookie(self) -> str:
        """Name of the cookie that the key is kept in."""
        return f"rm-owner-{self.port}"

    def link(self, owner: bool = False) -> str:
        """Return the address to open: that for everybody, or the owner's."""
        host = socket.gethostname() if self.address in ("0.0.0.0", "::", "") else self.address
        host = f"[{host}]" if ":" in host else host
        prefix = f"/{self.prefix.strip('/')}" if self.prefix.strip("/") else ""
        return f"http://{host}:{self.port}{prefix}/" + (f"owner?key={self.key}" if owner else "")

    def viewer(self, user: str | None, cookies: dict[str, str], number: int) -> Viewer:
        """Return who has opened a page: ``user`` has logged in under this name."""
        named = user is not None and user in self.owners
        owner = self.everybody_runs or named or compare_digest(cookies.get(self.cookie, ""), self.key)
        return Viewer(user or ("owner" if owner else f"viewer {number}"), owner, owner)


def is_loopback(address: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


class OwnerLink(RequestHandler):
    """The link that makes its reader owner: it leaves the key in a cookie and goes on to the page."""

    def initialize(self, access: Access) -> None:
        """Take the key to compare with."""
        self.access = access

    def get(self) -> None:
        """Answer."""
        if compare_digest(self.get_argument("key", ""), self.access.key):
            self.set_cookie(self.access.cookie, self.access.key, httponly=True, samesite="Lax", path="/")
        self.redirect("./")


@cache
def _html(name: str) -> str:
    return resources.files("refmotion_nb.views.app").joinpath(name).read_text(encoding="utf-8")


class _Document(pn.Template):
    """A whole HTML document."""

    def __repr__(self) -> str:
        """Return its name only: Panel asks for it whenever something is put in, and writing all parts out takes long."""
        return "refmotion"


def document(page: Page, dark: bool) -> Any:
    """Return the whole HTML document of a page."""
    template = _Document(_html("page.html"), design=Look, theme=Dark if dark else Light)
    template.add_variable("rm_variables", variables(dark))
    template.add_variable("after_paint", _after_paint)
    template.add_panel("app", page.layout)
    return template


def _after_paint(scripts: str) -> str:
    """Return the script elements of Bokeh such that a browser paints before it runs them, without what is not used."""
    links = [link for link in re.findall(r'src="([^"]+)"', scripts) if not any(name in link for name in UNUSED)]
    return "\n".join(f'<script defer src="{link}"></script>' for link in links)


def serve(
    engine: Engine,
    access: Access | None = None,
    show: bool = False,
    say: Callable[[str], None] = lambda _: None,
    threaded: bool = False,
) -> Any:
    """Serve the app until it is stopped; every browser session has a page of its own on the one engine.

    ``say`` is told the addresses; ``threaded`` serves from a thread, which is returned.

    Raises
    ------
    InputError
        Strangers could get in (see ``Access``), or the port is taken.
    """
    access = access or Access()
    access.check()
    _free(access)
    logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)  # it warns of each message to a closed browser

    def page() -> Any:
        theme = pn.state.cookies.get(THEME) or pn.state.session_args.get(THEME, [b""])[0].decode(errors="replace")
        if not theme:  # the browser is asked first; a page made for nothing would take a second
            return pn.Template(_html("theme.html"))
        dark = theme == DARK
        viewer = access.viewer(pn.state.user if access.login else None, pn.state.cookies, engine.visits + 1)
        engine.visits += 1
        return document(Page(engine, viewer, dark, served=True).follow(), dark)

    for line in _told(access):
        say(line)
    if show:
        _open_browser(access)
    own = [f"{host}:{access.port}" for host in dict.fromkeys((access.address, "localhost", socket.gethostname()))]
    prefix = access.prefix.strip("/")
    login = {"cookie_secret": secrets.token_hex(32), **_doors(), **access.login} if access.login else {}
    if prefix:
        login["root_path"] = f"/{prefix}/"
    patterns = [
        (r"/owner", OwnerLink, {"access": access}), (rf"/{ADDRESS}([^/]+)", Download, {"engine": engine}),
    ]  # fmt: skip
    return pn.serve(
        {"/": page}, port=access.port, address=access.address, prefix=prefix, title="refmotion",
        websocket_origin=[*own, *access.origins], extra_patterns=patterns,
        show=False, verbose=False, threaded=threaded, **login,
    )  # fmt: skip


def _doors() -> dict[str, str]:
    """Return the pages around a login: Panel's own take pictures and fonts from other hosts."""
    page = str(resources.files("refmotion_nb.views.app").joinpath("door.html"))
    return dict.fromkeys(("login_template", "logout_template", "oauth_error_template"), page)


def _open_browser(access: Access) -> None:
    """Open a browser once the server has had a moment to start."""
    threading.Timer(1.0, webbrowser.open, (access.link(owner=True),)).start()


def _free(access: Access) -> None:
    family = socket.AF_INET6 if ":" in access.address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((access.address, access.port))
        except OSError as error:
            raise InputError(
                f"port {access.port} of {access.address} cannot be used ({error.strerror}); give another --port"
            ) from None


def _told(access: Access) -> list[str]:
    everybody = "after a login" if access.login else "without a login"
    lines = [
        f"refmotion app, yours to run:  {access.link(owner=True)}",
        f"for others to look on:        {access.link()}  ({everybody})",
    ]
    if not is_loopback(access.address) and not access.login:
        lines.append(f"warning: everybody who reaches {access.address} can look on, without a login, unencrypted")
    return lines
