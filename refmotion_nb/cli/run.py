"""``refmotion run``: the whole job."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

import param

from refmotion_nb.cli.console import Console
from refmotion_nb.cli.inputs import add_input_options, opened
from refmotion_nb.cli.options import add_dose_weights_options, add_parameter, declared, path
from refmotion_nb.data.files import writable
from refmotion_nb.data.reasons import alike
from refmotion_nb.stages.inputs import Inputs
from refmotion_nb.stages.job import STAGES, UNTIL, Job
from refmotion_nb.stages.search import prior_of
from refmotion_nb.views.report import write_report
from refmotion_nb.views.report_maps import resolutions
from refmotion_nb.views.svg import number


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of the input, and every parameter of the stages."""
    parser.set_defaults(screen=None)
    add_input_options(parser)
    parser.add_argument("--out", type=path, required=True, help="output folder; the same folder again resumes")
    parser.add_argument("--until", choices=UNTIL, default="correct", help="last stage; default: correct")
    parser.add_argument(
        "--hyperparameters", type=path,
        help="instead of a search: hyperparameters.json or hyperparams.cs of another run, RELION's opt_params*.txt",
    )  # fmt: skip
    add_dose_weights_options(
        parser,
        "instead of measuring: dose_weights.nc of another run, RELION's bfactors.star, CryoSPARC's refm_empirical_dw.npy",
    )
    group = parser.add_argument_group("parameters")
    for name, parameter in parameters().items():
        add_parameter(group, name, parameter)


def parameters() -> dict[str, param.Parameter]:
    """Return the parameters of all stages by name."""
    found: dict[str, param.Parameter] = {}
    for stage in STAGES:
        found = {**declared(stage), **found}
    return found


def run(options: argparse.Namespace) -> int:
    """Run the job; the exit code is 0 only if everything asked for was written."""
    writable(options.out)
    with Console(options.out / "run.log", options.screen) as console:
        command = shlex.join(["refmotion", *options.arguments])
        console.say(command, log_only=True)
        start = time.perf_counter()
        settings = {name: getattr(options, name) for name in (*declared(Inputs), *parameters())}
        for stage in STAGES:  # before anything is read
            stage.of(settings)
        data = opened(options)
        job = Job(
            data, options.out, settings,
            options.hyperparameters, options.dose_weights, options.dose_weights_last_frequency_per_A,
            image_root=data.root or options.root or Path.cwd(), command=command, say=console.say,
        )  # fmt: skip
        job.seconds["opening"] = time.perf_counter() - start
        return _finish(job, options.until, console)


def _finish(job: Job, until: str, console: Console) -> int:
    complete = job.run(until, console)
    start = time.perf_counter()
    write_report(job.out / "results.zarr", job.out / "report.html")
    job.seconds["report"] = time.perf_counter() - start
    for warning in job.warnings:
        console.say(f"warning: {warning}")
    if "n_particles" in job.search.attrs:
        console.say(f"searched on {', '.join(job.search.attrs['micrographs'])}", log_only=True)
    console.say(_summary(job))
    if not complete:
        console.say("refmotion: not everything was written; the reasons stand above and in the report")
    return 0 if complete else 1


def _summary(job: Job) -> str:
    rows = [f"  {what:28s}{seconds:8.1f} s" for what, seconds in job.seconds.items()]
    if job.search is not None:
        h = prior_of(job.search).hyperparameters
        rows.append(
            f"  {'hyperparameters':28s}strength {number(h.strength, 4)}, balance {number(h.balance_deg)}°, "
            f"distance {number(h.distance_A, 4)} Å"
        )
        if "n_particles" in job.search.attrs:
            names = job.search.attrs["micrographs"]
            more = f" and {len(names) - 3} more, listed in run.log" if len(names) > 3 else ""
            few = f"{job.search.attrs['n_particles']} particles of {', '.join(names[:3])}{more}"
            rows.append(f"  {'searched on':28s}{few}")
    if job.particles is not None:
        written = job.particles["written"].values
        sizes = zip(job.particles.attrs["box"], job.particles.attrs["pixel_size_A"])
        boxes = ", ".join(f"{box} px of {pixel_A:.4g} Å" for box, pixel_A in sizes)
        rows.append(f"  {'particles written':28s}{int(written.sum())} of {len(written)}, in boxes of {boxes}")
        columns = (job.particles[name].values[~written].tolist() for name in ("micrograph", "reason"))
        for reason, names in alike(zip(*columns)).items():
            rows.append(f"  {'left out':28s}{len(names)}: {reason}")
    if job.validation is not None:
        rows += [f"  {what:28s}{reached}" for what, reached in resolutions(job.validation)]
    return "\n".join(["", *rows, f"  results in {job.out}, report in {job.out / 'report.html'}"])
