"""Draw the figures of the explanation and list what a result store holds, from a run on the example.

``python docs/make_figures.py`` takes about a minute: it simulates the example unless it is there already, runs every stage on it
and writes ``docs/explanation/figures/*.html`` (inline SVG that follows the page's colours) and
``docs/reference/result_tables.md``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

import refmotion_nb as rm
from refmotion_nb.data.store import ResultStore
from refmotion_nb.data.synthetic.simulate import Simulation, trajectory_error_A
from refmotion_nb.numerics.energy import spectral_weight
from refmotion_nb.numerics.trajectories import Windows
from refmotion_nb.stages.alignment import Alignment, Geometry, MotionPrior, alignment_windows, solve
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.search import prior_from_attrs
from refmotion_nb.views import report_dose, report_maps, report_search
from refmotion_nb.views.svg import (
    Axis,
    Legend,
    Line,
    Mark,
    figure,
    heat_drawing,
    line_drawing,
    number,
    panels,
    step_colour,
    track_drawing,
)

HERE = Path(__file__).parent
FIGURES = HERE / "explanation" / "figures"
LARGEST_BYTES = 100_000


@dataclass(frozen=True)
class Run:
    """The example with all results on it."""

    example: Simulation
    session: rm.Session
    search: xr.Dataset
    dose: xr.Dataset
    validation: xr.Dataset
    store: ResultStore

    @property
    def prior(self) -> MotionPrior:
        """What the search chose."""
        return prior_from_attrs(self.search.attrs)


def run_example(out: Path) -> Run:
    """Run all stages on the example into ``out``."""
    example = rm.example(HERE.parent / "refmotion-example")
    data = example.open()
    job = rm.Job(data, out)
    job.run("validate")
    store = ResultStore(out / "results.zarr")
    search, dose, validation = (store.read(name) for name in ("search", "dose_weights", "validation"))
    return Run(example, rm.Session(data), search, dose, validation, store)


def aligned(session: rm.Session, final: bool = True, **settings: object) -> Iterator[tuple[Micrograph, Alignment]]:
    """Yield the micrographs with the settings that align them."""
    stage = Alignment(**settings)
    for name in session:
        yield session.micrograph(name, stage), stage


def true_paths(run: Run, m: Micrograph) -> np.ndarray:
    """Return where the particles of a micrograph really were (particle, frame, 2) Å from their coordinates.

    Refined origins take up a constant per particle, as frames are weighted: it is that of rigid alignment.
    """
    true = run.example.truth()[f"{m.movie.micrograph}_total"]
    weight = np.exp(-m.mid_dose / 16)
    off = (weight[:, None] * (true - m.placement.initial_A)).sum(1, keepdims=True) / weight.sum()
    return true - off


def correlations(run: Run) -> str:
    """Draw the correlation of one frame of one particle, of all particles of that frame, and of all frames of all particles."""
    frame, particle, reach, lowest = 12, 17, 4.0, -6.0
    m, stage = next(aligned(run.session))
    windows = alignment_windows(m, stage, True, run.session.threads).scaled(run.prior)
    true = true_paths(run, m)
    step = np.linspace(-reach, reach, 81)
    offsets = np.stack(np.meshgrid(step, step, indexing="xy"), -1).reshape(-1, 1, 1, 2)  # (grid, 1, 1, 2) x y
    value = windows.sample(true[None] + offsets)[0].astype(np.float64).reshape(len(step), len(step), m.n, -1)

    single = np.argmax(value[..., frame].reshape(-1, m.n), 0)
    away = np.sqrt(np.mean(np.sum(offsets[single, 0, 0] ** 2, -1)))
    drawn = {
        "One frame of one particle": value[..., particle, frame],
        f"The same frame of all {m.n} particles": value[..., frame].sum(-1),
        "All frames of that particle": value[..., particle, :].sum(-1),
    }
    drawings = []
    for name, values in drawn.items():
        x, y = (Axis(f"Distance in {axis} from the true position (Å)", -reach, reach) for axis in "xy")
        colour = Axis("Log-likelihood below its maximum", lowest, 0.0)
        mark = Mark(0.0, 0.0, "true position")
        drawing = heat_drawing(name, x, y, values - values.max(), colour, marks=[mark], size=(310, 250))
        drawings.append((name, drawing))
    return figure(
        "What the data say about a displacement", panels(drawings),
        "Log-likelihood of displacements against the view of the reference (bright: likely; the darkest colour: less likely than "
        "the best by a factor of 400 or more). The star is where the particle, or each of the particles, really was. First: "
        f"frame {frame + 1} of one particle. It says little: the best places of the {m.n} particles are {away:.1f} Å (RMS) from "
        "the true ones in this frame. Then the same with all particles of the frame, or all frames of the "
        "particle, put where they really were. The information is there, but must be shared between neighbours and frames. "
        "That is what the prior is for.",
        css="three",
    )  # fmt: skip


def spectral_weights(run: Run) -> str:
    """Draw what the FSC makes of the reference: weights of alignment during the search and finally, and of the score."""
    m, stage = next(aligned(run.session))
    fsc = m.fsc[0]
    shells = np.arange(len(fsc))
    frequency = m.frequency(len(fsc))
    k_cut, shown = stage.k_cut(m), slice(1, int(1.3 * m.k_out))
    held_out = np.where((shells >= k_cut + 2) & (shells < m.k_out), np.clip(fsc, 0, 1), np.nan)
    lines = [
        Line(frequency[shown], fsc[shown], "FSC of the half maps", "var(--c6)", "dashed"),
        Line(frequency[shown], spectral_weight(fsc, m.k_out)[shown], "final alignment", "var(--c0)", "thick"),
        Line(frequency[shown], spectral_weight(fsc, k_cut)[shown], "alignment during the search", "var(--c1)", "thick"),
        Line(frequency[shown], held_out[shown], "cross-validation score", "var(--c2)", "thick"),
    ]
    x = Axis.of("Spatial frequency (1/Å)", frequency[shown], resolution=True)
    y = Axis("Weight of the reference", -0.05, 1.05)
    legend = Legend()
    for line in lines:
        legend.line(line.name, line.colour, line.style)
    name = "Which Fourier components do what"
    return figure(
        name, line_drawing(name, x, y, lines, rules=[(0.143, "0.143")], size=(620, 300)),
        f"During the search shells up to {1 / frequency[k_cut]:.1f} Å align, against the own half map; those from there to FSC = "
        f"0.143 at {1 / frequency[m.k_out]:.1f} Å score, against the opposite half map. The final trajectories use all of them. "
        "Each shell counts by the share of its power that is signal: its FSC.",
        legend=legend, css="half",
    )  # fmt: skip


def own_noise(run: Run) -> str:
    """Draw the mean correlation on the line from the rigid to the true position, own noise in it or taken out."""
    along = np.linspace(-1.0, 2.0, 61)
    kinds = {
        "own half map": ("var(--c1)", "", True, False),
        "own half map, own noise taken out": ("var(--c0)", "thick", True, True),
        "opposite half map": ("var(--c6)", "dashed", False, False),
    }
    lines = []
    for name, (colour, style, own, removed) in kinds.items():
        total = np.zeros(len(along))
        for m, stage in aligned(run.session, remove_own_noise=removed):
            view = m if own else replace(m, own=m.opposite)
            windows = alignment_windows(view, stage, True, run.session.threads).scaled(run.prior)
            off = true_paths(run, m) - m.placement.initial_A
            apart = np.linalg.norm(off, axis=-1)
            places = m.placement.initial_A + along[:, None, None, None] * off
            values = windows.sample(places)[0].astype(np.float64)
            total += (values * ((apart > 1.0) & (apart < 4.0))).sum((1, 2))
        lines.append(Line(along, total - total.min(), name, colour, style))
    legend = Legend()
    for line in lines:
        legend.line(line.name, line.colour, line.style)
    x = Axis("Place on the line from the rigid (0) to the true position (1)", -1.0, 2.0)
    y = Axis.of("Log-likelihood, all particles and frames", *(line.y for line in lines), zero=True)
    name = "A particle's own noise"
    best = [along[int(np.argmax(line.y))] for line in lines]
    return figure(
        name, line_drawing(name, x, y, lines, size=(620, 320)),
        "Sum over all frames of all particles that really were 1 to 4 Å from where rigid alignment put them. Each particle is in "
        "its own half map, noise included, at the rigid position: that pulls the maximum towards 0 "
        f"(to {best[0]:.2f} of the way). With the expected share of the noise subtracted it lies at {best[1]:.2f}; against the "
        f"opposite half map, which has none of it, at {best[2]:.2f}.",
        legend=legend, css="half",
    )  # fmt: skip


def strengths(run: Run) -> str:
    """Draw one particle's path under a weak, the chosen and a strong prior."""
    particle = 5
    m, stage = next(aligned(run.session))
    truth = run.example.truth()
    true, dose = truth[f"{m.movie.micrograph}_total"], m.mid_dose
    windows = alignment_windows(m, stage, True, run.session.threads).scaled(run.prior)
    h = run.prior.hyperparameters
    factors = {"1000 times weaker": 1e-3, "As chosen": 1.0, "1000 times stronger": 1e3}
    priors = [run.prior.with_hyperparameters(replace(h, strength=h.strength * f)) for f in factors.values()]
    found = solve(windows, Geometry.of(m), priors, False).displacement_A
    drawings, errors = [], []
    for (name, _), one in zip(factors.items(), found):
        errors.append(trajectory_error_A(one, true, truth["dose_mid"]))
        weight = np.exp(-dose / 16) / np.exp(-dose / 16).sum()
        lines = []
        for axis, colour in ((0, "var(--c0)"), (1, "var(--c1)")):
            shift = (weight * (one - true)[particle, :, axis]).sum()
            lines.append(Line(dose, true[particle, :, axis], "true", colour, "dashed"))
            lines.append(Line(dose, one[particle, :, axis] - shift, "found", colour, "thick"))
        drawings.append((f"{name}: {errors[-1]:.2f} Å", lines))
    y = Axis.of("Displacement (Å)", *(line.y for _, lines in drawings for line in lines))
    x = Axis.of("Accumulated dose (e/Å²)", dose, zero=True)
    legend = Legend().line("x", "var(--c0)").line("y", "var(--c1)").line("found", "var(--muted)").line(
        "true", "var(--muted)", "dashed")  # fmt: skip
    shown = [(name, line_drawing(name, x, y, lines, size=(310, 250))) for name, lines in drawings]
    return figure(
        "One particle under three priors", panels(shown),
        "The path of one particle (solid) and how it really moved (dashed; a constant offset is free). Under too weak a prior it "
        "follows noise, under too strong a one only the motion common to the micrograph is left. In the titles: the trajectory "
        f"error of all {m.n} particles of the micrograph.",
        legend=legend, css="three",
    )  # fmt: skip


