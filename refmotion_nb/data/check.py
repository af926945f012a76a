"""What a data set holds and all that is wrong with it, as plain text."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from refmotion_nb.data.maps import LoadedReference, check_reference, load_reference
from refmotion_nb.data.reasons import alike
from refmotion_nb.data.schema import Dataset, InputError, Optics, Reference
from refmotion_nb.numerics.fourier import first_shell_below
from refmotion_nb.numerics.patches import movie_box

_WIDTH = 118
FEWEST_FRAMES = 3  # two velocities, one acceleration
_SAME = 0.01  # relative; calibrations of the pixel size that differ by less do no harm


@dataclass(frozen=True)
class Check:
    """The outcome of a check: facts (name, text), problems (one line each) and notes; ``str()`` is made to be read."""

    title: str
    facts: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    dataset: Dataset  # as far as it could be read

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way of processing."""
        return not self.problems

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.facts), default=0) + 2
        lines = [self.title, ""]
        for name, text in self.facts:
            lines += _wrapped(text, f"  {name:{width}s}")
        for heading, entries in (("Problems", self.problems), ("Notes", self.notes)):
            if entries:
                lines += ["", f"{heading} ({len(entries)})"]
                lines += [line for entry in entries for line in _wrapped(entry, "  - ")]
        return "\n".join([*lines, "", "Ready to process." if self.ok else "Not ready: solve the problems above."])


@dataclass
class Findings:
    """A project as far as it could be read, with what was found out on the way."""

    dataset: Dataset
    root: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def opened(self) -> Dataset:
        """Return the data set once the headers of its references were looked at, too.

        Raises
        ------
        InputError
            Something is wrong: a line for each kind of problem.
        """
        for reference in self.dataset.references:
            try:
                box_size, pixel_size_A = check_reference(reference)
            except InputError as error:
                self.problems.append(str(error))
            else:
                self.problems += unlike_particles(reference, box_size, pixel_size_A, self.dataset)
        if problems := [*self.problems, *cannot_be_processed(self.dataset)]:
            raise InputError("\n".join(dict.fromkeys(problems)))
        return replace(self.dataset, notes=tuple(dict.fromkeys(self.notes)))


def cannot_be_processed(dataset: Dataset) -> list[str]:
    """Name what no setting can make up for: movies too short to follow motion in, optics groups of two pixel sizes."""
    problems = []
    used = set(dataset.particles["micrograph"].values.tolist())
    short = [movie for movie in dataset.movies if movie.n_frames < FEWEST_FRAMES and movie.micrograph in used]
    if short:
        problems.append(
            f"{short[0].path} has {short[0].n_frames} frames ({len(short)} movies have fewer than {FEWEST_FRAMES}); "
            "motion cannot be followed, leave these movies out"
        )
    of_movie = {movie.micrograph: movie.pixel_size_A for movie in dataset.movies}
    columns = (dataset.particles[name].values.tolist() for name in ("reference", "optics", "micrograph"))
    found: dict[tuple[int, int], float] = {}
    for reference, group, name in zip(*columns):
        pixel = found.setdefault((reference, group), of_movie[name])
        if abs(pixel - of_movie[name]) > 1e-3 * pixel:
            problems.append(
                f"optics group {dataset.optics[group].name} has particles on movies of {pixel:g} and of "
                f"{of_movie[name]:g} Å/px ({name}); give them different optics groups"
            )
            break
    return problems


