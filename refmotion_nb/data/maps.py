"""MRC volumes and image stacks: reading, writing with a right header, and the checks of a reference."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import mrcfile
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from refmotion_nb.data.files import admit, atomic, write_at
from refmotion_nb.data.relion.results import read_fsc
from refmotion_nb.data.schema import InputError, Reference

HEADER_BYTES = 1024  # of an MRC file
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_SAME_PIXEL = 1e-3  # relative; headers hold the cell in float32, and programs round


@dataclass(frozen=True)
class LoadedReference:
    """A reference in memory: half maps and mask of one size, float32 (n, n, n) z y x, and RELION's FSC where given."""

    half1: np.ndarray
    half2: np.ndarray
    mask: np.ndarray
    pixel_size_A: float
    fsc: np.ndarray | None = None  # (shell,) of the box, corrected for the mask

    @property
    def box_size(self) -> int:
        """Box size, px."""
        return self.half1.shape[0]


def read_map(path: str | Path) -> tuple[np.ndarray, float]:
    """Read a volume: float32 (z, y, x) and its pixel size in Å.

    Raises
    ------
    InputError
        Not an MRC file, truncated, axes in another order, voxels not cubes, or a header without a pixel size.
    """
    shape, pixel_size_A = map_header(path)
    with _opened(path) as file:
        data = file.data
    volume = np.asarray(data, np.float32).reshape(shape)
    volume.flags.writeable = True  # mrcfile says no of what it read, which is nobody else's
    return volume, pixel_size_A


def map_header(path: str | Path) -> tuple[tuple[int, int, int], float]:
    """Size (z, y, x) and pixel size (Å) of a volume, from its header alone; errors as for ``read_map``."""
    with _opened(path, header_only=True) as file:
        header = file.header
        shape = int(header.nz), int(header.ny), int(header.nx)
        axes = int(header.mapc), int(header.mapr), int(header.maps)
        if sorted(axes) not in ([1, 2, 3], [0, 0, 0]):
            raise InputError(
                f"{path} is not an MRC map: its header names the axes {', '.join(map(str, axes))}; check the file"
            )
        if axes not in {(1, 2, 3), (0, 0, 0)}:
            raise InputError(f"{path}: its axes are not in the order x, y, z; rewrite it in that order")
        sampling = np.array([header.mx, header.my, header.mz], float)
        cell = np.array([header.cella.x, header.cella.y, header.cella.z], float)
    voxel = cell / np.where(sampling > 0, sampling, shape[::-1])  # 0 where a program leaves it blank
    if not (np.isfinite(voxel).all() and (voxel > 0).all()):
        raise InputError(f"{path}: its header has no pixel size; set it (relion_image_handler --i MAP --o NEW "
                         "--force_header_angpix ÅNGSTRÖM)")  # fmt: skip
    if np.ptp(voxel) > _SAME_PIXEL * voxel.max():
        raise InputError(f"{path}: its voxels are not cubes ({', '.join(f'{v:.4g}' for v in voxel)} Å); resample it")
    return shape, round(float(voxel[0]), 6)


