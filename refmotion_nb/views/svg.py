"""Small charts as inline SVG: line charts, images of numbers, tracks over a micrograph.

They need no script and no server, print as sharply as they show, follow the page's colours (light or dark) through CSS
variables, and are made in about a millisecond each; a plotting library would need seconds and megabytes for the same.
Every text that comes in is escaped here.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from refmotion_nb.views.png import png_of_levels
from refmotion_nb.views.scale import round_down

N_STEPS = 8  # colours of the sequential scale of lines: --f0 to --f7 in the style sheet
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """Return ``value`` for people: a few digits, thousands apart from 10,000 on, a true minus sign, powers of ten if shorter."""
    value = math.nan if value is None else float(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}g}"
    if "e" in text and 1 <= abs(value) < 1e7:
        text = f"{value:.0f}"
    if "e" not in text and abs(value) >= 1e4:
        whole, point, rest = text.partition(".")
        text = f"{int(whole):,}{point}{rest}"
    mantissa, _, power = text.partition("e")
    if power:
        text = f"{mantissa}×10{str(int(power)).translate(_SUPERSCRIPT)}"
    return text.replace("-", "−")


@dataclass(frozen=True)
class Axis:
    """What a direction of a chart means: a label with its unit, limits, and how values are spread between them."""

    label: str
    low: float
    high: float
    log: bool = False
    resolution: bool = False  # spatial frequency: the resolution in Å is written under each tick
    whole: bool = False  # whole numbers only

    @classmethod
    def of(
        cls, label: str, *values: object, log: bool = False, zero: bool = False, resolution: bool = False,
        whole: bool = False,
    ) -> Axis:  # fmt: skip
        """Return the axis that holds all finite ``values`` (on a log axis: positive ones), and zero if asked to."""
        found = np.concatenate([np.ravel(np.asarray(value, float)) for value in values] or [np.zeros(0)])
        found = found[np.isfinite(found) & (found > 0 if log else True)]
        low, high = (float(found.min()), float(found.max())) if found.size else (1.0, 10.0) if log else (0.0, 1.0)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if log:
            room = max((high / low) ** 0.05, 1.05)
            return cls(label, low / room, high * room, log=True)
        room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
        low_room = 0.0 if zero and low == 0 else room
        high_room = 0.0 if zero and high == 0 > low else room
        return cls(label, low - low_room, high + high_room, resolution=resolution, whole=whole)

    def at(self, values: object) -> np.ndarray:
        """Return where ``values`` lie, from 0 at the low end to 1 at the high end."""
        values = np.asarray(values, float)
        if not self.log:
            return (values - self.low) / (self.high - self.low)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(values / self.low) / math.log(self.high / self.low)

    @property
    def power(self) -> int:
        """The power of ten taken out of the ticks, a multiple of 3: 0 where they are short without."""
        largest = max(abs(self.low), abs(self.high))
        wide = self.log and self.high > 10 * self.low
        return 0 if wide or 1e-2 <= largest < 1e5 else 3 * math.floor(math.log10(largest) / 3)

    @property
    def title(self) -> str:
        """The label, and the power of ten taken out of the ticks."""
        return f"{self.label} ×10{str(self.power).translate(_SUPERSCRIPT)}" if self.power else self.label

    def ticks(self) -> list[tuple[float, str]]:
        """Return values worth a tick and how to write them."""
        return self._log_ticks() if self.log and self.high > 10 * self.low else self._linear_ticks()

    def _linear_ticks(self) -> list[tuple[float, str]]:
        raw = max((self.high - self.low) / 5, 1.0 if self.whole else 0.0)
        power = 10.0 ** math.floor(math.log10(raw))
        factors = (1, 2, 5, 10) if self.whole else (1, 2, 2.5, 5, 10)
        step = power * next(factor for factor in factors if factor * power >= raw * 0.999)
        shown = step / 10.0**self.power
        digits = max(0, -math.floor(math.log10(shown) + 1e-9) + (step / power == 2.5))
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [(i * step, f"{i * shown:.{digits}f}".replace("-", "−")) for i in range(first, last + 1)]

    def _log_ticks(self) -> list[tuple[float, str]]:
        decades = math.log10(self.high / self.low)
        factors = (1,) if decades > 2 else (1, 2, 5)
        every = max(1, math.ceil(decades / 7))
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
        return [(value, number(value)) for value in values if self.low <= value <= self.high]


@dataclass(frozen=True)
class Line:
    """One curve: ``style`` is any of ``dashed``, ``dotted``, ``dots``, ``thin``, ``thick``, ``only-points``, spaces between."""

    x: object
    y: object
    name: str = ""
    colour: str = "var(--c0)"
    style: str = ""
    band: tuple[np.ndarray, np.ndarray] | None = None  # lower and upper limit of y
    points: Sequence[str] | None = None  # what to say about each point, which is then marked


@dataclass(frozen=True)
class Mark:
    """A point that stands out; ``kind`` is ``best`` or ``end``."""

    x: float
    y: float
    title: str
    kind: str = "best"
    colour: str = "var(--c0)"


@dataclass(frozen=True)
class Plot:
    """The rectangle between two axes."""

    x: Axis
    y: Axis
    size: tuple[int, int] = (400, 270)
    margins: tuple[int, int, int, int] = (62, 10, 12, 42)  # left, top, right, bottom

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the plot area."""
        left, top, right, bottom = self.margins
        return left, top, self.size[0] - left - right, self.size[1] - top - bottom

    def place(self, x: object, y: object) -> np.ndarray:
        """Return where values lie in the drawing: (..., 2)."""
        left, top, width, height = self.box
        return np.stack(np.broadcast_arrays(left + self.x.at(x) * width, top + (1 - self.y.at(y)) * height), axis=-1)

    def draw(self, content: str, label: str) -> str:
        """Return the SVG: axes and ``content``."""
        return (
            f'<svg viewBox="0 0 {self.size[0]} {self.size[1]}" role="img" aria-label="{escape(label)}">'
            f"{self._axes()}{content}</svg>"
        )

    def _axes(self) -> str:
        left, top, width, height = self.box
        bottom = top + height
        grid, texts = [], []
        for value, text in self.x.ticks():
            x = _n(left + float(self.x.at(value)) * width)
            grid.append(f"M{x} {top}v{_n(height)}")
            texts.append(f'<text x="{x}" y="{_n(bottom + 14)}" class="m">{text}</text>')
            if self.x.resolution and value > 0:
                texts.append(f'<text x="{x}" y="{_n(bottom + 25)}" class="m q">{1 / value:.1f} Å</text>')
        for value, text in self.y.ticks():
            y = top + (1 - float(self.y.at(value))) * height
            grid.append(f"M{left} {_n(y)}h{_n(width)}")
            texts.append(f'<text x="{left - 5}" y="{_n(y + 3.5)}" class="e">{text}</text>')
        x_label = _axis_label(self.x.title, left + width / 2, self.size[1] - 4, width)
        y_label = _axis_label(self.y.title, 11, top + height / 2, height, upright=True)
        return f'<path class="grid" d="{"".join(grid)}"/>{"".join(texts)}{x_label}{y_label}'


