"""How much memory of a GPU the arrays of a micrograph take, known before any of them is made."""

from __future__ import annotations

from dataclasses import dataclass

TRANSFORMED_BYTES = 32 << 20  # of half planes that are transformed together, at most: enough to keep a GPU busy
MOST_TRANSFORMED = 256  # images
DOUBLE, COMPLEX, REAL, SHORT = 8, 8, 4, 2  # bytes of float64, complex64, float32, int16
SET_VECTORS = 22  # of all unknowns of a set while its trajectories are solved: VECTORS in kernels_motion.cu
LOOK = 8  # bytes per pixel while hot pixels are looked for (sum of frames, three masks, sums of columns of blocks)


def half_plane(box: int) -> int:
    """Return the number of components of a half plane."""
    return box * (box // 2 + 1)


def band(k: int) -> int:
    """Return the number of components of a band."""
    return (2 * k + 1) * (k + 1)


def spectra_bytes(n_patches: int, box: int) -> int:
    """Return what the transforms of patches take as they are kept."""
    return n_patches * 2 * SHORT * half_plane(box)


def transform_batch(n: int, box: int) -> int:
    """Return how many of ``n`` images are transformed together at most: a power of 4."""
    most, size = min(n, MOST_TRANSFORMED, TRANSFORMED_BYTES // (COMPLEX * half_plane(box))), 1
    while 4 * size <= most:
        size *= 4
    return size


def plan_bytes(n: int, box: int) -> int:
    """Return what cuFFT's plans take: three kinds, of the largest batch and of quarters of it, with as much room as data."""
    return 4 * COMPLEX * half_plane(box) * transform_batch(n, box)


def block_work_bytes(width: int) -> int:
    """Return the bytes per row of blocks while its pixels are added up."""
    return 4 * DOUBLE * width


def cut_work_bytes(box: int) -> int:
    """Return the bytes per patch while it is cut, transformed and stored."""
    return 2 * REAL * box * box + 2 * COMPLEX * half_plane(box) + 2 * SHORT * half_plane(box)


def window_work_bytes(k: int, size: int) -> int:
    """Return the bytes per patch while its window of ``size`` samples is made from the band up to shell ``k``."""
    return REAL * (4 * (k + 1) ** 2 + (5 * size + 3) * (k + 1) + 2 * size * size)


def own_noise_work_bytes(k: int, size: int) -> int:
    """Return the bytes per patch while its own noise is spread over a window of ``size`` samples."""
    return REAL * (2 * (k + 1) ** 2 + 14 * size * (k + 1) + size * size)


def power_work_bytes(box: int) -> int:
    """Return the bytes per particle while its power is added up."""
    return REAL * half_plane(box)


def band_power_work_bytes(k: int) -> int:
    """Return the bytes per particle while the power of its band, or the product of two, is added up."""
    return (3 * COMPLEX + 2 * REAL) * band(k)


def fcc_work_bytes(n_shells: int) -> int:
    """Return the bytes per particle of its FCC: next to none, since particles are added up as they are read."""
    return REAL * n_shells


def image_work_bytes(box: int) -> int:
    """Return the bytes per particle while its frames are added up and transformed back."""
    return 4 * COMPLEX * half_plane(box) + 2 * REAL * box * box


def slice_work_bytes(k: int) -> int:
    """Return the bytes per particle while its views are predicted."""
    return (4 * COMPLEX + 2 * REAL) * band(k)


def set_work_bytes(n_particles: int, n_frames: int, n_unknowns: int, real: int = REAL) -> int:
    """Return the bytes per set of hyperparameters while its trajectories are solved, in numbers of ``real`` bytes.

    Modes and what is made of them, the preconditioner, vectors of L-BFGS, and trajectories before and after.
    """
    tracks, blocks = 2 * n_particles * n_frames, n_frames * n_frames
    modes = n_particles * n_particles + blocks + 2 * tracks
    return real * modes + DOUBLE * (2 * blocks + 3 * tracks + (SET_VECTORS + 4) * n_unknowns)


@dataclass(frozen=True)
class MicrographSizes:
    """The arrays of one micrograph on a GPU, bytes."""

    spectra: int  # transforms of all patches
    views: int  # two predicted views and the CTF
    windows: int  # of one alignment, scaled and not
    frames: int  # raw frames: those looked at first, two under way; the look, or the gain without bad pixels
    gain: int  # as it is stored
    work: int  # of one frame's patches, or what of them a batch must hold at least
    plans: int  # of transforms

    @property
    def total(self) -> int:
        """Bytes while the micrograph is read, its views not there yet, or worked on, its frames gone."""
        return self.spectra + max(self.views + self.windows, self.frames) + self.gain + self.work + self.plans

    @classmethod
    def of(
        cls, n_particles: int, n_frames: int, box: int, kept_px: int, k: int, window: int, pixels: int, count_bytes: int,
        sample: int,
    ) -> MicrographSizes:  # fmt: skip
        """Return the sizes of ``n_particles`` in ``n_frames`` frames of ``pixels`` px of ``count_bytes`` each.

        Patches are ``box`` px wide and kept Fourier-cropped to ``kept_px``. Views reach shell ``k``, windows have ``window``
        samples along an axis, frames that are looked at first take ``sample`` bytes.
        """
        patches = n_particles * n_frames
        return cls(
            spectra=spectra_bytes(patches, kept_px),
            views=n_particles * (2 * COMPLEX + REAL) * band(k),
            windows=2 * patches * REAL * window * window,
            frames=sample + pixels * (2 * count_bytes + LOOK),
            gain=pixels * REAL,
            work=max(
                cut_work_bytes(box), *(n_frames * of(k, window) for of in (window_work_bytes, own_noise_work_bytes))
            ),
            plans=plan_bytes(n_particles, box),
        )
