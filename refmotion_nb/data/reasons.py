"""Why micrographs or particles were left out, in few words where there are many: reasons that are alike are told once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"\S+")


def alike(reasons: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return micrographs (name, reason), each as often as it is given, by reason, the most common first.

    Of those alike the first stands for all. Alike are those that differ in numbers and in the path of the micrograph's file only.
    """
    kinds: dict[str, tuple[dict[str, None], list[str]]] = {}  # reasons, and names of micrographs
    known: dict[tuple[str, str], str] = {}
    for name, reason in reasons:
        if (name, reason) not in known:
            stem = os.path.splitext(os.path.basename(name))[0] if "/" in name else name  # of a name in a table
            known[name, reason] = _NUMBER.sub("0", _without(stem, reason) if stem else reason)
        of_kind, names = kinds.setdefault(known[name, reason], ({}, []))
        of_kind[reason] = None
        names.append(name)
    common = sorted(kinds.values(), key=lambda kind: -len(kind[1]))
    return {_first(list(of_kind)): names for of_kind, names in common}


def _without(stem: str, reason: str) -> str:
    """Return a reason with the paths of files called ``stem`` taken out; without a pattern of each one's own, which is slow."""

    def shortened(word: re.Match[str]) -> str:
        _, found, ending = word[0].rpartition(f"{stem}.")
        return f"*.{ending}" if found else word[0]

    return _WORD.sub(shortened, reason) if f"{stem}." in reason else reason


def _first(reasons: Sequence[str]) -> str:
    return reasons[0] + (f" (and {len(reasons) - 1} more like it)" if len(reasons) > 1 else "")


def told_once(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each kind of reason, with the names of the first micrographs (name, reason) that it holds for."""
    return [f"{listed(names)}: {reason}" for reason, names in alike(reasons).items()]


def listed(names: Sequence[Any]) -> str:
    """Name the first few and count the rest: 'a, b, c and 21 more'."""
    first = ", ".join(map(str, names[:3]))
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