def score_and_truth(run: Run) -> str:
    """Draw score and true error of the rays of the best correlation distance against strength."""
    search, truth = run.search, run.example.truth()
    best = int(search.attrs["best_ray"])
    members = np.flatnonzero(search["distance"].values == search["distance"].values[best])
    micrographs = [
        (m, Geometry.of(m), alignment_windows(m, stage, False, run.session.threads).scaled(run.prior))
        for m, stage in aligned(run.session)
    ]
    lines: dict[str, list[Line]] = {"score": [], "error": []}
    legend = Legend().note("Balance:")
    for i, ray in enumerate(members):
        one = search.isel(ray=ray).dropna("step", subset=["cv_score"])
        theta, distance = float(one["balance"]), float(one["distance"])
        priors = [
            run.prior.with_hyperparameters(rm.Hyperparameters(float(r), theta, distance))
            for r in one["strength"].values
        ]
        errors = [_errors(windows, geometry, priors, truth[f"{m.movie.micrograph}_total"], truth["dose_mid"])
                  for m, geometry, windows in micrographs]  # fmt: skip
        colour = step_colour(0.8 * i / max(len(members) - 1, 1))
        lines["score"].append(Line(one["strength"].values, one["cv_score"].values, f"{theta:g}°", colour))
        lines["error"].append(
            Line(one["strength"].values, np.sqrt(np.mean(np.square(errors), 0)), f"{theta:g}°", colour)
        )
        legend.line(f"{theta:g}°", colour)
    x = Axis.of("Total prior strength, (e/Å²)/Å²", *(line.x for line in lines["score"]), log=True)
    names = {"score": "Cross-validation score", "error": "True trajectory error (Å)"}
    labels = {"score": "Score × 1000", "error": "Error (Å)"}
    lines["score"] = [replace(line, y=1000 * np.asarray(line.y)) for line in lines["score"]]
    lowest = {kind: min((float(np.min(line.y)), float(np.asarray(line.x)[np.argmin(line.y)])) for line in some)
              for kind, some in lines.items()}  # fmt: skip
    marks = {kind: [Mark(at, value, f"lowest: {number(value, 4)}")] for kind, (value, at) in lowest.items()}
    shown = [(names[kind], line_drawing(names[kind], x, Axis.of(labels[kind], *(line.y for line in some)), some,
                                        marks=marks[kind])) for kind, some in lines.items()]  # fmt: skip
    at_score = _error_at(lines, lowest["score"])
    return figure(
        "Score and truth", panels(shown),
        f"Rays of correlation distance {float(search['distance'][best]):,.0f} Å. First the score, what the search sees; lower "
        "is better; then the error against the true paths, which only a simulation knows, of the trajectories that each step "
        f"aligned with the search's band. Where the score is lowest the error is {at_score:.2f} Å; the lowest error is "
        f"{lowest['error'][0]:.2f} Å.",
        legend=legend.note("★ lowest"), css="wide",
    )  # fmt: skip


