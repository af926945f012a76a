"""JSON as the results use it: NumPy's types turned into JSON's, and errors that say which file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refmotion_nb.data.files import admit
from refmotion_nb.data.schema import InputError


def plain(value: Any) -> Any:
    """Return ``value`` in JSON's types: NumPy scalars as numbers, arrays, tuples and sets as lists, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def finite(value: Any) -> Any:
    """Return ``value``, in JSON's types, with None for each number that is not finite: strict JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read an object from a JSON file; ``default`` (if given) where there is no file.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    admit(path)
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        if default is not None:
            return dict(default)
        raise InputError(f"{path} is missing; delete {path.parent} to have it computed again") from None
    except (ValueError, TypeError):
        raise InputError(f"{path} is damaged; delete {path.parent} to have it computed again") from None
