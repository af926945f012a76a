"""The input: options, and the data they name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from refmotion_nb.cli.console import IN_FILE_S
from refmotion_nb.cli.options import add_parameter, declared, path
from refmotion_nb.data.cryosparc.project import open_cryosparc
from refmotion_nb.data.files import only_within
from refmotion_nb.data.relion.micrographs import from_root
from refmotion_nb.data.relion.project import open_relion
from refmotion_nb.data.relion.results import open_postprocess
from refmotion_nb.data.schema import Dataset, InputError, Reference
from refmotion_nb.stages.inputs import Inputs

PATIENCE_S = 3.0  # until it is told how many files were opened


def add_input_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the options of what is read; ``required`` are particles."""
    group = parser.add_argument_group(
        "input (RELION: --micrographs and half maps; CryoSPARC: --exposures and --volume)"
    )
    group.add_argument(
        "--particles", type=path, action="append", required=required,
        help="particle STAR, or .cs or .csg (TABLE.cs,PASSTHROUGH.cs where they are apart); once per reference",
    )  # fmt: skip
    group.add_argument("--micrographs", type=path, help="corrected_micrographs.star")
    group.add_argument(
        "--exposures", type=path, action="append", default=[], help="motion-corrected exposures, .cs or .csg"
    )
    group.add_argument(
        "--volume", type=path, action="append", default=[], help="volume, .cs or .csg; once per reference"
    )
    group.add_argument("--half1", type=path, action="append", default=[], help="half map 1; once per reference")
    group.add_argument("--half2", type=path, action="append", default=[], help="half map 2")
    group.add_argument("--mask", type=path, action="append", default=[], help="mask; wins over that of a volume")
    group.add_argument("--fsc", type=path, action="append", default=[], help="postprocess.star: names all three")
    group.add_argument(
        "--root", type=path, help="project folder, which paths in tables start from; those given may, too"
    )
    group = parser.add_argument_group("what is read")
    for name, parameter in declared(Inputs).items():
        add_parameter(group, name, parameter)


@contextmanager
def telling_of_files(screen: TextIO | None = None) -> Iterator[None]:
    """Tell how many input files were opened so far, where it takes a while: there are two for each of thousands of movies."""
    from tqdm import tqdm

    screen = screen or sys.stderr
    every_s = 0.1 if screen.isatty() else IN_FILE_S
    bar = tqdm(
        desc="opening the input", unit=" files", file=screen, dynamic_ncols=True, mininterval=every_s, delay=PATIENCE_S
    )
    with bar, only_within((), bar.update):
        yield


def opened(options: argparse.Namespace) -> Dataset:
    """Open the data that the options name."""
    with telling_of_files(options.screen):
        if is_cryosparc(options):
            return open_cryosparc(**cryosparc_input(options))
        return open_relion(options.particles, options.micrographs, references(options), **input_settings(options))


def references(options: argparse.Namespace) -> list[Reference]:
    """Return the references that the options name; InputError where they do not go together."""
    curves: list[Path] = [from_root(path, options.root) for path in options.fsc]
    if curves and not (options.half1 or options.half2):
        named = [open_postprocess(path, options.root)[0] for path in curves]
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
    named = [open_postprocess(path, options.root)[0].mask for path in curves]
    masks = options.mask or named or [None] * len(options.half1)
    return [Reference(*files) for files in zip(options.half1, options.half2, masks, curves or [None] * len(masks))]


def input_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that ``open_relion`` and ``open_cryosparc`` share."""
    return {"root": options.root, **Inputs.of(vars(options)).arguments()}


def is_cryosparc(options: argparse.Namespace) -> bool:
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


def entry(path: Path, root: Path | None) -> Path | tuple[str, ...]:
    """Return a table of CryoSPARC's, or TABLE.cs,PASSTHROUGH.cs as two; the name of a file may have a comma."""
    return tuple(str(path).split(",")) if "," in str(path) and not from_root(path, root).exists() else path


def cryosparc_input(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``open_cryosparc``."""
    given = {"exposures": options.exposures, "particles": options.particles, "volumes": options.volume}
    return {
        **{name: [entry(path, options.root) for path in paths] for name, paths in given.items()}, "masks": options.mask or None,
        "orientation": Inputs.of(vars(options)).orientation, **input_settings(options),
    }  # fmt: skip