def check_dataset(dataset: Dataset, problems: Iterable[str], notes: Iterable[str], title: str) -> Check:
    """Summarise a data set and read its references, adding what is wrong with them to ``problems``."""
    problems, notes = [*problems, *cannot_be_processed(dataset)], [*notes]
    facts, extent_A = dataset_facts(dataset), 0.0
    for i, reference in enumerate(dataset.references):
        name = "reference" if len(dataset.references) == 1 else f"reference {i + 1}"
        try:
            loaded = load_reference(reference)
        except InputError as error:
            problems += str(error).splitlines()
            facts.append((name, "cannot be used"))
        else:
            facts.append((name, _reference(reference, loaded)))
            extent_A = max(extent_A, loaded.box_size * loaded.pixel_size_A)
            problems += unlike_particles(reference, loaded.box_size, loaded.pixel_size_A, dataset)
    if not dataset.references:
        facts.append(("reference", "none given"))
    facts += _output(dataset, extent_A)
    left = [f"{reason} ({len(names)})" for reason, names in left_out(dataset).items()]
    facts.append(("left out", "; ".join(left) or "nothing"))
    return Check(title, tuple(facts), tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(notes)), dataset)


def dataset_facts(dataset: Dataset) -> list[tuple[str, str]]:
    """Return what a data set holds (name, text), from its tables alone."""
    optics = [(f"optics {i + 1}", _optics(one)) for i, one in enumerate(dataset.optics)]
    return [*_particle_facts(dataset), *_movie_facts(dataset), *optics]


def left_out(dataset: Dataset) -> dict[str, list[str]]:
    """Return the micrograph of each particle that was left out, by reason, the most common first; see ``alike``."""
    return alike((skip.micrograph, skip.reason) for skip in dataset.skipped if skip.row >= 0)


def movies_left_out(dataset: Dataset) -> dict[str, list[str]]:
    """Return the micrographs without particles that were left out, by reason, the most common first."""
    return alike((skip.micrograph, skip.reason) for skip in dataset.skipped if skip.row < 0)


def _particle_facts(dataset: Dataset) -> list[tuple[str, str]]:
    micrographs, half = dataset.particles["micrograph"].values, dataset.particles["half"].values
    reference = dataset.particles["reference"].values
    numbers = sorted(set(reference.tolist()))
    facts = []
    for number in numbers:
        mine = reference == number
        sets = " + ".join(str(int((half[mine] == h).sum())) for h in (1, 2))
        name = "particles" if len(numbers) == 1 else f"particles {number + 1}"
        text = f"{mine.sum()} on {len(set(micrographs[mine]))} micrographs, half sets {sets}"
        facts.append((name, text))
    return facts or [("particles", "none")]


def _movie_facts(dataset: Dataset) -> list[tuple[str, str]]:
    movies, n_with_particles = dataset.movies, len(set(dataset.particles["micrograph"].values))
    if not movies:
        return [("movies", "none")]
    kinds = Counter((m.width, m.height, m.n_frames, m.pixel_size_A) for m in movies)
    usual = kinds.most_common(4)
    shapes = [f"{count} of {w} × {h} px, {n} frames, {pixel:g} Å/px" for (w, h, n, pixel), count in usual]
    binned = f", micrographs binned {_span([m.binning for m in movies])}" if any(m.binning != 1 for m in movies) else ""
    empty = f"; {len(movies) - n_with_particles} without particles" if n_with_particles < len(movies) else ""
    eer = {(m.eer_upsampling, m.eer_grouping) for m in movies if m.path.suffix.lower() == ".eer"}
    dose, total, before = (_span(values) for values in zip(*((
        m.dose_per_frame_e_A2, m.n_frames * m.dose_per_frame_e_A2, m.pre_exposure_e_A2) for m in movies)))  # fmt: skip
    after = f", after {before}" if before != "0" else ""
    local = sum(m.local_motion is not None or m.spline_motion is not None for m in movies)
    given = sum(m.background is not None for m in movies)
    background = f"given for {given}" + f", estimated for {len(movies) - given}" * (given < len(movies)) + " movies"
    gains = sorted({str(m.gain.path) for m in movies if m.gain})
    facts = [
        ("movies", "; ".join(shapes) + (" …" if len(kinds) > 4 else "") + binned + empty),
        ("exposure", f"{dose} e/Å² per frame, {total} in all{after}, {_span([m.voltage_kV for m in movies])} kV"),
        ("motion", f"whole-frame for {len(movies)}, local for {local} movies"),
        ("background", background if given or any(m.estimate_background for m in movies) else "left as it is"),
        ("camera", f"gain {', '.join(gains[:2])}{' …' if len(gains) > 2 else ''}; " * bool(gains)
                   + f"{_span([len(m.hot_pixels) for m in movies])} hot pixels listed per movie"
                   + ", to be found where there are none" * any(m.hot_pixel_threshold > 0 for m in movies)),
    ]  # fmt: skip
    for upsampling, grouping in sorted(eer):
        facts.append(("EER", f"upsampling {upsampling}, {grouping} raw frames per fraction"))
    return facts


