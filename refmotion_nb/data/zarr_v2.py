"""Datasets as zarr (format 2) groups, written as the plain files that the format is.

``Dataset.to_zarr`` takes some 40 ms for a group of a few small arrays, nearly all of it spent in getting ready. A run
writes one group for each of thousands of micrographs, and the format is no more than JSON beside raw bytes: done
directly, it takes about 2 ms. xarray and zarr open the result as they open their own.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.core import indexing

from refmotion_nb.data.files import admit
from refmotion_nb.data.jsonfiles import plain, read_json
from refmotion_nb.data.schema import InputError

_CHUNK_BYTES = 16 << 20  # bounds the copies made while writing and reading
_ZLIB = {"id": "zlib", "level": 1}


def write_group(folder: Path, dataset: xr.Dataset, attrs: Mapping[str, Any]) -> None:
    """Write the variables of ``dataset`` as a zarr group with attributes ``attrs`` into ``folder``, which is created.

    Attributes come back as JSON has them: tuples and arrays as lists.

    Raises
    ------
    TypeError
        A variable holds something other than numbers, truth values or text.
    """
    folder.mkdir(parents=True)
    for name, variable in dataset.variables.items():
        _write_array(folder / str(name), variable)
    # xarray's convention for coordinates that no dimension is named after
    extra = sorted(str(name) for name in dataset.coords if name not in dataset.dims)
    _write_json(folder / ".zattrs", {**attrs, **({"coordinates": " ".join(extra)} if extra else {})})
    _write_json(folder / ".zgroup", {"zarr_format": 2})


def read_group(folder: Path, lazy: bool = False) -> xr.Dataset:
    """Read a zarr group; ``lazy`` leaves each array on disk until its values are asked for.

    Raises
    ------
    InputError
        A file in the group is damaged.
    """
    try:
        return _read_group(folder, lazy)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError):  # JSON still, but of something else
        raise InputError(f"{folder} is damaged; delete it to have it computed again") from None


def _read_group(folder: Path, lazy: bool) -> xr.Dataset:
    headers = {path.parent: read_json(path) for path in sorted(folder.glob("*/.zarray"))}
    if not all(map(_is_plain, headers.values())):
        # written by other means, with other codecs
        found = xr.open_zarr(folder, consolidated=False, chunks=None)
        return found if lazy else found.load()
    variables = {path.name: _read_array(path, header, lazy) for path, header in headers.items()}
    attrs = read_json(folder / ".zattrs", {})
    coords = str(attrs.pop("coordinates", "")).split()
    return xr.Dataset(variables, attrs=attrs).set_coords(coords)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(plain(value)), encoding="ascii")


def _write_array(folder: Path, variable: xr.Variable) -> None:
    values = _storable(variable.values, folder.name)
    chunks = _chunk_shape(values)
    # text is stored with 4 bytes a character, most of them 0; floats from measurements hardly shrink
    codec = _ZLIB if values.dtype.kind == "U" else None
    header = {"zarr_format": 2, "shape": values.shape, "chunks": chunks, "dtype": values.dtype.str, "order": "C",
              "compressor": codec, "filters": None, "fill_value": None}  # fmt: skip
    folder.mkdir()
    _write_json(folder / ".zarray", header)
    _write_json(folder / ".zattrs", {**variable.attrs, "_ARRAY_DIMENSIONS": variable.dims})
    for number, start in enumerate(_starts(values.shape, chunks)):
        part = values[start : start + chunks[0]] if chunks else values
        if part.shape != chunks:  # every chunk is stored whole
            part = np.concatenate([part, np.zeros((chunks[0] - len(part), *chunks[1:]), part.dtype)])
        data = np.ascontiguousarray(part).tobytes()
        (folder / _chunk_name(number, chunks)).write_bytes(zlib.compress(data, 1) if codec else data)


def _storable(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind == "O":
        if not all(isinstance(value, str) for value in values.flat):
            raise TypeError(f"{name} holds objects that are not text; make them numbers or text")
        values = values.astype(str)
    if values.dtype.kind not in "biufU":
        raise TypeError(f"{name} is {values.dtype}; only numbers, truth values and text can be stored")
    if values.dtype.itemsize == 0:
        values = values.astype("<U1")
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def _chunk_shape(values: np.ndarray) -> tuple[int, ...]:
    if not values.ndim:
        return ()
    rows = max(1, _CHUNK_BYTES // max(1, values[:1].nbytes))
    return (max(1, min(rows, len(values))), *(max(1, size) for size in values.shape[1:]))


def _starts(shape: tuple[int, ...], chunks: tuple[int, ...]) -> range:
    if not shape:
        return range(1)
    return range(0, shape[0] if math.prod(shape) else 0, chunks[0])


def _chunk_name(number: int, chunks: tuple[int, ...]) -> str:
    return ".".join([str(number), *["0"] * (len(chunks) - 1)])


def _read_array(folder: Path, header: Mapping[str, Any], lazy: bool) -> xr.Variable:
    attrs = read_json(folder / ".zattrs", {})
    dims = attrs.pop("_ARRAY_DIMENSIONS")
    array = _Array(folder, header)
    return xr.Variable(dims, indexing.LazilyIndexedArray(array) if lazy else array.values(), attrs)


def _is_plain(header: Mapping[str, Any]) -> bool:
    shape, chunks = header["shape"], header["chunks"]
    return (
        header["compressor"] in (None, _ZLIB)
        and not header["filters"]
        and header["order"] == "C"
        and header["fill_value"] is None
        and header.get("dimension_separator", ".") == "."
        and np.dtype(header["dtype"]).kind in "biufU"
        and all(chunk >= size for chunk, size in zip(chunks[1:], shape[1:]))
    )


class _Array(BackendArray):
    """An array on disk, read when it is indexed."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = folder
        self.shape = tuple(header["shape"])
        self.dtype = np.dtype(header["dtype"])
        self.chunks = tuple(header["chunks"])
        self.compressed = bool(header["compressor"])

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, lambda index: self.values()[index]
        )

    def values(self) -> np.ndarray:
        result = np.empty(self.shape, self.dtype)
        starts = _starts(self.shape, self.chunks)
        paths = [self.folder / _chunk_name(number, self.chunks) for number in range(len(starts))]
        for path in paths:
            admit(path)
        try:
            for path, start in zip(paths, starts):
                data = path.read_bytes()
                part = np.frombuffer(zlib.decompress(data) if self.compressed else data, self.dtype)
                if self.chunks:
                    result[start : start + self.chunks[0]] = part.reshape(self.chunks)[: self.shape[0] - start]
                else:
                    result[()] = part.reshape(())
        except (OSError, ValueError, zlib.error):
            group = self.folder.parent
            raise InputError(f"{self.folder} is damaged; delete {group} to have it computed again") from None
        return result