def middle_section(path: Path) -> tuple[np.ndarray, float]:
    """Read the section through the middle of a map as ``write_map`` writes it: (y, x) and the pixel size in Å.

    Raises
    ------
    InputError
        It is not such a map, or not all of it.
    """
    shape, pixel_size_A = map_header(path)
    if not is_whole(path, shape):
        raise InputError(f"{path} is not a whole map of 32-bit values; make it again")
    n = shape[1] * shape[2]
    values = np.fromfile(path, "<f4", n, offset=HEADER_BYTES + 4 * n * (shape[0] // 2))
    return values.reshape(shape[1:]), pixel_size_A


def write_map(path: str | Path, volume: np.ndarray, pixel_size_A: float) -> None:
    """Write a volume (z, y, x) as MRC mode 2; atomically."""
    _write(path, volume, pixel_size_A, False, is_volume=True)


def write_stack(path: str | Path, images: np.ndarray, pixel_size_A: float, *, float16: bool = False) -> None:
    """Write images (image, y, x) as an MRC stack, mode 2, or 12 with ``float16``; atomically.

    Raises
    ------
    InputError
        With ``float16``, a value that 16 bits cannot hold.
    """
    _write(path, images, pixel_size_A, float16, is_volume=False)


def is_whole(path: Path, shape: tuple[int, ...], *, float16: bool = False) -> bool:
    """Tell whether an image or a stack as ``write_stack`` writes it is there, with all the bytes that its shape takes."""
    try:
        return path.stat().st_size == HEADER_BYTES + int(np.prod(shape)) * (2 if float16 else 4)
    except OSError:
        return False


def check_reference(reference: Reference) -> tuple[int, float]:
    """Box size (px) and pixel size (Å) of a reference, from the headers alone.

    Raises
    ------
    InputError
        Files are missing (a line for each) or unreadable, half maps or mask differ in size or pixel size, or they are not
        cubes.
    """
    missing = [(what, path) for what, path in _files(reference) if not Path(path).is_file()]
    if missing:
        raise InputError("\n".join(f"{what} not found: {path}; check the path, or give root" for what, path in missing))
    headers = {what: (path, *map_header(path)) for what, path in _files(reference)}
    first = headers["half map 1"]
    for what, (path, shape, pixel_size_A) in headers.items():
        if len(set(shape)) != 1:
            raise InputError(f"{what} {path} is not a cube ({_size(shape)}); give a cubic map")
        if shape != first[1]:
            raise InputError(f"{what} {path} has {_size(shape)} voxels, half map 1 {_size(first[1])}; "
                             "give files of one refinement")  # fmt: skip
        if not math.isclose(pixel_size_A, first[2], rel_tol=_SAME_PIXEL):
            raise InputError(f"{what} {path} has {pixel_size_A:g} Å/px, half map 1 {first[2]:g}; "
                             "correct its header or give files of one refinement")  # fmt: skip
    return first[1][0], first[2]


def load_reference(reference: Reference) -> LoadedReference:
    """Read half maps, mask (1 everywhere if none is given) and FSC (if a postprocess.star is given), checked.

    Raises
    ------
    InputError
        As for ``check_reference``; or a map holds a NaN or only zeros, the half maps are the same, the mask is not
        between 0 and 1, or the FSC belongs to another box size.
    """
    box_size, pixel_size_A = check_reference(reference)
    maps = {what: (path, read_map(path)[0]) for what, path in _files(reference)}
    for what, (path, volume) in maps.items():
        with np.errstate(all="ignore"):
            finite = np.isfinite(volume.sum(dtype=np.float32))  # quick; the exact look only where it fails
        if not finite and not np.isfinite(volume).all():
            raise InputError(f"{what} {path} holds values that are not numbers; make it again")
        if not volume.any():
            raise InputError(f"{what} {path} is zero everywhere; make it again")
    half1, half2 = maps["half map 1"][1], maps["half map 2"][1]
    middle = box_size // 2
    if np.array_equal(half1[middle], half2[middle]) and np.array_equal(half1, half2):
        raise InputError(f"half maps {reference.half1} and {reference.half2} are the same; give one of each half set")
    if "mask" in maps:
        path, mask = maps["mask"]
        low, high = mask.min(), mask.max()
        if low < -1e-3 or high > 1 + 1e-3:
            raise InputError(f"mask {path} goes from {low:g} to {high:g}; give a mask between 0 and 1")
        if low < 0 or high > 1:
            np.clip(mask, 0, 1, out=mask)  # soft edges of real masks overshoot by rounding
    else:
        mask = np.ones_like(half1)
    return LoadedReference(half1, half2, mask, pixel_size_A, _fsc(reference, box_size))


def _fsc(reference: Reference, box_size: int) -> np.ndarray | None:
    if reference.postprocess is None:
        return None
    fsc = read_fsc(reference.postprocess)
    if len(fsc) != box_size // 2 + 1:
        raise InputError(f"{reference.postprocess} has an FSC of {len(fsc)} shells, a box of {box_size} needs "
                         f"{box_size // 2 + 1}; give the postprocess.star of these half maps")  # fmt: skip
    return fsc


def _files(reference: Reference) -> Iterator[tuple[str, Path]]:
    yield "half map 1", Path(reference.half1)
    yield "half map 2", Path(reference.half2)
    if reference.mask is not None:
        yield "mask", Path(reference.mask)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape[::-1]))


