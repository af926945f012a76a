"""``refmotion demo``: the main job on a simulated protein."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from refmotion_nb.cli.console import Console
from refmotion_nb.cli.options import path
from refmotion_nb.data.files import writable
from refmotion_nb.demo import run_demo
from refmotion_nb.stages.execute import Execution


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add where it goes and what it runs on."""
    parser.add_argument("--out", type=path, default=Path("refmotion-demo"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(options: argparse.Namespace) -> int:
    """Run it; the table of what was gained goes to standard output."""
    Execution(device=options.device).check()
    writable(options.out)
    with Console(options.out / "run.log") as console:
        command = shlex.join(["refmotion", *options.arguments])
        console.say(command, log_only=True)
        table = run_demo(options.out, console, options.device, command=command)
        console.say(table, log_only=True)
    print(table)
    return 0
