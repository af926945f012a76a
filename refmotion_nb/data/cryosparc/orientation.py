"""Which way up CryoSPARC's tables lie on a movie: particles compared with their reference in each possible way.

A wrong y-axis fails silently: nothing is where the tables say, and a map at 3.7 Å becomes one at 10.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refmotion_nb.data.resemblance import AHEAD, SURE, VIEWS, resemblance_scores
from refmotion_nb.data.schema import Dataset, InputError


def best_orientation(datasets: Mapping[str, Dataset]) -> tuple[str, str]:
    """Return the name of the data set in which particles look most like their reference, and a note that says so.

    The first is returned where the data do not tell.
    """
    names = list(datasets)
    first = datasets[names[0]]
    if len({name: None for name in names if _distinct(datasets[name], first)}) == 0:
        return names[0], f"orientation {names[0]}: all are the same for these movies"
    try:
        found = resemblance_scores(datasets)
    except InputError as error:
        return names[0], f"orientation {names[0]} is taken, for it cannot be found out: {error}"
    scores = {name: found[name, VIEWS[0]] for name in names}
    ranked = sorted(names, key=lambda name: -scores[name])
    listed = ", ".join(f"{name} {scores[name]:.1f}" for name in ranked)
    about = f"particles resemble their reference by this many standard errors: {listed}"
    best = ranked[0]
    if scores[best] < SURE or scores[best] - scores[ranked[1]] < AHEAD:
        return names[
            0
        ], f"orientation {names[0]} is taken, but not confirmed: {about}; say orientation if it is another"
    return best, f"orientation {best}: {about}"


def _distinct(one: Dataset, other: Dataset) -> bool:
    rows = one.movies[:1] and other.movies[:1] and one.movies[0].path.suffix.lower() in (".tif", ".tiff")
    same = np.array_equal(one.particles["coordinate"].values, other.particles["coordinate"].values)
    return not same or bool(rows and one.movies[0].rows_as_stored != other.movies[0].rows_as_stored)
