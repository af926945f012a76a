"""Dose weights of several groups: what a group says itself, and what it takes from the pool."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from refmotion_nb.stages.base import Silent
from refmotion_nb.stages.dose_weights import BORROWED_PARTICLES, DoseWeights, Exposure, Measured, weights_table

FRAMES, SHELLS, EXTENT_A = 12, 60, 120.0


def measured(name: str, rate_A2: float, particles: int) -> Measured:
    """Sums of a group whose B-factor rises by ``rate_A2`` from frame to frame."""
    frequency = np.arange(SHELLS) / EXTENT_A
    fcc = 0.1 * np.exp(-0.25 * rate_A2 * np.arange(FRAMES)[:, None] * frequency**2)
    sums = particles * np.stack([fcc, np.ones_like(fcc), np.ones_like(fcc)])
    edges = tuple(2.0 * np.arange(FRAMES + 1))
    return Measured(Exposure(name, edges, 300.0), EXTENT_A, 50, [sums], [name], particles)


def rate_A2(table, name: str) -> float:
    return float(table["b_factor"].sel(group=name)[-1]) / (FRAMES - 1)


@pytest.mark.parametrize(("particles", "expected"), [(100_000, 6.0), (10, 2.0)])
def test_a_large_group_follows_itself_and_a_small_one_the_pool(particles, expected):
    table = weights_table([measured("usual", 2.0, 100_000), measured("other", 6.0, particles)])
    assert table["group"].values.tolist() == ["all", "usual", "other"]
    assert table["particles"].values.tolist() == [100_000 + particles, 100_000, particles]
    assert rate_A2(table, "usual") == pytest.approx(2.0, rel=0.1)
    assert rate_A2(table, "other") == pytest.approx(expected, rel=0.1)


class ManyGroups:
    """A session of one micrograph for each of ``n`` optics groups, of which random choice finds none."""

    def __init__(self, n: int):
        movie = SimpleNamespace(dose_edges=2.0 * np.arange(FRAMES + 1))
        self.micrographs = {f"m{i}": (movie, xr.Dataset({"optics": ("particle", [i])})) for i in range(n)}
        self.data = SimpleNamespace(optics=[SimpleNamespace(name=f"tilt {i}") for i in range(n)])
        self.asked: list[tuple[int, int]] = []  # micrographs to choose from, particles

    def __iter__(self):
        return iter(self.micrographs)

    def sample(self, names, target_particles, *rest):
        self.asked.append((len(names), target_particles))
        return iter(())


@pytest.mark.parametrize(("groups", "each"), [(2, BORROWED_PARTICLES), (50, 100), (9000, 1)])
def test_groups_that_chance_left_out_are_all_measured_yet_take_no_more_than_the_target(groups, each):
    session = ManyGroups(groups)
    assert not list(DoseWeights(target_particles=5000).sample(session, None, Silent()))
    assert session.asked == [(groups, 5000), *[(1, each)] * groups]
