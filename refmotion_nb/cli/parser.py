"""The commands, and how their lines are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from refmotion_nb import __version__

COMMANDS = {  # each a module of this room, with add_options(parser) and run(options) -> exit code
    "demo": "simulate a small dataset, run the whole job, write the report",
    "simulate": "movies, STAR files, half maps and truth, laid out as RELION does",
    "check": "validate and summarise the input, change nothing",
    "run": "estimate motion and dose weights, write corrected particles",
    "external": "do what run does, as a job of RELION's window",
    "micrographs": "write dose-weighted micrographs from movies, motion undone",
    "app": "serve the app: tune, search, correct and compare in the browser",
}


class Parser(argparse.ArgumentParser):
    """Command lines that cannot be read are told in one line: the usage of ``run`` alone has fifty."""

    def error(self, message: str) -> NoReturn:
        """End with what is wrong and where it says how it goes."""
        self.exit(2, f"refmotion: {message}; usage: {self.prog} --help\n")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line; what its command has no option for is in ``others``, and ends this where it takes none."""
    command = words[0] if words else ""
    parser = parser_for(command)
    options, options.others = parser.parse_known_args(words)
    if options.others and not getattr(options, "takes_others", False):  # nor is it known where options stand before it
        parser.prog += f" {command}" * (command in COMMANDS)
        parser.error(f"unrecognized arguments: {' '.join(options.others)}")
    return options


def parser_for(command: str) -> argparse.ArgumentParser:
    """Return the parser; only the options of ``command`` are filled in, since they come with what they belong to."""
    whole = Parser(prog="refmotion", description="Reference-based motion correction for cryo-EM.")
    whole.add_argument("--version", action="version", version=f"refmotion {__version__}")
    commands = whole.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name, about in COMMANDS.items():
        one = commands.add_parser(name, help=about)
        if name == command:
            module = import_module(f"refmotion_nb.cli.{name}")
            one.set_defaults(command=module.run, takes_others=False)
            module.add_options(one)
            one.usage = _usage(one)
    return whole


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return what a command cannot do without; its options are listed below, and of ``run`` there are sixty."""
    needed = [f"{one.option_strings[0]} {one.metavar or one.dest.upper()}" for one in parser._actions if one.required]
    places = [f"[{one.dest}]" for one in parser._actions if not one.option_strings]
    return " ".join(["%(prog)s", *needed, *places, "[options]"])
