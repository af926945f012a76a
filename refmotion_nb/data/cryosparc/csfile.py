"""CryoSPARC's ``.cs`` tables and ``.csg`` groups: NumPy's format and the CSDAT container, which is read only.

A table is a structured array with one row per item; strings are bytes (``S``), as CryoSPARC itself stores them in
NumPy's format. CSDAT, as ``cryosparc-tools`` writes it: six magic bytes, a little-endian length and that much JSON
(``length``, ``dtype``, ``compressed_fields``), then for each column a length and its values (LZ4 blocks where listed),
strings as offsets into a heap of null-terminated strings that ends the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from refmotion_nb.data.files import admit, atomic, read_text, save_array
from refmotion_nb.data.schema import InputError

_NUMPY, _CSDAT = b"\x93NUMPY", b"\x95CSDAT"
_MOST_HEADER = 1_000_000  # characters; every class of a 3D classification has columns of its own
_REMEDY = "export it from CryoSPARC again"


@dataclass(frozen=True)
class Group:
    """A ``.csg`` file: its name and type, and for each result the metafile it is in, its type and number of items."""

    path: Path
    name: str
    kind: str
    results: Mapping[str, tuple[Path, str, int]]


def read_cs(path: str | Path) -> np.ndarray:
    """Read a ``.cs`` file of either format as a structured array (row,).

    Raises
    ------
    InputError
        It does not exist, is no ``.cs`` file, is truncated, or its rows have no ``uid``.
    """
    admit(path)
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(len(_NUMPY))
            file.seek(0)
            if start == _CSDAT:
                rows = _unpack(memoryview(file.read()))
            elif start == _NUMPY:
                rows = np.load(file, allow_pickle=False, max_header_size=_MOST_HEADER)
            else:
                raise InputError(f"{path} is not a CryoSPARC table (.cs); {_REMEDY}")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except Exception as error:
        raise InputError(f"{path} is damaged or not a CryoSPARC table ({error}); {_REMEDY}") from None
    if rows.dtype.names is None or "uid" not in rows.dtype.names:
        raise InputError(f"{path} has no column uid, so it is not a CryoSPARC table; {_REMEDY}")
    if not rows.dtype.isnative:  # which pandas does not take
        rows = rows.astype(rows.dtype.newbyteorder("="))
    rows = rows.reshape(-1)
    # as other programs write them; also those of micrographs
    if signed := [name for name in names(rows) if name.endswith("uid") and rows.dtype[name].kind == "i"]:
        rows = table(columns(rows) | {name: rows[name].astype(np.uint64) for name in signed})
    return rows


def write_cs(path: str | Path, rows: np.ndarray) -> None:
    """Write a structured array as a ``.cs`` file in NumPy's format; atomically."""
    save_array(path, rows)


def text(rows: np.ndarray, name: str) -> list[str]:
    """Return a column of strings; empty strings where there is no such column, InputError where one is not UTF-8."""
    if name not in names(rows):
        return [""] * len(rows)
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in rows[name].tolist()]
    except UnicodeDecodeError as error:
        word = error.object.decode("ascii", "backslashreplace")
        raise InputError(f"{name} {word} is not UTF-8; rename the file (convmv --notest -f latin1 -t utf-8) and import it "
                         "into CryoSPARC again") from None  # fmt: skip


def names(rows: np.ndarray) -> tuple[str, ...]:
    """Return the names of the columns."""
    return rows.dtype.names or ()


def columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns by name."""
    return {name: rows[name] for name in names(rows)}


def table(values: Mapping[str, Any]) -> np.ndarray:
    """Build a structured array from columns; strings become bytes."""
    arrays = {}
    for name, value in values.items():
        array = np.asarray(value)
        if array.dtype.kind in "OU":
            encoded = [str(one).encode() for one in array.tolist()]
            array = np.array(encoded, dtype=f"S{max(map(len, encoded), default=1) or 1}")
        arrays[name] = array
    dtype = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
    rows = np.zeros(len(next(iter(arrays.values()))), dtype=dtype)
    for name, array in arrays.items():
        rows[name] = array
    return rows


def merge(rows: np.ndarray, others: Sequence[tuple[str | Path, np.ndarray]], source: str | Path) -> np.ndarray:
    """Add the columns of other tables by ``uid``; a column that is there already is kept.

    Raises
    ------
    InputError
        A uid is listed twice, or another table lacks some of them; the message counts them.
    """
    _unique(rows, source)
    values = columns(rows)
    for path, other in others:
        _unique(other, path)
        new = [name for name in names(other) if name not in values]
        if not new:
            continue
        order = np.argsort(other["uid"])
        uid = other["uid"][order]
        at = np.searchsorted(uid, rows["uid"]).clip(max=max(len(other) - 1, 0))
        found = uid[at] == rows["uid"] if len(other) else np.zeros(len(rows), bool)
        if not found.all():
            raise InputError(f"{path} lacks {(~found).sum()} of the {len(rows)} items of {source} (by uid); "
                             "give the passthrough file of the same job")  # fmt: skip
        values |= {name: other[name][order[at]] for name in new}
    return table(values) if len(values) > len(names(rows)) else rows


def read_csg(path: str | Path) -> Group:
    """Read a ``.csg`` group; a metafile written as ``>name`` lies beside it, others start at the project folder.

    Raises
    ------
    InputError
        It does not exist, or is no group.
    """
    written = read_text(path)
    path = Path(path)
    try:
        content = yaml.safe_load(written)
        results = {
            str(name): (_metafile(path, str(one["metafile"])), str(one.get("type", "")), int(one.get("num_items") or 0))
            for name, one in content["results"].items()
        }
        about = content.get("group") or {}
        return Group(path, str(about.get("name", path.stem)), str(about.get("type", "")), results)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{path} is not a CryoSPARC result group (.csg); {_REMEDY}") from None


def write_csg(
    path: str | Path, name: str, kind: str, title: str, results: Mapping[str, tuple[str, str, int]], created: datetime
) -> None:
    """Write a ``.csg`` group; ``results`` are metafile (a name beside it), type and number of items by result name."""
    content = {
        "created": created,
        "group": {"description": title, "name": name, "title": title, "type": kind},
        "results": {
            result: {"metafile": f">{metafile}", "num_items": count, "type": type_}
            for result, (metafile, type_, count) in results.items()
        },
        "version": "v4.4.0",
    }
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, default_flow_style=False), encoding="utf-8")


def read_group(path: str | Path) -> np.ndarray:
    """Read a ``.cs`` file, or all metafiles of a ``.csg`` group merged by uid: each result from the one it is said to be in.

    Raises
    ------
    InputError
        As for ``read_cs``, ``read_csg`` and ``merge``; or a metafile of the group is missing.
    """
    path = Path(path)
    if path.suffix.lower() != ".csg":
        return read_cs(path)
    group = read_csg(path)
    files = list(dict.fromkeys(metafile for metafile, _, _ in group.results.values()))
    if not files:
        raise InputError(f"{path} lists no results; {_REMEDY}")
    if lost := [file for file in files if not file.is_file()]:
        raise InputError(f"{path} names {lost[0]}, which does not exist; copy all files of the group")
    tables = []
    for file in files:
        elsewhere = tuple(f"{name}/" for name, (other, _, _) in group.results.items() if other != file)
        rows = read_cs(file)
        own = {name: rows[name] for name in names(rows) if not name.startswith(elsewhere)}
        tables.append((file, table(own) if len(own) < len(names(rows)) else rows))
    # what of another job is named may list items that are not of the group
    fewest = min(range(len(tables)), key=lambda i: (len(tables[i][1]), -len(names(tables[i][1]))))
    first = tables.pop(fewest)
    return merge(first[1], tables, first[0])


def _metafile(group: Path, name: str) -> Path:
    if name.startswith(">"):
        return group.parent / name[1:]
    # in a project's own groups: relative to the project, which holds the job folder of the group
    return next((folder / name for folder in group.absolute().parents if (folder / name).is_file()), Path(name))


def _unique(rows: np.ndarray, path: str | Path) -> None:
    uid, count = np.unique(rows["uid"], return_counts=True)
    if len(uid) != len(rows):
        most = count.argmax()
        raise InputError(f"{path}: uid {uid[most]} is listed {count[most]} times; remove duplicates first")


def _unpack(data: memoryview) -> np.ndarray:
    from imagecodecs import lz4_decode

    (size,) = struct.unpack("<I", data[6:10])
    header = json.loads(bytes(data[10 : 10 + size]))
    n, packed = int(header["length"]), set(header.get("compressed_fields") or ())
    at = 10 + size
    raw: dict[str, np.ndarray] = {}
    strings = []
    for name, kind, *shape in header["dtype"] if n else ():
        (size,) = struct.unpack("<I", data[at : at + 4])
        block, at = data[at + 4 : at + 4 + size], at + 4 + size
        if len(block) != size:
            raise ValueError(f"it ends within column {name}")
        if kind in ("|O", "O"):
            strings.append(name)
        dtype = np.dtype("<u8" if name in strings else kind)
        dims = tuple(shape[0]) if shape else ()
        count = n * math.prod(dims)
        content = lz4_decode(bytes(block), header=False, out=count * dtype.itemsize) if name in packed else bytes(block)
        raw[name] = np.frombuffer(content, dtype, count).reshape(n, *dims)
    if not n:
        kinds = [
            (name, "S1" if kind in ("|O", "O") else kind, *map(tuple, shape)) for name, kind, *shape in header["dtype"]
        ]
        return np.zeros(0, dtype=kinds)
    heap = bytes(data[at:])
    for name in strings:
        ends = {int(start): heap.index(b"\0", int(start)) for start in np.unique(raw[name])}
        raw[name] = np.array([heap[int(start) : ends[int(start)]] for start in raw[name]])
    return table(raw)
