"""`refmotion app`: serve the app."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_app_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--out", type=Path, help="output folder. Default: refmotion-results in the first folder to browse"
    )
    parser.add_argument("--browse", type=Path, action="append", default=[], help="folder that may be read and written; "
                        "repeatable. Default: the current one")  # fmt: skip
    parser.add_argument("--port", type=int, default=5006, help="port. Default: 5006")
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on. Default: this machine only")
    parser.add_argument("--show", action="store_true", help="open a browser")


def serve_app(options: argparse.Namespace) -> int:
    """Serve until stopped."""
    from refmotion_nb.views.app.engine import Engine
    from refmotion_nb.views.app.roots import Roots
    from refmotion_nb.views.app.serve import serve

    engine = Engine(Roots(options.browse or [Path.cwd()]), out=options.out and options.out.resolve())
    serve(engine, options.port, options.address, options.show)
    return 0
