"""The app as a server, or within a notebook."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import secrets
import socket
import threading
import warnings
import webbrowser
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from hmac import compare_digest
from importlib import resources
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import panel as pn
from bokeh.server.urls import per_app_patterns
from panel.io.server import DocHandler
from tornado.web import RequestHandler

from refmotion_nb.data.files import read_text
from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.stages.session import Session
from refmotion_nb.views.app.design import DARK, Dark, Light, Look, variables
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.page import Page
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.sending import leave_none_behind
from refmotion_nb.views.app.written import ADDRESS, Download
from refmotion_nb.views.plots.page import load, sending_all


def app(
    data: Dataset | Session | None = None,
    out: str | Path | None = None,
    browse: str | Path | Iterable[str | Path] = ".",
) -> Any:
    """Return the app on a session, or on data, as something to display: what it computes, the session holds.

    ``out`` is where results are written, ``browse`` names the folder, or several, that may be read and written. It is dark where
    the notebook is. One opened before on the same data ends: a cell that is run again would leave it at work for ever.
    """
    with sending_all():
        pn.extension(inline=True)  # style sheets too: without it a notebook asks another host for them
    load()  # here: figures are made in a thread, which belongs to no cell
    _spare_warnings()
    folders = [browse] if isinstance(browse, str | Path) else browse
    engine = Engine(Roots(folders), out=None if out is None else Path(out).resolve())
    if data is not None:
        engine.take(data)
    page = Page(engine, Viewer("notebook", True, True), pn.config.theme == DARK).follow()
    if engine.session is not None:
        earlier = _pages().pop(id(engine.session.data), None)  # while a page is there, so are its data
        if earlier is not None:
            earlier.end()
        _pages()[id(engine.session.data)] = page
    return page.layout


def _spare_warnings() -> None:
    """Let Bokeh not warn that a browser sends back whole what it was just sent: it always does, in its next message."""
    warnings.filterwarnings("ignore", "reference already known", UserWarning)


@cache
def _pages() -> WeakValueDictionary[int, Page]:
    """Return the pages at work in notebooks, by what is open in them."""
    return WeakValueDictionary()


THEME = "rm-theme"  # cookie, or part of the address where no cookies are kept
EVERYWHERE = ("0.0.0.0", "::", "")
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
    unix_socket: str = ""  # to listen on instead of a port: no other account of this machine reaches it
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def check(self) -> None:
        """Refuse what lets strangers in.

        Raises
        ------
        InputError
            Others can reach it without a login, owners are named whose names nobody checks, there is no such file of
            passwords, or no such port.
        """
        if not (self.unix_socket or 0 < self.port < 65536):
            raise InputError(f"port {self.port}; give one from 1 to 65535, above 1023 unless you are root")
        self._check_passwords()
        if self.everybody_runs and not self.unix_socket:
            raise InputError(
                f"with --everybody-runs every account of this machine that reaches port {self.port} would run; give "
                "--unix-socket PATH instead, which only you reach and what you put in front of it (Jupyter, a proxy)"
            )
        if self.unix_socket and not self.origins:
            raise InputError(
                "behind --unix-socket the app does not know its address; give --allow-websocket-origin HOST[:PORT], or '*' "
                "where what is in front of it refuses pages of other sites by itself, as Jupyter does"
            )
        if not (self.unix_socket or is_loopback(self.address) or self.login or self.open_to_all):
            raise InputError(
                f"address {self.address} can be reached from other machines, without a login; give --basic-auth or "
                "--oauth-provider, or --open-to-all if everybody may look on"
            )
        if self.owners and not self.login:
            raise InputError(
                "--owner names who logs in; give --basic-auth FILE or --oauth-provider too, or leave it out"
            )
        if self.owners and not self.knows_names:
            raise InputError(
                "with one password for all, anybody can log in under the name of an --owner; give --basic-auth a file of "
                '{"name": "password"}, or leave --owner out and use the link'
            )

    def _check_passwords(self) -> None:
        """Refuse a file of passwords that is not there, which would be taken for a password, or that holds none."""
        given = self.login.get("basic_auth")
        if given is None:
            return
        if not given:
            raise InputError("--basic-auth is empty; give a file or a password")
        if not Path(given).is_file():
            if given.endswith(".json") or given.startswith(("/", "./", "../", "~/")):
                raise InputError(
                    f"--basic-auth {given} does not exist; check the path, or give a password that is none"
                )
            return
        try:
            names = json.loads(read_text(given))
        except ValueError:
            names = None
        if not (isinstance(names, dict) and names and all(isinstance(one, str) and one for one in names.values())):
            raise InputError(f'--basic-auth {given} holds no {{"name": "password"}}; correct it')

    @property
    def knows_names(self) -> bool:
        """Whether a login tells who somebody is: with one password for all, anybody gives any name."""
        password = self.login.get("basic_auth")
        return bool(self.login) and (password is None or Path(password).is_file())

    @property
    def cookie(self) -> str:
        """Name of the cookie that the key is kept in."""
        return f"rm-owner-{self.port}"

    @property
    def browser(self) -> str:
        """Name of the cookie that a browser is known by again."""
        return f"rm-browser-{self.port}"

    def link(self, owner: bool = False) -> str:
        """Return the address to open: that for everybody, or the owner's; of a socket only the path."""
        host = _in_address(socket.gethostname() if self.address in EVERYWHERE else self.address)
        server = "" if self.unix_socket else f"http://{host}:{self.port}"
        prefix = f"/{self.prefix.strip('/')}" if self.prefix.strip("/") else ""
        return f"{server}{prefix}/" + (f"owner?key={self.key}" if owner else "")

    def all_origins(self) -> list[str]:
        """Return HOST:PORT of everything that a browser may come by."""
        hosts = [] if self.unix_socket else [self.address, "localhost", socket.gethostname()]
        if not (self.unix_socket or is_loopback(self.address)):
            hosts += [socket.getfqdn(), *_own_addresses()]
        own = [f"{_in_address(host)}:{self.port}".lower() for host in hosts if host not in EVERYWHERE]
        return list(dict.fromkeys([*own, *self.origins]))

    def viewer(self, user: str | None, cookies: dict[str, str], engine: Engine) -> Viewer:
        """Return who has opened a page: ``user`` is the name of the login; one that nobody checks counts for nothing."""
        named = user is not None and user in self.owners
        owner = self.everybody_runs or named or compare_digest(cookies.get(self.cookie, ""), self.key)
        who = (
            f"name {user}"
            if user and self.knows_names
            else f"browser {cookies.get(self.browser) or secrets.token_hex(8)}"
        )
        name = user or ("owner" if owner else f"viewer {engine.number(who)}")
        return Viewer(name, owner or engine.rights.get(who, False), owner, who)


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _own_addresses() -> list[str]:
    """Return the addresses that this machine is reached by, as far as it knows."""
    found = []
    with suppress(OSError):
        found += [str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(socket.gethostname(), None)]
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing
            found.append(probe.getsockname()[0])
    return found


