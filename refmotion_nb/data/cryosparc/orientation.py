"""Which way up CryoSPARC's tables lie on a movie: particles compared with their reference in each possible way.

A wrong y-axis fails silently: nothing is where the tables say, and a map at 3.7 Å becomes one at 10.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refmotion_nb.data.cryosparc.motion import TIFF
from refmotion_nb.data.resemblance import AHEAD, SURE, VIEWS, resemblance_scores
from refmotion_nb.data.schema import Dataset, InputError


def best_orientation(datasets: Mapping[str, Dataset]) -> tuple[str, str]:
    """Return the name of the data set in which particles look most like their reference, and a note that says so.

    The first is returned where the data do not tell.
    """
    first, *others = datasets
    if not any(_distinct(datasets[name], datasets[first]) for name in others):
        return first, f"orientation {first}: all are the same for these movies"
    try:
        found = resemblance_scores(datasets)
    except InputError as error:
        return first, f"orientation {first} is taken, for it cannot be found out: {error}"
    scores = {name: found[name, VIEWS[0]] for name in datasets}
    ranked = sorted(datasets, key=lambda name: -scores[name])
    listed = ", ".join(f"{name} {scores[name]:.1f}" for name in ranked)
    about = f"particles resemble their reference by this many standard errors: {listed}"
    best, second = ranked[:2]
    mirrored, seen = max((found[name, VIEWS[1]], name) for name in datasets)
    if mirrored >= SURE and mirrored - scores[best] >= AHEAD:
        return best, (f"orientation {best} is taken, but does not fit: {about}; mirrored in y they do by {mirrored:.1f} "
                      f"({seen}): the rows of the movies, or poses and hand of the maps, run the other way, give those that "
                      "belong together")  # fmt: skip
    if scores[best] < SURE or scores[best] - scores[second] < AHEAD:
        return first, f"orientation {first} is taken, but not confirmed: {about}; say orientation if it is another"
    return best, f"orientation {best}: {about}"


def _distinct(one: Dataset, other: Dataset) -> bool:
    rows = one.movies[:1] and other.movies[:1] and one.movies[0].path.suffix.lower() in TIFF
    same = np.array_equal(one.particles["coordinate"].values, other.particles["coordinate"].values)
    return not same or bool(rows and one.movies[0].rows_as_stored != other.movies[0].rows_as_stored)
