"""From projections and motion to counted frames, and from frames to the rigid averages a reference is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.fft

from refmotion_nb.numerics.compiled import njit
from refmotion_nb.numerics.ctf import wavelength_A
from refmotion_nb.numerics.energy import critical_dose

ELECTRON_REST_V = 510998.95
BLUR_STEP_A = 0.3  # motion within a frame is resolved to steps of this length

Map = Callable[..., Iterable]  # map or an executor's map: results in order


@dataclass(frozen=True)
class Microscope:
    """Optics and detector that all particles of a simulation share."""

    voltage_kV: float
    spherical_aberration_mm: float
    amplitude_contrast: float
    phase_shift_deg: float
    pixel_size_A: float

    @property
    def wavelength_A(self) -> float:
        """De Broglie wavelength, relativistic."""
        return wavelength_A(self.voltage_kV)

    @property
    def interaction_rad_per_VA(self) -> float:
        """Phase per projected potential: 2π m e λ/h² (Kirkland, Advanced Computing in Electron Microscopy, eq. 5.6)."""
        volt = self.voltage_kV * 1e3
        return 2 * np.pi / (self.wavelength_A * volt) * (ELECTRON_REST_V + volt) / (2 * ELECTRON_REST_V + volt)

    def ctf(self, size: int, defocus_u_A: float, defocus_v_A: float, angle_deg: float) -> np.ndarray:
        """RELION's CTF (size, size//2+1): +amplitude contrast at k = 0, underfocus positive."""
        ky = np.fft.fftfreq(size, self.pixel_size_A)[:, None]
        kx = np.fft.rfftfreq(size, self.pixel_size_A)[None]
        k2 = kx**2 + ky**2
        angle = np.arctan2(ky, kx) - np.deg2rad(angle_deg)
        defocus = 0.5 * (defocus_u_A + defocus_v_A + (defocus_u_A - defocus_v_A) * np.cos(2 * angle))
        wave = self.wavelength_A
        phase = np.pi * wave * k2 * (0.5 * self.spherical_aberration_mm * 1e7 * wave**2 * k2 - defocus)
        phase -= np.deg2rad(self.phase_shift_deg)
        q = self.amplitude_contrast
        return (q * np.cos(phase) - np.sqrt(1 - q**2) * np.sin(phase)).astype(np.float32)


def mean_decay(frequency: np.ndarray, dose_start: float, dose_end: float, voltage_kV: float) -> np.ndarray:
    """Amplitude left of the undamaged signal, exp(-dose/2Nc), averaged over a frame."""
    twice = 2 * critical_dose(frequency, voltage_kV)
    mean = twice * (np.exp(-dose_start / twice) - np.exp(-dose_end / twice)) / (dose_end - dose_start)
    return mean.astype(np.float32)


@dataclass(frozen=True)
class Exposure:
    """All that one movie's expected images are made of."""

    spectra: np.ndarray  # (particle, box, box//2+1) complex64: relative intensity, undamaged, particle at the origin
    positions_px: np.ndarray  # (particle, xy) before the exposure
    paths_px: np.ndarray  # (particle, frame, step, xy) displacement
    decay: np.ndarray  # (frame, box, box//2+1) float32
    ice_ft: np.ndarray | None  # rfft2 of the relative intensity of the structural noise, whole field
    ice_paths_px: np.ndarray  # (frame, step, xy)
    dose_per_pixel: float  # electrons per frame
    sensitivity: np.ndarray  # (y, x) counts per electron of the nominal dose: detector times illumination
    hot: np.ndarray  # (pixel, xy)


def expected_counts(exposure: Exposure, frame: int) -> np.ndarray:
    """Sum up the expected counts (y, x) of one frame."""
    height, width = exposure.sensitivity.shape
    image = np.ones((height, width), np.float32)
    if exposure.ice_ft is not None:
        path = exposure.ice_paths_px[frame].mean(axis=0)
        image += _shifted_field(exposure.ice_ft, path, (height, width))
    box = exposure.spectra.shape[1]
    buffer = np.empty(exposure.spectra.shape[1:], np.complex64)
    for spectrum, position, path in zip(exposure.spectra, exposure.positions_px, exposure.paths_px[:, frame]):
        at = position + path.mean(axis=0)
        corner = np.rint(at).astype(int) - box // 2
        _blurred(spectrum, exposure.decay[frame], _thinned(position + path - corner), buffer)
        _add(image, scipy.fft.irfft2(buffer, (box, box)), corner)
    image *= exposure.dose_per_pixel
    image *= exposure.sensitivity
    return np.maximum(image, 0)


