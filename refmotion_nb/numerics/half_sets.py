"""What particles say about their reference: whether they resemble it, and in which half map their own noise sits.

A particle Y (rigid, dose-weighted) was put into the half map of its half set, V1, at the pose V1 is now viewed in; V2 is
the same view of the other half map. Both views hold the signal, so that Re[Y (V1 - V2)*] has no expectation from it; but
V1 holds a share of the particle's own noise, CTF² times the noise power of the half map (ADR 0003), and that power is
half of |V1 - V2|² / CTF². Regressing a particle in units of its grey scale a upon half the difference of the views,

    excess = Σ w Re[(Y - a (V1 + V2) / 2) (V1 - V2)*],  expected = a Σ w |V1 - V2|² / 2,

gives 1 if its noise is in V1, -1 if it is in V2, and 0 if it is in neither or equally in both, with no use of an FSC.
Weights 1 / σ² are the best, and make the variance of the excess 2 / a times what is expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refmotion_nb.numerics.backend import over_chunks
from refmotion_nb.numerics.compiled import njit
from refmotion_nb.numerics.fourier import band_indices, hermitian_weight, shell_round

PRODUCTS = (
    "power",  # |Y|²
    "own",  # Re Y V1*
    "opposite",  # Re Y V2*
    "mirrored",  # the same with Y mirrored in y
    "exchanged",  # the same with x and y of Y exchanged
    "own_power",  # |V1|²
    "opposite_power",  # |V2|²
    "both",  # Re V1 V2*
    "stranger",  # Re Y D*, with D = V1 - V2 of the next particle
    "mean_stranger",  # Re (V1 + V2) / 2 D*, likewise
)
_NONE = np.complex64(0)
_TIMES_Y = (2, 1, 1, 1, 1, 0, 0, 0, 1, 0)  # powers of Y in each


@dataclass(frozen=True)
class ShellProducts:
    """Products of particles Y and views V1, V2, summed over each shell of the full plane."""

    sums: np.ndarray  # (particle, product, shell) float64
    count: np.ndarray  # (shell,) coefficients

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one product (particle, shell)."""
        return self.sums[:, PRODUCTS.index(name)]

    @classmethod
    def together(cls, parts: list[ShellProducts]) -> ShellProducts:
        """Return the products of several micrographs, up to the last shell that all have."""
        shells = min(len(part.count) for part in parts)
        return cls(np.concatenate([part.sums[..., :shells] for part in parts]), parts[0].count[:shells])

    def divided(self, by: float) -> ShellProducts:
        """Return the products of particles divided by a number."""
        return ShellProducts(self.sums / by ** np.array(_TIMES_Y)[:, None], self.count)

    @property
    def weight(self) -> np.ndarray:
        """One over the mean power of the particles in every shell (shell,)."""
        mean = self["power"].mean(0) / np.maximum(self.count, 1)
        return np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0)


def shell_products(observed: np.ndarray, own: np.ndarray, opposite: np.ndarray, threads: int = 1) -> ShellProducts:
    """Return the products of particles and views (particle, 2k + 1, k + 1), the object of all at the same place."""
    k = observed.shape[2] - 1
    ky, kx = band_indices(k)
    shell = shell_round(ky, kx)
    share = np.broadcast_to(hermitian_weight(kx), shell.shape).copy()
    sums = np.zeros((len(observed), len(PRODUCTS), k + 1))

    def work(part: slice) -> None:
        _multiply(observed, own, opposite, shell, share, part.start, part.stop, sums)

    over_chunks(len(observed), work, threads)
    inside = shell <= k
    return ShellProducts(sums, np.bincount(shell[inside], share[inside], k + 1))


@njit(nogil=True, cache=True)
def _multiply(observed, own, opposite, shell, share, start, stop, sums):  # pragma: no cover - compiled
    n, rows, columns = observed.shape
    k = columns - 1
    for p in range(start, stop):
        q = (p + 1) % n
        for i in range(rows):
            for j in range(columns):
                s = shell[i, j]
                if s > k:
                    continue
                h = share[i, j]
                y, a, b = observed[p, i, j], own[p, i, j], opposite[p, i, j]
                m = observed[p, rows - 1 - i, j]
                # (ky, kx) of the transposed image is (kx, ky) of the image, found at (-kx, -ky) where ky < 0
                t = observed[p, k + j, i - k] if i >= k else observed[p, k - j, k - i].conjugate()
                d = own[q, i, j] - opposite[q, i, j] if q != p else _NONE
                v = a + b
                sums[p, 0, s] += h * (y.real * y.real + y.imag * y.imag)
                sums[p, 1, s] += h * (y.real * a.real + y.imag * a.imag)
                sums[p, 2, s] += h * (y.real * b.real + y.imag * b.imag)
                sums[p, 3, s] += h * (m.real * b.real + m.imag * b.imag)
                sums[p, 4, s] += h * (t.real * b.real + t.imag * b.imag)
                sums[p, 5, s] += h * (a.real * a.real + a.imag * a.imag)
                sums[p, 6, s] += h * (b.real * b.real + b.imag * b.imag)
                sums[p, 7, s] += h * (a.real * b.real + a.imag * b.imag)
                sums[p, 8, s] += h * (y.real * d.real + y.imag * d.imag)
                sums[p, 9, s] += h * np.float32(0.5) * (v.real * d.real + v.imag * d.imag)


