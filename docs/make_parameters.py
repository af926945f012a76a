"""Write the parameter tables (docs/parameters.md, and the short one of the README) from their declarations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import param

from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.base import within
from refmotion_nb.stages.inputs import Inputs
from refmotion_nb.stages.job import STAGES
from refmotion_nb.stages.micrographs import MicrographCorrection

HERE = Path(__file__).parent
SHOWN = (Inputs, Alignment, *STAGES)
MICROGRAPHS = "\nOf `refmotion micrographs`, with `float16` and `repair_hot_pixels` as above.\n"
IN_README = (
    "thoroughness", "target_particles", "all_fourier_components", "fourier_crop_to", "float16", "recenter", "symmetry",
    "energy",
)  # fmt: skip
INTRODUCTION = """# Parameters

Written by `docs/make_parameters.py` from the declarations. A parameter `like_this` is the option `--like-this` of
`refmotion run` (a switch has `--no-like-this` too) and an argument of its stage in Python.
"""
BEGIN, END = "<!-- parameters: written by docs/make_parameters.py -->\n", "<!-- end of parameters -->\n"


def parameters_page() -> str:
    """Return docs/parameters.md."""
    parts = [INTRODUCTION]
    told: set[str] = set()
    for stage in SHOWN:
        new = [name for name in stage.param if name not in {"name", *told}]
        told |= set(new)
        if new:
            title = f"{stage.__name__} (and every stage below)" if stage is Alignment else stage.__name__
            parts.append(
                f"## {title}\n\n{(stage.__doc__ or '').strip().splitlines()[0]}\n\n{table((stage, n) for n in new)}"
            )
    parts.append(f"## {MicrographCorrection.__name__}\n{MICROGRAPHS}\n{table(_new(MicrographCorrection, told))}")
    return "\n".join(parts)


def _new(stage: type[param.Parameterized], told: set[str]) -> list[tuple[type[param.Parameterized], str]]:
    return [(stage, name) for name in stage.param if name not in {"name", *told}]


def readme_table() -> str:
    """Return the rows that the README shows."""
    home = {name: stage for stage in reversed(STAGES) for name in stage.param}
    return table((home[name], name) for name in IN_README)


def table(rows: Iterable[tuple[type[param.Parameterized], str]]) -> str:
    """Return parameters as a Markdown table."""
    lines = ["| parameter | default | allowed | what it does |", "|---|---|---|---|"]
    for stage, name in rows:
        one = stage.param[name]
        lines.append(f"| `{name}` | {_default(one)} | {_allowed(one)} | {one.doc} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _default(one: param.Parameter) -> str:
    if one.default is None:
        return ""
    if isinstance(one, param.Boolean):
        return "on" if one.default else "off"
    return f"{one.default:g}" if isinstance(one.default, float) else str(one.default)


def _allowed(one: param.Parameter) -> str:
    if isinstance(one, param.Selector):
        return ", ".join(one.objects)
    return within(one) if isinstance(one, param.Number) and not isinstance(one, param.Boolean) else ""


def with_table(readme: str) -> str:
    """Return the README with its table as it should be."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    (HERE / "parameters.md").write_text(parameters_page(), encoding="utf-8")
    readme = HERE.parent / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
