"""Dose weights of several groups: what a group says itself, and what it takes from the pool."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import refmotion_nb as rm
from refmotion_nb.data.relion.results import read_bfactors
from refmotion_nb.numerics.dose import DoseModel, sums_at_doses, weights
from refmotion_nb.stages import dose_weights
from refmotion_nb.stages.base import Silent
from refmotion_nb.stages.correction import _write_bfactors
from refmotion_nb.stages.dose_weights import (
    BORROWED_PARTICLES,
    DoseWeights,
    Exposure,
    Measured,
    exposures,
    micrograph_fcc_sums,
    weights_on,
    weights_table,
)

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


def test_sums_do_not_depend_on_how_finely_movies_are_sampled(tiny):
    """Fourier-cropped patches are those of a movie with larger pixels: it counts as much as the other."""
    sums = []
    for crop_to in (0, 64):
        session = rm.Session(tiny.open(), threads=2)
        session.crop_to = crop_to
        m = session.micrograph("mic0000", DoseWeights())
        sums.append(micrograph_fcc_sums(m, m.placement.initial_A, 2)[..., :30])
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-3, atol=1e-4 * np.abs(sums[0]).max())


def test_sums_of_frames_cut_otherwise_are_those_that_they_would_have_had():
    """Of signal that falls off linearly with dose: it grows with the root of a frame's dose, powers not at all."""

    def sums(n_frames):
        edges = np.linspace(4.0, 52.0, n_frames + 1)
        signal = np.sqrt(np.diff(edges)) * (1 - 0.5 * (edges[1:] + edges[:-1]) / 60)
        return edges, np.stack([signal, np.full(n_frames, 3.0), np.full(n_frames, 5.0)])[..., None]

    (edges, fine), (edges_to, coarse) = sums(24), sums(12)
    np.testing.assert_allclose(sums_at_doses(fine, edges, edges_to), coarse, rtol=1e-6)
    longer = sums_at_doses(fine, edges, np.append(edges_to, [56.0, 60.0]))
    np.testing.assert_allclose(longer[:, :12], coarse, rtol=1e-6)
    assert not longer[:, 12:].any(), "nothing is known of frames beyond"


class ManyGroups:
    """A session of one micrograph for each of ``n`` optics groups, of which random choice finds none."""

    def __init__(self, n: int):
        movie = SimpleNamespace(dose_edges=2.0 * np.arange(FRAMES + 1), voltage_kV=300.0)
        self.micrographs = {f"m{i}": (movie, xr.Dataset({"optics": ("particle", [i])})) for i in range(n)}
        self.data = SimpleNamespace(optics=[SimpleNamespace(name=f"tilt {i}") for i in range(n)])

    def __iter__(self):
        return iter(self.micrographs)


@pytest.mark.parametrize(("groups", "each"), [(2, BORROWED_PARTICLES), (50, 100), (9000, 1)])
def test_groups_that_chance_left_out_are_all_measured_yet_take_no_more_than_the_target(groups, each, monkeypatch):
    session, asked = ManyGroups(groups), []  # micrographs to choose from, particles

    def finds_none(_, names, target_particles, *rest):
        asked.append((len(names), target_particles))
        return iter(())

    monkeypatch.setattr(dose_weights, "sample", finds_none)
    assert not list(DoseWeights(target_particles=5000).sample(session, exposures(session), None, Silent()))
    assert asked == [(groups, 5000), *[(1, each)] * groups]


def exposed(doses_per_frame, before=0.0):
    """A session of a micrograph for each dose, all of one optics group."""
    movies = [
        SimpleNamespace(dose_edges=before + dose * np.arange(FRAMES + 1), voltage_kV=300.0) for dose in doses_per_frame
    ]
    particles = xr.Dataset({"optics": ("particle", [0])})
    micrographs = {f"m{i}": (movie, particles) for i, movie in enumerate(movies)}
    return SimpleNamespace(micrographs=micrographs, data=SimpleNamespace(optics=[SimpleNamespace(name="one")]))


def test_doses_that_were_measured_movie_by_movie_make_one_group_on_their_median():
    doses = 2.0 + 0.05 * np.random.default_rng(1).uniform(-1, 1, 500)
    found = exposures(exposed(doses))
    (one,) = set(found.values())
    assert len(found) == 500 and np.allclose(one.edges, np.median(doses) * np.arange(FRAMES + 1), atol=1e-3)


def test_doses_that_are_a_frame_apart_are_two_groups_and_each_movie_takes_the_weights_of_the_nearer():
    doses = [2.0, 2.01, 2.3, 2.31]
    found = exposures(exposed(doses))
    few, many = dict.fromkeys(found.values())
    assert [found[f"m{i}"] is few for i in range(4)] == [True, True, False, False]
    groups = [
        Measured(one, EXTENT_A, 50, measured("", rate, 10_000).sums, ["m"], 10_000)
        for one, rate in ((few, 1.0), (many, 20.0))
    ]
    table = weights_table(groups)
    for dose, row in zip(doses, (1, 1, 2, 2)):
        own = table.isel(group=row)
        got = weights_on(table, dose * np.arange(FRAMES + 1), own["frequency"].values, "one")
        assert np.abs(got - own["weight"].values).max() < 0.01


def test_weights_reach_every_movie_of_a_group():
    """The longest exposed ends within a frame of what its group was measured on."""
    doses = np.linspace(2.0, 2.0 + 1.99 / FRAMES, 7)
    (one,) = set(exposures(exposed(doses, before=3.0)).values())
    table = weights_table([Measured(one, EXTENT_A, 50, measured("", 2.0, 10).sums, ["m"], 10)])
    for dose in doses:
        weights_on(table, 3.0 + dose * np.arange(FRAMES + 1), np.array([0.1]), "one")


def test_b_factors_of_groups_with_names_that_look_alike_in_file_names_are_all_written(tmp_path):
    groups, shape = ["all", "tilt 1", "tilt/1", "tilt_1"], (4, 3)
    b_factor, scale = np.arange(12.0).reshape(shape), np.ones(shape)
    scale[0, 2] = 0  # as RELION has it of a frame without signal
    both = ("group", "frame")
    weight = np.stack([weights(DoseModel(s, b, np.ones(0)), np.array([0.1, 0.2])) for s, b in zip(scale, b_factor)])
    dose = xr.Dataset(
        {"b_factor": (both, b_factor), "frame_scale": (both, scale), "weight": ((*both, "frequency"), weight)},
        coords={"group": groups, "frequency": [0.1, 0.2]},
    )
    _write_bfactors(tmp_path, dose, 64)
    files = {path.name: read_bfactors(path)[0][0] for path in tmp_path.glob("*")}
    assert read_bfactors(tmp_path / "bfactors.star")[1].tolist() == [0, 0, -np.inf]
    assert len(set(files.values())) == len(files) == 4 and {"bfactors.star", "bfactors_tilt_1.star"} < {*files}
