"""How long the app takes to answer: the refresh of a tab while a search goes on.

python benchmarks/app.py
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import panel as pn
import xarray as xr

import refmotion_nb as rm
from refmotion_nb.numerics.rays import FIRST_STRENGTH, STEPS_PER_DECADE, ray_table, strengths
from refmotion_nb.stages.runs import Run
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.tabs.search import SearchTab

MAX_STRENGTH = FIRST_STRENGTH * 10 ** (29 / STEPS_PER_DECADE)  # 30 steps


class NoData:
    """A session that knows of runs only."""

    def __init__(self, run: Run):
        self.runs = [run]
        self.data = type("Data", (), {"movies": [type("Movie", (), {"dose_per_frame_e_A2": 1.25})]})


def rays_so_far(n_steps: int) -> xr.Dataset:
    """Return the 36 rays of the most thorough search after so many steps."""
    balance, distance = ray_table("extensive")
    strength = np.broadcast_to(strengths(MAX_STRENGTH)[:n_steps], (len(balance), n_steps))
    score = (
        -0.04 - 0.01 * np.exp(-((np.log10(strength) - balance[:, None] / 60) ** 2)) + 1e-4 * np.log10(distance)[:, None]
    )
    activity = 4 / (1 + strength**0.7)
    ray, step = np.unravel_index(np.argmin(score), score.shape)
    both = ("ray", "step")
    return xr.Dataset(
        {
            "strength": (both, strength), "cv_score": (both, score), "activity_local": (both, activity),
            "activity_total": (both, activity + 1), "retired": ("ray", np.zeros(len(balance), bool)),
            "reason": ("ray", np.full(len(balance), "")),
        },
        coords={"balance": ("ray", balance), "distance": ("ray", distance)},
        attrs={"strength": float(strength[ray, step]), "balance_deg": balance[ray], "distance_A": distance[ray],
               "best_ray": int(ray), "best_step": int(step), "max_strength": MAX_STRENGTH, "cv_score": float(score.min()),
               "activity_local": float(activity[ray, step])},
    )  # fmt: skip


def search_tab(repeats: int) -> tuple[int, np.ndarray]:
    """Return the number of steps, and the seconds of each refresh with a new unfinished result (repeat,)."""
    run = Run(rm.HyperparameterSearch(thoroughness="extensive", max_strength=MAX_STRENGTH))
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Roots([folder]))
        engine.session = NoData(run)  # type: ignore[assignment]
        tab = SearchTab(engine, Viewer("owner", True, True))
        root = tab.view.get_root()  # as on a page
        assert root is not None
        n_steps = len(strengths(MAX_STRENGTH))
        run._change(state="running")
        run.start(n_steps, "searching hyperparameters")
        tab.refresh()
        seconds = []
        for i in range(repeats):
            run._change(so_far=rays_so_far(n_steps - i % 2))
            start = time.process_time(), time.perf_counter()
            with pn.io.hold():
                tab.refresh()
            seconds.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return n_steps, np.array(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args().repeats
    n_steps, seconds = search_tab(repeats)
    for what, one in zip(("processor", "wall"), 1000 * seconds.T):
        median, most = np.percentile(one, [50, 95])
        print(f"search tab, 36 rays × {n_steps} steps, {repeats} refreshes, {what} time: "
              f"median {median:.1f} ms, 95th percentile {most:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
