"""The command line: every parameter of the stages is an option of the same name."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, NoReturn

from refmotion_nb import __version__
from refmotion_nb.data.files import naming
from refmotion_nb.data.schema import InputError, OutputError, SettingError, failure_in_words

if TYPE_CHECKING:
    import param

    from refmotion_nb.data.schema import Dataset, Reference
    from refmotion_nb.stages.inputs import Inputs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line, the exit code is 0 only if everything asked for was written."""
    from refmotion_nb.numerics.backend import one_blas_thread

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # terminals that know no Å get its number
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if wrong := [word for word in arguments if not _is_text(word)]:  # what is written could not name it
        print(f"refmotion: {wrong[0]} is not UTF-8; rename it (convmv -f latin1 -t utf-8)", file=sys.stderr)
        return 1
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    options.arguments = arguments
    try:
        with one_blas_thread(), _told_to_end():
            return options.command(options)
    except OutputError as error:
        print(f"refmotion: {error}, or choose another --out", file=sys.stderr)
    except SettingError as error:
        print(f"refmotion: {_option(error.name)} {error.why}", file=sys.stderr)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"refmotion: {line}", file=sys.stderr)
    except (OSError, MemoryError) as error:
        told = failure_in_words(error, "run the same command again", "give a smaller --cache-size-GB")
        print(f"refmotion: {told}", file=sys.stderr)
    except KeyboardInterrupt as stop:
        print("refmotion: stopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    return 1


def _is_text(word: str) -> bool:
    """Tell whether a word of the command line was UTF-8: other bytes come as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in word)


class Parser(argparse.ArgumentParser):
    """Command lines that cannot be read are told in one line: the usage of ``run`` alone has fifty."""

    def error(self, message: str) -> NoReturn:
        """End with what is wrong and where it says how it goes."""
        self.exit(2, f"refmotion: {message}; usage: {self.prog} --help\n")


class Terminated(KeyboardInterrupt):
    """The process was told to end (SIGTERM), as queues do before they kill."""


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, which leaves temporary files and workers nowhere."""

    def end(*_: object) -> None:
        raise Terminated("told to end (SIGTERM)")

    if current_thread() is not main_thread():  # only there may signals be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser(command: str) -> argparse.ArgumentParser:
    """Return the parser; only the options of ``command`` are filled in, since they come with what they belong to."""
    parser = Parser(prog="refmotion", description="Reference-based motion correction for cryo-EM.")
    parser.add_argument("--version", action="version", version=f"refmotion {__version__}")
    commands = parser.add_subparsers(required=True, metavar="demo | simulate | check | run | micrographs | app")
    demo = commands.add_parser("demo", help="simulate a small dataset, run the whole job, write the report")
    demo.add_argument("--out", type=Path, default=Path("refmotion-demo"))
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    demo.set_defaults(command=_demo)
    simulate = commands.add_parser("simulate", help="movies, STAR files, half maps and truth, laid out as RELION does")
    if command == "simulate":
        from refmotion_nb.cli_simulate import add_simulation_options

        add_simulation_options(simulate, _option)
    simulate.set_defaults(command=_simulate)
    check = commands.add_parser("check", help="validate and summarise the input, change nothing")
    if command == "check":
        _input_options(check)
    check.set_defaults(command=_check)
    run = commands.add_parser("run", help="estimate motion and dose weights, write corrected particles")
    if command == "run":
        _input_options(run)
        _run_options(run)
    run.set_defaults(command=_run)
    micrographs = commands.add_parser("micrographs", help="write dose-weighted micrographs from movies, motion undone")
    if command == "micrographs":
        from refmotion_nb.cli_micrographs import add_options, write_micrographs

        _input_options(micrographs)
        add_options(micrographs, _add_parameter)
        micrographs.set_defaults(command=write_micrographs)
    app = commands.add_parser("app", help="serve the app: tune, search, correct and compare in the browser")
    if command == "app":
        from refmotion_nb.cli_app import add_app_options, serve_app

        _input_options(app, required=False)
        add_app_options(app)
        app.set_defaults(command=serve_app)
    return parser


def _input_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    group = parser.add_argument_group(
        "input (RELION: --micrographs and half maps; CryoSPARC: --exposures and --volume)"
    )
    group.add_argument(
        "--particles", type=Path, action="append", required=required,
        help="particle STAR, or .cs or .csg (TABLE.cs,PASSTHROUGH.cs where they are apart); once per reference",
    )  # fmt: skip
    group.add_argument("--micrographs", type=Path, help="corrected_micrographs.star")
    group.add_argument(
        "--exposures", type=Path, action="append", default=[], help="motion-corrected exposures, .cs or .csg"
    )
    group.add_argument(
        "--volume", type=Path, action="append", default=[], help="volume, .cs or .csg; once per reference"
    )
    group.add_argument("--half1", type=Path, action="append", default=[], help="half map 1; once per reference")
    group.add_argument("--half2", type=Path, action="append", default=[], help="half map 2")
    group.add_argument("--mask", type=Path, action="append", default=[], help="mask; wins over that of a volume")
    group.add_argument("--fsc", type=Path, action="append", default=[], help="postprocess.star: names all three")
    group.add_argument("--root", type=Path, help="project folder that paths in STAR files are relative to")
    from refmotion_nb.stages.inputs import Inputs

    group = parser.add_argument_group("what is read")
    for name, parameter in _declared(Inputs).items():
        _add_parameter(group, name, parameter)


def _run_options(parser: argparse.ArgumentParser) -> None:
    from refmotion_nb.stages.job import UNTIL

    parser.add_argument("--out", type=Path, required=True, help="output folder; the same folder again resumes")
    parser.add_argument("--until", choices=UNTIL, default="correct", help="last stage; default: correct")
    parser.add_argument(
        "--hyperparameters", type=Path,
        help="instead of a search: hyperparameters.json or hyperparams.cs of another run, RELION's opt_params*.txt",
    )  # fmt: skip
    parser.add_argument(
        "--dose-weights", type=Path,
        help="instead of measuring: dose_weights.nc of another run, RELION's bfactors.star, CryoSPARC's refm_empirical_dw.npy",
    )  # fmt: skip
    parser.add_argument(
        "--dose-weights-last-frequency-per-A", type=float,
        help="frequency (1/Å) of the last bin of refm_empirical_dw.npy, where the files beside it do not tell",
    )  # fmt: skip
    group = parser.add_argument_group("parameters")
    for name, parameter in _parameters().items():
        _add_parameter(group, name, parameter)


def _parameters() -> dict[str, param.Parameter]:
    """Return the parameters of all stages by name."""
    from refmotion_nb.stages.job import STAGES

    found: dict[str, param.Parameter] = {}
    for stage in STAGES:
        found = {**_declared(stage), **found}
    return found


def _declared(stage: type[param.Parameterized]) -> dict[str, param.Parameter]:
    """Return the parameters of a stage by name."""
    return {name: stage.param[name] for name in stage.param if name != "name"}


def _add_parameter(group: argparse._ArgumentGroup, name: str, parameter: param.Parameter) -> None:
    import param

    option = _option(name)
    default = "" if parameter.default is None else f" Default: {parameter.default}."
    about = f"{parameter.doc}{default}".replace("%", "%%")
    if isinstance(parameter, param.Boolean):
        group.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=about)
    elif isinstance(parameter, param.Selector):
        group.add_argument(option, choices=parameter.objects, default=None, help=about)
    else:
        kind = str if isinstance(parameter, param.String) else int if isinstance(parameter, param.Integer) else float
        group.add_argument(option, type=kind, default=None, help=about)