def _errors(
    windows: Windows, geometry: Geometry, priors: list[MotionPrior], true: np.ndarray, dose_mid: np.ndarray
) -> list[float]:
    found = solve(windows, geometry, priors, False).displacement_A
    return [trajectory_error_A(one, true, dose_mid) for one in found]


def _error_at(lines: dict[str, list[Line]], lowest: tuple[float, float]) -> float:
    """Return the error at the step that has the lowest score."""
    for score, error in zip(lines["score"], lines["error"]):
        at = int(np.argmin(score.y))
        if float(np.asarray(score.y)[at]) == lowest[0]:
            return float(np.asarray(error.y)[at])
    raise AssertionError


def local_motion(run: Run) -> str:
    """Draw local motion over a micrograph as found and as it was."""
    m, stage = next(aligned(run.session))
    tracks = run.session.track(m, stage, run.prior)
    true = run.example.truth()[f"{m.movie.micrograph}_total"]
    found = tracks.displacement_A - tracks.rigid_A - tracks.common_A
    x = Axis("x (Å)", 0.0, m.movie.width * m.movie.pixel_size_A)
    y = Axis("y (Å)", 0.0, m.movie.height * m.movie.pixel_size_A)
    names = [f"row {row}" for row in m.particles["row"].values]
    shown = []
    for name, paths in (("As found", found), ("As simulated", true)):
        paths = paths - paths.mean(0)  # beyond what all particles did
        shown.append((name, track_drawing(name, x, y, m.position_A, paths - paths[:, :1], names)))
    legend = Legend().sequence("first frame", "last frame")
    return figure(
        "Local motion", panels(shown),
        "What each particle did beyond the mean of all, magnified, over one micrograph: first as found, then as simulated. "
        "Neighbours move alike and motion is fastest at the start.",
        legend=legend, css="wide",
    )  # fmt: skip