def _optics(one: Optics) -> str:
    more = [text for text, present in (
        ("beam tilt", any(one.beam_tilt_mrad)), ("odd Zernikes", any(one.odd_zernike)),
        ("even Zernikes", any(one.even_zernike)),
        ("anisotropic magnification", one.magnification != ((1.0, 0.0), (0.0, 1.0))),
        ("images multiplied by the CTF", one.ctf_premultiplied), (f"MTF {one.mtf_file}", one.mtf_file)) if present]  # fmt: skip
    text = (f"{one.name}: {one.voltage_kV:g} kV, Cs {one.spherical_aberration_mm:g} mm, amplitude contrast "
            f"{one.amplitude_contrast:g}, box {one.box_size} px of {one.pixel_size_A:g} Å")  # fmt: skip
    return f"{text}; {', '.join(more)}" if more else text


def _reference(reference: Reference, loaded: LoadedReference) -> str:
    masked = f"mask {reference.mask}" if reference.mask else "no mask"
    text = f"{reference.half1}, {reference.half2}, {masked}; box {loaded.box_size} px of {loaded.pixel_size_A:g} Å"
    if loaded.fsc is None:
        return text
    shell = first_shell_below(loaded.fsc, 0.143)
    if not loaded.fsc[shell] < 0.143:
        return text
    return f"{text}; FSC 0.143 at {loaded.box_size * loaded.pixel_size_A / shell:.2f} Å"


def _output(dataset: Dataset, extent_A: float) -> list[tuple[str, str]]:
    """Tell how large particles will be where movies are finer than the particles that were refined (super-resolution)."""
    finest = min((movie.pixel_size_A for movie in dataset.movies_with_particles), default=math.inf)
    refined = min((one.pixel_size_A for one in dataset.optics), default=0.0)
    box, cropped = movie_box(extent_A, finest), movie_box(extent_A, max(refined, finest))
    if not 0 < cropped < box:
        return []
    text = f"boxes of {box} px of {finest:g} Å as the movies; --fourier-crop-to {cropped} writes those of the particles, with "
    return [("output", text + f"{100 * (cropped / box) ** 2:.0f} % of the disk space and less memory")]


def unlike_particles(reference: Reference, box_size: int, pixel_size_A: float, dataset: Dataset) -> list[str]:
    """Name a reference that has neither the pixel size nor the physical extent of any particle: its header is wrong."""
    if not dataset.optics or any(
        math.isclose(pixel_size_A, one.pixel_size_A, rel_tol=_SAME)
        or math.isclose(box_size * pixel_size_A, one.box_size * one.pixel_size_A, rel_tol=_SAME)
        for one in dataset.optics
    ):
        return []
    one = dataset.optics[0]
    movies = f" (movies of {_span([m.pixel_size_A for m in dataset.movies])} Å/px)" if dataset.movies else ""
    return [
        f"{reference.half1} has {pixel_size_A:g} Å/px in a box of {box_size} px, the particles {one.pixel_size_A:g} in "
        f"{one.box_size}{movies}; correct its header, or give the half maps of these particles' refinement"
    ]


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g}–{high:.4g}"


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
                         break_on_hyphens=False) or [head]  # fmt: skip
