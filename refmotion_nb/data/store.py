"""The result store: one labelled table per stage or micrograph in ``results.zarr``, and the small files beside it.

xarray takes half a second to import, which the command line must not pay for showing its help: it is imported where it
is used.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refmotion_nb.data.files import admit, atomic, naming, only_within, read_text, sweep
from refmotion_nb.data.jsonfiles import finite, plain, read_json
from refmotion_nb.data.schema import InputError, as_path

if TYPE_CHECKING:
    import xarray as xr

SINGLE = ("audit", "search", "dose_weights", "particles", "validation", "corrected_micrographs")
PER_MICROGRAPH = ("tracks", "noise", "micrographs")
_KEY = "store_key"
_HYPERPARAMETERS = (
    "strength",
    "balance_deg",
    "distance_A",
    "spatial_strength",
    "acceleration_strength",
    "common_std_A",
    "drift_strength",
)


class ResultStore:
    """Results of one run on disk: an xarray DataTree in zarr format 2.

    A group appears whole or not at all, so a run that is killed goes on where it stopped. Threads and processes may
    write different groups at the same time.
    """

    def __init__(self, path: str | Path, within: Iterable[str | Path] = ()) -> None:
        """Take the path; links in it that lead out of the folders ``within`` are not followed when it is read."""
        self.path = as_path(path, "path")
        self.within = tuple(within)
        self._lock = threading.Lock()
        self._ready = False

    def __reduce__(self) -> tuple[type[ResultStore], tuple[Path, tuple[str | Path, ...]]]:
        """Go to workers as the path: a lock is of one process."""
        return type(self), (self.path, self.within)

    def __repr__(self) -> str:
        counts = [f"{len(names)} {section}" for section in PER_MICROGRAPH if (names := self.groups(section))]
        return f"<ResultStore {self.path}: {', '.join([*self._single(), *counts]) or 'empty'}>"

    def write(self, group: str, dataset: xr.Dataset, key: str = "") -> None:
        """Write ``dataset`` as ``group``, in place of what was there.

        Parameters
        ----------
        group
            One of ``SINGLE``, or ``tracks/<micrograph>``, ``noise/<micrograph>`` or ``micrographs/<micrograph>``.
        dataset
            Numbers, truth values and text; attributes come back in JSON's types (tuples and arrays as lists).
        key
            What the group was computed from; ``read`` and ``has`` can ask for it.

        Raises
        ------
        TypeError
            A variable holds something that cannot be stored.
        """
        from refmotion_nb.data import zarr_v2

        target = self._folder(group)
        temporary = self._temporary()
        self._prepare(target.parent)
        try:
            with naming(target):
                zarr_v2.write_group(temporary, dataset, {**dataset.attrs, **({_KEY: key} if key else {})})
                self._move(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove(self, group: str) -> None:
        """Remove ``group``, if it is there: at once, as seen by others."""
        temporary = self._temporary()
        with suppress(FileNotFoundError):
            os.rename(self._folder(group), temporary)
            shutil.rmtree(temporary, ignore_errors=True)

    def read(self, group: str, key: str = "", lazy: bool = False) -> xr.Dataset | None:
        """Read ``group``; None if it is not there, or was computed from something other than ``key``.

        Who gives a ``key`` can compute it again: then a damaged group, as a power failure leaves it, is as one that is not
        there. ``lazy`` leaves the arrays on disk until their values are asked for.

        Raises
        ------
        InputError
            The group is damaged, or leads out of the folders that may be read.
        """
        from refmotion_nb.data import zarr_v2

        while self.has(group, key):
            if (which := self._which(group)) is None:
                continue
            try:
                with only_within(self.within):
                    dataset = zarr_v2.read_group(self._folder(group), lazy)
            except InputError:
                if self._which(group) != which:  # it was written anew meanwhile, in this process or another
                    continue
                if key:
                    return None
                raise
            if self._which(group) == which:
                dataset.attrs.pop(_KEY, None)
                return dataset
        return None

    def _which(self, group: str) -> tuple[int, int] | None:
        """Return what tells a group from the one that is written in its place; None while there is none."""
        with suppress(FileNotFoundError):
            found = self._folder(group).stat()
            return found.st_ino, found.st_mtime_ns
        return None

    def has(self, group: str, key: str = "") -> bool:
        """Return whether ``group`` is there (and, with a ``key``, was computed from that)."""
        folder = self._folder(group)
        return (folder / ".zgroup").is_file() and (not key or self.key(group) == key)

    def key(self, group: str) -> str:
        """Return what ``group`` was computed from; empty if unknown."""
        with suppress(InputError):
            return str(read_json(self._folder(group) / ".zattrs", {}).get(_KEY, ""))
        return ""

    def stamp(self, group: str = "") -> int:
        """Return what changes when ``group`` is written anew; 0 if it is not there.

        Without a group it is that of the attributes; that of ``tracks`` and the like changes with each micrograph.
        """
        section = group in PER_MICROGRAPH
        path = self.path / group if section else self._folder(group) / ".zgroup" if group else self.path / ".zattrs"
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def groups(self, prefix: str = "") -> list[str]:
        """Return the names of the groups with results, sorted; only those that begin with ``prefix``, if given."""
        prefix = prefix.strip("/")
        if prefix in PER_MICROGRAPH:
            return [f"{prefix}/{name}" for name in _folders_in(self.path / prefix)]
        names = [*self._single(), *(name for section in PER_MICROGRAPH for name in self.groups(section))]
        return sorted(name for name in names if name.startswith(prefix))

    def _single(self) -> list[str]:
        return [name for name in _groups_in(self.path) if name not in PER_MICROGRAPH]

    def tree(self) -> xr.DataTree:
        """Return everything as one DataTree; arrays stay on disk until their values are asked for."""
        import xarray as xr

        groups = {name: self.read(name, lazy=True) for name in self.groups()}
        tree = xr.DataTree.from_dict({name: found for name, found in groups.items() if found is not None})
        tree.attrs = self.attrs
        return tree

    @property
    def attrs(self) -> dict[str, Any]:
        """What holds for the whole run (settings, inputs, versions, seconds): a copy; change it by ``update_attrs``."""
        with only_within(self.within):
            return read_json(self.path / ".zattrs", {})

    def update_attrs(self, **changes: Any) -> None:
        """Change some of the attributes of the whole run. For one process at a time; several threads may."""
        self._prepare(self.path)
        with self._lock, atomic(self.path / ".zattrs") as temporary:
            temporary.write_text(json.dumps(plain({**self.attrs, **changes})), encoding="ascii")

    def to_netcdf(self, path: str | Path) -> None:
        """Write everything as one NetCDF file (atomically), for programs that do not read zarr."""
        tree = self.tree().map_over_datasets(_for_netcdf)
        _put_netcdf(path, tree.to_dict())

    def _folder(self, group: str) -> Path:
        parts = group.split("/")
        alone = len(parts) == 1 and parts[0] not in PER_MICROGRAPH
        if not (alone or (len(parts) == 2 and parts[0] in PER_MICROGRAPH)) or any(
            not part or part[0] == "." for part in parts
        ):
            raise ValueError(f"{group!r} is no group of results; use one of {SINGLE} or tracks/<micrograph>")
        return self.path.joinpath(*parts)

    def _temporary(self) -> Path:
        # beside the store: whatever lies inside it would be taken for a group
        return self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:12]}")

    def _prepare(self, folder: Path) -> None:
        """Make ``folder`` and the groups above it; once, remove what killed runs left."""
        with self._lock:
            if not self._ready:
                sweep(self.path.parent, of=f"{self.path.name}.")
            self._ready = True
        for level in {self.path, folder}:
            if not (level / ".zgroup").is_file():
                with atomic(level / ".zgroup") as temporary:
                    temporary.write_text('{"zarr_format": 2}', encoding="ascii")

    def _move(self, temporary: Path, target: Path) -> None:
        """Move a folder into place; where another is there, that goes first: absent for a moment, never half there."""
        while True:
            try:
                os.rename(temporary, target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            old = self._temporary()
            with suppress(FileNotFoundError):
                os.rename(target, old)
            shutil.rmtree(old, ignore_errors=True)


def write_netcdf(path: str | Path, dataset: xr.Dataset) -> None:
    """Write ``dataset`` as a NetCDF file, atomically; attributes that NetCDF cannot hold are written as JSON text."""
    _put_netcdf(path, {"/": _for_netcdf(dataset)})


def _put_netcdf(path: str | Path, groups: Mapping[str, xr.Dataset]) -> None:
    """Write groups as a NetCDF file, atomically: made in memory, since HDF5 ends the process where the disk is full."""
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    made = io.BytesIO()
    with h5netcdf.File(made, "w") as file:
        # not by to_netcdf, which asks a Dask cluster for leave where one is in use
        for name, dataset in groups.items():
            dataset.dump_to_store(H5NetCDFStore(file, name, mode="a"))
    with atomic(path) as temporary:
        temporary.write_bytes(made.getbuffer())


def read_netcdf(path: str | Path) -> xr.Dataset:
    """Read a NetCDF file whole; attributes that are JSON text are turned back.

    Raises
    ------
    InputError
        The file does not exist or is not NetCDF.
    """
    import h5py
    import xarray as xr

    admit(path)
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; give a file in it")
    try:
        with h5py.File(path) as file:
            list(file.attrs.items())  # where these are damaged, h5netcdf would also write a traceback to the terminal
        with xr.open_dataset(path, engine="h5netcdf") as file:
            dataset = file.load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # the last two of damaged HDF5
        raise InputError(f"{path} cannot be read as NetCDF ({error}); is it complete?") from None
    items: list[Any] = [dataset, *dataset.variables.values()]
    for item in items:
        item.encoding.clear()
        item.attrs = {name: _from_netcdf(value) for name, value in item.attrs.items()}
    return dataset


def write_hyperparameters(
    path: str | Path,
    *,
    strength: float,
    balance_deg: float,
    distance_A: float,
    common_std_A: float,
    drift_strength: float,
    profile: Sequence[float] | Mapping[str, float],
    relion: Mapping[str, float],
    score: float = math.nan,
    energy: str = "calibrated",
    **metadata: Any,
) -> None:
    """Write hyperparameters for reuse, readable by people; atomically.

    Parameters
    ----------
    path
        Usually ``hyperparameters.json``.
    strength, balance_deg, distance_A
        The three hyperparameters; the spatial and acceleration strengths that follow are written too.
    common_std_A
        Standard deviation of the errors of whole-frame alignment in each frame, along either axis.
    drift_strength
        Of the acceleration prior on the motion of the whole field, (e/Å²)³/Å².
    profile
        Of local velocity with dose: a value per frame, or the parameters of a formula.
    relion
        The same prior on RELION's scale: s_vel, s_div, s_acc, dose_per_frame_e_A2.
    score
        Cross-validation score, lower is better.
    energy
        ``calibrated`` or ``relion``.
    **metadata
        Anything else worth keeping. What is not finite is written as null.
    """
    from refmotion_nb.numerics.prior import Hyperparameters  # imports much

    h = Hyperparameters(strength, balance_deg, distance_A)
    values = {"strength": strength, "balance_deg": balance_deg, "distance_A": distance_A,
              "spatial_strength": h.spatial_strength, "acceleration_strength": h.acceleration_strength,
              "common_std_A": common_std_A, "drift_strength": drift_strength,
              "profile": profile, "relion": relion, "score": score, "energy": energy}  # fmt: skip
    with atomic(path) as temporary:
        text = json.dumps(finite(plain({**values, **metadata})), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_hyperparameters(path: str | Path) -> dict[str, Any]:
    """Read ``hyperparameters.json``; numbers that are null come back as NaN.

    The spatial and acceleration strengths follow from strength and balance, or these from them, if only one pair is
    there.

    Raises
    ------
    InputError
        The file is not JSON, or a hyperparameter is missing or not a positive number.
    """
    text = read_text(path)
    try:
        values = dict(json.loads(text))
        found = {
            name: float("nan" if values[name] is None else values[name])
            for name in (*_HYPERPARAMETERS, "score")
            if name in values
        }
    except (ValueError, TypeError):
        raise InputError(f"{path} does not hold hyperparameters; give the hyperparameters.json of a run") from None
    spatial, acceleration = found.get("spatial_strength", math.nan), found.get("acceleration_strength", math.nan)
    found.setdefault("strength", math.hypot(spatial, acceleration))
    found.setdefault("balance_deg", math.degrees(math.atan2(acceleration, spatial)))
    found.setdefault("distance_A", math.nan)
    for name in ("strength", "distance_A"):
        if not 0 < found[name] < math.inf:
            raise InputError(f"{path}: {name} is {values.get(name, 'missing')}; it must be a positive number")
    for name in ("common_std_A", "drift_strength"):
        if not 0 <= found.get(name, 0.0) < math.inf:
            raise InputError(f"{path}: {name} is {values[name]}; it must be 0 or a positive number")
    if not 0 <= found["balance_deg"] <= 90:
        raise InputError(f"{path}: balance_deg is {values.get('balance_deg', 'missing')}; it must be from 0 to 90")
    _agree(found, path)
    return {**values, "score": math.nan, **found}


def _agree(found: dict[str, float], path: str | Path) -> None:
    """Fill in the two strengths that follow; whoever edits one pair must drop the other."""
    from refmotion_nb.numerics.prior import Hyperparameters

    h = Hyperparameters(*(found[name] for name in ("strength", "balance_deg", "distance_A")))
    for name in ("spatial_strength", "acceleration_strength"):
        value = getattr(h, name)
        if abs(found.setdefault(name, value) - value) > 1e-3 * found["strength"]:
            raise InputError(f"{path}: {name} contradicts strength and balance_deg; delete one pair of the two")


def _groups_in(folder: Path) -> list[str]:
    return sorted(marker.parent.name for marker in folder.glob("*/.zgroup"))


def _folders_in(folder: Path) -> list[str]:
    """Return the names of folders in a folder, which are groups since these appear whole: of thousands none is looked at."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    return []


def _for_netcdf(dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` with attributes that NetCDF can hold, and come back the same."""
    result = dataset.copy()
    items: list[Any] = [result, *result.variables.values()]
    for item in items:
        item.attrs = {name: _netcdf_attribute(value) for name, value in item.attrs.items()}
    return result


def _netcdf_attribute(value: Any) -> Any:
    value = plain(value)
    # lists as text too: NetCDF has no lists of lists, and returns a list of one as the one
    return json.dumps(value) if value is None or isinstance(value, bool | dict | list) else value


def _from_netcdf(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, str) and (value in ("null", "true", "false") or value[:1] in ("{", "[")):
        with suppress(ValueError):
            return json.loads(value)
    return value
