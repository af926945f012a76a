"""What was gained, and from what: half-map FSC with and without the trajectories and the empirical weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import param
import xarray as xr
from scipy import fft

from refmotion_nb.data.maps import load_reference
from refmotion_nb.data.schema import Dataset, InputError
from refmotion_nb.numerics.ctf import ctf
from refmotion_nb.numerics.energy import first_shell_below, grant_grigorieff
from refmotion_nb.numerics.fourier import half_plane_indices
from refmotion_nb.numerics.projection import euler_to_matrix
from refmotion_nb.numerics.recombine import normalise, recombine
from refmotion_nb.numerics.reconstruct import Transform, backproject, fsc_masked_corrected, reconstruct
from refmotion_nb.numerics.symmetry import operators
from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.base import Reporter, Silent
from refmotion_nb.stages.dose_weights import weights_on
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.search import prior_from_attrs
from refmotion_nb.stages.session import Session


@dataclass(frozen=True)
class Combination:
    """Which trajectories and weights go into a reconstruction."""

    name: str
    corrected: bool  # along the final trajectories, else as motion correction found them
    empirical: bool  # with the measured dose weights, else Grant & Grigorieff's


COMBINATIONS = (
    Combination("rigid", False, False),
    Combination("+ weights", False, True),
    Combination("+ trajectories", True, False),
    Combination("both", True, True),
)


class Validation(Alignment):
    """Reconstruct both half sets at the given poses and compare them, for each combination asked for."""

    symmetry = param.String(default="C1", doc="Point group of the reference, oriented as RELION's (C1, D7, O, I2 …).")

    def run(
        self,
        data: Dataset | Session,
        search: xr.Dataset,
        dose: xr.Dataset,
        reporter: Reporter | None = None,
        combinations: tuple[Combination, ...] = COMBINATIONS,
    ) -> xr.Dataset:
        """Return masked and corrected FSC (reference, combination, frequency) and the resolutions they reach.

        Raises
        ------
        InputError
            An unknown symmetry, a movie that cannot be used, or movies that give patches of different boxes.
        """
        session = data if isinstance(data, Session) else Session(data)
        reporter = reporter or Silent()
        rotations = self.rotations()
        prior = prior_from_attrs(search.attrs)
        names = [name for name in session if name not in session.failed]
        reporter.start(len(combinations) * (len(names) + 1), "validating")
        curves = []
        for combination in combinations:
            halves: dict[tuple[int, int], Transform] = {}
            for name, m in session.walk(names, self):
                if m is None:
                    continue
                last = m
                tracks = session.track(m, self, prior)
                moved = tracks.displacement_A if combination.corrected else m.placement.initial_A
                _insert(halves, m, session, moved, self._weights(m, dose, combination.empirical), rotations)
                reporter.advance(micrograph=name)
            curves.append(self._curves(session, halves, last))
            reporter.advance(combination=combination.name)
        reporter.done()
        return _table(np.stack(curves, 1), last, [c.name for c in combinations])

    def rotations(self) -> np.ndarray:
        """Return the operators (operator, 3, 3) of the symmetry; InputError if there is no such point group."""
        try:
            return operators(self.symmetry)
        except ValueError as error:
            raise InputError(str(error)) from None

    def _weights(self, m: Micrograph, dose: xr.Dataset, empirical: bool) -> np.ndarray:
        frequency = m.frequency(int(np.ceil(np.sqrt(2) * m.spectra.box / 2)) + 1)
        if empirical:
            return weights_on(dose, m.movie.dose_edges, frequency, m.group)
        standard = grant_grigorieff(frequency, m.mid_dose, m.movie.voltage_kV)
        return standard / standard.sum(0)

    def _curves(self, session: Session, halves: dict[tuple[int, int], Transform], m: Micrograph) -> np.ndarray:
        """Return masked and corrected FSC (reference, 2, shell)."""
        out = []
        for number, reference in enumerate(session.data.references):
            mask = _on_box(load_reference(reference).mask, m.spectra.box)
            maps = [reconstruct(halves[number, half]) for half in (1, 2)]
            curve = fsc_masked_corrected(maps[0], maps[1], mask)
            out.append(np.stack([curve.masked, curve.corrected]))
        return np.stack(out)


def _on_box(mask: np.ndarray, box: int) -> np.ndarray:
    """Return the mask sampled on another box of the same extent, by Fourier cropping or padding."""
    n = len(mask)
    if n == box:
        return mask
    ft = np.fft.fftshift(np.fft.fftn(mask))
    out = np.zeros((box,) * 3, complex)
    m = min(n, box)
    a, b = n // 2 - m // 2, box // 2 - m // 2
    out[b : b + m, b : b + m, b : b + m] = ft[a : a + m, a : a + m, a : a + m]
    return np.clip(np.fft.ifftn(np.fft.ifftshift(out)).real * (box / n) ** 3, 0, 1).astype(np.float32)


def _insert(
    halves: dict[tuple[int, int], Transform], m: Micrograph, session: Session, moved: np.ndarray, weight: np.ndarray,
    rotations: np.ndarray,
) -> None:  # fmt: skip
    box = m.spectra.box
    images = recombine(m.spectra, moved / m.movie.pixel_size_A, weight, box, session.threads)
    images = normalise(images, min(max(m.mask_radius_px, 0.25 * box), 0.45 * box))
    transfer, ramp = _transfer(m, session)
    ft = fft.rfft2(images, workers=session.threads) * ramp * transfer
    matrices = euler_to_matrix(m.particles["euler"].values)
    half, which = m.particles["half"].values, m.particles["reference"].values
    for key in {(int(r), int(h)) for r, h in zip(which, half)}:
        mine = (which == key[0]) & (half == key[1])
        part = backproject(ft[mine], transfer[mine] ** 2, matrices[mine], symmetry=rotations)
        halves[key] = halves[key] + part if key in halves else part


def _transfer(m: Micrograph, session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Return the CTF of every particle and the phase that brings its object to the first pixel, on half planes."""
    box = m.spectra.box
    ky, kx = half_plane_indices(box)
    y, x = np.broadcast_arrays(ky / m.extent_A, kx / m.extent_A)
    p = m.particles
    transfer = np.empty((m.n, *x.shape), np.float32)
    for g in np.unique(p["optics"].values):
        o = session.data.optics[g]
        mine = p["optics"].values == g
        transfer[mine] = ctf(
            x, y, defocus_u_A=p["defocus_u"].values[mine], defocus_v_A=p["defocus_v"].values[mine],
            defocus_angle_deg=p["defocus_angle"].values[mine], phase_shift_deg=p["phase_shift"].values[mine],
            b_factor_A2=p["ctf_b_factor"].values[mine], scale=p["ctf_scale"].values[mine], voltage_kV=o.voltage_kV,
            spherical_aberration_mm=o.spherical_aberration_mm, amplitude_contrast=o.amplitude_contrast,
        )  # fmt: skip
    centre = box // 2 - m.placement.origin_A / m.movie.pixel_size_A
    phase = 2j * np.pi / box * (kx[None] * centre[:, 0, None, None] + ky[None] * centre[:, 1, None, None])
    return transfer, np.exp(phase).astype(np.complex64)


def _table(curves: np.ndarray, m: Micrograph, names: list[str]) -> xr.Dataset:
    frequency = m.frequency(curves.shape[-1])
    corrected = curves[:, :, 1]

    def resolution(level: float) -> np.ndarray:
        return np.array([[1 / frequency[max(first_shell_below(c, level), 1)] for c in row] for row in corrected])

    dims = ("reference", "combination", "frequency")
    return xr.Dataset(
        {
            "fsc_masked": (dims, curves[:, :, 0], {"units": "1", "long_name": "FSC of masked half maps"}),
            "fsc_corrected": (dims, corrected, {"units": "1", "long_name": "corrected FSC"}),
            "resolution_0143": (dims[:2], resolution(0.143), {"units": "Å", "long_name": "resolution at FSC = 0.143"}),
            "resolution_05": (dims[:2], resolution(0.5), {"units": "Å", "long_name": "resolution at FSC = 0.5"}),
        },
        coords={
            "combination": names,
            "reference": np.arange(len(curves)),
            "frequency": ("frequency", frequency, {"units": "1/Å", "long_name": "spatial frequency"}),
        },
    )
