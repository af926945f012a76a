"""Random micrographs with as many particles as a stage asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from refmotion_nb.stages.base import Reporter
from refmotion_nb.stages.places import Found
from refmotion_nb.stages.session import Session


def sample(
    session: Session, names: list[str], target_particles: int, seed: int, visit: Callable[[list[str]], Found],
    reporter: Reporter, what: str,
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """Yield name and value of what ``visit`` yields of random micrographs with at least ``target_particles`` in all.

    ``visit`` takes names and yields each with a value, as the methods of a place do. Others take the place of
    micrographs that cannot be used (see the session's ``failed``).
    """
    drawn = _shuffled(names, seed)
    count = 0
    while drawn and count < target_particles:
        n = _fewest(session, drawn, target_particles - count)
        batch, drawn = set(drawn[:n]), drawn[n:]
        reporter.start(len(batch), what)
        with closing(visit([name for name in session if name in batch])) as visited:
            for name, value in visited:
                if name in session.failed:
                    reporter.advance(micrograph=name, failed=session.failed[name])
                    continue
                yield name, value
                count += session.particle_count(name)
                reporter.advance(micrograph=name, particles=session.particle_count(name))
        reporter.done()


def draw(session: Session, names: list[str], target_particles: int, seed: int) -> list[str]:
    """Return those of ``names`` that ``sample`` begins with, in the order they are read."""
    drawn = _shuffled(names, seed)
    batch = set(drawn[: _fewest(session, drawn, target_particles)])
    return [name for name in session if name in batch]


def _fewest(session: Session, names: list[str], target_particles: int) -> int:
    """Return how many of ``names``, from the first on, have at least ``target_particles`` in all."""
    ends = np.cumsum([session.particle_count(name) for name in names])
    return int(np.searchsorted(ends, target_particles)) + 1


def _shuffled(names: list[str], seed: int) -> list[str]:
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
