"""What the microscope did to the particles of an optics group: CTF, aberrations, magnification, detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import Optics
from refmotion_nb.numerics.ctf import aberration_phases, ctf, specimen_frequencies


@dataclass(frozen=True)
class Transfer:
    """An optics group at the Fourier components of an image.

    The images are our own, cut out of movies: whether those that were refined were multiplied by the CTF does not matter.
    """

    optics: Optics
    x: Any  # (ky, kx) 1/Å of the specimen
    y: Any
    even: Any  # (ky, kx) radians, adds to the phase of the CTF
    response: Any | None  # (ky, kx) complex64 that images are multiplied by beside the CTF, if it is not 1 everywhere

    @classmethod
    def of(cls, optics: Optics, ky: np.ndarray, kx: np.ndarray, extent_A: float, whole_mtf: bool = False) -> Transfer:
        """Return the transfer from half maps to images at the steps ky, kx of boxes ``extent_A`` wide.

        Beside the CTF images are multiplied by the phases of antisymmetric aberrations, and by the detector's MTF as far
        as the half maps do not contain it; by all of it with ``whole_mtf``, as when RELION polishes.
        """
        y, x = specimen_frequencies(ky, kx, extent_A, np.asarray(optics.magnification))
        odd, even = aberration_phases(
            x, y, odd=optics.odd_zernike, even=optics.even_zernike, beam_tilt_mrad=optics.beam_tilt_mrad,
            spherical_aberration_mm=optics.spherical_aberration_mm, voltage_kV=optics.voltage_kV,
        )  # fmt: skip
        response = np.exp(1j * odd) if np.any(odd) else None
        if mtf := optics.mtf if whole_mtf else optics.relative_mtf:
            passed = mtf.at(np.hypot(ky, kx) / extent_A)
            response = passed if response is None else response * passed
        return cls(optics, x, y, even, None if response is None else response.astype(np.complex64))

    def on(self, put: Callable[[Any], Any]) -> Transfer:
        """Return the transfer with its arrays where ``put`` puts them."""
        response = None if self.response is None else put(self.response)
        return replace(self, x=put(self.x), y=put(self.y), even=put(self.even), response=response)

    @property
    def magnification(self) -> np.ndarray:
        """Anisotropic magnification (2, 2), from frequencies of the image to those of the specimen."""
        return np.asarray(self.optics.magnification)

    def ctf(self, particles: xr.Dataset, rows: np.ndarray) -> Any:
        """Return the CTF (row, ky, kx) float32 of some particles, whichever their optics group."""

        def of(name: str) -> np.ndarray:
            return particles[name].values[rows].astype(float)

        o = self.optics
        return ctf(
            self.x, self.y, defocus_u_A=of("defocus_u"), defocus_v_A=of("defocus_v"),
            defocus_angle_deg=of("defocus_angle"), phase_shift_deg=of("phase_shift"), b_factor_A2=of("ctf_b_factor"),
            scale=of("ctf_scale"), voltage_kV=o.voltage_kV, spherical_aberration_mm=o.spherical_aberration_mm,
            amplitude_contrast=o.amplitude_contrast, symmetric_phase=self.even,
        )  # fmt: skip
