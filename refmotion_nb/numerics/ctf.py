"""The contrast transfer function with RELION's signs, aberrations and anisotropic magnification."""

from __future__ import annotations

from math import factorial

import numpy as np

from refmotion_nb.numerics.backend import beside, kernels_of, xp_of


def wavelength_A(voltage_kV: float) -> float:
    """Return the relativistic electron wavelength in Å (RELION's constants)."""
    volts = 1e3 * voltage_kV
    return 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))


def zernike(m: int, n: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Zernike polynomial Z(m, n) at (x, y), not normalised, as RELION evaluates it at frequencies in 1/Å."""
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    a = abs(m)
    radial = np.zeros_like(rho)
    for k in range((n - a) // 2 + 1):
        coefficient = (
            (-1) ** k * factorial(n - k) / (factorial(k) * factorial((n + a) // 2 - k) * factorial((n - a) // 2 - k))
        )
        radial = radial + coefficient * rho ** (n - 2 * k)
    return radial * (np.cos(m * phi) if m >= 0 else np.sin(-m * phi))


def even_zernike_index(i: int) -> tuple[int, int]:
    """Return (m, n) of RELION's i-th even (symmetric) coefficient."""
    k = int(np.sqrt(i))
    return 2 * (i - k * k) - 2 * k, 2 * k


def odd_zernike_index(i: int) -> tuple[int, int]:
    """Return (m, n) of RELION's i-th odd (antisymmetric) coefficient."""
    k = int((np.sqrt(1 + 4 * i) - 1) / 2)
    n = 2 * k + 1
    return 2 * (i - k * (k + 1)) - n, n


def beam_tilt_phase(
    x: np.ndarray, y: np.ndarray, tilt_mrad: tuple[float, float], spherical_aberration_mm: float, voltage_kV: float
) -> np.ndarray:
    """Return the phase (radians) by which a beam tilt changes the image at frequencies x, y (1/Å): axial coma."""
    scale = spherical_aberration_mm * 2e4 * wavelength_A(voltage_kV) ** 2 * np.pi
    return -scale * (x**2 + y**2) * (x * tilt_mrad[0] + y * tilt_mrad[1])


def specimen_frequencies(
    ky: np.ndarray, kx: np.ndarray, extent_A: float, magnification: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the spatial frequencies (y, x) in 1/Å of the steps ky, kx of boxes ``extent_A`` wide.

    An anisotropic magnification (RELION's rlnMagMat) turns the frequencies of the image into those of the specimen.
    """
    y, x = np.broadcast_arrays(ky / extent_A, kx / extent_A)
    if magnification is not None:
        m = np.asarray(magnification)
        x, y = m[0, 0] * x + m[0, 1] * y, m[1, 0] * x + m[1, 1] * y
    return y, x


def aberration_phases(
    x: np.ndarray,
    y: np.ndarray,
    *,
    odd: tuple[float, ...] = (),
    even: tuple[float, ...] = (),
    beam_tilt_mrad: tuple[float, float] = (0.0, 0.0),
    spherical_aberration_mm: float = 0.0,
    voltage_kV: float = 300.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (antisymmetric, symmetric) aberration phases in radians at frequencies x, y (1/Å).

    The antisymmetric phase multiplies the predicted image as exp(i phase); the symmetric one adds to the CTF's phase.
    """
    antisymmetric = beam_tilt_phase(x, y, beam_tilt_mrad, spherical_aberration_mm, voltage_kV)
    for i, c in enumerate(odd):
        if c:
            antisymmetric = antisymmetric + c * zernike(*odd_zernike_index(i), x, y)
    symmetric = np.zeros_like(x)
    for i, c in enumerate(even):
        if c:
            symmetric = symmetric + c * zernike(*even_zernike_index(i), x, y)
    return antisymmetric, symmetric


def ctf(
    x: np.ndarray,  # (ky, kx) 1/Å
    y: np.ndarray,
    *,
    defocus_u_A: np.ndarray,  # (particle,)
    defocus_v_A: np.ndarray,
    defocus_angle_deg: np.ndarray,
    phase_shift_deg: np.ndarray,
    b_factor_A2: np.ndarray,
    scale: np.ndarray,
    voltage_kV: float,
    spherical_aberration_mm: float,
    amplitude_contrast: float,
    symmetric_phase: np.ndarray | None = None,  # (ky, kx) radians
) -> np.ndarray:
    """Return the CTF (particle, ky, kx), float32, where ``x`` is, positive at the origin for positive amplitude contrast.

    CTF = -(sqrt(1 - Q0²) sin γ - Q0 cos γ), γ = -π λ Δf u² + π/2 Cs λ³ u⁴ - phase shift, underfocus positive,
    times scale · exp(-B u²/4) (RELION's sign and order).
    """
    lam = wavelength_A(voltage_kV)
    angle = np.deg2rad(defocus_angle_deg)
    mean = -np.pi * lam * 0.5 * (defocus_u_A + defocus_v_A)
    diff = -np.pi * lam * 0.5 * (defocus_u_A - defocus_v_A)
    # quadratic form of the astigmatic defocus: xx, yy, xy
    xx = mean + diff * np.cos(2 * angle)
    yy = mean - diff * np.cos(2 * angle)
    xy = 2 * diff * np.sin(2 * angle)
    k4 = 0.5 * np.pi * spherical_aberration_mm * 1e7 * lam**3
    offset = -np.deg2rad(phase_shift_deg) - np.arcsin(amplitude_contrast)
    xp = xp_of(x)
    extra = xp.zeros(x.shape) if symmetric_phase is None else symmetric_phase
    per_particle = np.stack([xx, yy, xy, offset, -0.25 * np.asarray(b_factor_A2), np.asarray(scale)], 1).astype(
        np.float64
    )
    out = xp.empty((len(per_particle), *x.shape), np.float32)
    plane = (xp.ascontiguousarray(one) for one in (x, y, extra))
    kernels_of(x).ctf_kernel(*plane, k4, beside(x, per_particle), out)
    return out
