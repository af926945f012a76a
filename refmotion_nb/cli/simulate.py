"""``refmotion simulate``: data with known truth."""

from __future__ import annotations

import argparse
from dataclasses import fields

from refmotion_nb.cli.console import Console
from refmotion_nb.cli.options import option_of, path
from refmotion_nb.data.synthetic.settings import SimulationSettings
from refmotion_nb.data.synthetic.simulate import simulate


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting of a simulation."""
    parser.add_argument("--out", type=path, required=True, help="folder to write")
    for field in fields(SimulationSettings):
        kind = str(field.type).split(" |")[0]
        known = "" if field.default is None else f". Default: {field.default}"
        option, about = option_of(field.name), f"{field.metadata['doc']}{known}"
        if kind == "bool":
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=about)
        else:
            cast = {"int": int, "float": float, "Path": path}.get(kind, str)
            parser.add_argument(option, type=cast, default=None, help=about)


def run(options: argparse.Namespace) -> int:
    """Simulate into ``options.out`` and print what was made, in a line."""
    given = {
        f.name: getattr(options, f.name) for f in fields(SimulationSettings) if getattr(options, f.name) is not None
    }
    settings = SimulationSettings(**given)
    with Console(options.out / "simulate.log") as console:
        result = simulate(settings, options.out, console)
    print(
        f"{result.n_particles} particles on {result.settings.n_micrographs} movies in {result.folder}; rigid alignment is "
        f"off by {result.rigid_error_A:.2f} Å, the reference reaches "
        + " and ".join(f"{resolution:.2f} Å" for resolution in result.fsc_resolutions_A)
    )
    return 0
