"""RELION's results, read and written: tracks, per-frame B-factors, prior parameters, FSC curves, particle tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from refmotion_nb.data.files import atomic, read_text
from refmotion_nb.data.schema import InputError, Reference, as_path
from refmotion_nb.data.star import Block, read_star, table, write_star

_TRACK = re.compile(r"^data_(\d+)\s*$", re.MULTILINE)
_BFACTOR_LABELS = ("rlnMovieFrameNumber", "rlnBfactorUsedForSharpening", "rlnFittedInterceptGuinierPlot")


class Priors(NamedTuple):
    """The three parameters of RELION's motion prior."""

    s_vel: float  # Å per e/Å²
    s_div: float  # Å
    s_acc: float  # Å per e/Å²


def read_tracks(path: str | Path) -> np.ndarray:
    """Read a ``_tracks.star`` of RELION's polishing: displacements (particle, frame, 2) Å, in the file's order.

    Raises
    ------
    InputError
        A track is missing or has another number of frames than the first.
    """
    # one block per particle: the general reader would build one table for each
    text = read_text(path)
    heads = list(_TRACK.finditer(text))
    count = re.search(r"_rlnParticleNumber\s+(\d+)", text)
    if not heads or (count and int(count[1]) != len(heads)):
        raise InputError(f"{path} does not hold the tracks it announces; is the file complete?")
    ends = [head.start() for head in heads[1:]] + [len(text)]
    tracks: dict[int, np.ndarray] = {}
    for head, end in zip(heads, ends):
        tracks[int(head[1])] = _track(text[head.end() : end], f"{path}, data_{head[1]}")
    if len({track.shape for track in tracks.values()}) != 1 or set(tracks) != set(range(len(heads))):
        raise InputError(f"{path}: its tracks are not of one length or not numbered from 0; is the file complete?")
    return np.stack([tracks[i] for i in range(len(tracks))])


def write_tracks(path: str | Path, tracks: np.ndarray) -> None:
    """Write displacements (particle, frame, 2) Å as RELION's ``_tracks.star``; atomically."""
    header = "# version 30001\n\ndata_{}\n\nloop_\n_rlnOriginXAngst #1\n_rlnOriginYAngst #2\n"
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f"\n# version 30001\n\ndata_general\n\n_rlnParticleNumber {len(tracks)}\n\n\n")
        for i, track in enumerate(np.asarray(tracks, float)):
            rows = "%13.8g %13.8g\n" * len(track) % tuple(track.ravel().tolist())
            file.write(f"{header.format(i)}{rows}\n\n")


