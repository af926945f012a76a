"""README and documentation say what is so."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

import refmotion_nb
from refmotion_nb.cli import _declared, _parameters, _parser
from refmotion_nb.stages.inputs import Inputs
from refmotion_nb.stages.micrographs import MicrographCorrection

ROOT = Path(__file__).parents[1]
OF_MICROGRAPHS = {name for name in MicrographCorrection.param if name != "name"}
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written():
    return runpy.run_path(str(ROOT / "docs/make_parameters.py"))


def test_parameter_tables_are_those_of_the_code(written):
    page = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert page == written["parameters_page"](), "run python docs/make_parameters.py"
    assert README == written["with_table"](README), "run python docs/make_parameters.py"
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == {*_parameters(), *_declared(Inputs)} | OF_MICROGRAPHS


def test_every_parameter_is_explained():
    for name, parameter in {**_parameters(), **_declared(Inputs)}.items():
        assert parameter.doc and parameter.doc.endswith("."), name


def test_commands_in_the_readme_can_be_read():
    commands = re.findall(r"^    refmotion ((?:.*\\\n)*.*)", README, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        _parser(words[0]).parse_args(words)
    known = {word for action in _options() for word in action.option_strings}
    # RELION's own options are written with underscores
    assert set(re.findall(r"`(--[a-z0-9-]+)[` ]", README)) <= known


def _options():
    for name in ("demo", "simulate", "check", "run", "micrographs"):
        (commands,) = (action for action in _parser(name)._actions if action.choices)
        yield from commands.choices[name]._actions


def test_names_in_the_readme_exist():
    names = set(re.findall(r"\brm\.(\w+)", README))
    assert len(names) >= 8 and names <= set(refmotion_nb.__all__)


def test_ci_runs_the_readmes_test_command():
    first, second = re.findall(r"^    (python -m pip .*)$", README, re.MULTILINE)
    assert "refmotion demo" in first and second.endswith("python -m pytest")
    assert second in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
