"""The rules of the house (docs/adr/0001-rooms.md), held by reading the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import refmotion_nb

PACKAGE = Path(refmotion_nb.__file__).parent
FLOOR = {"numerics": 0, "data": 1, "stages": 2, "views": 3}  # cli, demo and the public names stand above
MODULES = sorted(PACKAGE.rglob("*.py"))
IN_NUMERICS = {"numpy", "scipy", "numba", "finufft", "threadpoolctl", "cupy", "refmotion_nb"}  # beside what Python has
NO_FILES = {"pathlib", "shutil", "tempfile", "glob", "io", "json", "csv", "pickle", "subprocess"}
LONGEST = 450


def name_of(path):
    return str(path.relative_to(PACKAGE))


def room(path):
    return FLOOR.get(path.relative_to(PACKAGE).parts[0], 4)


def imports(tree):
    """Every module that is imported, in functions too; for ``from a import b`` a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the whole name"
            yield node, node.module
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def over(modules):
    return pytest.mark.parametrize("path", list(modules), ids=name_of)


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@over(path for path in MODULES if room(path) < 4)
def test_arrows_point_upwards_only(path):
    here = room(path)
    for node, name in imports(parsed(path)):
        parts = name.split(".")
        if parts[0] == "refmotion_nb" and len(parts) > 1 and parts[1] != "__version__":
            assert FLOOR.get(parts[1], 4) <= here, f"{name_of(path)}:{node.lineno} imports {name}, from above"


@over(path for path in MODULES if room(path) == 0)
def test_numerics_know_arrays_only(path):
    tree = parsed(path)
    for node, name in imports(tree):
        top = name.split(".")[0]
        known = top in IN_NUMERICS or (top in sys.stdlib_module_names and top not in NO_FILES)
        assert known, f"{name_of(path)}:{node.lineno} imports {name}"
    opened = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "open"]
    assert not opened, f"{name_of(path)} opens files in lines {opened}"


@over(path for path in MODULES if path.parent.name != "cli")
def test_only_the_command_line_prints(path):
    lines = [
        n.lineno for n in ast.walk(parsed(path)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"
    ]
    assert not lines, f"{name_of(path)} prints in lines {lines}; call the reporter"


@over(MODULES)
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST, "is it one thing?"


def test_importing_is_cheap_and_public_names_come_when_asked_for():
    code = """
import sys
before = set(sys.modules)
import refmotion_nb as rm
heavy = {"numpy", "scipy", "numba", "pandas", "xarray", "zarr", "param", "panel", "holoviews", "bokeh", "cupy", "tqdm",
         "ipywidgets", "IPython"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert {m for m in set(sys.modules) - before if m.startswith("refmotion_nb")} == {"refmotion_nb"}
assert set(rm.__all__) <= set(dir(rm))
rm.HyperparameterSearch
assert "param" in sys.modules and not {"panel", "holoviews", "cupy", "tqdm", "ipywidgets"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        (alias.name, node.module.removeprefix("refmotion_nb."))
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("refmotion_nb.")
        for alias in node.names
    }
    assert dict(typed) == refmotion_nb._HOME and sorted(refmotion_nb._HOME) == sorted(refmotion_nb.__all__)
    for name in refmotion_nb.__all__:
        assert getattr(refmotion_nb, name).__doc__, name


@pytest.mark.parametrize(
    ("name", "meant"),
    [("open_relyon", "open_relion"), ("refrence", "Reference"), ("MotionCorection", "MotionCorrection")],
)
def test_a_misspelt_name_is_answered(name, meant):
    with pytest.raises(AttributeError, match=f"no '{name}'; did you mean '{meant}'"):
        getattr(refmotion_nb, name)
    with pytest.raises(AttributeError, match=r"no 'qqqqq'$"):
        _ = refmotion_nb.qqqqq


@over(path for path in MODULES if name_of(path) != "numerics/compiled.py")
def test_functions_are_compiled_by_one_decorator(path):
    """Whose code on disk is safe for several processes (docs/adr/0028)."""
    for node, name in imports(parsed(path)):
        assert name.split(".")[0] != "numba", (
            f"{name_of(path)}:{node.lineno} imports {name}; take numerics.compiled.njit"
        )


@over(MODULES)
def test_text_is_utf8_whatever_the_locale(path):
    """Which libraries change: NVRTC of CUDA 12.0 sets that of C, under which no second source of kernels could be read."""
    for node in ast.walk(parsed(path)):
        name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        assert name not in ("read_text", "write_text") or any(one.arg == "encoding" for one in node.keywords), (
            f"{name_of(path)}:{node.lineno} {name} without an encoding"
        )
