"""Where CryoSPARC's files are: paths in tables, passthrough files, half maps and masks of volumes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import escape
from pathlib import Path

import numpy as np

from refmotion_nb.data.cryosparc.csfile import columns, merge, names, read_cs, read_csg, read_group, text
from refmotion_nb.data.relion.micrographs import from_root
from refmotion_nb.data.schema import InputError, Reference

_UID = re.compile(r"^\d{15,21}_")
_JOB = re.compile(r"(?:^|[/_])(J\d+)(?=[/_.])")
_ITERATION = re.compile(r"^(.*J\d+_)(\d{3})(_.*)$")
_MASKS = ("mask_refine", "mask_fsc_auto", "mask_fsc", "mask")
Entry = str | Path | Sequence[str | Path]


def without_uid(name: str) -> str:
    """Strip the number that CryoSPARC puts before the names of imported files."""
    return _UID.sub("", name)


def locate(name: str, root: Path, beside: Path) -> Path:
    """Find a file by its path in a table: ``>`` starts beside the table, others at the project folder.

    Where it is not there, its name with or without CryoSPARC's uid before it is looked for in the same folder.
    """
    if name.startswith(">"):
        candidates = [beside / name[1:]]
    else:
        candidates = [root / name, beside / name]
    for path in candidates:
        if path.exists():
            return path
    for path in candidates:
        plain = path.with_name(without_uid(path.name))
        if plain.exists():
            return plain
        if path.parent.is_dir():
            uids = [
                other for other in path.parent.glob(f"*_{escape(plain.name)}") if without_uid(other.name) == plain.name
            ]
            if len(uids) == 1:
                return uids[0]
    return candidates[0]


def first_file(entry: Entry) -> Path:
    """Return the file that an entry is named by."""
    return Path(entry) if isinstance(entry, str | Path) else Path(entry[0])


def read_rows(entry: Entry, wanted: Sequence[str]) -> np.ndarray:
    """Read a table, or a table and its passthrough files; what it lacks is taken from passthrough files beside it.

    Raises
    ------
    InputError
        A file cannot be read, or a passthrough file that was given lacks items.
    """
    first = first_file(entry)
    rows = read_group(first)
    if not isinstance(entry, str | Path):
        rows = merge(rows, [(path, read_group(path)) for path in entry[1:]], first)
    for path in sorted(first.parent.glob("*passthrough*.cs")):
        if all(name in names(rows) for name in wanted):
            break
        other = read_cs(path) if path != first else rows
        helps = set(wanted) & set(names(other)) - set(names(rows))
        if helps and len(rows) and np.isin(rows["uid"], other["uid"]).all():
            rows = merge(rows, [(path, other)], first)
    return merge(rows, [], first)


def job_of(path: str | Path, name: str = "") -> str:
    """Name the CryoSPARC job that a file belongs to (``J12``), by its path; empty if it does not tell."""
    found = _JOB.findall(name) or _JOB.findall(str(path))
    return found[-1] if found else ""


def read_reference(volume: Entry, mask: str | Path | None, root: Path) -> tuple[Reference, str]:
    """Find half maps and mask of a volume (``.cs`` or ``.csg``), and the job they are from; a mask given wins.

    Raises
    ------
    InputError
        A table cannot be read, or holds no half maps or no mask.
    """
    first = first_file(volume)
    found = _paths([first] if isinstance(volume, str | Path) else [Path(one) for one in volume])
    if not {"map_half_A", "map_half_B"} <= set(found):
        found = _paths(_of_its_iteration(first, ("*map_half_[AB].cs", "*mask_*.cs")), _uids(first)) | found
    if missing := [half for half in ("map_half_A", "map_half_B") if half not in found]:
        raise InputError(f"{first} has no {' and no '.join(missing)}; give the volume of a refinement of half sets")
    own = next((found[name] for name in _MASKS if name in found), None)
    mask_path = _mask(Path(mask), root) if mask is not None else locate(own[0], root, own[1]) if own else None
    half1, half2 = (locate(*_split(found[name], root)) for name in ("map_half_A", "map_half_B"))
    return Reference(half1, half2, mask_path), job_of(first, found["map_half_A"][0])


def later_iteration(path: Path) -> Path | None:
    """Return the same result of the last iteration in the folder of a result, if that is a later one."""
    parts = _ITERATION.match(path.name)
    if parts is None:
        return None
    before, _, after = parts.groups()
    last = max(
        (other.name for other in path.parent.glob(f"{escape(before)}[0-9][0-9][0-9]{escape(after)}")), default=""
    )
    return path.with_name(last) if last > path.name else None


def _of_its_iteration(first: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files beside a table that match, of its iteration: a job keeps those of all; the last first if it has none."""
    files = sorted((path for pattern in patterns for path in first.parent.glob(pattern)), reverse=True)
    parts = _ITERATION.match(first.name)
    return [path for path in files if parts is None or path.name.startswith(parts[1] + parts[2])]


def _split(found: tuple[str, Path], root: Path) -> tuple[str, Path, Path]:
    return found[0], root, found[1]


def _paths(files: Sequence[Path], uids: frozenset[int] | None = None) -> dict[str, tuple[str, Path]]:
    """Paths of the images in tables by result name, with the folder of the table."""
    found: dict[str, tuple[str, Path]] = {}
    for file in files:
        parts = [one for one, _, _ in read_csg(file).results.values()] if file.suffix.lower() == ".csg" else [file]
        for part in dict.fromkeys(parts):
            if file.suffix.lower() == ".csg" and not part.is_file():
                raise InputError(f"{file} names {part}, which does not exist; copy all files of the group")
            rows = read_cs(part)
            if not len(rows) or (uids is not None and not uids & {int(uid) for uid in rows["uid"]}):
                continue
            for name in columns(rows):
                if name.endswith("/path") and text(rows[:1], name)[0]:
                    found.setdefault(name.removesuffix("/path"), (text(rows[:1], name)[0], part.parent))
    return found


def _uids(path: Path) -> frozenset[int] | None:
    return None if path.suffix.lower() == ".csg" else frozenset(int(uid) for uid in read_cs(path)["uid"])


def _mask(path: Path, root: Path) -> Path:
    path = from_root(path, root)
    if path.suffix.lower() not in (".cs", ".csg"):
        return path
    found = _paths([path])
    name = next((name for name in (*_MASKS, *found) if name in found), None)
    if name is None:
        raise InputError(f"{path} names no mask; give the mask's .cs or .mrc file")
    return locate(found[name][0], root, found[name][1])
