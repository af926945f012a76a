"""How fast the prior explorer follows its sliders: solving, and drawing for the notebook and for the app.

    python benchmarks/explorer.py [--particles 100] [--frames 40] [--moves 100] [--threads 2] [--folder explorer-benchmark]

One micrograph of 4096 × 4096 px at 1 Å/px with a box of 256 px is simulated (once, found again after that) and prepared.
Sliders are put at random places over their whole range, and moved by a step as when they are dragged. A move is over when
the new picture is ready to be sent: the SVG as text, or the Bokeh document's patch as bytes. Transfer and the browser's
painting come on top.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
from bokeh.document import Document
from bokeh.protocol import Protocol

import refmotion_nb as rm
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.exploration import PriorExploration
from refmotion_nb.views import explorer_drawing as drawing
from refmotion_nb.views.app.explorer import explorer_pane
from refmotion_nb.views.explorer import DISTANCES_A, ExplorerModel


class Told:
    """A reporter that prints how long each part took."""

    def start(self, total: int, what: str) -> None:
        print(what)
        self.since = time.perf_counter()

    def advance(self, n: int = 1, **facts: object) -> None:
        now = time.perf_counter()
        print(f"  {', '.join(map(str, facts.values())):24s}{now - self.since:8.2f} s")
        self.since = now

    def done(self) -> None: ...


def jumps(model: ExplorerModel, n: int, rng: np.random.Generator) -> Iterator[Hyperparameters]:
    """Yield places anywhere within the sliders' limits."""
    for _ in range(n):
        strength, distance = (np.exp(rng.uniform(*np.log(limits))) for limits in (model.strengths, DISTANCES_A))
        yield Hyperparameters(float(strength), float(rng.uniform(0, 90)), float(distance))


def dragged(model: ExplorerModel, n: int, rng: np.random.Generator) -> Iterator[Hyperparameters]:
    """Yield places along drags of one slider at a time, ten moves each."""
    h = Hyperparameters(1.0, 50.0, 3000.0)
    for i in range(n):
        if i % 10 == 0:
            which, sign = rng.integers(3), rng.choice([-1, 1])
        if which == 0:
            h = Hyperparameters(float(np.clip(h.strength * 1.15**sign, *model.strengths)), h.balance_deg, h.distance_A)
        elif which == 1:
            h = Hyperparameters(h.strength, float(np.clip(h.balance_deg + 2 * sign, 0, 90)), h.distance_A)
        else:
            h = Hyperparameters(h.strength, h.balance_deg, float(np.clip(h.distance_A * 1.1**sign, *DISTANCES_A)))
        yield h


def moved(model: ExplorerModel, places: Iterator[Hyperparameters], draw: Callable[[], object]) -> np.ndarray:
    """Return the milliseconds from each move to the end of drawing it, on the clock and of processor time (2, move)."""
    out = []
    for h in places:
        start = time.perf_counter(), time.process_time()
        model.go_to(h)
        model.shown(60)
        draw()
        out.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return 1e3 * np.array(out).T


def svg_of(model: ExplorerModel) -> Callable[[], object]:
    """Return what the notebook's view does for a move."""
    return lambda: [part(model, model.snapshot) for part in (drawing.trajectories, drawing.trail, drawing.text)]


def bokeh_of(model: ExplorerModel) -> tuple[Callable[[], object], list[int]]:
    """Return what the app's view does for a move, and the sizes of the patches it sends, bytes."""
    pane, document, sizes = explorer_pane(model), Document(), []
    document.add_root(pane._layout.get_root(document))
    events: list = []
    document.on_change(events.append)
    pane.stop()  # drawn here, so that its time counts

    def draw() -> None:
        pane.draw()
        message = Protocol().create("PATCH-DOC", [event for event in events if hasattr(event, "to_serializable")])
        sizes.append(len(message.content_json) + sum(len(buffer.to_bytes()) for buffer in message.buffers))
        events.clear()

    return draw, sizes


def measure(exploration: PriorExploration, n: int) -> None:
    """Move sliders and print how long it took."""
    rows = []
    for way in (jumps, dragged):
        model, rng = ExplorerModel(exploration), np.random.default_rng(0)
        rows.append((way, "solved", moved(model, way(model, n, rng), lambda: None), ""))
        model, rng = ExplorerModel(exploration), np.random.default_rng(0)
        rows.append((way, "and drawn as SVG", moved(model, way(model, n, rng), svg_of(model)), ""))
        model, rng = ExplorerModel(exploration), np.random.default_rng(0)
        draw, sent = bokeh_of(model)
        times = moved(model, way(model, n, rng), draw)
        rows.append((way, "and drawn by Bokeh", times, f", patches of {np.median(sent) / 1e3:.0f} kB"))
    windows = exploration.micrograph.windows.values, exploration.micrograph.score.windows.values
    particles, frames = windows[0].shape[:2]
    sizes, megabytes = " and ".join(f"{w.shape[-1]}²" for w in windows), sum(w.nbytes for w in windows) / 1e6
    print(f"\n{particles} particles × {frames} frames, {n} moves, windows of {sizes} samples, {megabytes:.0f} MB\n")
    print(
        "| move | until | median, ms | 95th percentile, ms | largest, ms | processor time: median | 95th percentile |"
    )
    print("|---|---|---|---|---|---|---|")
    for way, what, (wall, cpu), note in rows:
        print(f"| {way.__name__} | {what + note} | {np.median(wall):.0f} | {np.percentile(wall, 95):.0f} | {wall.max():.0f} | "
              f"{np.median(cpu):.0f} | {np.percentile(cpu, 95):.0f} |")  # fmt: skip
    worst = max(float(np.percentile(wall, 95)) for _, _, (wall, _), _ in rows)
    print(
        f"\nthe aim is a 95th percentile below 150 ms: {worst:.0f} ms is {'within' if worst < 150 else 'NOT within'} it"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("particles", 100), ("frames", 40), ("moves", 100), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", default="explorer-benchmark")
    options = parser.parse_args()
    settings = rm.SimulationSettings(
        n_micrographs=1, size_px=4096, n_frames=options.frames, dose_per_frame_e_A2=1.0, box_px=256,
        particles_per_micrograph=options.particles,
    )  # fmt: skip
    data = rm.example(options.folder, settings).open()
    measure(PriorExploration.prepare(rm.Session(data, options.threads), reporter=Told()), options.moves)


if __name__ == "__main__":
    main()