def _option(name: str) -> str:
    """Return the option of a parameter."""
    return "--" + name.replace("_", "-")


def _references(options: argparse.Namespace) -> list[Reference]:
    from refmotion_nb.data.relion.results import open_postprocess
    from refmotion_nb.data.schema import Reference

    if options.fsc and not (options.half1 or options.half2):
        named = [open_postprocess(path, options.root)[0] for path in options.fsc]
        if options.mask and len(options.mask) != len(named):
            raise InputError(f"{len(options.mask)} --mask for {len(named)} --fsc; give one for each, or none")
        return [replace(one, mask=mask) for one, mask in zip(named, options.mask)] if options.mask else named
    if len(options.half1) != len(options.half2):
        raise InputError(f"{len(options.half1)} --half1 but {len(options.half2)} --half2; give both of every reference")
    if not options.half1:
        raise InputError("no half maps; give --half1, --half2 and --mask, or --fsc postprocess.star")
    if options.mask and len(options.mask) != len(options.half1):
        raise InputError(f"{len(options.mask)} --mask for {len(options.half1)} references; give one for each, or none")
    if options.fsc and len(options.fsc) != len(options.half1):
        raise InputError(f"{len(options.fsc)} --fsc for {len(options.half1)} references; give one for each, or none")
    curves = options.fsc or [None] * len(options.half1)
    named = [open_postprocess(path, options.root)[0].mask for path in options.fsc]
    masks = options.mask or named or [None] * len(options.half1)
    return [Reference(*files) for files in zip(options.half1, options.half2, masks, curves)]


