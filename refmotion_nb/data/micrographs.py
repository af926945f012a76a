"""Movies as a table lists them, without particles, and the same table of the micrographs made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refmotion_nb.data.cryosparc.csfile import columns, names, text, write_cs, write_csg
from refmotion_nb.data.cryosparc.csfile import table as cs_table
from refmotion_nb.data.files import listed_from
from refmotion_nb.data.schema import Movie, Skipped
from refmotion_nb.data.star import read_star, table, write_star

_TYPES = {  # of results that are named otherwise
    "micrograph_blob_non_dw": "micrograph_blob", "background_blob": "stat_blob", "rigid_motion": "motion",
    "spline_motion": "motion", "micrograph_thumbnail_blob_1x": "thumbnail_blob",
    "micrograph_thumbnail_blob_2x": "thumbnail_blob",
}  # fmt: skip


@dataclass(frozen=True)
class MovieTable:
    """Movies as RELION's or CryoSPARC's table lists them, whether or not there are particles on them."""

    movies: tuple[Movie, ...]
    rows: tuple[int, ...]  # (movie,) row of the table
    groups: tuple[str, ...]  # (movie,) name of the optics or exposure group
    root: Path  # where paths in the table start
    relion: Mapping[str, pd.DataFrame] | None = None  # `optics` and `micrographs`
    cryosparc: np.ndarray | None = None  # exposures
    skipped: tuple[Skipped, ...] = ()  # what the table lists but cannot be used
    sources: tuple[tuple[str, Path], ...] = ()  # what each table it was made from holds, and where that lies
    orientation: str = ""  # how CryoSPARC's tables lie on the movies (see ``open_exposures``); empty for RELION


@dataclass(frozen=True)
class WrittenMicrograph:
    """A micrograph on disk."""

    movie: Movie
    row: int  # of the table that lists its movie
    name: str  # path beside the table that is written, as `Micrographs/NAME.mrc`
    name_nodw: str  # of the sum that is not dose-weighted; empty if there is none
    shape: tuple[int, int]  # height, width
    pixel_size_A: float
    low: float  # brightness to display it from, to
    high: float


def write_relion(out: Path, data: MovieTable, written: Sequence[WrittenMicrograph], image_root: Path | None) -> Path:
    """Write ``corrected_micrographs.star`` in ``out``, with the columns that the input has; the motion STAR files beside it.

    Paths start at ``image_root`` where ``out`` lies in it, else they are absolute.
    """
    assert data.relion is not None
    base = listed_from(out, image_root)
    rows = table(data.relion, "micrographs").iloc[[one.row for one in written]].reset_index(drop=True)
    for one, metadata in zip(written, rows["rlnMicrographMetadata"].astype(str)):
        _write_motion(out / Path(one.name).with_suffix(".star"), data.root, metadata, one)
    rows["rlnMicrographName"] = [f"{base}/{one.name}" for one in written]
    rows["rlnMicrographMetadata"] = [f"{base}/{Path(one.name).with_suffix('.star').as_posix()}" for one in written]
    rows = rows.drop(columns=[f"rlnMicrographName{sum_}" for sum_ in ("NoDW", "Even", "Odd")], errors="ignore")
    if any(one.name_nodw for one in written):
        rows["rlnMicrographNameNoDW"] = [f"{base}/{one.name_nodw}" for one in written]
    rows, optics = _with_pixel_sizes(rows, table(data.relion, "optics"), written)
    path = out / "corrected_micrographs.star"
    write_star(path, {"optics": optics, "micrographs": rows})
    return path


def write_cryosparc(out: Path, data: MovieTable, written: Sequence[WrittenMicrograph]) -> Path:
    """Write ``exposures.cs`` and ``.csg`` in ``out``: the input's columns, with the new micrographs in place of its own."""
    assert data.cryosparc is not None
    values: dict[str, Any] = columns(data.cryosparc[[one.row for one in written]])
    for name in [name for name in values if name.startswith(("micrograph_blob/", "micrograph_blob_non_dw/"))]:
        del values[name]  # what is left of them would belong to other images
    values |= _blob("micrograph_blob", written, [one.name for one in written])
    if any(one.name_nodw for one in written):
        values |= _blob("micrograph_blob_non_dw", written, [one.name_nodw for one in written])
    path = out / "exposures.cs"
    rows = cs_table(values)
    write_cs(path, rows)
    results = dict.fromkeys(name.split("/")[0] for name in values if "/" in name)
    write_csg(path.with_suffix(".csg"), "exposures", "exposure", "Dose-weighted micrographs",
              {name: (path.name, f"exposure.{_TYPES.get(name, name)}", len(rows)) for name in results},
              datetime.now())  # fmt: skip
    return path


