"""The part of the report on the run: time, what to type to repeat it, versions, and what to cite."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from refmotion_nb.views.report_html import decoded, duration, folded, grid, mapping, paragraphs, table, text_of, titled
from refmotion_nb.views.setting_words import UNSET

if TYPE_CHECKING:
    import xarray as xr

PART = "(part)"  # ends the name of a time that is part of another

_BREAK = "\\\n"
_RESUME = "In the same output folder, what is finished is kept and only the rest is done; give another --out to do it all anew."

# what is cited: authors, year, title, where, DOI
BAYESIAN_POLISHING = (
    "Zivanov, J., Nakane, T. & Scheres, S. H. W. (2019). A Bayesian approach to beam-induced motion correction in cryo-EM "
    "single-particle analysis. IUCrJ 6, 5–17.", "10.1107/S205225251801463X",
)  # fmt: skip
EXPOSURE = (
    "Grant, T. & Grigorieff, N. (2015). Measuring the optimal exposure for single particle cryo-EM using a 2.6 Å reconstruction "
    "of rotavirus VP6. eLife 4, e06980.", "10.7554/eLife.06980",
)  # fmt: skip
RANDOM_PHASES = (
    "Chen, S. et al. (2013). High-resolution noise substitution to measure overfitting and validate resolution in 3D structure "
    "determination by single particle electron cryomicroscopy. Ultramicroscopy 135, 24–35.", "10.1016/j.ultramic.2013.06.004",
)  # fmt: skip
CRITERION = (
    "Rosenthal, P. B. & Henderson, R. (2003). Optimal determination of particle orientation, absolute hand, and contrast loss in "
    "single-particle electron cryomicroscopy. J. Mol. Biol. 333, 721–745.", "10.1016/j.jmb.2003.07.013",
)  # fmt: skip


def run_section(attrs: Mapping[str, Any]) -> str:
    """Return how long it took, the settings to repeat it, and the versions of the programs."""
    seconds = mapping(attrs, "seconds")
    parts = [titled("Time", seconds_table(seconds))] if seconds else []
    if versions := {"refmotion_nb": attrs["version"]} | mapping(attrs, "versions") if attrs.get("version") else {}:
        parts.append(titled("Versions", _pairs(versions, ("Program", "Version"))))
    return repeat(attrs) + (grid(parts, "beside") if parts else "")


def repeat(attrs: Mapping[str, Any]) -> str:
    """Return the command line, the settings that were given, and all the others folded away."""
    settings, default = mapping(attrs, "settings"), mapping(attrs, "defaults")
    command = str(attrs.get("command") or "")
    parts = []
    if command:
        lines_of = escape(command).replace(" --", f" {_BREAK}  --")
        parts.append(titled("To repeat this run", f"<pre>{lines_of}</pre>{paragraphs([_RESUME])}"))
    if settings:
        lines = [(str(name), _shown(value), _shown(default.get(name, "–"))) for name, value in settings.items()]
        parts.append(titled("Settings given", table(("Setting", "Value", "Default"), lines, css="narrow")))
    elif default:
        parts.append(titled("Settings given", paragraphs(["None: all settings had their defaults."])))
    if others := {name: value for name, value in default.items() if name not in settings}:
        parts.append(
            folded(
                f"All {'other ' if settings else ''}settings ({len(others)}), at their defaults",
                _pairs(others, ("Setting", "Value")),
            )
        )
    return "".join(parts)


def _pairs(values: Mapping[str, Any], head: tuple[str, str]) -> str:
    return table(head, [(str(name), _shown(value)) for name, value in values.items()], css="narrow")


def _shown(value: Any) -> str:
    return UNSET if value is None else text_of(value)


def seconds_table(seconds: Mapping[str, float]) -> str:
    """Return the time of each stage with a bar."""
    longest = max(seconds.values())
    whole_first = sorted(seconds.items(), key=lambda item: item[0].endswith(PART))
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td class=n>{escape(duration(value))}</td>"
        f'<td class="bar"><i style="width:{100 * value / max(longest, 1e-9):.1f}%"></i></td></tr>'
        for name, value in whole_first
    )
    head = "<thead><tr><th>Stage</th><th>Time</th><th></th></tr></thead>"
    parts = any(name.endswith(PART) for name in seconds)
    told = paragraphs([f"Times marked {PART} are contained in those above."]) if parts else ""
    return f'<div class="scroll"><table class="narrow">{head}{rows}</table></div>{told}'


def citations(groups: Mapping[str, xr.Dataset], version: str) -> str:
    """Return what to cite for the results there are."""
    used = []
    whole = groups.get("corrected_micrographs")
    by_measured = whole is not None and whole.attrs.get("dose_weights") == "measured"
    if set(groups) != {"corrected_micrographs"} or by_measured:
        used.append(
            (BAYESIAN_POLISHING, "the motion model, its priors, and dose weights from Fourier cylinder correlation")
        )
    if {"dose_weights", "validation"} & set(groups) or (whole is not None and not by_measured):
        used.append((EXPOSURE, "the standard dose weights"))
    if "validation" in groups:
        used.append((RANDOM_PHASES, "the correction of the FSC for the mask, by random phases"))
        used.append((CRITERION, "resolution at FSC = 0.143"))
    items = "".join(
        f'<li>{escape(text)} <a href="https://doi.org/{escape(doi)}">doi:{escape(doi)}</a>'
        f"<br><small>For {escape(why)}.</small></li>"
        for (text, doi), why in used
    )
    software = f"refmotion_nb{f' {version}' if version else ''}, the program that made these results."
    return f'<ol class="cite">{items}<li>{escape(software)}</li></ol>'


def stage_seconds(attrs: Mapping[str, Any]) -> list[float]:
    """Return the seconds of the stages, without parts of them."""
    seconds = decoded(attrs.get("seconds", {})) or {}
    return [float(value) for name, value in seconds.items() if not str(name).endswith(PART)]
