"""``refmotion app``: serve the app."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from refmotion_nb.cli.inputs import add_input_options, cryosparc_input, entry, input_settings, is_cryosparc, references
from refmotion_nb.cli.options import path
from refmotion_nb.cli.parser import parsed
from refmotion_nb.data.schema import InputError

OAUTH = {
    "oauth_provider": ("NAME", "log in through a provider: github, gitlab, google, azurev2, okta, auth0, others that Panel "
                       "knows, or generic"),
    "oauth_key": ("ID", "client id that the provider gave this app. Default: PANEL_OAUTH_KEY of the environment"),
    "oauth_secret": ("SECRET", "client secret that goes with it. Default: PANEL_OAUTH_SECRET of the environment, which other "
                     "accounts of this machine do not see"),
    "oauth_redirect_uri": ("URL", "where the provider sends people back to, as registered there: the app's address and /login. "
                           "Default: the address that the app is asked for by, without a path"),
    "oauth_extra_params": ("JSON", 'what a provider wants beside; of a generic one its {"AUTHORIZE_URL": …, "TOKEN_URL": …, '
                           '"USER_URL": …, "USER_KEY": what it calls the name}'),
}  # fmt: skip
NO_KEY, NO_SECRET = ("pam",), ("pam", "password", "auth_code")  # providers that do without
PATHS = ("particles", "micrographs", "exposures", "volume", "half1", "half2", "mask", "fsc", "gain")  # options
URLS = ("AUTHORIZE_URL", "TOKEN_URL")  # of a generic one
LAST_S = 60.0  # at most, until what runs has ended


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of the input, of serving, and of who may do what."""
    add_input_options(parser, required=False)
    parser.add_argument("folder", type=path, nargs="?", help="output folder of a run, to look at and go on with")
    parser.add_argument(
        "--out", type=path, help="output folder. Default: refmotion-results in the first folder to browse"
    )
    parser.add_argument(
        "--browse", type=path, action="append", default=[],
        help="folder that may be read and written; nothing outside is; repeatable. Default: the current one",
    )  # fmt: skip
    group = parser.add_argument_group("serving")
    group.add_argument("--port", type=int, default=5006, help="port. Default: 5006")
    group.add_argument("--address", default="127.0.0.1", help="address to listen on. Default: this machine only")
    group.add_argument("--unix-socket", default="", metavar="PATH",
                       help="socket to listen on instead of a port, for a proxy on this machine: only you reach it")  # fmt: skip
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
    for name, (value, about) in OAUTH.items():
        group.add_argument("--" + name.replace("_", "-"), metavar=value, help=about)
    group.add_argument("--cookie-secret", help="to sign the cookies of logins with. Default: a new one at each start")
    group.add_argument("--owner", action="append", default=[], metavar="NAME",
                       help="who runs after logging in under this name; repeatable")  # fmt: skip
    group.add_argument("--open-to-all", action="store_true", help="listen beyond this machine without a login")
    group.add_argument("--everybody-runs", action="store_true",
                       help="who reaches --unix-socket may run: for an app behind another login, such as Jupyter's")  # fmt: skip


def access_of(options: argparse.Namespace) -> Any:
    """Return who reaches the app, and how."""
    from refmotion_nb.views.app.serve import Access

    login = {name: value for name in OAUTH if (value := getattr(options, name))}
    if options.basic_auth is not None:
        if login:
            raise InputError("both --basic-auth and OAuth are given; give one")
        login["basic_auth"] = options.basic_auth
    elif login:
        _check_oauth(login, behind=bool(options.prefix or options.unix_socket))
    if login and options.cookie_secret:
        login["cookie_secret"] = options.cookie_secret
    return Access(options.port, options.address, options.prefix, tuple(options.allow_websocket_origin), login,
                  tuple(options.owner), options.open_to_all, options.everybody_runs, options.unix_socket)  # fmt: skip


