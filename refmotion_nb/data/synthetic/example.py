"""The example that documentation, notebooks and app work on: a small simulated set, made once and found again."""

from __future__ import annotations

from pathlib import Path

from refmotion_nb.data.synthetic.settings import SimulationSettings
from refmotion_nb.data.synthetic.simulate import Reporter, Simulation, simulate

FOLDER = "refmotion-example"


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
    return simulate(settings or SimulationSettings.demo(), folder, reporter)