def _thinned(path_px: np.ndarray) -> np.ndarray:
    """As many evenly spread points of a path within a frame as its length needs: (step, xy)."""
    length = np.linalg.norm(np.diff(path_px, axis=0), axis=1).sum()
    steps = len(path_px)
    groups = next((g for g in range(1, steps + 1) if steps % g == 0 and length / g <= BLUR_STEP_A), steps)
    return path_px.reshape(groups, steps // groups, 2).mean(axis=1)


def _shifted_field(field_ft: np.ndarray, shift_px: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    height, width = 2 * ((field_ft.shape[0] + 1) // 2), 2 * (field_ft.shape[1] - 1)
    ramp_y = np.exp(-2j * np.pi * np.fft.fftfreq(height) * shift_px[1]).astype(np.complex64)
    ramp_x = np.exp(-2j * np.pi * np.fft.rfftfreq(width) * shift_px[0]).astype(np.complex64)
    moved = scipy.fft.irfft2(field_ft * ramp_y[:, None] * ramp_x, (height, width), overwrite_x=True)
    return moved[: shape[0], : shape[1]]


def _add(image: np.ndarray, patch: np.ndarray, corner: np.ndarray) -> None:
    """Add a patch whose first pixel lies at ``corner`` (x, y), as far as it lies on the image."""
    (x, y), box = corner, len(patch)
    height, width = image.shape
    x0, x1, y0, y1 = max(x, 0), min(x + box, width), max(y, 0), min(y + box, height)
    if x0 < x1 and y0 < y1:
        image[y0:y1, x0:x1] += patch[y0 - y : y1 - y, x0 - x : x1 - x]


@njit(nogil=True, cache=True)
def _blurred(spectrum, decay, path, out):  # pragma: no cover - compiled
    """Spectrum times decay times the mean phase factor over the points of a path (step, xy) in px."""
    n, half = spectrum.shape
    steps = path.shape[0]
    ex = np.empty((steps, half), np.complex64)
    ey = np.empty((steps, n), np.complex64)
    for s in range(steps):
        for k in range(half):
            ex[s, k] = np.exp(-2j * np.pi * k * path[s, 0] / n) / steps
        for k in range(n):
            signed = k if k < (n + 1) // 2 else k - n
            ey[s, k] = np.exp(-2j * np.pi * signed * path[s, 1] / n)
    for y in range(n):
        for x in range(half):
            phase = ex[0, x] * ey[0, y]
            for s in range(1, steps):
                phase += ex[s, x] * ey[s, y]
            out[y, x] = spectrum[y, x] * phase * decay[y, x]


def structural_noise(
    microscope: Microscope, shape: tuple[int, int], contrast: float, defocus_A: float, rng: np.random.Generator
) -> np.ndarray:
    """``rfft2`` of a Gaussian random field seen through the CTF, of RMS ``contrast``, on a field a little larger."""
    height, width = (2 * scipy.fft.next_fast_len((n + 32) // 2, real=True) for n in shape)
    white = scipy.fft.rfft2(rng.standard_normal((height, width), np.float32))
    ky = np.fft.fftfreq(height, microscope.pixel_size_A)[:, None]
    kx = np.fft.rfftfreq(width, microscope.pixel_size_A)[None]
    k2 = (kx**2 + ky**2).astype(np.float32)
    wave = microscope.wavelength_A
    phase = np.pi * wave * k2 * (0.5e7 * microscope.spherical_aberration_mm * wave**2 * k2 - defocus_A)
    white *= np.sin(phase) * np.exp(-10 * k2)
    white[0, 0] = 0
    rms = np.std(scipy.fft.irfft2(white, (height, width)))
    return (white * (contrast / rms)).astype(np.complex64)


def illumination(shape: tuple[int, int], spread: float, rng: np.random.Generator) -> np.ndarray:
    """Relative intensity (y, x) of mean 1: beam and ice thickness vary slowly over the field, by ``spread`` RMS."""
    y, x = (np.cos(np.pi * np.arange(3)[:, None] * (np.arange(n) + 0.5) / n) for n in shape)
    waves = rng.standard_normal((3, 3)) / (1 + np.add.outer(np.arange(3) ** 2, np.arange(3) ** 2))
    waves[0, 0] = 0
    field = np.einsum("ab,ay,bx->yx", waves, y, x, optimize=True)
    return np.maximum(1 + field * (spread / field.std()), 0.1).astype(np.float32)


def count(exposure: Exposure, frame: int, rng: np.random.Generator) -> np.ndarray:
    """Count the electrons (y, x) uint8 of one frame; hot pixels count some fifty times too many."""
    expected = expected_counts(exposure, frame)
    x, y = exposure.hot.T
    expected[y, x] = 50 + 50 * exposure.dose_per_pixel
    return np.minimum(rng.poisson(expected), 255).astype(np.uint8)


def movie(exposure: Exposure, seeds: list[np.random.SeedSequence], run: Map) -> Iterator[np.ndarray]:
    """Count the frames in order, by ``run`` (a map); each draws from its own seed."""
    return iter(run(lambda f: count(exposure, f, np.random.default_rng(seeds[f])), range(len(seeds))))


def dose_weighted_average(
    frames: np.ndarray,  # (frame, y, x) counts
    gain: np.ndarray,  # (y, x) multiplies
    hot: np.ndarray,  # (pixel, xy)
    centre_px: np.ndarray,  # (xy) whole pixels
    shifts_px: np.ndarray,  # (frame, xy) displacement to undo
    weights: np.ndarray,  # (frame, box, box//2+1)
) -> np.ndarray:
    """Weighted sum of one particle's frames, contrast inverted as RELION does: (box, box//2+1), centre at box // 2."""
    box = weights.shape[1]
    total = np.zeros(weights.shape[1:], np.complex64)
    moved = np.empty_like(total)
    whole = np.rint(shifts_px).astype(int)
    for f, (frame, step) in enumerate(zip(frames, whole)):
        x, y = centre_px + step - box // 2
        rows = np.clip(np.arange(y, y + box), 0, frame.shape[0] - 1)
        columns = np.clip(np.arange(x, x + box), 0, frame.shape[1] - 1)
        patch = frame[np.ix_(rows, columns)] * gain[np.ix_(rows, columns)]
        mean = np.float32(np.median(patch[:: max(1, box // 32)].mean(axis=1)))
        bad = hot - (x, y)
        bad = bad[((bad >= 0) & (bad < box)).all(axis=1)]
        patch[bad[:, 1], bad[:, 0]] = mean
        _blurred(scipy.fft.rfft2(mean - patch), weights[f], (step - shifts_px[f])[None], moved)
        total += moved
    return total


def normalised(image_ft: np.ndarray, radius_px: float) -> np.ndarray:
    """Transform of the image with mean 0 and standard deviation 1 outside ``radius_px`` (RELION's normalisation)."""
    box = image_ft.shape[0]
    image = scipy.fft.irfft2(image_ft, (box, box))
    r = np.arange(box) - box // 2
    outside = image[np.hypot(r[:, None], r) > min(radius_px, 0.48 * box)]
    return scipy.fft.rfft2((image - outside.mean()) / outside.std()).astype(np.complex64)


def centred(image_ft: np.ndarray, origin_px: np.ndarray) -> np.ndarray:
    """Bring the object, at box // 2 minus its origin offset (x, y), to the first pixel."""
    box = image_ft.shape[0]
    out = np.empty_like(image_ft)
    ones = np.ones(image_ft.shape, np.float32)
    _blurred(image_ft, ones, np.asarray(origin_px, float)[None] - box // 2, out)
    return out
