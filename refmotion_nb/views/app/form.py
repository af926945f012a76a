"""The form that data are opened with: files and input parameters of RELION and CryoSPARC, or the example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import panel as pn

from refmotion_nb.data.relion.results import open_postprocess
from refmotion_nb.data.schema import InputError, Reference
from refmotion_nb.stages.inputs import Inputs
from refmotion_nb.views.app import parts
from refmotion_nb.views.app.browser import PathField
from refmotion_nb.views.app.fields import Field, fields_of
from refmotion_nb.views.app.opening import Opening
from refmotion_nb.views.app.roots import Roots

STAR, MAP, TABLE = (".star",), (".mrc", ".map", ".mrc.gz"), (".cs", ".csg")
RELION, CRYOSPARC = "RELION", "CryoSPARC"


class ReferenceFields:
    """The particles of one reference, and its maps."""

    def __init__(self, roots: Roots, cryosparc: bool):
        """Make the fields of one program."""
        if cryosparc:
            self.fields = {
                "particles": PathField("particles", roots, TABLE, ".cs or .csg of a refinement"),
                "volume": PathField("volume", roots, TABLE, ".cs or .csg with half maps"),
                "mask": PathField("mask (else the volume's own)", roots, (*TABLE, ".mrc"), "optional"),
            }
        else:
            self.fields = {
                "particles": PathField("particles", roots, STAR, "run_data.star of a refinement"),
                "half1": PathField("half map 1", roots, MAP, "…_half1_class001_unfil.mrc"),
                "half2": PathField("half map 2", roots, MAP, "…_half2_class001_unfil.mrc"),
                "mask": PathField("mask", roots, MAP, "optional"),
                "fsc": PathField("or postprocess.star: it names all three", roots, STAR, "its FSC is used too"),
            }
        self.view = pn.Column(*(one.view for one in self.fields.values()), sizing_mode="stretch_width", margin=0)

    def __getitem__(self, name: str) -> Any:
        """Return the path in a field, or None."""
        return self.fields[name].path


class ProgramForm:
    """Files of one program."""

    def __init__(self, roots: Roots, cryosparc: bool):
        """Make the fields, for one reference at first."""
        self.roots = roots
        self.cryosparc = cryosparc
        self.movies = [self._movies()]
        self.root = PathField("project folder (else found)", roots, (), "that paths in the files start from; optional")
        self.references: list[ReferenceFields] = []
        self.rows = pn.Column(sizing_mode="stretch_width", margin=0)
        self.movie_rows = pn.Column(self.movies[0].view, sizing_mode="stretch_width", margin=0)
        self.more_movies = parts.button("More exposures", self._add_movies, width=160, visible=cryosparc)
        self.more = parts.button("Another reference", self._add, width=160)
        self.view = pn.Column(
            self.movie_rows, self.more_movies, self.rows, self.more, sizing_mode="stretch_width", margin=0
        )
        self._add()

    def _movies(self) -> PathField:
        if self.cryosparc:
            return PathField("exposures", self.roots, TABLE, "motion-corrected exposures, .cs or .csg")
        return PathField("micrographs", self.roots, STAR, "corrected_micrographs.star of MotionCorr")

    def _add_movies(self) -> None:
        self.movies.append(self._movies())
        self.movie_rows.append(self.movies[-1].view)

    def _add(self) -> None:
        one = ReferenceFields(self.roots, self.cryosparc)
        self.references.append(one)
        if len(self.references) > 1:
            self.rows.append(parts.words(f"<h4>Reference {len(self.references)}</h4>"))
        self.rows.append(one.view)

    def enable(self, may_run: bool) -> None:
        """Let it be filled in, or not."""
        self.more.disabled = self.more_movies.disabled = not may_run
        for field in (*self.movies, self.root, *(f for one in self.references for f in one.fields.values())):
            field.enable(may_run)

    def opening(self, inputs: Inputs) -> Opening:
        """Return the call that opens what is filled in.

        Raises
        ------
        InputError
            Something that is needed is not.
        """
        used = [one for one in self.references if any(field.path for field in one.fields.values())]
        given = {**inputs.arguments(), "root": self.root.path}
        movies = [field.path for field in self.movies if field.path is not None]
        missing = [] if movies else [self.movies[0].input.label]
        needed = ("particles", "volume") if self.cryosparc else ("particles", "half1", "half2")
        for one in used or self.references[:1]:
            named = not self.cryosparc and one["fsc"] is not None and one["half1"] is one["half2"] is None
            missing += [one.fields[name].input.label for name in (needed[:1] if named else needed) if one[name] is None]
        if missing:
            instead = " (or postprocess.star in place of both)" if missing[-2:] == ["half map 1", "half map 2"] else ""
            raise InputError(
                f"not filled in: {', '.join(missing)}{instead}; choose {'it' if len(missing) == 1 else 'them'} above"
            )
        particles = [one["particles"] for one in used]
        if self.cryosparc:
            masks = [one["mask"] for one in used]
            if any(masks) and not all(masks):
                raise InputError("a mask is given for some volumes only; give one for each, or none")
            files = {"exposures": movies, "particles": particles, "volumes": [one["volume"] for one in used],
                     "masks": masks if all(masks) else None, "orientation": inputs.orientation}  # fmt: skip
        else:
            files = {"particles": particles, "micrographs": movies[0], "references": [*map(self._reference, used)]}
        default = Inputs().arguments()
        changed = {name: value for name, value in given.items() if value is not None and value != default.get(name)}
        return Opening("open_cryosparc" if self.cryosparc else "open_relion", {**files, **changed})

    def _reference(self, one: ReferenceFields) -> Reference:
        """Return the reference of fields: what is left out of half maps and mask is what postprocess.star names."""
        given = {name: one[name] for name in ("half1", "half2", "mask") if one[name] is not None}
        if one["fsc"] is None:
            return Reference(**given)
        with self.roots.reading():
            named, _ = open_postprocess(
                self.roots.place(one["fsc"]), self.root.path and self.roots.place(self.root.path)
            )
        return replace(named, **given)


class OpeningForm:
    """Where data come from, what is read of them, and the buttons."""

    def __init__(
        self, roots: Roots, check: Callable[[Opening], Any], open_: Callable[[Opening], Any], example: Opening
    ):
        """Make the form; ``check`` and ``open_`` are given the call that it describes."""
        self.source = pn.widgets.RadioButtonGroup(options=[RELION, CRYOSPARC], value=RELION, width=220, margin=(4, 5))
        self.forms = {RELION: ProgramForm(roots, False), CRYOSPARC: ProgramForm(roots, True)}
        self.values: dict[str, Any] = {}
        self.inputs = {name: Field(name, declared, self._set) for name, declared in fields_of(Inputs).items()}
        self.problem = parts.problem()
        self.check = parts.button("Check", lambda: self._do(check), width=90)
        self.open = parts.button("Open", lambda: self._do(open_), width=110, color="primary")
        self.example = parts.button("Open the example", lambda: self._attempt(open_, example), width=170)
        self.roots_of = pn.Column(self.forms[RELION].root.view, sizing_mode="stretch_width", margin=0)
        self.more = parts.folded("More: project folder, what is read of the movies")
        self.more.param.watch(lambda _: self._unfold(), "collapsed")
        self.program = pn.Column(self.forms[RELION].view, sizing_mode="stretch_width", margin=0)
        self.source.param.watch(lambda event: self._turn(self.forms[event.new]), "value")
        self.view = pn.Column(
            self.source, self.program, self.more, self.problem, pn.Row(self.check, self.open, margin=0),
            parts.words("<small>Check lists all that is wrong with the files, and opens nothing.</small>"),
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip

    def _unfold(self) -> None:
        """Fill the folded part when it is first opened."""
        if not len(self.more):
            self.more[:] = [self.roots_of, pn.FlexBox(*(one.view for one in self.inputs.values()), gap="2px")]

    def _turn(self, form: ProgramForm) -> None:
        self.program[:], self.roots_of[:] = [form.view], [form.root.view]
        parts.tell(self.problem, "")  # of the other program's fields

    def enable(self, may_run: bool, idle: bool) -> None:
        """Let it be used, or not."""
        for button in (self.check, self.open, self.example):
            button.disabled = not (may_run and idle)
        for form in self.forms.values():
            form.enable(may_run)
        for name, one in self.inputs.items():
            one.show(self.values.get(name), may_run)

    def _set(self, name: str, value: Any) -> None:
        if value is not None:
            Inputs(**{name: value})  # refuses what is out of bounds
        self.values = {key: one for key, one in {**self.values, name: value}.items() if one is not None}

    def _do(self, call: Callable[[Opening], Any]) -> None:
        self._attempt(lambda: call(self.forms[self.source.value].opening(Inputs(**self.values))))

    def _attempt(self, call: Callable[..., Any], *args: Any) -> None:
        parts.tell(self.problem, "")
        try:
            call(*args)
        except (InputError, OSError) as error:
            parts.tell(self.problem, str(error))
