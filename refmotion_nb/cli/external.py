"""``refmotion external``: ``refmotion run`` as a job of the type *External* in RELION's window (3.1, 4 and 5).

RELION calls the executable of such a job with words of its own for the input, then the labels and values of the tab *Params*,
and waits for files in the job's folder that say how it ended and what it made.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pandas as pd

from refmotion_nb.cli.options import path
from refmotion_nb.cli.parser import parsed
from refmotion_nb.data.files import sole
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.star import read_star, write_star

SUCCESS, FAILURE, ABORTED = (f"RELION_JOB_EXIT_{how}" for how in ("SUCCESS", "FAILURE", "ABORTED"))
ABORT_NOW = "RELION_JOB_ABORT_NOW"
NODES = "RELION_OUTPUT_NODES.star"
LOOK_EVERY_S = 1.0  # whether the job is to be aborted
NODE_TYPES = {  # of particles and of half maps: numbers in RELION 3.1, words since
    "rlnPipeLineNodeType": (3, 10),
    "rlnPipeLineNodeTypeLabel": ("ParticleGroupMetadata.star.relion", "DensityMap.mrc.halfmap"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the words that RELION uses; all others are those of ``refmotion run``."""
    parser.set_defaults(takes_others=True)
    parser.add_argument("--o", type=path, required=True, help="folder of the job; RELION gives it")
    group = parser.add_argument_group("input (tab Input); all other options are those of `refmotion run` (tab Params)")
    group.add_argument("--in_parts", type=path, help="Input particles: run_data.star of a refinement")
    group.add_argument("--in_mics", type=path, help="Input micrographs: corrected_micrographs.star")
    group.add_argument(
        "--in_3dref", type=path, help="Input 3D reference: one of the half maps, whose name tells the other's"
    )
    group.add_argument("--in_mask", type=path, help="Input mask")
    group.add_argument("--in_movies", type=path, help="Input movies: not used, micrographs name them")
    group.add_argument("--in_coords", type=path, help="Input coordinates: not used, particles have theirs")
    group.add_argument("--j", type=int, help="number of threads")


def run(options: argparse.Namespace) -> int:
    """Run the job and leave the marks that RELION waits for; the exit code is that of ``refmotion run``.

    Where another process is at work in the folder, marks are that one's.
    """
    with sole(options.o):
        return _run(options, options.o)


def _run(options: argparse.Namespace, out: Path) -> int:
    for mark in (SUCCESS, FAILURE, ABORTED, ABORT_NOW, NODES):
        (out / mark).unlink(missing_ok=True)
    how = FAILURE
    try:
        with _aborted_when_told(out):
            words = ["run", *words_of_run(options), *options.others]
            job = parsed(words)
            job.arguments, job.screen = words, sys.stdout  # RELION shows the other one as errors
            code: int = job.command(job)
        _tell_what_there_is(out, options.in_parts)
        how = FAILURE if code else SUCCESS
    except KeyboardInterrupt:
        how = ABORTED
        raise
    finally:
        (out / how).touch()
    return code


def words_of_run(options: argparse.Namespace) -> list[str]:
    """Return RELION's words in those of ``refmotion run``; InputError where the reference is no half map."""
    given = {
        "out": options.o, "particles": options.in_parts, "micrographs": options.in_mics, "mask": options.in_mask,
        "threads": options.j,
    }  # fmt: skip
    if options.in_3dref:
        given |= zip(("half1", "half2"), _half_maps(options.in_3dref))
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def _half_maps(one: Path) -> tuple[Path, Path]:
    for this in ("half1", "half2"):
        before, found, after = one.name.rpartition(this)
        if found:
            return one.with_name(f"{before}half1{after}"), one.with_name(f"{before}half2{after}")
    raise InputError(
        f"{one} has neither half1 nor half2 in its name; give a half map as the 3D reference, or none and the parameter "
        "fsc with a postprocess.star"
    )


@contextmanager
def _aborted_when_told(out: Path) -> Iterator[None]:
    """Let the wish of RELION's user, a file in the job's folder, end this process as a queue would."""
    over = Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY_S):
            if (out / ABORT_NOW).exists():
                (out / ABORT_NOW).unlink()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _tell_what_there_is(out: Path, particles: Path | None) -> None:
    """Write which files other jobs may take; new particles are, to the RELION that started this, of the type of the old ones."""
    known = {}
    if (out / "job_pipeline.star").exists():
        known = read_star(out / "job_pipeline.star", ["pipeline_nodes"]).get("pipeline_nodes", {})
    column = next((name for name in NODE_TYPES if name in known), "rlnPipeLineNodeTypeLabel")
    kind, half_map = NODE_TYPES[column]
    kind = dict(zip(known.get("rlnPipeLineNodeName", ()), known.get(column, ()))).get(str(particles), kind)
    nodes = {"particles.star": kind, "Maps/both_half1.mrc": half_map}
    there = {str(out / name): kind for name, kind in nodes.items() if (out / name).exists()}
    write_star(
        out / NODES, {"output_nodes": pd.DataFrame({"rlnPipeLineNodeName": [*there], column: [*there.values()]})}
    )
