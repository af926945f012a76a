"""References made ready for slicing: masked transforms of both half maps, and what of them is signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refmotion_nb.data.maps import LoadedReference, load_reference
from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.numerics.fourier import first_shell_below
from refmotion_nb.numerics.projection import FourierVolume, prepare_volume
from refmotion_nb.numerics.reconstruct import fsc_masked_corrected

FEWEST_SHELLS = 4  # with signal


@dataclass(frozen=True)
class PreparedReference:
    """One reference, ready for slicing."""

    volumes: tuple[FourierVolume, FourierVolume]  # of half maps 1 and 2
    fsc: np.ndarray  # (shell,) corrected FSC of the half maps
    box: int
    pixel_size_A: float
    mask_radius_A: float

    @property
    def extent_A(self) -> float:
        """Physical width of the box."""
        return self.box * self.pixel_size_A

    @property
    def k_out(self) -> int:
        """First shell with an FSC below 0.143."""
        return first_shell_below(self.fsc, 0.143)

    def k_out_of(self, extent_A: float) -> int:
        """Return that shell of a box of another width."""
        return int(self.k_out * extent_A / self.extent_A + 0.5)

    def on(self, put: Callable[[Any], Any]) -> PreparedReference:
        """Return the reference with its transforms where ``put`` puts them."""
        first, second = (replace(volume, ft=put(volume.ft)) for volume in self.volumes)
        return replace(self, volumes=(first, second))


def prepare_references(dataset: Dataset, relion: bool, threads: int) -> list[PreparedReference]:
    """Load and transform the references of a dataset.

    For RELION's energy slices reach the Nyquist limit, else a quarter beyond the resolution, where the curves of the dose
    weights have long fallen to noise.

    Raises
    ------
    InputError
        Maps that cannot be used, or that agree in no shell; for RELION's energy a detector's MTF that is not there.
    """
    if relion and (unread := [one for one in dataset.optics if one.mtf_file and one.mtf is None]):
        raise InputError(
            f"RELION's energy takes the MTF of the detector, and {unread[0].mtf_file} of optics group {unread[0].name} could not "
            "be read; put it there, or take rlnMtfFileName out of the particles"
        )
    return [
        _prepare(load_reference(reference), Path(reference.half1).name, relion, threads)
        for reference in dataset.references
    ]


def _prepare(loaded: LoadedReference, name: str, all_shells: bool, threads: int) -> PreparedReference:
    fsc = loaded.fsc
    if fsc is None:
        fsc = fsc_masked_corrected(loaded.half1, loaded.half2, loaded.mask, threads=threads).corrected
    fsc = np.nan_to_num(np.asarray(fsc, float))
    nyquist = loaded.box_size // 2
    if first_shell_below(fsc, 0.143) < FEWEST_SHELLS:
        raise InputError(
            f"the half maps {name} agree in no more than {first_shell_below(fsc, 0.143) - 1} shells (FSC above 0.143): there "
            "is nothing to align with; give those of a refinement, with its mask"
        )
    k_max = nyquist if all_shells else min(nyquist, int(1.25 * first_shell_below(fsc, 0.143)) + 4)
    first, second = (prepare_volume(half, loaded.mask, k_max, 2, threads) for half in (loaded.half1, loaded.half2))
    return PreparedReference((first, second), fsc, loaded.box_size, loaded.pixel_size_A, _mask_radius(loaded))


def _mask_radius(loaded: LoadedReference) -> float:
    """Return the largest distance (Å) of the mask from the box centre: in some view it is seen along x or y."""
    r2 = (np.arange(loaded.box_size) - loaded.box_size // 2) ** 2
    farthest = [z2 + (r2[:, None] + r2)[plane > 0.5].max(initial=-z2) for z2, plane in zip(r2, loaded.mask)]
    return float(np.sqrt(max(farthest))) * loaded.pixel_size_A
