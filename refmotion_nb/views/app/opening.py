"""How data come into the app: a call of the package's own functions, kept so that code can be written from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

from refmotion_nb.data.check import Check
from refmotion_nb.data.cryosparc.project import open_cryosparc, survey_cryosparc
from refmotion_nb.data.files import beyond, only_within
from refmotion_nb.data.relion.project import open_relion, survey
from refmotion_nb.data.schema import Dataset, Gain, InputError, Reference
from refmotion_nb.data.synthetic.example import FOLDER, example
from refmotion_nb.stages.runs import Cancelled, Run
from refmotion_nb.views.app.roots import Roots

PATHS = ("particles", "micrographs", "references", "root", "gain", "exposures", "volumes", "masks", "folder")
SURVEYS: dict[str, Callable[..., Check]] = {"open_relion": survey, "open_cryosparc": survey_cryosparc}


@dataclass(frozen=True)
class Opening:
    """A call of ``open_relion``, ``open_cryosparc`` or ``example``, with its arguments."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def can_pause(self) -> bool:
        """Whether opening reports, and so can wait; files are read in one go."""
        return self.function == "example"

    @property
    def given(self) -> dict[str, Any]:
        """The arguments that are not at the function's defaults."""
        functions: dict[str, Any] = {"open_relion": open_relion, "open_cryosparc": open_cryosparc, "example": example}
        usual = {name: one.default for name, one in signature(functions[self.function]).parameters.items()}
        return {name: value for name, value in self.arguments.items() if name not in usual or value != usual[name]}

    def open(self, roots: Roots, run: Run | None = None) -> Dataset:
        """Return the data; ``run`` is told how far it is, and may be cancelled.

        Raises
        ------
        InputError
            They cannot be used, or a file that they name, at whatever remove, lies outside ``roots``.
        Cancelled
            The run was cancelled; it is asked before each file.
        """
        placed, go_on = self.placed(roots), partial(_go_on, run)
        if self.function == "example":
            data = example(reporter=run, **placed.arguments).open()
            go_on()
            return data
        functions: dict[str, Any] = {"open_relion": open_relion, "open_cryosparc": open_cryosparc}
        with only_within(roots.folders, go_on):
            data = functions[self.function](**placed.arguments)
        for path in files_of(data):
            go_on()
            if not roots.holds(path):
                raise InputError(beyond(path, roots.folders))
        go_on()
        return data

    def check(self, roots: Roots, run: Run | None = None) -> Check:
        """Return all that is wrong with the data, without stopping at the first problem.

        Raises
        ------
        InputError
            A file given lies outside ``roots``.
        Cancelled
            The run was cancelled; it is asked before each file.
        """
        placed, go_on = self.placed(roots), partial(_go_on, run)
        with only_within(roots.folders, go_on):
            found = SURVEYS[self.function](**placed.arguments)
        go_on()
        return found

    def placed(self, roots: Roots) -> Opening:
        """Return the same call with absolute paths.

        Raises
        ------
        InputError
            One lies outside ``roots``.
        """
        given = {"folder": FOLDER, **self.arguments} if self.function == "example" else self.arguments
        return Opening(self.function, {name: _placed(value, roots) if name in PATHS else value
                                       for name, value in given.items()})  # fmt: skip

    def record(self) -> dict[str, Any]:
        """Return it as plain values, for a result store; ``of_record`` is the way back."""
        return {"function": self.function, "arguments": _plain(self.arguments)}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Opening:
        """Return what ``record`` returned.

        Raises
        ------
        InputError
            It is something else.
        """
        try:
            arguments = {
                name: _as_path(value) if name in PATHS else value for name, value in record["arguments"].items()
            }
            if "references" in arguments:
                arguments["references"] = [_of_plain(Reference, one) for one in arguments["references"]]
            if arguments.get("gain"):
                arguments["gain"] = _of_plain(Gain, arguments["gain"])
            return cls(str(record["function"]), arguments)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                "how the data were opened is not recorded in a way that can be read; open them again"
            ) from None


@dataclass(frozen=True)
class Checking:
    """A check of data before they are opened."""

    opening: Opening
    can_pause: ClassVar = False


def _go_on(run: Run | None) -> None:
    if run is not None and run.stopping:
        raise Cancelled


def files_of(data: Dataset) -> Iterator[Path]:
    """Yield every file that work on the data may read."""
    for movie in data.movies:
        yield movie.path
        yield from (one.path for one in (movie.gain, movie.background) if one is not None)
        if movie.defects is not None:
            yield movie.defects
    for reference in data.references:
        yield from (Path(getattr(reference, one.name)) for one in fields(reference) if getattr(reference, one.name))
    yield from (path for _, path in data.sources)


def _placed(value: Any, roots: Roots) -> Any:
    """Return paths, and what is made of paths, with each in its place."""
    if isinstance(value, str | Path):
        return roots.place(value)
    if isinstance(value, Reference):
        given = {one.name: getattr(value, one.name) for one in fields(value)}
        return replace(value, **{name: roots.place(path) for name, path in given.items() if path is not None})
    if isinstance(value, Gain):
        return replace(value, path=roots.place(value.path))
    return type(value)(_placed(one, roots) for one in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _as_path(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_path(one) for one in value]
    return Path(value) if isinstance(value, str) else value


def _of_plain(kind: type, values: dict[str, Any]) -> Any:
    paths = {"half1", "half2", "mask", "postprocess", "path"}
    return kind(**{name: Path(value) if name in paths and value else value for name, value in values.items()})