def two_distances(search: xr.Dataset) -> xr.Dataset:
    """Return the rays of the best and of the farthest other correlation distance."""
    best, distance = int(search.attrs["best_ray"]), search["distance"].values
    other = distance[np.argmax(np.abs(np.log(distance / distance[best])))]
    members = np.flatnonzero(np.isin(distance, [distance[best], other]))
    return search.isel(ray=members).assign_attrs(best_ray=int(np.flatnonzero(members == best)[0]))


def drawings(run: Run) -> dict[str, str]:
    """Return all figures by name."""
    dose = report_dose.damage(report_dose.group_of(run.dose, 0))
    return {
        "correlations": correlations(run),
        "spectral_weights": spectral_weights(run),
        "own_noise": own_noise(run),
        "strengths": strengths(run),
        "local_motion": local_motion(run),
        "rays": report_search.rays(two_distances(run.search))[0],
        "score_and_truth": score_and_truth(run),
        "fcc": f'<div class="grid">{dose[0]}{dose[1]}</div>',
        "weights": f'<div class="grid">{dose[2]}{dose[3]}</div>',
        "fsc": report_maps.fsc(run.validation)[0],
    }


def result_tables(store: ResultStore) -> str:
    """Return a table of variables for each group of a result store."""
    parts, seen = [], set[str]()
    for group in store.groups():
        section = group.split("/")[0]
        if section in seen:
            continue
        seen.add(section)
        table = store.read(group, lazy=True)
        title = section if section == group else f"{section}/&lt;micrograph&gt;"
        lines = [f"## {title}", "", "| variable | dimensions | unit | meaning |", "|---|---|---|---|"]
        for name, one in [*table.coords.items(), *table.data_vars.items()]:
            unit = {"1": ""}.get(one.attrs.get("units", ""), one.attrs.get("units", ""))
            about = str(one.attrs.get("long_name", ""))
            lines.append(f"| `{name}` | {', '.join(map(str, one.dims)) or '–'} | {unit} | {about} |")
        if attrs := [f"`{name}`" for name in table.attrs]:
            lines += ["", f"Attributes: {', '.join(attrs)}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write everything."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = run_example(Path(folder))
        for name, drawn in drawings(run).items():
            text = f'<div class="drawn drawn-{name}">\n{drawn}\n</div>\n'
            size = len(text.encode())
            if size > LARGEST_BYTES:
                raise SystemExit(f"{name} has {size} bytes, more than {LARGEST_BYTES}; draw less")
            (FIGURES / f"{name}.html").write_text(text, encoding="utf-8")
        (HERE / "reference" / "result_tables.md").write_text(result_tables(run.store), encoding="utf-8")


if __name__ == "__main__":
    main()