def is_loopback(address: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


class OwnerLink(RequestHandler):
    """The link that makes its reader owner: it leaves the key in a cookie of this folder and goes on."""

    def initialize(self, access: Access) -> None:
        """Take the key to compare with."""
        self.access = access

    def get(self) -> None:
        """Answer."""
        if compare_digest(self.get_argument("key", ""), self.access.key):
            self.set_cookie(self.access.cookie, self.access.key, httponly=True, samesite="Lax", path="")
        self.redirect("./")


class Front(DocHandler):
    """The page itself, asked for by its folder: without the last slash of a prefix the browser is sent on to it.

    Panel does so only after a login, to which it sends browsers by a path that is relative to the folder.
    """

    async def prepare(self) -> None:
        """Send on, or find out who asks."""
        prefix, query = self.application.prefix, self.request.query
        if prefix and self.request.path == prefix:
            self.redirect(f"{prefix}/{'?' if query else ''}{query}")
        else:
            await super().prepare()


@cache
def _front() -> None:
    """Let pages be asked for by ``Front``; Bokeh has no argument for it, Panel puts its own in the same way."""
    per_app_patterns[:] = [(one[0], Front if one[1] is DocHandler else one[1], *one[2:]) for one in per_app_patterns]


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
    template.add_variable("app_favicon", "data:,")  # Panel's is not found where there is a prefix
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
    load()
    _front()
    leave_none_behind()
    _spare_warnings()
    name, origins = secrets.token_hex(16), access.all_origins()
    logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)  # it warns of each message to a closed browser

    def page() -> Any:
        pn.state._servers[name][0]._tornado.websocket_origins.update(origins)  # Bokeh's argument takes no IPv6
        cookies, theme = pn.state.cookies, pn.state.session_args.get(THEME, [b""])[0].decode(errors="replace")
        if not theme and not {THEME, access.browser} <= cookies.keys():  # a page made for nothing would take a second
            greeting = pn.Template(_html("theme.html"))
            greeting.add_variable("browser", access.browser)
            return greeting
        dark = (cookies.get(THEME) or theme) == DARK
        viewer = access.viewer(pn.state.user if access.login else None, cookies, engine)
        return document(Page(engine, viewer, dark, served=True).follow(), dark)

    for line in _told(access):
        say(line)
    if show and not access.unix_socket:
        _open_browser(access)
    prefix = access.prefix.strip("/")
    login = {"cookie_secret": secrets.token_hex(32), **_doors(), **access.login} if access.login else {}
    if login:
        pn.state.encryption = Forgetful()
    if prefix:
        login["root_path"] = f"/{prefix}/"
    patterns = [
        (r"/owner", OwnerLink, {"access": access}), (rf"/{ADDRESS}([^/]+)", Download, {"engine": engine}),
    ]  # fmt: skip
    return pn.serve(
        {"/": page}, port=access.port, address=access.address, unix_socket=access.unix_socket or None, prefix=prefix,
        title="refmotion", websocket_origin=[one for one in origins if "[" not in one],
        extra_patterns=patterns, show=False, verbose=False, threaded=threaded,
        server_id=name, **login,
    )  # fmt: skip


