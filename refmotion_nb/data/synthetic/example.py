"""The example that documentation, notebooks and app work on: a small simulated set, made once and found again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from refmotion_nb.data.files import atomic, sole
from refmotion_nb.data.jsonfiles import plain, read_json
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.synthetic.settings import SimulationSettings
from refmotion_nb.data.synthetic.simulate import Reporter, Simulation, simulate

FOLDER = "refmotion-example"
_RECORD = "simulation.json"  # written last: it vouches for the rest


def example(
    folder: str | Path = FOLDER, settings: SimulationSettings | None = None, reporter: Reporter | None = None
) -> Simulation:
    """Return 144 particles of mouse apoferritin (PDB 7A4M) on four movies, simulated into ``folder`` unless they are there.

    ``settings`` makes another example. ``.open()`` opens it as data, ``.truth()`` is how the particles really moved.

    Raises
    ------
    InputError
        ``folder`` holds something else.
    """
    folder, settings = Path(folder), settings or SimulationSettings.demo()
    mine = plain({**asdict(settings), "workers": None})  # any number of workers makes the same bytes
    record = folder / _RECORD
    if not record.exists() and folder.is_dir() and any(folder.iterdir()) and not (folder / "Movies").is_dir():
        raise InputError(f"{folder} holds other files; give a folder that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    with sole(folder):
        found = read_json(record, {})
        if found and found["settings"] != mine:
            raise InputError(f"{folder} holds a simulation of other settings; give another folder, or delete it")
        if not found:
            made = simulate(settings, folder, reporter)
            facts = {"n_particles": made.n_particles, "rigid_error_A": made.rigid_error_A,
                     "fsc_resolutions_A": made.fsc_resolutions_A}  # fmt: skip
            found = plain({"settings": mine, **facts})
            _write(record, found)
    return Simulation(folder, settings, found["n_particles"], found["rigid_error_A"], tuple(found["fsc_resolutions_A"]))


def _write(path: Path, record: dict) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