@dataclass
class Legend:
    """Names of colours and line styles, as HTML under a chart."""

    items: list[str] = field(default_factory=list)

    def line(self, name: str, colour: str, style: str = "") -> Legend:
        """Add a line."""
        dash = "dotted" if "dot" in style else "dashed" if "dashed" in style else "solid"
        weight = 3.5 if "dots" in style else 2
        pale = ";opacity:.45" if "thin" in style else ""  # as the style sheet has the line
        self.items.append(f'<span><i style="border-top:{weight}px {dash} {colour}{pale}"></i>{escape(name)}</span>')
        return self

    def sequence(self, low: str, high: str) -> Legend:
        """Add the sequential scale with what its ends mean."""
        cells = "".join(f'<b style="background:var(--f{i})"></b>' for i in range(N_STEPS))
        self.items.append(f'<span>{escape(low)}<span class="ramp">{cells}</span>{escape(high)}</span>')
        return self

    def note(self, text: str) -> Legend:
        """Add words."""
        self.items.append(f"<span>{escape(text)}</span>")
        return self

    def __str__(self) -> str:
        return f'<div class="legend">{"".join(self.items)}</div>' if self.items else ""


def figure(
    title: str, drawing: str, reading: str, *, legend: Legend | None = None, subtitle: str = "", css: str = ""
) -> str:
    """Return a titled figure; ``reading`` is its caption: what is drawn, how to read it, what good looks like."""
    small = f"<small>{escape(subtitle)}</small>" if subtitle else ""
    head = f'<div class="head"><b>{escape(title)}</b>{small}</div>'
    caption = f"<figcaption>{escape(reading)}</figcaption>"
    return f'<figure class="card {css}">{head}{drawing}{legend or ""}{caption}</figure>'


def panels(drawings: Iterable[tuple[str, str]]) -> str:
    """Return several drawings of one figure side by side, each with a name."""
    each = "".join(f"<div><b>{escape(name)}</b>{drawing}</div>" for name, drawing in drawings)
    return f'<div class="panels">{each}</div>'


def step_colour(fraction: float) -> str:
    """Return the colour of the sequential scale of lines at ``fraction`` of it."""
    return f"var(--f{min(N_STEPS - 1, max(0, round(fraction * (N_STEPS - 1))))})"


