"""A provider of logins as OAuth has them, on this machine: it asks who one is, and believes it.

Like a real one it refuses clients it does not know, addresses to go back to that were not registered, and codes used twice.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from urllib.parse import urlencode

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

KEY, SECRET = "refmotion-app", "not told to browsers"


class Provider:
    """What is registered with it, and whom it has let in: ``back`` is the address that people are sent back to."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self.back = ""
        self.codes: dict[str, str] = {}  # name by code, until it is used
        self.tokens: dict[str, str] = {}  # name by token

    @property
    def options(self) -> list[str]:
        """Return the options of `refmotion app`."""
        urls = {"AUTHORIZE_URL": "authorize", "TOKEN_URL": "token", "USER_URL": "userinfo"}
        extra = ", ".join(f'"{name}": "{self.url}/{path}"' for name, path in urls.items())
        return ["--oauth-provider", "generic", "--oauth-key", KEY, "--oauth-secret", SECRET,
                "--oauth-redirect-uri", self.back, "--oauth-extra-params", f'{{{extra}, "USER_KEY": "name"}}']  # fmt: skip


class Handler(RequestHandler):
    """Knows its provider."""

    def initialize(self, provider: Provider) -> None:
        self.provider = provider

    def refuse(self, status: int, error: str) -> None:
        self.set_status(status)
        self.finish({"error": error})


class Authorize(Handler):
    """Asks a person who they are, and sends them back with a code."""

    def get(self) -> None:
        if self.get_argument("client_id") != KEY or self.get_argument("redirect_uri") != self.provider.back:
            return self.refuse(400, "unauthorized_client")
        assert self.get_argument("response_type") == "code" and "secret" not in self.request.uri
        state = escape(self.get_argument("state"))
        self.write(f'<!DOCTYPE html><html lang="en"><title>provider</title><link rel="icon" href="data:,"><form method="post">'
                   f'<input name="state" type="hidden" value="{state}"><input name="name" aria-label="Name">'
                   '<button>Allow</button><button name="error" value="access_denied">Deny</button></form>')  # fmt: skip

    def post(self) -> None:
        if error := self.get_argument("error", ""):
            answer = {"error": error, "error_description": "The person does not want to."}
        else:
            answer = {"code": secrets.token_hex(8)}
            self.provider.codes[answer["code"]] = self.get_argument("name")
        self.redirect(f"{self.provider.back}?{urlencode({**answer, 'state': self.get_body_argument('state')})}")


class Token(Handler):
    """Gives the app a token for a code."""

    def post(self) -> None:
        name = self.provider.codes.pop(self.get_argument("code"), None)
        client = [self.get_argument(part) for part in ("client_id", "client_secret", "redirect_uri", "grant_type")]
        if client[:2] != [KEY, SECRET]:
            return self.refuse(401, "invalid_client")
        if name is None or client[2:] != [self.provider.back, "authorization_code"]:
            return self.refuse(400, "invalid_grant")
        token = secrets.token_hex(400)
        self.provider.tokens[token] = name
        self.write({"access_token": token, "token_type": "Bearer", "expires_in": 3600})


class UserInfo(Handler):
    """Tells whom a token was given to."""

    def get(self) -> None:
        name = self.provider.tokens.get(self.request.headers["Authorization"].removeprefix("Bearer "))
        if name is None:
            return self.refuse(401, "invalid_token")
        self.write({"name": name, "email": f"{name}@example.org"})


@contextmanager
def providing() -> Iterator[Provider]:
    """Run a provider in a thread."""
    [listening] = bind_sockets(0, "127.0.0.1")
    provider = Provider(listening.getsockname()[1])
    pages = (("authorize", Authorize), ("token", Token), ("userinfo", UserInfo))
    loop, end = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        server = HTTPServer(Application([(f"/{path}", page, {"provider": provider}) for path, page in pages]))
        server.add_socket(listening)
        await end.wait()
        server.stop()
        await server.close_all_connections()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield provider
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
