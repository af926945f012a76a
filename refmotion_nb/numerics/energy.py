"""What each Fourier component is worth: noise, dose decay, the reference's spectral weight, its grey scale, its own noise.

Everything here is per shell: weights multiply Re[X V*] and turn it into the log-likelihood cross term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import beside, kernels_of, one_blas_thread, over_chunks, to_host, xp_of
from refmotion_nb.numerics.correlation import WindowGrid, waves
from refmotion_nb.numerics.device_sizes import band_power_work_bytes, own_noise_work_bytes
from refmotion_nb.numerics.fourier import band_indices, hermitian_weight, raised_cosine, shell_floor

OWN_NOISE_SPREAD = 0.5  # of what is in half maps between data sets, of what is expected
RELION_DAMAGE = (3.40, -1.06, -0.54)  # a, b, c of RELION's --dmg_a/b/c


def critical_dose(frequency_per_A: np.ndarray, voltage_kV: float) -> np.ndarray:
    """Return Grant & Grigorieff's critical dose (e/Å²) at spatial frequencies; 0.8 of it at 200 kV, 0.64 at 100 kV."""
    factor = 1.0 if voltage_kV > 250 else 0.8 if voltage_kV > 150 else 0.64
    k = np.maximum(np.asarray(frequency_per_A, float), 1e-6)
    return factor * (0.24499 * k**-1.6649 + 2.8141)


def grant_grigorieff(frequency_per_A: np.ndarray, dose_e_A2: np.ndarray, voltage_kV: float) -> np.ndarray:
    """Return the signal left at each dose (dose, frequency): exp(-N / 2 Nc) (Grant & Grigorieff 2015, eq. 4)."""
    return np.exp(-0.5 * np.asarray(dose_e_A2, float)[:, None] / critical_dose(frequency_per_A, voltage_kV)[None])


def relion_damage(frequency_per_A: np.ndarray, dose_e_A2: np.ndarray) -> np.ndarray:
    """Return RELION's damage weights of motion estimation (dose, frequency): exp(-N / τ), τ = a κ^b + c."""
    a, b, c = RELION_DAMAGE
    tau = a * np.maximum(np.asarray(frequency_per_A, float), 1e-9) ** b + c
    weight = np.exp(-np.asarray(dose_e_A2, float)[:, None] / np.maximum(tau, 1e-9)[None])
    weight[:, np.asarray(frequency_per_A) == 0] = 1
    return weight


def spectral_weight(fsc: np.ndarray, k_cut: float) -> np.ndarray:
    """Return what part of a half map's power is signal (..., shell): its FSC up to ``k_cut``, with a soft edge of two shells.

    The expectation of the true structure given one half map is FSC times that map.
    """
    weight = np.clip(fsc, 0, 1) * raised_cosine(np.arange(fsc.shape[-1]), k_cut)
    weight[..., 0] = 0
    return weight


def inverse_noise(noise_power: np.ndarray) -> np.ndarray:
    """Return 1 / noise power, 0 where there is none (the origin)."""
    return np.divide(1.0, noise_power, out=np.zeros_like(noise_power), where=noise_power > 0)


def band_power(values: Any, k: int, threads: int = 1) -> np.ndarray:
    """Return Σ |V|² over the full plane per floor shell (particle, k + 1) of bands (particle, 2K + 1, K + 1), on the host."""
    return _shell_sums(values, k, lambda at, part: xp_of(values).abs(at(values[part])) ** 2, threads)


def band_cross(values: Any, others: Any, k: int, threads: int = 1) -> np.ndarray:
    """Return Σ Re[V U*] over the full plane per floor shell (particle, k + 1) of two bands of one size, on the host."""

    def product(at: Callable[[Any], Any], part: slice) -> Any:
        one, other = at(values[part]), at(others[part])
        return one.real * other.real + one.imag * other.imag

    return _shell_sums(values, k, product, threads)


def _shell_sums(like: Any, k: int, product: Callable[[Callable[[Any], Any], slice], Any], threads: int) -> np.ndarray:
    """Return sums over shells of what ``product`` makes of some particles, with the function that takes their components."""
    big = (like.shape[1] - 1) // 2
    ky, kx = band_indices(big)
    shell = shell_floor(ky, kx)
    hermitian = np.broadcast_to(hermitian_weight(kx), shell.shape)
    keep = np.flatnonzero(shell <= k)
    at, place, weight = (beside(like, one) for one in (keep, shell.ravel()[keep], hermitian.ravel()[keep]))
    xp, kernels = xp_of(like), kernels_of(like)
    out = xp.zeros((len(like), k + 1))

    def work(part: slice) -> None:
        values = product(lambda band: band.reshape(len(band), -1)[:, at], part)
        kernels.shell_sum_kernel(xp.ascontiguousarray(values), weight, place, out[part])

    over_chunks(len(like), work, threads, chunk=4, like=like, item_bytes=band_power_work_bytes(big))
    return to_host(out)