def _input_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that ``open_relion`` and ``open_cryosparc`` share."""
    return {"root": options.root, **_inputs(options).arguments()}


def _inputs(options: argparse.Namespace) -> Inputs:
    from refmotion_nb.stages.inputs import Inputs

    return Inputs.of(vars(options))


def _is_cryosparc(options: argparse.Namespace) -> bool:
    """Tell which program the input is from; InputError where options of both, or of neither, are given."""
    if options.exposures and options.micrographs:
        raise InputError("both --exposures (CryoSPARC) and --micrographs (RELION) are given; give one")
    if not (options.exposures or options.micrographs):
        raise InputError("no movies; give --micrographs (RELION) or --exposures (CryoSPARC)")
    wrong = ("half1", "half2", "fsc") if options.exposures else ("volume", "orientation")
    if given := [f"--{name}" for name in wrong if getattr(options, name)]:
        program = "CryoSPARC's --exposures" if options.exposures else "RELION's --micrographs"
        remedies = {"--volume": "give --half1", "--orientation": "leave it out"}
        raise InputError(f"{given[0]} does not go with {program}; {remedies.get(given[0], 'give --volume')}")
    return bool(options.exposures)


def _cryosparc_input(options: argparse.Namespace) -> dict[str, Any]:
    def entries(paths: list[Path]) -> list[Any]:
        return [tuple(str(path).split(",")) if "," in str(path) else path for path in paths]

    return {
        "exposures": entries(options.exposures), "particles": entries(options.particles),
        "volumes": entries(options.volume), "masks": options.mask or None,
        "orientation": _inputs(options).orientation, **_input_settings(options),
    }  # fmt: skip


def _check(options: argparse.Namespace) -> int:
    from refmotion_nb.data.relion.project import survey

    if _is_cryosparc(options):
        from refmotion_nb.data.cryosparc.project import survey_cryosparc

        print(found := survey_cryosparc(**_cryosparc_input(options)))
        return 0 if found.ok else 1
    try:
        references = _references(options)
        missing = ()
    except InputError as error:
        references, missing = [], (str(error),)
    found = survey(options.particles, options.micrographs, references, **_input_settings(options))
    print(found := replace(found, problems=(*missing, *found.problems)))
    return 0 if found.ok else 1


def _open(options: argparse.Namespace) -> Dataset:
    from refmotion_nb.data.relion.project import open_relion

    if _is_cryosparc(options):
        from refmotion_nb.data.cryosparc.project import open_cryosparc

        return open_cryosparc(**_cryosparc_input(options))
    return open_relion(options.particles, options.micrographs, _references(options), **_input_settings(options))


def _run(options: argparse.Namespace) -> int:
    from refmotion_nb.stages.execute import Execution
    from refmotion_nb.stages.inputs import Inputs
    from refmotion_nb.stages.job import STAGES, Job, writable

    writable(options.out)
    with Console(options.out / "run.log") as console:
        command = shlex.join(["refmotion", *options.arguments])
        console.say(command, log_only=True)
        start = time.perf_counter()
        settings = {name: getattr(options, name) for name in (*_declared(Inputs), *_parameters())}
        for stage in STAGES:  # before anything is read
            stage.of(settings)
        data = _open(options)
        job = Job(
            data, options.out, settings,
            options.hyperparameters, options.dose_weights, options.dose_weights_last_frequency_per_A,
            image_root=options.root or Path.cwd(), command=command, say=console.say,
        )  # fmt: skip
        job.seconds["opening"] = time.perf_counter() - start
        execution = job.stage(Execution)
        console.say(f"running on {execution.choose_device().about(execution.n_threads)}")
        return _finish(job, options.until, console)


def _finish(job: Any, until: str, console: Console) -> int:
    from refmotion_nb.views.report import write_report

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


def _summary(job: Any) -> str:
    from refmotion_nb.stages.search import prior_of
    from refmotion_nb.views.svg import number

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
        rows.append(f"  {'particles written':28s}{int(written.sum())} of {len(written)}")
        for reason, n in Counter(job.particles["reason"].values[~written].tolist()).most_common():
            rows.append(f"  {'left out':28s}{n}: {reason}")
    return "\n".join(["", *rows, f"  results in {job.out}, report in {job.out / 'report.html'}"])


class Console:
    """Progress on stderr, everything in run.log; a reporter."""

    def __init__(self, log: Path):
        self._log = open(log, "a", encoding="utf-8", errors="backslashreplace")
        self._bar: Any = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *problem: object) -> None:
        if problem[1] is not None:
            with suppress(OSError):  # the disk may be full: what is told is what stopped the work
                self._write(f"stopped: {str(problem[1]) or 'by the user'}")
        self.done()
        self._log.close()

    def _write(self, text: str) -> None:
        with naming(self._log.name):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._log.flush()

    def say(self, text: str, log_only: bool = False) -> None:
        """Tell the user and the log."""
        self._write(text)
        if not log_only:
            print(text, file=sys.stderr)

    def start(self, total: int, what: str) -> None:
        """Begin a progress bar."""
        from tqdm import tqdm

        self._write(what)
        self._bar = tqdm(total=total, desc=what, file=sys.stderr, leave=True, dynamic_ncols=True)

    def advance(self, n: int = 1, **facts: Any) -> None:
        """Move the bar on; facts go to the log."""
        self._write("  " + ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()))
        if self._bar is not None:
            from refmotion_nb.views.progress import move

            move(self._bar, n, found="from_an_earlier_run" in facts)

    def done(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _simulate(options: argparse.Namespace) -> int:
    from refmotion_nb.cli_simulate import run_simulation

    print(run_simulation(options))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from refmotion_nb.demo import run_demo
    from refmotion_nb.stages.execute import Execution
    from refmotion_nb.stages.job import writable
    from refmotion_nb.views.report import write_report

    Execution(device=options.device).check()
    writable(options.out)
    with Console(options.out / "run.log") as console:
        command = shlex.join(["refmotion", *options.arguments])
        console.say(command, log_only=True)
        table = run_demo(options.out, console, options.device, command=command)
        write_report(options.out / "results.zarr", options.out / "report.html")
        console.say(table, log_only=True)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
