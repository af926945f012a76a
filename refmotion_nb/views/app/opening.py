"""How data come into the app: a call of the package's own functions, kept so that code can be written from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refmotion_nb.data.cryosparc.project import open_cryosparc
from refmotion_nb.data.relion.project import open_relion
from refmotion_nb.data.schema import Dataset, InputError, Reference
from refmotion_nb.data.synthetic.example import example
from refmotion_nb.stages.base import Reporter
from refmotion_nb.views.app.roots import Roots


@dataclass(frozen=True)
class Opening:
    """A call of ``open_relion``, ``open_cryosparc`` or ``example``, with its arguments."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def open(self, roots: Roots, reporter: Reporter | None = None) -> Dataset:
        """Return the data.

        Raises
        ------
        InputError
            They cannot be used, or a file lies outside ``roots``.
        """
        for path in _paths(self.arguments):
            roots.resolve(path)
        if self.function == "example":
            return example(reporter=reporter, **self.arguments).open()
        functions: dict[str, Any] = {"open_relion": open_relion, "open_cryosparc": open_cryosparc}
        data = functions[self.function](**self.arguments)
        for movie in data.movies:
            if not roots.holds(movie.path):
                raise InputError(
                    f"movie {movie.path} is outside the folders that this app may use; start it with --browse"
                )
        return data


def _paths(value: Any) -> Iterator[Path]:
    """Yield every path in the arguments."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, Reference):
        yield from _paths([one and Path(one) for one in (value.half1, value.half2, value.mask, value.postprocess)])
