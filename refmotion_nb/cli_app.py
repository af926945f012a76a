"""`refmotion app`: serve the app."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from refmotion_nb.data.schema import InputError

OAUTH = ("oauth_provider", "oauth_key", "oauth_secret", "oauth_redirect_uri", "oauth_extra_params")


def add_app_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("folder", type=Path, nargs="?", help="output folder of a run, to look at and go on with")
    parser.add_argument(
        "--out", type=Path, help="output folder. Default: refmotion-results in the first folder to browse"
    )
    parser.add_argument(
        "--browse", type=Path, action="append", default=[],
        help="folder that may be read and written; nothing outside is; repeatable. Default: the current one",
    )  # fmt: skip
    group = parser.add_argument_group("serving")
    group.add_argument("--port", type=int, default=5006, help="port. Default: 5006")
    group.add_argument("--address", default="127.0.0.1", help="address to listen on. Default: this machine only")
    group.add_argument("--prefix", default="", help="what all paths begin with, behind a proxy")
    group.add_argument(
        "--allow-websocket-origin", action="append", default=[], metavar="HOST[:PORT]",
        help="address that browsers reach the app by, where it is not its own; repeatable",
    )  # fmt: skip
    group.add_argument("--show", action="store_true", help="open a browser")
    group = parser.add_argument_group(
        "who may", "Who opens the link with the key runs; others look on, until given the right."
    )
    group.add_argument(
        "--basic-auth",
        metavar="FILE|PASSWORD",
        help='ask for a login: a JSON file of {"name": "password"}, or one password',
    )
    for name in OAUTH:
        group.add_argument("--" + name.replace("_", "-"), help="login through OAuth, as for `panel serve`")
    group.add_argument("--cookie-secret", help="to sign the cookies of logins with. Default: a new one at each start")
    group.add_argument("--owner", action="append", default=[], metavar="NAME",
                       help="who runs after logging in under this name; repeatable")  # fmt: skip
    group.add_argument("--open-to-all", action="store_true", help="listen beyond this machine without a login")


def access_of(options: argparse.Namespace) -> Any:
    """Return who reaches the app, and how."""
    from refmotion_nb.views.app.serve import Access

    login = {name: value for name in OAUTH if (value := getattr(options, name))}
    if "oauth_extra_params" in login:
        try:
            login["oauth_extra_params"] = json.loads(login["oauth_extra_params"])
        except ValueError as error:
            raise InputError(f"--oauth-extra-params is no JSON ({error}); give {{...}}") from None
    if options.basic_auth:
        if login:
            raise InputError("both --basic-auth and OAuth are given; give one")
        login["basic_auth"] = options.basic_auth
    elif login and "oauth_provider" not in login:
        raise InputError(f"--{min(login).replace('_', '-')} without --oauth-provider; name the provider")
    if login and options.cookie_secret:
        login["cookie_secret"] = options.cookie_secret
    return Access(options.port, options.address, options.prefix, tuple(options.allow_websocket_origin), login,
                  tuple(options.owner), options.open_to_all)  # fmt: skip


def serve_app(options: argparse.Namespace) -> int:
    """Serve until stopped."""
    from refmotion_nb.views.app.engine import Engine
    from refmotion_nb.views.app.roots import Roots
    from refmotion_nb.views.app.serve import serve

    access = access_of(options)
    engine = Engine(Roots(options.browse or [Path.cwd()]), out=options.out and options.out.resolve())
    serve(engine, access, options.show, _say)
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
