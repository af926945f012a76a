"""``refmotion check``: look at the input, change nothing."""

from __future__ import annotations

import argparse
from dataclasses import replace

from refmotion_nb.cli.inputs import (
    add_input_options,
    cryosparc_input,
    input_settings,
    is_cryosparc,
    references,
    telling_of_files,
)
from refmotion_nb.data.cryosparc.project import survey_cryosparc
from refmotion_nb.data.relion.project import survey
from refmotion_nb.data.schema import InputError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of the input."""
    add_input_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print what there is and what is wrong with it; the exit code is 0 only if the data can be used."""
    if is_cryosparc(options):
        with telling_of_files():
            found = survey_cryosparc(**cryosparc_input(options))
        print(found)
        return 0 if found.ok else 1
    try:
        maps, missing = references(options), ()
    except InputError as error:
        maps, missing = [], (str(error),)
    with telling_of_files():
        found = survey(options.particles, options.micrographs, maps, **input_settings(options))
    print(found := replace(found, problems=(*missing, *found.problems)))
    return 0 if found.ok else 1
