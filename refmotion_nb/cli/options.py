"""Options of parameters."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import param

VALUES = {int: "N", float: "X", str: "TEXT"}  # what stands for them in the help


def declared(stage: type[param.Parameterized]) -> dict[str, param.Parameter]:
    """Return the parameters of a stage by name."""
    return {name: stage.param[name] for name in stage.param if name != "name"}


def add_parameter(group: argparse._ArgumentGroup, name: str, parameter: param.Parameter) -> None:
    """Add the option of a parameter; what is not given stays None."""
    import param

    option = option_of(name)
    value = parameter.default
    said = ("off", "on")[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    default = "" if said in (None, "") else f" Default: {said}."
    about = f"{parameter.doc}{default}".replace("%", "%%")
    if isinstance(parameter, param.Boolean):
        group.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=about)
    elif isinstance(parameter, param.Selector):
        group.add_argument(option, choices=parameter.objects, default=None, help=about)
    else:
        kind = str if isinstance(parameter, param.String) else int if isinstance(parameter, param.Integer) else float
        group.add_argument(option, type=kind, default=None, metavar=VALUES[kind], help=about)


def path(text: str) -> Path:
    """Return a path of the command line; an empty one, of a variable that the shell does not know, is no current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return Path(text)


def option_of(name: str) -> str:
    """Return the option of a parameter."""
    return "--" + name.replace("_", "-")


def add_dose_weights_options(parser: argparse.ArgumentParser, about: str) -> None:
    """Add the options of dose weights that are given; ``about`` says which files may be."""
    parser.add_argument("--dose-weights", type=path, help=about)
    parser.add_argument(
        "--dose-weights-last-frequency-per-A", type=float, metavar="X",
        help="frequency (1/Å) of the last bin of refm_empirical_dw.npy, where the files beside it do not tell",
    )  # fmt: skip