def resemblance(products: ShellProducts, what: str, first: int, last: int) -> np.ndarray:
    """Return the correlation (particle,) with the opposite half map in shells ``first`` to ``last``, noise whitened.

    ``what``: ``opposite`` as the particles are, ``mirrored`` in y, or with x and y ``exchanged``.
    """
    band = np.zeros(len(products.count))
    band[first : last + 1] = products.weight[first : last + 1]
    power = (products["power"] @ band) * (products["opposite_power"] @ band)
    cross = products[what] @ band
    return np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)


def displacement_window(
    observed: np.ndarray, view: np.ndarray, weight: np.ndarray, extent_A: float, at_A: np.ndarray
) -> np.ndarray:
    """Return how well particles match views (particle, 2k + 1, k + 1), all moved by as much: (y, x) at ``at_A`` along either.

    ``weight`` (shell,) counts from shell 0; what lies beyond its last shell is left out.
    """
    ky, kx = band_indices(observed.shape[2] - 1)
    shell = shell_round(ky, kx)
    worth = np.append(weight, 0.0)[np.minimum(shell, len(weight))] * hermitian_weight(kx)
    cross = np.einsum("pij,pij->ij", observed, view.conj()) * worth
    turn = 2j * np.pi / extent_A * at_A[:, None]
    return (np.exp(turn * ky[:, 0]) @ cross @ np.exp(turn * kx[0]).T).real


def standard_errors(values: np.ndarray) -> float:
    """Return the mean of values in units of its standard error; 0 of fewer than three values."""
    spread = values.std(ddof=1) if len(values) > 2 else 0.0
    return float(values.mean() / spread * np.sqrt(len(values))) if spread > 0 else 0.0


def grey_scale(products: ShellProducts, first: int, last: int) -> float:
    """Return the grey scale of particles against their reference, free of own noise: Σ Y V2* / Σ V1 V2*."""
    weight = products.weight[first : last + 1]
    cross, power = ((products[name][:, first : last + 1] @ weight).sum() for name in ("opposite", "both"))
    return float(cross / power) if power > 0 else 0.0


@dataclass(frozen=True)
class OwnNoise:
    """Excess of each particle's correlation with its own half map: (particle,) each."""

    excess: np.ndarray
    expected: np.ndarray
    variance: np.ndarray  # of the excess

    @property
    def found(self) -> tuple[float, float]:
        """Share of the expected excess that is found, and its standard error."""
        share = self.excess.sum() / self.expected.sum()
        scatter = np.sum((self.excess - share * self.expected) ** 2)
        return float(share), float(np.sqrt(max(scatter, self.variance.sum())) / self.expected.sum())

    @property
    def power(self) -> float:
        """Return what is expected in all, in standard errors: below some 5 nothing can be told."""
        return float(np.sqrt(np.sum(self.expected**2 / self.variance)))

    @property
    def amplitude(self) -> tuple[float, float]:
        """Own noise of either sign, RMS in units of what is expected, and the standard error of its square if it is 0."""
        information = np.sum(self.expected**2 / self.variance)
        square = (np.sum(self.excess**2 / self.variance) - len(self.excess)) / information
        return float(np.sqrt(max(square, 0.0))), float(np.sqrt(2 * len(self.excess)) / information)

    def of(self, rows: np.ndarray) -> OwnNoise:
        """Return that of some particles."""
        return OwnNoise(self.excess[rows], self.expected[rows], self.variance[rows])


def own_noise(products: ShellProducts, scale: float, first: int) -> OwnNoise:
    """Return the excess of particles of grey scale ``scale`` from shell ``first`` on.

    Its variance is 2 / a of what is expected, or more, if the same with the difference of the next particle (which holds
    none of this one's noise) scatters more.
    """
    p, weight = products, products.weight.copy()
    weight[:first] = 0
    excess = (p["own"] - p["opposite"] - 0.5 * scale * (p["own_power"] - p["opposite_power"])) @ weight
    difference = np.maximum((p["own_power"] + p["opposite_power"] - 2 * p["both"]) @ weight, 1e-30)
    strange = (p["stranger"] - scale * p["mean_stranger"]) @ weight
    return OwnNoise(excess, 0.5 * scale * difference, difference * max(1.0, np.sum(strange**2) / difference.sum()))


def wrong_share(noise: OwnNoise, amplitude: float) -> tuple[float, float]:
    """Return the share of particles whose own noise is in the other half map, and its standard error.

    Excesses are a mixture of two normal distributions about ± ``amplitude`` times what is expected (EM for the share
    alone), so that a particle counts by how clearly it speaks.
    """
    log_odds = 2 * amplitude * noise.expected * noise.excess / noise.variance
    ratio = np.exp(-np.clip(log_odds, -60, 60))  # of wrong to right
    share = 0.5
    for _ in range(200):
        before, share = share, float(np.mean(share * ratio / (1 - share + share * ratio)))
        if math.isclose(before, share, abs_tol=1e-6):
            break
    slope = (ratio - 1) / (1 - share + share * ratio)
    return share, float(1 / np.sqrt(max(np.sum(slope**2), 1e-30)))


def map_correlation(products: ShellProducts, first: int, last: int) -> float:
    """Return the correlation of the two half maps' views in shells ``first`` to ``last``."""
    part = slice(first, last + 1)
    cross, one, two = (products[name][:, part].sum() for name in ("both", "own_power", "opposite_power"))
    return float(cross / np.sqrt(one * two)) if one > 0 and two > 0 else 0.0