def _opened(path: str | Path, header_only: bool = False) -> mrcfile.mrcfile.MrcFile:
    admit(path)
    try:
        with warnings.catch_warnings():
            # permissive, since many programs leave the version or the axis order blank; what matters is checked here
            warnings.simplefilter("ignore", RuntimeWarning)
            file = mrcfile.open(path, permissive=True, header_only=header_only)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:  # the last two of compressed files
        raise InputError(f"{path} is not a readable MRC map ({error}); check the file") from None
    if not header_only and (file.data is None or file.data.dtype.kind == "c"):
        file.close()
        raise InputError(
            f"{path} is not a whole MRC map: it ends too early or its mode is not that of a map; copy it again"
        )
    return file


def _write(path: str | Path, data: np.ndarray, pixel_size_A: float, float16: bool, *, is_volume: bool) -> None:
    data = np.asarray(data)
    if float16 and (largest := max(float(data.max()), -float(data.min()))) > _FLOAT16_MAX:
        raise InputError(f"{path}: {largest:g} does not fit into 16 bits; write 32 bits (float16 off)")
    dtype = np.dtype("<f2" if float16 else "<f4")
    # not through a map of the file: a full disk is an error then, not a signal that ends the process, and nobody waits until
    # all is on the disk
    with atomic(path) as temporary, open(temporary, "wb", buffering=0) as raw:
        n_bytes = data[0].size * dtype.itemsize
        facts = [_stored(raw.fileno(), HEADER_BYTES + i * n_bytes, image, dtype) for i, image in enumerate(data)]
        low, high, total, squares = np.array(facts).T
        mean = total.sum() / data.size
        header = _header(data.shape, 12 if float16 else 2, pixel_size_A, is_volume)
        header["dmin"], header["dmax"] = np.array([low.min(), high.max()]).astype(dtype)
        header["dmean"], header["rms"] = mean, np.sqrt(max(squares.sum() / data.size - mean**2, 0.0))
        write_at(raw.fileno(), memoryview(header.tobytes()), 0)


def _header(shape: tuple[int, ...], mode: int, pixel_size_A: float, is_volume: bool) -> np.ndarray:
    """Return the header of a volume or stack (z, y, x) without the statistics of its values."""
    nz, ny, nx = shape
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nx"], header["ny"], header["nz"], header["mode"] = nx, ny, nz, mode
    sampling = nx, ny, nz if is_volume else 1
    header["mx"], header["my"], header["mz"] = sampling
    header["cella"], header["cellb"] = tuple(pixel_size_A * n for n in sampling), (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"], header["nversion"], header["map"], header["machst"] = int(is_volume), 20141, b"MAP ", (68, 68, 0, 0)
    label = f"{'Created by refmotion_nb':40s}{datetime.now():%Y-%m-%d %H:%M:%S}"
    header["nlabl"], header["label"][0] = 1, label.encode()
    return header


def _stored(file: int, offset: int, image: np.ndarray, dtype: np.dtype) -> tuple[float, float, float, float]:
    """Write an image while it is in the cache; return its lowest and highest value, the sum and that of the squares."""
    write_at(file, np.ascontiguousarray(image, dtype).reshape(-1).view(np.uint8).data, offset)
    values = image.ravel().astype(float)
    return float(image.min()), float(image.max()), float(values.sum()), float(values @ values)