def _check_oauth(login: dict[str, Any], behind: bool) -> None:
    """Read the extra parameters of OAuth, and refuse what people could not log in with; ``behind`` is behind a proxy.

    Raises
    ------
    InputError
        Something is missing, or cannot be read.
    """
    from panel.auth import AUTH_PROVIDERS

    provider = login.get("oauth_provider")
    if provider is None:
        raise InputError(f"--{min(login).replace('_', '-')} without --oauth-provider; name the provider")
    if provider not in AUTH_PROVIDERS:
        raise InputError(f"--oauth-provider {provider} is not known; give one of {', '.join(AUTH_PROVIDERS)}")
    for name, without in (("oauth_key", NO_KEY), ("oauth_secret", NO_SECRET)):
        if provider not in without and not _given(login, name):
            raise InputError(
                f"--oauth-provider {provider} needs --{name.replace('_', '-')}, or PANEL_{name.upper()} in the environment: "
                "the provider gave it when the app was registered there"
            )
    try:
        extra = login["oauth_extra_params"] = json.loads(login.get("oauth_extra_params", "{}"))
    except ValueError as error:
        raise InputError(f"--oauth-extra-params is no JSON ({error}); give {{...}}") from None
    if not isinstance(extra, dict):
        raise InputError('--oauth-extra-params is no JSON object; give {"NAME": "value"}')
    wanted = [name for name in URLS if not (extra.get(name) or os.environ.get(f"PANEL_OAUTH_{name}"))]
    if wanted and provider in ("generic", "auth_code"):
        raise InputError(
            f"--oauth-provider {provider} needs {' and '.join(wanted)} in --oauth-extra-params, or "
            f"{' and '.join(f'PANEL_OAUTH_{name}' for name in wanted)} in the environment"
        )
    if behind and provider not in NO_KEY and not _given(login, "oauth_redirect_uri"):
        raise InputError(
            "behind a proxy the app does not know the address that a provider sends people back to; give "
            "--oauth-redirect-uri https://HOST/PREFIX/login, the same as registered there"
        )


def _given(login: dict[str, Any], name: str) -> bool:
    return bool(login.get(name) or os.environ.get(f"PANEL_{name.upper()}"))  # Panel looks there


def run(options: argparse.Namespace) -> int:
    """Serve until stopped."""
    from refmotion_nb.views.app.engine import Engine
    from refmotion_nb.views.app.roots import Roots
    from refmotion_nb.views.app.serve import serve

    access = access_of(options)
    out = options.folder or options.out
    if options.folder and options.out:
        raise InputError("both a folder of results and --out are given; give one")
    if options.folder and not (options.folder / "results.zarr").is_dir():
        raise InputError(
            f"{options.folder} holds no results.zarr; give the output folder of a run, or --out for a new one"
        )
    browse = options.browse or [Path.cwd(), *([options.folder] if options.folder else [])]
    engine = Engine(Roots(browse), out=None if out is None else Roots(browse).resolve(out.absolute()))
    if options.folder:
        engine.settings = recorded_settings(options.folder)
        take_up_reused(engine, options.folder)
    opening, engine.note = _opening(options)
    if options.folder and not engine.note and engine.store is not None and engine.store.has("particles"):
        engine.first_tab = "Results"
    if opening is not None:
        engine.open(opening)
    try:
        serve(engine, access, options.show, _say)
    finally:
        _end(engine)
    return 0


def _end(engine: Any) -> None:
    """Stop what is going on and wait for its end: threads that are cut off as they compute can abort the process."""
    engine.cancel()
    end = time.monotonic() + LAST_S
    for run in (engine.opened, engine.checked, *engine.runs):
        if run is not None:
            run.ends_within(max(0.0, end - time.monotonic()))


def _opening(options: argparse.Namespace) -> tuple[Any, str]:
    """Return how data are to be opened at the start, if they are, and what to say where they cannot be."""
    if options.particles:
        return opening_of(options, Path.cwd()), ""
    if options.folder is None:
        return None, ""
    try:
        return recorded_opening(options.folder), ""
    except InputError as error:
        return None, f"The results of {options.folder} are here, the data they are from are not open: {error}"


