"""The explorer that all pages share: one micrograph, made ready in a thread of its own while pages stay alive."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.stages.exploration import chosen
from refmotion_nb.stages.runs import Run
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.stages.session import Session
from refmotion_nb.views.explorer import ExplorerModel

MOST_NAMED = 500  # micrographs to choose from


@dataclass(frozen=True, eq=False)
class Preparing:
    """Read a micrograph and find its correlation windows; ``search`` says where the sliders stand, if there was one."""

    session: Session
    micrograph: str
    search: xr.Dataset | None
    how: HyperparameterSearch

    def run(self, reporter: Run) -> ExplorerModel:
        """Return the explorer of the micrograph."""
        return ExplorerModel.of(self.session, self.search, self.micrograph, self.how, reporter)


def explore(engine: Any, micrograph: str | None = None) -> Run:
    """Make a micrograph ready to explore, by default the one with most particles, in the background.

    Raises
    ------
    InputError
        No data are open, or the micrograph cannot be explored.
    """
    session = engine.session
    if session is None:
        raise InputError("no data are open; open some on the Data tab first")
    mine = {name: value for name, value in engine.settings.items() if name in HyperparameterSearch.param}
    settings = HyperparameterSearch(**mine)
    search = engine.result("search")
    if search is not None and (
        "strength" not in search.attrs or search.attrs.get("energy", settings.energy) != settings.energy
    ):
        search = None
    stage = Preparing(session, chosen(session, micrograph), search, settings)
    run, before = Run(stage), engine.explored
    engine.explored = run
    if before is not None and not before.snapshot.ended:
        before.cancel()
    Thread(target=_follow, args=(engine, run), name="refmotion explorer", daemon=True).start()
    return run


def _follow(engine: Any, run: Run) -> None:
    with suppress(BaseException):  # told by the run
        run.follow(lambda: run.stage.run(run))
    engine.changed()


def explored(engine: Any) -> Run | None:
    """Return the preparation of the explorer of the present data, however it stands."""
    run = engine.explored
    return run if run is not None and run.stage.session is engine.session else None


def micrographs(session: Session) -> dict[str, str]:
    """Return the names of micrographs to choose from by what is written in the list: most particles first."""
    names = sorted(
        (name for name in session if session.particle_count(name) > 1), key=lambda n: -session.particle_count(n)
    )
    return {f"{name} ({session.particle_count(name)} particles)": name for name in names[:MOST_NAMED]}
