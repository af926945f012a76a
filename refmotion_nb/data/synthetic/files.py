"""Movies, gain references and maps of a simulation, as RELION stores them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import mrcfile
import numpy as np
import tifffile

from refmotion_nb.data.synthetic.eer import split_into_events, write_eer

LABEL = "simulated by refmotion_nb"


def write_mrc(path: Path, data: np.ndarray, pixel_size_A: float, volume: bool = False) -> None:
    """Write an image, a stack or (``volume``) a map; the same data give the same bytes."""
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.asarray(data, np.float32))
        mrc.set_volume() if volume else data.ndim == 3 and mrc.set_image_stack()
        mrc.voxel_size = pixel_size_A
        mrc.header.label[0] = LABEL.encode()  # instead of one with the time of day


def write_movie(
    path: Path,
    frames: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    pixel_size_A: float,
    dose_per_pixel: float,
    grouping: int = 1,
    seeds: Sequence[np.random.SeedSequence] = (),
) -> np.ndarray:
    """Write counted frames as they come, in the format the suffix names; return the stack (frame, y, x).

    TIFF rows are stored last first, which RELION turns round on reading. In EER each frame becomes ``grouping`` raw
    frames.
    """
    stack = np.empty(shape, np.uint8)
    if path.suffix == ".eer":
        events = _events(frames, stack, grouping, seeds)
        write_eer(path, events, shape[1:], shape[0] * grouping, dose_per_pixel / grouping)
    elif path.suffix == ".tif":
        rows = max(1, min(shape[1], (1 << 18) // shape[2]))
        with tifffile.TiffWriter(path, bigtiff=False) as tiff:
            for f, frame in enumerate(frames):
                stack[f] = frame
                tiff.write(
                    frame[::-1], compression="lzw", photometric="minisblack", rowsperstrip=rows, metadata=None,
                    contiguous=False, software="refmotion_nb",
                )  # fmt: skip
    else:
        for f, frame in enumerate(frames):
            stack[f] = frame
        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(stack.astype(np.int8) if stack.max() < 128 else stack.astype(np.int16))
            mrc.set_image_stack()
            mrc.voxel_size = pixel_size_A
            mrc.header.label[0] = LABEL.encode()
    return stack


def _events(
    frames: Iterable[np.ndarray], stack: np.ndarray, grouping: int, seeds: Sequence[np.random.SeedSequence]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Take frames as they come into the stack (frame, y, x) and yield their raw frames."""
    for f, frame in enumerate(frames):
        stack[f] = frame
        yield from split_into_events(frame, grouping, np.random.default_rng(seeds[f]))


def write_gain(folder: Path, gain: np.ndarray, movie_format: str, pixel_size_A: float) -> str:
    """Write the gain reference that multiplies the movies, in the rows' order; return its name."""
    if movie_format == "eer":
        with tifffile.TiffWriter(folder / "gain.gain") as tiff:
            tiff.write(gain.astype(np.float32), compression="lzw", metadata=None, software="refmotion_nb")
        return "gain.gain"
    write_mrc(folder / "gain.mrc", gain, pixel_size_A)
    return "gain.mrc"