def read_bfactors(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``bfactors.star``: per frame B (frame,) Å², negative where the frame is worse, and ln of its scale (frame,).

    Raises
    ------
    InputError
        The file has no ``data_perframe_bfactors``, its frames are not numbered from 0, or a value is text.
    """
    rows = table(read_star(path, ("perframe_bfactors",)), "perframe_bfactors")
    if not set(_BFACTOR_LABELS) <= set(rows.columns):
        raise InputError(f"{path} has no data_perframe_bfactors; give the bfactors.star of a polishing job")
    rows = rows.sort_values("rlnMovieFrameNumber")
    if rows["rlnMovieFrameNumber"].tolist() != list(range(len(rows))):
        raise InputError(f"{path}: its frames are not numbered from 0 without gaps; is the file complete?")
    return _numbers(rows, _BFACTOR_LABELS[1], path), _numbers(rows, _BFACTOR_LABELS[2], path)


def write_bfactors(path: str | Path, b_factor: np.ndarray, log_scale: np.ndarray) -> None:
    """Write per-frame B (frame,) Å² in RELION's sign and ln of the scale (frame,) as ``bfactors.star``; atomically."""
    columns = np.arange(len(b_factor)), np.asarray(b_factor, float).round(6), np.asarray(log_scale, float).round(9)
    write_star(path, {"perframe_bfactors": pd.DataFrame(dict(zip(_BFACTOR_LABELS, columns)))})


def read_priors(path: str | Path) -> Priors:
    """Read ``opt_params_all_groups.txt``: s_vel, s_div and s_acc.

    Raises
    ------
    InputError
        The file does not start with three positive numbers.
    """
    try:
        s_vel, s_div, s_acc = map(float, read_text(path).split()[:3])
    except ValueError:
        raise InputError(f"{path} does not hold 's_vel s_div s_acc'; give RELION's opt_params file") from None
    if not all(0 < value < math.inf for value in (s_vel, s_div, s_acc)):
        raise InputError(f"{path}: s_vel, s_div and s_acc must be positive numbers; train again")
    return Priors(s_vel, s_div, s_acc)


def read_fsc(path: str | Path) -> np.ndarray:
    """Read the FSC of a ``postprocess.star``, (shell,) from the origin, corrected for the mask where that was done.

    Raises
    ------
    InputError
        The file holds no FSC, its shells are not numbered from 0, or a value is text.
    """
    rows = table(read_star(path, ("fsc",)), "fsc")
    # the second where RELION was given no mask
    labels = tuple(f"rlnFourierShellCorrelation{which}" for which in ("Corrected", "UnmaskedMaps", ""))
    label = next((label for label in labels if label in rows.columns), labels[0])
    if absent := [name for name in ("rlnSpectralIndex", label) if name not in rows.columns]:
        what = f"its data_fsc lacks {' and '.join(absent)}" if len(rows) else "it has no table data_fsc"
        raise InputError(f"{path} has no FSC: {what}; give the postprocess.star of RELION's post-processing")
    shells = rows["rlnSpectralIndex"].tolist()
    if wrong := [i for i, shell in enumerate(shells) if shell != i]:
        raise InputError(f"{path}: the shells of its FSC are not numbered from 0 without gaps: row {wrong[0] + 1} of data_fsc "
                         f"has rlnSpectralIndex {shells[wrong[0]]}; is the file complete?")  # fmt: skip
    return _numbers(rows, label, path)


def open_postprocess(path: str | Path, root: str | Path | None = None) -> tuple[Reference, np.ndarray]:
    """Read a ``postprocess.star``: the reference it names (half maps, mask) and its FSC (shell,).

    The paths in it start at ``root``; without one, at the current folder or the nearest parent folder of the file where
    half map 1 is found.

    Raises
    ------
    InputError
        The file names no half maps, or holds no FSC.
    """
    rows = table(read_star(path, ("general",)), "general")
    labels = ("rlnUnfilteredMapHalf1", "rlnUnfilteredMapHalf2", "rlnMaskName")
    names = [str(rows[label].iloc[0]) if label in rows.columns and len(rows) else "" for label in labels]
    if absent := [label for label, name in zip(labels[:2], names) if not name]:
        what = f"its data_general lacks {' and '.join(absent)}" if len(rows) else "it has no table data_general"
        raise InputError(
            f"{path} does not name its half maps: {what}; give RELION's postprocess.star, or half maps and mask"
        )
    folder = find_root([path], names[:1]) if root is None else Path(root)
    half1, half2, mask = (folder / name for name in names)
    return Reference(half1, half2, mask=mask if names[2] else None, postprocess=Path(path)), read_fsc(path)


def find_root(files: Sequence[str | Path], names: Sequence[str]) -> Path:
    """Find the folder from which relative ``names`` lead to files: the current one or a parent of one of ``files``.

    The first few names that are not empty are tried. Where none fits, the current folder.
    """
    folders = [Path(), *(folder for file in files for folder in Path(file).absolute().parents)]
    some = [name for name in names if name][:4]
    return next((folder for folder in folders if any((folder / name).exists() for name in some)), Path())


def given_root(root: str | Path | None) -> Path | None:
    """Return the folder given as root, None where none is; InputError where it is no folder."""
    folder = None if root is None else as_path(root, "root")
    if folder is not None and not folder.is_dir():
        raise InputError(f"root {folder} {'is not a folder' if folder.exists() else 'does not exist'}; give the folder of the "
                         "project, or leave it out")  # fmt: skip
    return folder


def write_particles(
    path: str | Path,
    tables: Mapping[str, Block],
    rows: Sequence[int] | np.ndarray,
    image_names: Sequence[str],
    *,
    pixel_size_A: Mapping[int, float],
    box_size: Mapping[int, int],
    coordinate_px: np.ndarray,
    origin_A: np.ndarray,
) -> None:
    """Write the particle table of new images as RELION reads it, with all input columns kept; atomically.

    Parameters
    ----------
    path
        The STAR file to write.
    tables
        The input tables (``optics`` and ``particles``).
    rows
        (particle,) rows of the input table that have an image, from 0.
    image_names
        (particle,) ``N@stack`` for each of them.
    pixel_size_A
        Of the new images, which are not multiplied by their CTF, by number of the optics group.
    box_size
        Of the new images, px, likewise.
    coordinate_px, origin_A
        (particle, 2) micrograph pixels and Å, of their centres.

    Raises
    ------
    InputError
        No particle is left to write.
    """
    particles = table(tables, "particles").iloc[np.asarray(rows, int)].reset_index(drop=True)
    if particles.empty:
        raise InputError(f"{path}: no particles to write")
    particles["rlnImageName"] = list(image_names)
    particles["rlnCoordinateX"], particles["rlnCoordinateY"] = np.asarray(coordinate_px, float).round(6).T
    # the older columns, in pixels of images that are no longer the ones listed, would contradict these
    older = [f"rlnOrigin{axis}{prior}" for axis in "XY" for prior in ("", "Prior")]
    particles = particles.drop(columns=older, errors="ignore")
    for axis, new in zip("XY", np.asarray(origin_A, float).round(6).T):
        prior = f"rlnOrigin{axis}PriorAngst"  # where helices and bodies are searched: it goes along
        if prior in particles.columns:
            particles[prior] += new - particles[f"rlnOrigin{axis}Angst"]
        particles[f"rlnOrigin{axis}Angst"] = new
    optics = table(tables, "optics")
    optics = optics[optics["rlnOpticsGroup"].isin(particles["rlnOpticsGroup"])].reset_index(drop=True)
    groups = optics["rlnOpticsGroup"]
    optics["rlnImagePixelSize"], optics["rlnImageSize"] = groups.map(dict(pixel_size_A)), groups.map(dict(box_size))
    optics["rlnCtfDataAreCtfPremultiplied"] = 0
    write_star(path, {"optics": optics, "particles": particles})


def _numbers(rows: pd.DataFrame, label: str, path: str | Path) -> np.ndarray:
    """Return a column (row,) of numbers, which need not be finite; InputError where one is text."""
    try:
        return rows[label].to_numpy(float)
    except ValueError as error:
        raise InputError(f"{path}: {label} is not a number in a row ({error}); is the file complete?") from None


def _track(text: str, where: str) -> np.ndarray:
    labels = re.findall(r"^_(\S+)", text, re.MULTILINE)
    values = [line.split() for line in text.splitlines() if line.strip() and line.strip()[0] not in "_#l"]
    try:
        track = np.array(values, float).reshape(-1, len(labels))
        return track[:, [labels.index("rlnOriginXAngst"), labels.index("rlnOriginYAngst")]]
    except ValueError:
        raise InputError(f"{where} does not hold a track in Å; is the file complete?") from None