def reference_scale(cross: float, power: float, pool: float, spread2: float) -> float:
    """Return the grey scale of a micrograph: its own least squares, shrunk towards the pool.

    ``cross`` = Σ X V* / σ² and ``power`` = Σ |V|² / σ² make the estimate cross / power with variance 1 / power;
    ``spread2`` is the variance of the true scales between micrographs.
    """
    if power <= 0 or spread2 <= 0:
        return pool
    trust = spread2 / (spread2 + 1 / power)
    return trust * cross / power + (1 - trust) * pool


def pooled_scale(cross: np.ndarray, power: np.ndarray) -> tuple[float, float]:
    """Return the scale of all micrographs together and the variance of theirs beyond what noise explains."""
    known = power > 0
    cross, power = cross[known], power[known]
    pool = float(cross.sum() / power.sum()) if known.any() else 1.0
    own = cross / power
    spread2 = float(np.mean((own - pool) ** 2 - 1 / power)) if len(own) > 1 else 0.0
    return pool, max(spread2, 0.0)


def own_noise_share(found: float, expected: float, variance: float) -> float:
    """Return how much own noise there is of what is expected: what was found, drawn towards 1 as far as it is uncertain."""
    if not expected > 0:  # half maps without noise, or particles that do not resemble them
        return 1.0
    trust = expected**2 / (expected**2 + variance / OWN_NOISE_SPREAD**2)
    return max(0.0, trust * found / expected + 1 - trust)


def own_noise_windows(
    ctf: Any,  # (particle, 2K + 1, K + 1)
    weight: np.ndarray,  # (frame, shell): per |CTF|², what the particle itself left in its half map
    offset_px: np.ndarray,  # (particle, frame, 2) from the window's centre to where the particle was taken from
    k: int,
    grid: WindowGrid,
    box: int,
    threads: int = 1,
) -> Any:
    """Return the windows (particle, frame, y, x) that a particle's own noise in its half map is expected to leave.

    A share of each particle's noise sits in its own half map, where the particle was put: at the rigid alignment. By
    the FSC the noise in a half map has (1 - FSC) of its power, to which the particle contributed in proportion to CTF²
    and its frames in proportion to their dose weight u = D / √Σ D², so that the expected cross term is
    CTF² (1 - FSC) |V|² u D / σ².
    """
    xp, n, n_frames = xp_of(ctf), len(ctf), len(weight)
    big, ks = (ctf.shape[1] - 1) // 2, np.arange(k + 1)
    radius = np.hypot(ks[:, None], ks)
    shell = np.minimum(radius.astype(int), weight.shape[1] - 1)
    share = beside(ctf, (weight[:, shell] * (radius <= k)).astype(np.float32))  # (frame, ky, kx)
    share[:, 0] /= 2  # ky = 0 is in both halves
    square = ctf[:, big - k : big + k + 1, : k + 1] ** 2
    up, down = square[:, k:, None], square[:, k::-1, None]  # at ky and at -ky
    even, odd = (xp.moveaxis(one, 2, 1) for one in (up + down, up - down))  # (particle, 1, ky, kx)
    along_y, along_x = (beside(ctf, one.astype(np.complex64)) for one in waves(grid, k, box))
    turn = beside(ctf, -2j * np.pi / box * ks)
    out = xp.empty((n, n_frames, grid.size, grid.size), np.float32)

    def work(part: slice) -> None:
        offset = beside(ctf, offset_px[part])[..., None]
        turn_x, turn_y = (xp.exp(turn * offset[:, :, i]).astype(np.complex64) for i in (0, 1))
        y, x = along_y * turn_y[:, :, None], along_x * turn_x[:, :, None]  # (particle, frame, sample, k)
        rows = xp.concatenate([y.real @ (even[part] * share), y.imag @ (odd[part] * share)], -1)
        out[part] = rows @ xp.moveaxis(xp.concatenate([x.real, -x.imag], -1), -1, -2)

    with one_blas_thread():
        over_chunks(n, work, threads, chunk=1, like=ctf, item_bytes=n_frames * own_noise_work_bytes(k, grid.size))
    return out
