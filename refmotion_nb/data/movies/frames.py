"""Which frames of a movie are used, and how an EER movie is cut into frames: motion and dose are carried over."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from refmotion_nb.data.movies.eer import eer_info, is_eer
from refmotion_nb.data.schema import InputError, Movie


def keep_frames(movie: Movie, first_frame: int, last_frame: int) -> Movie:
    """Use frames ``first_frame`` to ``last_frame`` of the movie only, counted from 1, both included; last 0: to the end.

    Frames that motion correction left out stay out. Motion stays as it was measured: nothing is moved to zero. The dose
    of the frames before the first one used still counts.

    Raises
    ------
    InputError
        The movie ends before, or motion correction left out all of these frames.
    """
    end = movie.first_frame + movie.n_frames
    first, last = max(first_frame - 1, movie.first_frame), last_frame or end
    if last > end:
        raise InputError(f"{movie.path}: last_frame is {last_frame}, but {end} frames were corrected; give a smaller "
                         "last_frame, or 0 for all")  # fmt: skip
    if first >= last:
        raise InputError(f"{movie.path}: no frame is left from first_frame {first_frame} to last_frame {last}, of frames "
                         f"{movie.first_frame + 1} to {end} that were corrected; give a smaller first_frame")  # fmt: skip
    if (first, last) == (movie.first_frame, end):
        return movie
    used = slice(first - movie.first_frame, last - movie.first_frame)
    return replace(
        movie, first_frame=first, n_frames=last - first, motion_time=movie.local_times[used],
        motion_frames=movie.motion_frames or movie.n_frames,
        global_shift=None if movie.global_shift is None else movie.global_shift[used],
    )  # fmt: skip


def regroup_eer(movie: Movie, n_fractions: int) -> Movie:
    """Cut an EER movie into ``n_fractions`` of equally many raw frames; the raw frames left over at its end are not used.

    A shift that was measured on a fraction is that of its middle. The motion of a new fraction is the mean of that of
    old fractions within it, or, where it is shorter than they are, that of its own middle.

    Raises
    ------
    InputError
        It is no EER movie, it has fewer raw frames than that, or motion correction left out some of its frames.
    """
    raw_frames = movie.n_frames * movie.eer_grouping
    if not is_eer(movie.path):
        raise InputError(f"{movie.path} is no EER movie, its frames cannot be cut anew; leave eer_fractions out")
    in_file = eer_info(movie.path).n_frames // movie.eer_grouping
    seen = movie.first_frame + min(movie.motion_frames or movie.n_frames, movie.n_frames)
    if movie.first_frame or seen < in_file:
        raise InputError(f"{movie.path}: motion correction saw fractions {movie.first_frame + 1} to {seen} of {in_file}; "
                         "leave eer_fractions out, or correct the motion of all of them")  # fmt: skip
    grouping = raw_frames // n_fractions
    if grouping < 1:
        raise InputError(f"{movie.path}: its {raw_frames} raw frames do not make {n_fractions} fractions; give fewer "
                         "eer_fractions")  # fmt: skip
    ratio = grouping / movie.eer_grouping
    times = fraction_times(n_fractions, ratio)
    shift = movie.global_shift
    if shift is not None:
        shift = np.stack([_between(np.asarray(axis, float), times).mean(1) for axis in np.asarray(shift).T], axis=1)
    return replace(
        movie, n_frames=n_fractions, eer_grouping=grouping, dose_per_frame_e_A2=movie.dose_per_frame_e_A2 * ratio,
        global_shift=shift, motion_time=times, motion_frames=movie.motion_frames or movie.n_frames,
    )  # fmt: skip


def fraction_times(n: int, ratio: float) -> np.ndarray:
    """Return when ``n`` fractions of the length of ``ratio`` old ones are, (fraction, sample); old k is at k, its middle."""
    samples = math.ceil(ratio - 1e-9)
    within = (np.arange(samples) + 0.5) / samples
    return (np.arange(n)[:, None] + within) * ratio - 0.5


def _between(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate values at 0, 1, 2 …, linearly, and beyond the ends straight on."""
    if len(values) < 2:
        return np.full(at.shape, values[0])
    left = np.floor(at).astype(int).clip(0, len(values) - 2)
    return values[left] + (at - left) * (values[left + 1] - values[left])
