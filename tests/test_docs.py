"""README and documentation say what is so."""

import ast
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import refmotion_nb
import refmotion_nb as rm
from refmotion_nb.cli.app import access_of
from refmotion_nb.cli.options import declared
from refmotion_nb.cli.parser import parser_for
from refmotion_nb.cli.run import parameters
from refmotion_nb.stages.inputs import Inputs
from refmotion_nb.stages.micrographs import MicrographCorrection

ROOT = Path(__file__).parents[1]
OF_MICROGRAPHS = {name for name in MicrographCorrection.param if name != "name"}
PAGES = sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts)
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written():
    return runpy.run_path(str(ROOT / "docs/make_parameters.py"))


def test_parameter_tables_are_those_of_the_code(written):
    page = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert page == written["parameters_page"](), "run python docs/make_parameters.py"
    assert README == written["with_table"](README), "run python docs/make_parameters.py"
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == {*parameters(), *declared(Inputs)} | OF_MICROGRAPHS


def test_every_parameter_is_explained():
    for name, parameter in {**parameters(), **declared(Inputs)}.items():
        assert parameter.doc and parameter.doc.endswith("."), name


def test_commands_in_the_readme_can_be_read():
    commands = re.findall(r"^    refmotion ((?:.*\\\n)*.*)", README, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        parser_for(words[0]).parse_args(words)
    known = {word for action in _options() for word in action.option_strings}
    # RELION's own options are written with underscores
    assert set(re.findall(r"`(--[a-z0-9-]+)[` ]", README)) <= known


def _options():
    for name in ("demo", "simulate", "check", "run", "micrographs"):
        (commands,) = (action for action in parser_for(name)._actions if action.choices)
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


def commands_of(page):
    """Return the commands in the shell blocks of a page, those that leave something out not."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["refmotion"] and "..." not in words and "--help" not in words:
                yield words[1:]


def test_commands_in_the_documentation_can_be_read():
    found = [command for page in PAGES for command in commands_of(page)]
    assert len(found) >= 8
    for command in found:
        parser_for(command[0]).parse_args(command)


def test_names_in_the_documentation_exist():
    known = set(refmotion_nb.__all__)
    for page in PAGES:
        names = set(re.findall(r"\brm\.(\w+)", page.read_text(encoding="utf-8")))
        assert names <= known, f"{page.name}: {names - known}"


def test_what_the_program_is_said_to_say_it_says():
    """Quotations in the page on missing improvement are pieces of messages in the code, cut where values stand."""
    files = (ROOT / "refmotion_nb").rglob("*.py")
    texts = [node.value for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip
    code = "\n".join(" ".join(text.split()) for text in texts)
    page = (ROOT / "docs/howto/no-improvement.md").read_text(encoding="utf-8")
    quoted = re.findall(r'"([^"]+)"', page)
    assert len(quoted) >= 25
    for quotation in quoted:
        for piece in filter(None, (part.strip(" ,") for part in quotation.split("…"))):
            assert piece in code, f"{quotation}: no message has {piece!r}"


def test_result_tables_name_what_a_run_stores(tiny, tmp_path):
    job = rm.Job(tiny.open(), tmp_path, {"target_particles": 12})
    job.run("validate")
    page = (ROOT / "docs/reference/result_tables.md").read_text(encoding="utf-8")
    store = rm.ResultStore(tmp_path / "results.zarr")
    for group in store.groups():
        section = re.split(r"^## ", page, flags=re.MULTILINE)
        (mine,) = (text for text in section if re.match(rf"{group.split('/')[0]}\b", text))
        listed = set(re.findall(r"^\| `(\w+)`", mine, re.MULTILINE))
        assert listed == set(store.read(group).variables), f"{group}: run python docs/make_figures.py"


def test_figures_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs/explanation/figures").glob("*.html")}
    pages = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert set(re.findall(r"^:file: figures/(\S+)", pages, re.MULTILINE)) == set(sizes)
    assert max(sizes.values()) < 100_000 and sum(sizes.values()) < 1_000_000


def test_the_site_builds_without_a_warning_and_asks_for_nothing_elsewhere(tmp_path):
    for needed in ("sphinx", "myst_nb", "pydata_sphinx_theme", "sphinx-mathjax-offline"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f'{needed} is not installed: python -m pip install -e ".[docs]"')
    environment = {**os.environ, "REFMOTION_DOCS_EXECUTE": "0"}
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees"),
               str(ROOT / "docs"), str(tmp_path / "html")]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert built.returncode == 0, built.stderr
    pages = {path.relative_to(tmp_path / "html").as_posix(): path.read_text(encoding="utf-8")
             for path in (tmp_path / "html").rglob("*.html")}  # fmt: skip
    for name, text in pages.items():
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](https?:|//)[^>]*>", text)
        assert not fetched, f"{name} fetches {fetched}"
    assert all(
        f'id="refmotion_nb.{name}"' in pages["reference/api.html"]
        for name in refmotion_nb.__all__
        if name not in ("execute", "plots")
    )
    assert {f"reference/commands/{name}.html" for name in ("check", "run", "micrographs")} <= set(pages)
    assert "tex-svg.js" in pages["explanation/prior.html"] and "<svg viewBox" in pages["explanation/prior.html"]
    assert (tmp_path / "html/_static/mathjax/tex-svg.js").stat().st_size > 1_000_000


def test_binder_starts_the_app_with_options_that_exist():
    entry = json.loads((ROOT / "binder/jupyter_server_config.json").read_text(encoding="utf-8"))
    server = entry["ServerProxy"]["servers"]["refmotion"]
    program, *words = [word.format(unix_socket="socket") for word in server["command"]]
    access = access_of(parser_for("app").parse_args(words))
    access.check()
    assert program == "refmotion" and access.unix_socket == "socket" and server["unix_socket"] is True
    build = ROOT / "binder/postBuild"
    assert os.access(build, os.X_OK) and "binder/jupyter_server_config.json" in build.read_text(encoding="utf-8")
