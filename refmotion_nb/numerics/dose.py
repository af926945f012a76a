"""How the signal decays with dose: the Fourier cylinder correlation (FCC), its model, and the weights it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refmotion_nb.numerics.backend import beside, kernels_of, over_chunks, to_host, xp_of
from refmotion_nb.numerics.device_sizes import fcc_work_bytes
from refmotion_nb.numerics.fourier import half_plane_indices, shell_round
from refmotion_nb.numerics.patches import PatchSpectra

DRAWS = 40  # of micrographs, for bands of confidence
LEAST_SCALE = 1e-6  # of a frame, relative to the largest: a fit to noise may come to less than 0


def fcc_sums(
    spectra: PatchSpectra,
    predicted: Any,  # (particle, 2K + 1, K + 1) of the opposite half map
    displacement_px: np.ndarray,  # (particle, frame, 2) from the coordinate
    whitening: np.ndarray,  # (floor shell,) multiplies X; shells beyond it count as 0
    n_shells: int,
    shell_scale: float = 1.0,
    threads: int = 1,
) -> np.ndarray:
    """Return Σ Re(X V*), Σ |X|², Σ |V|² per frame and shell (3, frame, n_shells) over the half plane, on the host.

    ``shell_scale`` turns shells of the patch into those of the reference.
    """
    stored, kernels, xp = spectra.stored, kernels_of(spectra.stored), xp_of(spectra.stored)
    ky, kx = half_plane_indices(spectra.box)
    shell = beside(stored, shell_round(ky, kx, shell_scale))
    shift, whitening = beside(stored, displacement_px - spectra.offset_px), beside(stored, whitening)

    def work(part: slice) -> Any:
        out = xp.zeros((3, spectra.n_frames, n_shells))
        kernels.fcc_kernel(stored[part], spectra.scale[part], predicted[part], shift[part], whitening, shell, out)
        return out

    # one sum per chunk, added in order: the same result for any number of threads
    chunks = over_chunks(spectra.n_particles, work, threads, chunk=8, like=stored, item_bytes=fcc_work_bytes(n_shells))
    return np.stack([to_host(one) for one in chunks]).sum(0)


def fcc(sums: np.ndarray) -> np.ndarray:
    """Return the FCC (..., frame, shell) of sums (..., 3, frame, shell); 0 where there is no signal."""
    norm = np.sqrt(sums[..., 1, :, :] * sums[..., 2, :, :])
    return np.divide(sums[..., 0, :, :], norm, out=np.zeros_like(norm), where=norm > 0)


@dataclass(frozen=True)
class DoseModel:
    """FCC(f, k) ≈ scale_f · exp(-B_f k² / 4) · envelope(k), B ≥ 0 relative to the best frame."""

    scale: np.ndarray  # (frame,)
    b_factor_A2: np.ndarray  # (frame,)
    envelope: np.ndarray  # (shell,)

    def values(self, frequency_per_A: np.ndarray) -> np.ndarray:
        """Return scale · exp(-B k² / 4) (frame, frequency), without the envelope."""
        return self.scale[:, None] * np.exp(-0.25 * self.b_factor_A2[:, None] * frequency_per_A[None] ** 2)


def weights(model: DoseModel, frequency_per_A: np.ndarray) -> np.ndarray:
    """Return weights (frame, frequency) that sum to 1 over frames at each frequency; the envelope cancels."""
    values = model.values(frequency_per_A)
    return values / values.sum(0)


def fit_model(values: np.ndarray, frequency_per_A: np.ndarray, weight: np.ndarray) -> DoseModel:
    """Fit scale · exp(-B k² / 4) · envelope to an FCC (frame, shell), weighted per shell, by alternating least squares.

    Radiation damage only accumulates: from the best frame on B never falls, which keeps noisy late frames from rising
    again. Frames before it are free, so that motion in the first frames is seen. Without any signal all frames are alike.
    """
    k2 = frequency_per_A**2
    grid = np.concatenate([[0.0], np.geomspace(1.0, 1000.0, 90)])
    decay = np.exp(-0.25 * grid[:, None] * k2)  # (B, shell)
    envelope = np.maximum(values.mean(0), 0)
    b = np.zeros(len(values))
    scale = np.ones(len(values))
    for _ in range(12):
        shape = decay * envelope
        power = np.maximum((weight * shape**2).sum(1), 1e-300)
        projection = np.maximum((values * weight) @ shape.T, 0)  # (frame, B)
        gain = projection**2 / power
        b = grid[np.argmax(gain, 1)]
        b = _damage_accumulates(b, gain.max(1))
        b = b - b.min()
        shape = np.exp(-0.25 * b[:, None] * k2) * envelope
        scale = (weight * values * shape).sum(1) / np.maximum((weight * shape**2).sum(1), 1e-300)
        scale = np.maximum(scale, LEAST_SCALE * scale.max()) if scale.max() > 0 else np.ones(len(values))
        basis = scale[:, None] * np.exp(-0.25 * b[:, None] * k2)
        envelope = np.maximum((basis * values).sum(0) / (basis**2).sum(0), 0)
    top = scale.max()
    return DoseModel(scale / top, b, envelope * top)


def _damage_accumulates(b: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Return B-factors (frame,) made non-decreasing from the best frame on, each trusted in proportion to its signal."""
    from scipy.optimize import isotonic_regression  # takes long to import

    # the frame a user would call best: sharp, and with enough signal to know
    best = int(np.argmin(np.where(trust > 0.25 * trust.max(), b, np.inf)))
    tail = isotonic_regression(b[best:], weights=np.maximum(trust[best:], 1e-6 * trust.max() + 1e-300)).x
    return np.concatenate([b[:best], tail])