def line_drawing(
    label: str,
    x: Axis,
    y: Axis,
    lines: Iterable[Line],
    *,
    marks: Iterable[Mark] = (),
    rules: Iterable[tuple[float, str]] = (),
    size: tuple[int, int] = (400, 270),
) -> str:
    """Return the SVG of curves; ``rules`` are level lines with a name, ``label`` is for those who cannot see it."""
    widest = max((len(text) for _, text in y.ticks()), default=4)
    plot = Plot(x, y, size, (max(62, 28 + 6 * widest), 10, 12, 53 if x.resolution else 42))
    parts = [_rule(plot, level, name) for level, name in rules]
    parts += [_curve(plot, line) for line in lines]
    parts += [_mark(plot, mark) for mark in marks]
    return plot.draw("".join(parts), label)


def heat_drawing(
    label: str,
    x: Axis,
    y: Axis,
    values: np.ndarray,
    colour: Axis,
    *,
    marks: Iterable[Mark] = (),
    size: tuple[int, int] = (400, 270),
    picture: bool = False,
) -> str:
    """Return the SVG of ``values`` (row, column), the first row at the bottom; axes end where the image ends.

    A ``picture`` is grey, and as high as it is wide.
    """
    widest = max((len(text) for _, text in colour.ticks()), default=4)
    margins = 46, 10, 54 + 6 * widest, 53 if x.resolution else 42
    if picture:
        size = size[0], size[0] - margins[0] - margins[2] + margins[1] + margins[3]
    plot = Plot(x, y, size, margins)
    left, top, width, height = plot.box
    image = _image(_levels(values, colour)[::-1], left, top, width, height, picture)
    bar_left = left + width + 10
    bar = _image(np.arange(254, -1, -1).astype(np.uint8)[:, None], bar_left, top, 10, height, picture)
    ticks = "".join(
        f'<text x="{bar_left + 13}" y="{_n(top + (1 - float(colour.at(value))) * height + 3.5)}">{text}</text>'
        for value, text in colour.ticks()
    )
    title = _axis_label(colour.title, size[0] - 4, top + height / 2, height, upright=True)
    content = image + "".join(_mark(plot, mark) for mark in marks)
    return plot.draw(f"{content}{bar}{ticks}{title}", label)


def track_drawing(
    label: str,
    x: Axis,
    y: Axis,
    places: np.ndarray,
    tracks: np.ndarray,
    names: Sequence[str],
    *,
    unit: str = "Å",
    width: int = 400,
    magnified: float | None = None,
    beneath: np.ndarray | None = None,
) -> str:
    """Return the SVG of ``tracks`` (particle, frame, 2) at ``places`` (particle, 2) of a micrograph.

    They are ``magnified`` as they suit, or as given; other tracks may lie ``beneath``, without colours.
    """
    margins = (46, 10, 12, 42)
    inner = width - margins[0] - margins[2]
    height = round(inner * min(1.6, max(0.4, (y.high - y.low) / (x.high - x.low)))) + margins[1] + margins[3]
    plot = Plot(x, y, (width, height), margins)
    pixel = inner / (x.high - x.low)
    extent = np.ptp(tracks, axis=1).max(-1) if tracks.size else np.zeros(0)
    extent = extent[np.isfinite(extent)]
    length = np.percentile(extent, 90) if extent.size else 0.0
    scale = magnified or (round_down(0.12 * inner / pixel / length, (1, 1.5, 2, 3, 5, 7)) if length > 0 else 1.0)
    paths = plot.place(*np.moveaxis(places[:, None] + scale * tracks, -1, 0))
    dots = "".join(
        f'<circle cx="{_n(px)}" cy="{_n(py)}" r="1.7"><title>{escape(name)}</title></circle>'
        for (px, py), name in zip(plot.place(*places.T), names)
    )
    left, top, *size = plot.box
    area = f'<rect class="area" x="{left}" y="{top}" width="{_n(size[0])}" height="{_n(size[1])}"/>'
    under = "" if beneath is None else "".join(
        map(_path, plot.place(*np.moveaxis(places[:, None] + scale * beneath, -1, 0)))
    )  # fmt: skip
    under = f'<path class="beneath" d="{under}"/>' if under else ""
    content = f'{area}{under}<g class="tracks">{_coloured(paths)}</g><g class="starts">{dots}</g>'
    bar = round_down(0.16 * inner / pixel / scale)
    length = bar * scale * pixel
    content += (
        f'<path class="scale" d="M{margins[0]} {height - 8}h{_n(length)}"/>'
        f'<text x="{_n(margins[0] + length + 6)}" y="{height - 4}">{escape(f"{number(bar)} {unit}, ×{number(scale)}")}'
        "</text>"
    )
    return plot.draw(content, label)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _axis_label(text: str, x: float, y: float, room: float, upright: bool = False) -> str:
    # a long name is squeezed rather than cut off
    fit = f' textLength="{_n(room)}" lengthAdjust="spacingAndGlyphs"' if 5.6 * len(text) > room else ""
    turn = " rotate(-90)" if upright else ""
    return f'<text class="axis m" transform="translate({_n(x)} {_n(y)}){turn}"{fit}>{escape(text)}</text>'