def opening_of(options: argparse.Namespace, base: Path) -> Any:
    """Return how the data of options of `refmotion run` are opened; paths are relative to ``base``, or to ``--root``.

    Raises
    ------
    InputError
        Options that do not go together, or a file that is not there.
    """
    from refmotion_nb.views.app.opening import Opening

    options.root = options.root and base / options.root
    for name in PATHS:
        setattr(options, name, _from(getattr(options, name), base, options.root))
    options.gain = options.gain and str(options.gain)
    if is_cryosparc(options):
        return Opening("open_cryosparc", cryosparc_input(options))
    files = {"particles": options.particles, "micrographs": options.micrographs, "references": references(options)}
    return Opening("open_relion", {**files, **input_settings(options)})


def _from(value: Any, base: Path, root: Path | None) -> Any:
    """Return paths as absolute ones, from the root where only that leads to a file; ``TABLE.cs,PASSTHROUGH.cs`` is two.

    The name of a file may have a comma, too.
    """
    if isinstance(value, list):
        return [_from(one, base, root) for one in value]
    if value and not (whole := _place(str(value), base, root)).exists():
        return Path(",".join(str(_place(part, base, root)) for part in str(value).split(",")))
    return value and whole


def _place(name: str, base: Path, root: Path | None) -> Path:
    from_root = (root or base) / name
    return from_root if from_root.exists() and not (base / name).exists() else base / name


def recorded_opening(folder: Path) -> Any:
    """Return how the data of a finished run were opened.

    Raises
    ------
    InputError
        That is not recorded, or the files are no longer there.
    """
    from refmotion_nb.data.store import ResultStore
    from refmotion_nb.views.app.opening import Opening

    attrs = ResultStore(folder / "results.zarr").attrs
    if "opening" in attrs:
        return Opening.of_record(attrs["opening"])
    tokens = shlex.split(str(attrs.get("command", "")))
    if tokens[:2] != ["refmotion", "run"]:
        raise InputError("how they were opened is not recorded; open them again")
    for base in dict.fromkeys([Path.cwd(), *folder.absolute().parents]):
        options = _parsed(tokens[1:])
        named = [*options.particles, *options.exposures, *([options.micrographs] if options.micrographs else [])]
        tables = [entry(_from(one, base, options.root and base / options.root), None) for one in named]
        if all(Path(one[0] if isinstance(one, tuple) else one).is_file() for one in tables):
            return opening_of(options, base)
    raise InputError(f"{named[0]} is not found from here; start the app in the folder that the run was started in")


def recorded_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a run gave its stages, those of its machine left out."""
    from refmotion_nb.data.store import ResultStore
    from refmotion_nb.stages.execute import Execution
    from refmotion_nb.stages.job import STAGES

    noted = ResultStore(folder / "results.zarr").attrs.get("settings", {})
    stages = [stage for stage in STAGES if stage is not Execution]
    return {name: value for name, value in noted.items() if any(name in stage.param for stage in stages)}


def take_up_reused(engine: Any, folder: Path) -> None:
    """Have the app take hyperparameters and dose weights from the files that a run was given, and say which it cannot take."""
    from refmotion_nb.data.store import ResultStore
    from refmotion_nb.stages.describe import REUSED

    attrs = ResultStore(folder / "results.zarr").attrs
    noted = {what: Path(name) for what, name in attrs.get("inputs", {}).get("files", []) if what in REUSED}
    tokens = shlex.split(str(attrs.get("command", "")))
    for what, name in noted.items():
        bases = dict.fromkeys([Path.cwd(), *folder.absolute().parents])  # one is where the run was started
        try:
            path = next((base / name for base in bases if (base / name).exists()), None)
            if path is None:
                raise InputError(f"{name} is not found from here")
            if what == REUSED[0]:
                engine.use_hyperparameters(path)
            else:
                by_command = tokens[:2] == ["refmotion", "run"]
                frequency = _parsed(tokens[1:]).dose_weights_last_frequency_per_A if by_command else None
                engine.use_dose_weights(path, frequency)
        except InputError as error:
            _say(f"refmotion: the {what} of the run are not taken again: {error}; choose a file in the app")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    try:
        with redirect_stderr(io.StringIO()):
            return parsed(arguments)
    except SystemExit:
        raise InputError("the command of the run is of another version; open the data again") from None


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
