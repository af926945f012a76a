"""What results are computed from, as short hashes, so that a rerun knows which of them still hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import Dataset, Movie, Reference
from refmotion_nb.stages.base import hash_of
from refmotion_nb.stages.grey_scale import choose

_MARKED = 3  # micrographs that a mark names


class DataKeys:
    """Hashes of a dataset and of its parts: a result holds as long as what it was computed from has the same hash.

    Files count by path, size and time of change.
    """

    def __init__(self, data: Dataset, micrographs: Mapping[str, tuple[Movie, xr.Dataset]]):
        """Take a dataset and its micrographs with their particles, by name."""
        self._micrographs = micrographs
        self._of: dict[str, str] = {}
        # the finest pixel decides on the box
        finest = min((movie.pixel_size_A for movie, _ in micrographs.values()), default=0.0)
        counts = [(name, particles.sizes["particle"]) for name, (_, particles) in micrographs.items()]
        several = len(data.references) > 1
        scaled_on = choose(micrographs, len(data.references)) if several else []
        self.common = digest((data.references, data.optics, finest, self.of(scaled_on)))
        """What the results of every micrograph depend on: references, what they were brought to one scale on, optics."""
        self.shared = hash_of(self.common, counts)
        """That, and which micrographs have how many particles, of which a part is drawn to search and measure on."""

    def of(self, names: Iterable[str]) -> str:
        """Return the hash of movies and particles of some micrographs; they and their order matter."""
        return hash_of([self._one(name) for name in names])

    @property
    def mark(self) -> dict[str, Any]:
        """What tells these data from others, whatever micrographs are added to them later; to be kept in a file."""
        names = list(self._micrographs)[:_MARKED]
        return {"micrographs": names, "key": hash_of(self.common, self.of(names))}

    def grown_from(self, mark: Any) -> bool:
        """Return whether these are the data with that ``mark``, perhaps with more micrographs."""
        names = mark.get("micrographs") if isinstance(mark, dict) else None
        return isinstance(names, list) and mark.get("key") == hash_of(self.common, self.of(names))

    @property
    def all(self) -> str:
        """Hash of everything."""
        return hash_of(self.shared, self.of(self._micrographs))

    def _one(self, name: str) -> str:
        if name not in self._micrographs:
            return f"no {name}"
        if name not in self._of:
            movie, particles = self._micrographs[name]
            columns = {name: particles.variables[name].values for name in sorted(map(str, particles.variables))}
            self._of[name] = digest((movie, columns))
        return self._of[name]


def digest(content: Any) -> str:
    """Return a hash of a dataclass, mapping, list, array or plain value and all in it; files as of ``DataKeys``."""
    found = hashlib.sha256()
    _add(found, content)
    return found.hexdigest()[:16]


def _add(digest: Any, content: Any) -> None:
    if isinstance(content, Reference):
        _add(digest, [path and Path(path) for path in astuple(content)])
    elif is_dataclass(content):
        _add(digest, [getattr(content, field.name) for field in fields(content)])
    elif isinstance(content, Mapping):
        _add(digest, list(content.items()))
    elif isinstance(content, list | tuple):
        digest.update(f"[{len(content)}".encode())
        for item in content:
            _add(digest, item)
    elif isinstance(content, Path):
        stat = content.stat() if content.exists() else None
        name = os.path.normpath(content)  # without ``..``, which are those of the folder that a command was given in
        digest.update(f"{name} {stat and (stat.st_size, stat.st_mtime_ns)};".encode())
    elif isinstance(content, np.ndarray) and content.dtype.kind != "O":
        digest.update(f"{content.dtype.str}{content.shape}".encode())
        digest.update(np.ascontiguousarray(content).tobytes())
    elif isinstance(content, np.ndarray):
        _add(digest, content.tolist())
    elif isinstance(content, int | float | np.number):  # 6 is 6.0
        digest.update(f"{float(content)!r};".encode())
    else:
        digest.update(f"{content!r};".encode())
