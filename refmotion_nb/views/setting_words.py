"""Settings in words: their values, and what a declared parameter means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import param

UNSET = "not given"  # a parameter without a value of its own


def value_in_words(value: Any) -> str:
    """Return the value of a setting as people say it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return UNSET
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def help_of(declared: param.Parameter) -> str:
    """Return what a parameter means, its default, bounds and choices."""
    known = [str(declared.doc or "").strip(), f"Default {value_in_words(declared.default)}."]
    low, high = (
        None if end is None else value_in_words(end) for end in getattr(declared, "bounds", None) or (None, None)
    )
    if low is not None or high is not None:
        known.append(
            f"At least {low}." if high is None else f"At most {high}." if low is None else f"From {low} to {high}."
        )
    if objects := getattr(declared, "objects", None):
        known.append(f"One of {', '.join(map(str, objects))}.")
    return " ".join(known).strip()
