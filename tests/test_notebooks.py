"""The notebooks: stored without outputs, and they run, without warnings, on the example that they share."""

import os
from pathlib import Path

import nbformat
import pytest
from forked_kernels import kernels
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import refmotion_nb as rm

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LIMIT_S = 600  # of one cell; a guard against hanging, not a measurement

over = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """Return the folder that notebooks run in, with the example in it."""
    folder = tmp_path_factory.mktemp("notebooks")
    rm.example(folder / "refmotion-example")
    return folder


@pytest.fixture(scope="session")
def kind(tmp_path_factory):
    """Return the kind of the kernels that notebooks run in; they import from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=os.pathsep)
        with kernels(tmp_path_factory.mktemp("kernels")) as name:
            yield name


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 7


@over
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    kept = [cell["id"] for cell in cells(path, "code") if cell.outputs or cell.execution_count is not None]
    assert not kept, f"{path.name} has outputs in cells {', '.join(kept)}; strip them (pre-commit run nbstripout)"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


@over
def test_notebooks_have_a_number_a_purpose_and_links_that_lead_somewhere(path):
    text = [cell.source for cell in cells(path, "markdown")]
    title, *rest = text[0].splitlines()
    assert title.startswith(f"# {path.stem[:2]} · ") and any(rest), (
        "the first cell: # NN · Title, then what one will learn"
    )
    assert any("](" in line for line in text[-1].splitlines()) or path == NOTEBOOKS[-1], "the last cell points onwards"


@over
def test_code_fits_beside_the_side_bar_of_a_small_screen(path):
    code = [line for cell in cells(path, "code") for line in cell.source.splitlines()]
    shown = [line for cell in cells(path, "markdown") for line in cell.source.splitlines() if line.startswith("    ")]
    wide = [line for lines, most in ((code, 116), (shown, 104)) for line in lines if len(line) > most]  # at 1366 px
    assert not wide, "\n".join(wide)


@over
def test_notebooks_run_without_warnings(path, desk, kind):
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=LIMIT_S, kernel_name=kind, resources={"metadata": {"path": str(desk)}})
    try:
        client.execute()
    except CellExecutionError as error:
        pytest.fail(f"{path.name}\n{error}", pytrace=False)
    outputs = [(cell["id"], output) for cell in notebook.cells for output in cell.get("outputs", [])]
    told = [
        (name, output.text) for name, output in outputs if output.output_type == "stream" and output.name == "stderr"
    ]
    said = [f"cell {name}: {text}" for name, text in told if "warning" in text.lower()]
    assert not said, "\n".join([path.name, *said])


def test_links_between_notebooks_lead_somewhere():
    import re

    known = {f"{number:02d}" for number in range(1, 13)}  # some may be written later
    for path in NOTEBOOKS:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", "\n".join(cell.source for cell in cells(path, "markdown"))):
            there = (FOLDER / link).exists() or (len(NOTEBOOKS) < len(known) and link[:2] in known)
            assert there, f"{path.name}: {link}"