class Forgetful:
    """In place of what Panel encrypts a provider's tokens with before it puts them into cookies: only the name is needed."""

    def encrypt(self, token: bytes) -> bytes:
        """Return nothing of a token."""
        return b""


def _doors() -> dict[str, str]:
    """Return the pages around a login: Panel's own take pictures and fonts from other hosts."""
    page = str(resources.files("refmotion_nb.views.app").joinpath("door.html"))
    return dict.fromkeys(("login_template", "logout_template", "oauth_error_template"), page)


def _open_browser(access: Access) -> None:
    """Open a browser once the server has had a moment to start."""
    threading.Timer(1.0, webbrowser.open, (access.link(owner=True),)).start()


def _free(access: Access) -> None:
    if access.unix_socket:
        if not Path(access.unix_socket).absolute().parent.is_dir():
            raise InputError(f"the folder of --unix-socket {access.unix_socket} does not exist; make it")
        return
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
    if access.unix_socket:
        who = f"yours to run at {access.link(owner=True)}, for others to look on at {access.link()}"
        return [f"refmotion app on the socket {access.unix_socket}: {'all may run' if access.everybody_runs else who}"]
    everybody = "after a login" if access.login else "without a login"
    lines = [
        f"refmotion app, yours to run:  {access.link(owner=True)}",
        f"for others to look on:        {access.link()}  ({everybody})",
    ]
    if not is_loopback(access.address) and not access.login:
        lines.append(f"warning: everybody who reaches {access.address} can look on, without a login, unencrypted")
    return lines