def bootstrap_weights(
    sums: np.ndarray,  # (micrograph, 3, frame, shell)
    frequency_per_A: np.ndarray,  # (shell,) of the fit
    shells: slice,
    all_frequencies_per_A: np.ndarray,  # (frequency,) of the weights
    borrowed: np.ndarray,  # (3, frame, shell) sums that are always added
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 5th and 95th percentile of the weights (frame, frequency) when micrographs are drawn again."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        draw = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)))
        values = fcc(np.tensordot(draw, sums, 1) + borrowed)[:, shells]
        found.append(weights(fit_model(values, frequency_per_A, frequency_per_A), all_frequencies_per_A))
    low, high = np.percentile(np.stack(found), [5, 95], axis=0)
    return low, high


def relion_gauge(n_shells: int) -> float:
    """Return how many times larger than B in exp(-B k²/4) the B-factors of RELION are: it takes n for n - 1 shells."""
    return (n_shells / (n_shells - 1)) ** 2


def fit_relion(fcc_values: np.ndarray, pixel_A: float, k0: int, k1: int) -> tuple[np.ndarray, np.ndarray]:
    """Return RELION's per-frame B-factors (Å², negative) and ln scales of an FCC (frame, shell) on shells k0 to k1 - 1.

    Five alternations of a five-level grid search of σ_f with closed-form scales, and of the envelope. A frame without signal
    has as good as none of the scale; without any signal all frames are alike.
    """
    n_frames, half = fcc_values.shape
    k = np.arange(k0, k1, dtype=float)
    data = fcc_values[:, k0:k1]
    envelope = np.maximum(0.0, data[np.argmax(fcc_values.sum(1))])
    sigma, scale = np.ones(n_frames), np.ones(n_frames)
    for _ in range(5):
        for f in range(n_frames):
            sigma[f], scale[f] = _fit_frame(data[f], k, envelope, 10.0 * half)
        model = scale[:, None] * np.exp(-0.5 * k**2 / sigma[:, None] ** 2)
        power = (model**2).sum(0)
        envelope = np.divide((model * data).sum(0), power, out=np.zeros_like(power), where=power > 0)
        envelope = np.maximum(0.0, envelope)
    if not scale.max() > 0:
        return np.zeros(n_frames), np.zeros(n_frames)
    return -8 * (pixel_A * half) ** 2 / sigma**2, np.log(np.maximum(scale, LEAST_SCALE * scale.max()))


def _fit_frame(data: np.ndarray, k: np.ndarray, envelope: np.ndarray, top: float) -> tuple[float, float]:
    low, high, steps = 1.0, top, 20
    for _ in range(5):
        width = (high - low) / (steps - 1)
        sigma = low + width * np.arange(steps)
        shape = envelope * np.exp(-0.5 * k**2 / sigma[:, None] ** 2)
        power = (shape**2).sum(1)
        scale = np.divide((shape * data).sum(1), power, out=np.zeros(steps), where=power > 0)
        best = int(np.argmin(((data - scale[:, None] * shape) ** 2).sum(1)))
        low, high = max(sigma[best] - width, low), sigma[best] + width
    return float(sigma[best]), float(scale[best])


def sums_at_doses(
    sums: np.ndarray,  # (3, frame, shell)
    edges: np.ndarray,  # (frame + 1,) accumulated dose, e/Å²
    edges_to: np.ndarray,  # (other frame + 1,)
) -> np.ndarray:
    """Return FCC sums (3, other frame, shell) as movies cut into other frames would have given; 0 where nothing is known.

    The signal of a frame grows with its dose and its noise with the root of it: whitened images, Σ Re(X V*) grows with
    the root, the two powers not at all.
    """
    middle, middle_to = 0.5 * (edges[1:] + edges[:-1]), 0.5 * (edges_to[1:] + edges_to[:-1])
    upper = np.clip(np.searchsorted(middle, middle_to), 1, max(len(middle) - 1, 1))
    lower = upper - 1
    upper = np.minimum(upper, len(middle) - 1)
    gap = np.maximum(middle[upper] - middle[lower], 1e-12)
    share = np.clip((middle_to - middle[lower]) / gap, 0, 1)[None, :, None]
    per_root = sums.copy()
    per_root[0] /= np.sqrt(np.diff(edges))[:, None]
    out = (1 - share) * per_root[:, lower] + share * per_root[:, upper]
    out[0] *= np.sqrt(np.diff(edges_to))[:, None]
    out[:, (middle_to < edges[0]) | (middle_to > edges[-1])] = 0
    return out


def weights_at_doses(weight: np.ndarray, edges: np.ndarray, edges_to: np.ndarray) -> np.ndarray:
    """Return weights (other frame, frequency) for movies cut into other frames, normalised over them.

    Best weights are what is left of the signal at a dose, whatever the dose of a frame: logarithms are interpolated at
    the middle of the frames, those of the first and last frame go on beyond. A frame of weight 0, left out by hand, takes
    nothing from its neighbours: what of another frame lies in its dose is left out.
    """
    middle, middle_to = 0.5 * (edges[1:] + edges[:-1]), 0.5 * (edges_to[1:] + edges_to[:-1])
    used = weight > 0
    columns = [np.interp(middle_to, middle[on], np.log(one[on])) for one, on in zip(weight.T, used.T)]
    out = np.exp(np.stack(columns, axis=1))
    if not used.all():
        first, last = np.append(-np.inf, edges[1:-1]), np.append(edges[1:-1], np.inf)
        common = np.minimum(edges_to[1:, None], last) - np.maximum(edges_to[:-1, None], first)
        share = np.maximum(common, 0) / np.diff(edges_to)[:, None] @ used  # of each other frame's dose
        out *= np.where((share > 0).any(0), share, 1)  # a movie with no other dose takes them as they come
    return out / out.sum(0)
