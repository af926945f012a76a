"""What a simulation notes of itself in its folder, so that nothing else is overwritten and it is made once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refmotion_nb.data.files import atomic, sole, writable
from refmotion_nb.data.jsonfiles import plain, read_json
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.synthetic.settings import SimulationSettings

RECORD = "simulation.json"
PROJECT_RECORD = "simulation_as_cryosparc.json"


@contextmanager
def held(folder: Path, settings: SimulationSettings, record_name: str = RECORD) -> Iterator[dict[str, Any]]:
    """Hold the folder of a simulation; yield the facts noted once it was whole, none for one that is to be made.

    Raises
    ------
    InputError
        The folder holds other files, or a simulation of other settings, or another process simulates into it.
    """
    writable(folder)
    record = folder / record_name
    if not record.exists() and (others := [path for path in _listed(folder) if not path.name.startswith(".")]):
        raise InputError(f"{folder} holds other files ({others[0].name}), which simulated ones would join or replace; give an "
                         "empty folder, or one that does not exist yet")  # fmt: skip
    with sole(folder):
        found = read_json(record, {})
        if found and found.get("settings") != _recorded(settings):
            raise InputError(f"{folder} holds a simulation of other settings; give another folder, or delete it")
        yield {name: value for name, value in found.items() if name != "settings"}


def note(folder: Path, settings: SimulationSettings, facts: Mapping[str, Any], record_name: str = RECORD) -> None:
    """Note what is simulated into a folder; with the facts about it once it is whole."""
    with atomic(folder / record_name) as temporary:
        text = json.dumps(plain({"settings": _recorded(settings), **facts}), indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def _recorded(settings: SimulationSettings) -> dict[str, Any]:
    """Return settings as they are noted, without the number of workers: any makes the same bytes."""
    return dict(plain({**asdict(settings), "workers": None}))


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
