"""Code that does again what was done in the app."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

from refmotion_nb.data.schema import Gain, InputError, Reference
from refmotion_nb.stages.dose_weights import DoseWeights
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.stages.validation import Validation
from refmotion_nb.views.app.engine import Engine

_CELL = "# %%\n"


def code_of(engine: Engine) -> str:
    """Return a script in cells that opens the data and runs what the app ran, with the settings in force."""
    until = _until(engine)
    cells = ["import refmotion_nb as rm", _opening(engine), _job(engine, until), *_plots(engine, until)]
    return "\n\n".join(_CELL + cell for cell in cells if cell) + "\n"


def notebook_of(code: str) -> StringIO:
    """Return the same as a Jupyter notebook, a file to download."""
    cells = [
        {"cell_type": "code", "execution_count": None, "id": f"cell-{i}", "metadata": {}, "outputs": [],
         "source": part.strip("\n").splitlines(keepends=True)}
        for i, part in enumerate(code.split(_CELL)) if part.strip()
    ]  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return StringIO(
        json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})
    )


def _opening(engine: Engine) -> str:
    opening = engine.opening
    if opening is None:
        return "# the data were handed to the app by a notebook: put its own line here\n# data = rm.open_relion(...)"
    with suppress(InputError):  # the folder is none of the app's any more
        opening = opening.placed(engine.roots)  # a notebook may be run from anywhere
    call = f"rm.{opening.function}({_arguments(opening.given)})"
    return f"data = {call}{'.open()' if opening.function == 'example' else ''}\nsession = rm.Session(data)\nsession"


def _job(engine: Engine, until: str) -> str:
    lines = ["job = rm.Job(", f"    session, {_literal(engine.out)},"]
    if engine.settings:
        lines.append(f"    settings={_literal(dict(sorted(engine.settings.items())))},")
    lines += [f"    {name}={_literal(value)}," for name, value in engine.given.items() if value is not None]
    lines += [")", f"job.run({until!r})", 'rm.write_report(job.out / "results.zarr", job.out / "report.html")']
    return "\n".join(lines)


def _until(engine: Engine) -> str:
    """Return the last stage that has been run."""
    if engine.last(Validation) is not None or (engine.store and engine.store.has("validation")):
        return "validate"
    if engine.store and engine.store.stamp("tracks"):
        return "correct"
    return "dose-weights" if engine.last(DoseWeights) is not None else "hyperparameters"


def _plots(engine: Engine, until: str) -> list[str]:
    search = engine.result("search")
    rays = engine.last(HyperparameterSearch) is not None and search is not None and "cv_score" in search
    wanted = [
        ("rm.plots.rays(job.search)", rays),
        ("rm.plots.weights(job.dose)", until != "hyperparameters"),
        ("rm.plots.fsc(job.validation)", until == "validate"),
    ]
    return [line for line, there in wanted if there]


def _arguments(arguments: dict[str, Any]) -> str:
    shown = [f"{name}={_literal(value)}" for name, value in arguments.items() if value is not None]
    return "".join(f"\n    {one}," for one in shown) + "\n" if sum(map(len, shown)) > 80 else ", ".join(shown)


def _literal(value: Any) -> str:
    """Return Python code for a value."""
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {_literal(one)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Reference | Gain):
        changed = [(f.name, getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default]
        return f"rm.{type(value).__name__}({', '.join(f'{name}={_literal(one)}' for name, one in changed)})"
    return repr(value)
