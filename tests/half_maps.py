"""Half maps made from a data set's rigid, dose-weighted particles: of any of them, at poses a little off."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import fft

import refmotion_nb as rm
from refmotion_nb.data.maps import write_map
from refmotion_nb.numerics.ctf import ctf
from refmotion_nb.numerics.energy import grant_grigorieff
from refmotion_nb.numerics.fourier import half_plane_indices
from refmotion_nb.numerics.projection import euler_to_matrix
from refmotion_nb.numerics.recombine import normalise, recombine
from refmotion_nb.numerics.reconstruct import backproject, reconstruct
from refmotion_nb.numerics.symmetry import operators


class Particles:
    """Rigid averages of all particles of a data set with one optics group, and what is needed to reconstruct them."""

    def __init__(self, data: rm.Dataset):
        session, settings, parts = rm.Session(data, 2), rm.InputAudit(), []
        for name in session:
            m = session.micrograph(name, settings)
            box = m.spectra.box
            weight = grant_grigorieff(m.frequency(box), m.mid_dose, m.movie.voltage_kV)
            weight /= np.sqrt((weight**2).sum(0))
            moved = m.placement.initial_A / m.movie.pixel_size_A
            images = normalise(recombine(m.spectra, moved, weight, box, 2), 0.45 * box)
            ky, kx = half_plane_indices(box)
            y, x = np.broadcast_arrays(ky / m.extent_A, kx / m.extent_A)
            optics, p = data.optics[0], m.particles
            transfer = ctf(
                x, y, defocus_u_A=p["defocus_u"].values, defocus_v_A=p["defocus_v"].values,
                defocus_angle_deg=p["defocus_angle"].values, phase_shift_deg=p["phase_shift"].values,
                b_factor_A2=p["ctf_b_factor"].values, scale=p["ctf_scale"].values, voltage_kV=optics.voltage_kV,
                spherical_aberration_mm=optics.spherical_aberration_mm, amplitude_contrast=optics.amplitude_contrast,
            )  # fmt: skip
            centre = box // 2 - m.placement.origin_A / m.movie.pixel_size_A
            parts.append((fft.rfft2(images).astype(np.complex64), transfer.astype(np.float32), centre,
                          p["euler"].values.astype(float), p["half"].values))  # fmt: skip
        self.data, self.pixel_size_A, self.box = data, m.movie.pixel_size_A, box
        self.images, self.ctf, self.centre_px, self.euler, self.half = map(np.concatenate, zip(*parts, strict=True))

    def map(self, rows: np.ndarray, rng: np.random.Generator | None = None, turn_deg=0.0, shift_A=0.0) -> np.ndarray:
        """Reconstruct some particles, at poses that are off by ``turn_deg`` and ``shift_A`` (RMS) if there is an ``rng``."""
        euler, centre = self.euler[rows], self.centre_px[rows]
        if rng is not None:
            euler = euler + rng.normal(scale=turn_deg, size=euler.shape)
            centre = centre + rng.normal(scale=shift_A / self.pixel_size_A, size=centre.shape)
        ky, kx = half_plane_indices(self.box)
        turn = 2j * np.pi / self.box * (kx * centre[:, 0, None, None] + ky * centre[:, 1, None, None])
        transfer = self.ctf[rows]
        images = self.images[rows] * np.exp(turn).astype(np.complex64) * transfer
        sums = backproject(images, transfer**2, euler_to_matrix(euler), symmetry=operators("O"))
        return reconstruct(sums)

    def with_maps(self, folder: Path, first: np.ndarray, second: np.ndarray) -> rm.Dataset:
        """Return the data set with these half maps in place of its own."""
        number = len(list(folder.glob("map*.mrc")))
        paths = [folder / f"map{number + i}.mrc" for i in range(2)]
        for path, volume in zip(paths, (first, second), strict=True):
            write_map(path, volume, self.pixel_size_A)
        one = replace(self.data.references[0], half1=paths[0], half2=paths[1], postprocess=None)
        return replace(self.data, references=(one,))