def beside_absolute(rows: np.ndarray, folder: Path) -> np.ndarray:
    """Return CryoSPARC's rows with paths that start beside their table (``>``) made absolute, to be listed elsewhere."""
    values: dict[str, Any] = columns(rows)
    for name in names(rows):
        if name.endswith("path") and rows.dtype[name].kind == "S":
            values[name] = [
                str((folder / one[1:]).absolute()) if one.startswith(">") else one for one in text(rows, name)
            ]
    return cs_table(values)


def _blob(kind: str, written: Sequence[WrittenMicrograph], files: Sequence[str]) -> dict[str, Any]:
    n = len(written)
    return {
        f"{kind}/path": [f">{name}" for name in files],
        f"{kind}/idx": np.zeros(n, np.uint32),
        f"{kind}/shape": np.array([one.shape for one in written], np.uint32),
        f"{kind}/psize_A": np.array([one.pixel_size_A for one in written], np.float32),
        f"{kind}/format": ["MRC/2"] * n,
        f"{kind}/is_background_subtracted": np.array([one.movie.background is not None for one in written], np.uint32),
        f"{kind}/vmin": np.array([one.low for one in written], np.float32),
        f"{kind}/vmax": np.array([one.high for one in written], np.float32),
        f"{kind}/import_sig": np.zeros(n, np.uint64),
    }


def _with_pixel_sizes(
    rows: pd.DataFrame, optics: pd.DataFrame, written: Sequence[WrittenMicrograph]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Note the pixel size of the micrographs in their optics groups; a group of several sizes is split."""
    group = rows["rlnOpticsGroup"].to_numpy()
    size = np.array([round(one.pixel_size_A, 6) for one in written])
    parts, number = [], int(optics["rlnOpticsGroup"].max())
    new_group = group.copy()
    for old in optics["rlnOpticsGroup"].tolist():
        for i, pixel in enumerate(np.unique(size[group == old])):
            part = optics[optics["rlnOpticsGroup"] == old].copy()
            part["rlnMicrographPixelSize"] = pixel
            if i:
                number += 1
                part["rlnOpticsGroup"] = number
                if "rlnOpticsGroupName" in part.columns:
                    part["rlnOpticsGroupName"] = f"{part['rlnOpticsGroupName'].iloc[0]}_{pixel:g}A"
                new_group[(group == old) & (size == pixel)] = number
            parts.append(part)
    rows["rlnOpticsGroup"] = new_group
    return rows, pd.concat(parts, ignore_index=True)


def _write_motion(path: Path, root: Path, source: str, one: WrittenMicrograph) -> None:
    """Copy a motion STAR file with the binning of the new micrograph, and dose and gain as they were used."""
    movie, blocks = one.movie, dict(read_star(root / source))
    general: dict[str, Any] = {str(key): value for key, value in table(blocks, "general").iloc[0].items()}
    grouping = int(general.get("rlnEERGrouping", movie.eer_grouping))  # its frames stay those of motion correction
    general |= {
        "rlnMicrographBinning": one.pixel_size_A / movie.pixel_size_A,
        "rlnMicrographDoseRate": movie.dose_per_frame_e_A2 * grouping / movie.eer_grouping,
        "rlnMicrographPreExposure": movie.pre_exposure_e_A2,
    }
    if movie.gain is not None and movie.gain.path != root / str(general.get("rlnMicrographGainName", "")):
        general["rlnMicrographGainName"] = str(movie.gain.path)
    write_star(path, {"general": general, **{name: block for name, block in blocks.items() if name != "general"}})