def _path(points: np.ndarray) -> str:
    """Return an SVG path through ``points`` (point, 2), broken where one is not finite; steps are shorter than places."""
    parts: list[str] = []
    x = y = None
    for px, py in points.tolist():
        if not (math.isfinite(px) and math.isfinite(py)):
            x = y = None
            continue
        tenth_x, tenth_y = round(10 * px), round(10 * py)
        if x is None or y is None:
            parts.append(f"M{_n(tenth_x / 10)} {_n(tenth_y / 10)}")
        elif (tenth_x, tenth_y) != (x, y):  # steps between rounded places: errors do not add up
            parts.append(f"l{_n((tenth_x - x) / 10)} {_n((tenth_y - y) / 10)}")
        x, y = tenth_x, tenth_y
    return "".join(parts)


def _curve(plot: Plot, line: Line) -> str:
    points = plot.place(line.x, line.y)
    band = ""
    if line.band is not None:
        low, high = (plot.place(line.x, np.clip(limit, plot.y.low, plot.y.high)) for limit in line.band)
        outline = np.concatenate([low, high[::-1]])
        band = f'<path class="band" d="{_path(outline[np.isfinite(outline).all(-1)])}Z"/>'
    path = _dots(points) if "dots" in line.style else _path(points)
    title = f"<title>{escape(line.name)}</title>" if line.name else ""
    circles = "".join(
        f'<circle cx="{_n(px)}" cy="{_n(py)}" r="2.4"><title>{escape(text)}</title></circle>'
        for (px, py), text in zip(points.tolist(), line.points or ())
        if math.isfinite(px) and math.isfinite(py)
    )
    style = escape(line.style)
    return f'<g class="line {style}" style="--k:{line.colour}">{title}{band}<path d="{path}"/>{circles}</g>'


def _dots(points: np.ndarray) -> str:
    # round ends make a dot of a line without length
    return "".join(f"M{_n(px)} {_n(py)}h0" for px, py in points.tolist() if math.isfinite(px) and math.isfinite(py))


def _mark(plot: Plot, mark: Mark) -> str:
    px, py = plot.place(mark.x, mark.y).tolist()
    shape = f"M{_n(px - 3.5)} {_n(py - 3.5)}l7 7m0-7l-7 7"
    if mark.kind == "best":
        angles = np.pi * np.arange(10) / 5
        radius = np.where(np.arange(10) % 2, 3.2, 7.5)
        star = np.stack([px + radius * np.sin(angles), py - radius * np.cos(angles)], axis=-1)
        shape = _path(star) + "Z"
    title = f"<title>{escape(mark.title)}</title>"
    return f'<path class="mark {escape(mark.kind)}" style="--k:{mark.colour}" d="{shape}">{title}</path>'


def _rule(plot: Plot, level: float, name: str) -> str:
    left, _, width, _ = plot.box
    y = float(plot.place(plot.x.high, level)[1])
    text = f'<text class="e q" x="{_n(left + width - 3)}" y="{_n(y - 4)}">{escape(name)}</text>'
    return f'<path class="rule" d="M{left} {_n(y)}h{_n(width)}"/>{text}'


def _coloured(paths: np.ndarray) -> str:
    """Return paths (particle, frame, 2) with the frames shared out among the colours of the sequential scale."""
    n = paths.shape[1]
    edges = np.linspace(0, max(n - 1, 0), N_STEPS + 1).round().astype(int)
    parts = []
    for i, (first, last) in enumerate(zip(edges[:-1], edges[1:])):
        if last > first:
            data = "".join(_path(path) for path in paths[:, first : last + 1])
            parts.append(f'<path style="--k:var(--f{i})" d="{data}"/>')
    return "".join(parts)


def _levels(values: np.ndarray, colour: Axis) -> np.ndarray:
    fraction = np.clip(colour.at(values), 0, 1)
    return np.where(np.isfinite(fraction), np.nan_to_num(fraction) * 254, 255).round().astype(np.uint8)


def _image(levels: np.ndarray, left: float, top: float, width: float, height: float, grey: bool) -> str:
    data = base64.b64encode(png_of_levels(levels, grey)).decode("ascii")
    return (
        f'<image x="{_n(left)}" y="{_n(top)}" width="{_n(width)}" height="{_n(height)}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{data}"/>'
    )
