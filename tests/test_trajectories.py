"""The prior, the trajectories under it and the search's geometry against their definitions in plain NumPy."""

import tracemalloc
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from descent import displacement, energy, minimise, precondition

from refmotion_nb.numerics import rays, trajectories
from refmotion_nb.numerics.correlation import pixel_grid, spline_grid
from refmotion_nb.numerics.prior import (
    EIGENVALUE_FLOOR,
    Hyperparameters,
    PriorModes,
    common_prior,
    dose_modes,
    mode_precisions,
    spatial_modes,
)
from refmotion_nb.numerics.trajectories import TrajectoryProblem, Windows

HYPER = Hyperparameters(1.7, 35.0, 900.0)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def prior_modes(position, dose, profile, h):
    vectors, values = spatial_modes(position, h.distance_A)
    temporal, beta = dose_modes(dose, profile)
    return PriorModes(vectors, temporal, *mode_precisions(values, beta, h))


def prior_energy(displacement, position, dose, profile, h):
    """½ r [cos θ Σ Δd uᵀ K⁻¹ u + sin θ Σ |u' - u|² / Δd] of displacements (particle, frame), one axis."""
    step = 0.5 * (dose[1:] + dose[:-1])
    u = np.diff(displacement, axis=1) / step / profile
    distance = np.linalg.norm(position[:, None] - position[None], axis=-1)
    inverse = np.linalg.inv(np.exp(-distance / h.distance_A))
    spatial = sum(step[f] * u[:, f] @ inverse @ u[:, f] for f in range(len(step)))
    between = 0.5 * (step[1:] + step[:-1])
    acceleration = (np.diff(u, axis=1) ** 2 / between).sum()
    theta = np.deg2rad(h.balance_deg)
    return 0.5 * h.strength * (np.cos(theta) * spatial + np.sin(theta) * acceleration)


def energy_in_modes(modes, displacement):
    coefficients = (
        modes.spatial.T @ np.linalg.lstsq(modes.temporal.T, (displacement - displacement[:, :1]).T, rcond=None)[0].T
    )
    return 0.5 * ((coefficients / modes.std) ** 2).sum()


# the prior


@pytest.mark.parametrize("balance", [5.0, 35.0, 80.0])
def test_energy_in_modes_is_the_formula(rng, balance):
    h = Hyperparameters(1.7, balance, 900.0)
    n, n_frames = 9, 12
    position, dose = rng.uniform(0, 3000, (n, 2)), rng.uniform(0.5, 3, n_frames)
    profile = rng.uniform(0.2, 1, n_frames - 1)
    displacement = rng.normal(size=(n, n_frames)).cumsum(1)
    modes = prior_modes(position, dose, profile, h)
    assert energy_in_modes(modes, displacement) == pytest.approx(prior_energy(displacement, position, dose, profile, h))


def test_frames_cut_in_two_leave_the_prior_as_it_is(rng):
    """The energy of one motion, a smooth function of dose, whether it is seen in 40 frames or in 80 or unevenly."""
    position = rng.uniform(0, 3000, (6, 2))
    amplitude = rng.normal(size=(6, 3))
    energies = []
    for dose in (np.full(40, 1.0), np.full(80, 0.5), np.repeat([0.5, 1.0], [40, 20])):
        edges = np.concatenate([[0], dose.cumsum()])
        middle = 0.5 * (edges[1:] + edges[:-1])
        displacement = amplitude @ np.stack([np.sin(middle / 12), middle / 10, np.exp(-middle / 15)])
        energies.append(energy_in_modes(prior_modes(position, dose, np.ones(len(dose) - 1), HYPER), displacement))
    np.testing.assert_allclose(energies, energies[0], rtol=0.03)


def test_modes_over_dose_start_at_0_and_are_orthonormal(rng):
    dose, profile = rng.uniform(0.5, 3, 10), rng.uniform(0.3, 1, 9)
    temporal, beta = dose_modes(dose, profile)
    step = 0.5 * (dose[1:] + dose[:-1])
    velocity = np.diff(temporal, axis=1) / (step * profile)
    np.testing.assert_allclose((velocity * step) @ velocity.T, np.eye(9), atol=1e-12)
    assert not temporal[:, 0].any() and beta[0] == pytest.approx(0, abs=1e-12) and (beta >= 0).all()


def test_coincident_particles_move_alike(rng):
    position = rng.uniform(0, 3000, (5, 2))
    position[4] = position[1]
    vectors, values = spatial_modes(position, 900.0)
    assert (
        (values == 0).sum() == 1 and values[0] > values[1] and values[values > 0].min() > EIGENVALUE_FLOOR * values[0]
    )
    moves = (vectors * np.sqrt(values)) @ rng.normal(size=5)
    assert moves[4] == pytest.approx(moves[1])
    modes = prior_modes(position, np.ones(4), np.ones(3), HYPER)
    assert np.isfinite(modes.std).all() and (modes.std >= 0).all()


def test_modes_take_memory_for_few_matrices(rng):
    n = 600
    position = rng.uniform(0, 4000, (n, 2))
    tracemalloc.start()
    spatial_modes(position, 900.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * n**2 * position.itemsize


def test_units_of_hyperparameters():
    h = Hyperparameters.from_strengths(3.0, 5000.0, 4.0)
    assert (h.strength, h.spatial_strength, h.acceleration_strength) == pytest.approx((5.0, 3.0, 4.0))
    assert Hyperparameters.from_relion(*h.to_relion(1.3), 1.3).strength == pytest.approx(h.strength)
    for alone in ((0.0, 5000.0, 4.0), (3.0, 5000.0, 0.0)):  # RELION's of a prior that is not there has no limit
        one = Hyperparameters.from_strengths(*alone)
        assert (one.spatial_strength, one.distance_A, one.acceleration_strength) == alone
        assert np.isinf(one.to_relion(1.3)).tolist() == [not alone[0], False, not alone[2]]
    relion = Hyperparameters.from_relion(0.5, 5000.0, 2.0, 1.3)
    assert relion.to_relion(1.3) == pytest.approx((0.5, 5000.0, 2.0)) and relion.distance_A == 5000
    # RELION: Σ v² / σ², v in Å per frame, against 4/π of the likelihood; here ½ r cos θ Σ Δd u²
    assert 0.5 * relion.spatial_strength * 1.3 * 0.7**2 == pytest.approx(
        np.pi / 4 * (0.7 * 1.3) ** 2 / (0.5 * 1.3) ** 2
    )


@pytest.mark.parametrize("balance", [0.0, 90.0])
def test_extreme_balances_are_proper_priors(rng, balance):
    modes = prior_modes(rng.uniform(0, 3000, (5, 2)), np.ones(6), np.ones(5), Hyperparameters(2.0, balance, 900.0))
    assert (modes.std < 1e4).all() and (modes.std > 0).all()  # wide, yet of numbers that can be computed with


def test_the_common_motion_is_small_and_the_field_moves_smoothly(rng):
    """The energy as the equations have it, term by term; its minimum is what is expected."""
    n, std, strength = 9, 0.7, 3.0
    rigid, dose, profile = rng.normal(size=(n, 2)), rng.uniform(0.5, 2, n), rng.uniform(0.2, 1, n - 1)
    prior = common_prior(rigid, dose, profile, std, strength)

    def energy(common):
        place, total = rigid + common, 0.5 * (common**2).sum() / std**2
        at = np.cumsum(dose) - 0.5 * dose  # of the middles of frames
        scaled = [(place[f + 1] - place[f]) / (at[f + 1] - at[f]) / profile[f] for f in range(n - 1)]
        for f in range(n - 2):
            between = 0.5 * (at[f + 2] - at[f])
            total += 0.5 * strength * ((scaled[f + 1] - scaled[f]) ** 2).sum() / between
        return total

    for _ in range(5):
        away = rng.normal(size=(n, 2))
        expected = 0.5 * np.einsum("fx,fg,gx", away, prior.precision, away)
        assert energy(prior.mean_A + away) - energy(prior.mean_A) == pytest.approx(expected)


def test_errors_of_whole_frame_alignment_are_told_from_a_smooth_drift(rng):
    dose, middle = np.full(60, 0.7), 0.7 * (np.arange(60) + 0.5)
    drift = np.stack([5 * np.sin(middle / 15), 0.1 * middle], 1)
    jitter = 0.5 * rng.normal(size=(60, 2))
    found = common_prior(drift + jitter, dose, np.ones(59), 0.5, 3.0).mean_A
    assert np.std(found + jitter) < 0.5 * np.std(jitter)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_steady_drift_is_believed_and_without_drift_strength_anything_is(rng, n):
    dose, profile, steady = rng.uniform(0.5, 2, n), rng.uniform(0.2, 1, n - 1), np.zeros((n, 2))
    steady[1:] = np.cumsum(0.5 * (dose[1:] + dose[:-1]) * profile)[:, None] * [3.0, -1.0]
    np.testing.assert_allclose(common_prior(steady, dose, profile, 0.5, 10.0).mean_A, 0, atol=1e-9)
    jumping = common_prior(rng.normal(size=(n, 2)), dose, np.zeros(n - 1), 0.5, 0.0)
    np.testing.assert_allclose(jumping.mean_A, 0)
    np.testing.assert_allclose(jumping.precision, 4 * np.eye(n))


@pytest.mark.parametrize("std_A", [0.0, 0.7])
def test_unknowns_of_the_common_motion_have_unit_variance_and_data_do_not_mix_them(rng, std_A):
    prior, data = common_of(rng.normal(size=(6, 2)), rng.uniform(0.5, 2, 6), std_A), rng.uniform(1, 9, 6)
    motions, taking_apart, variance = prior.basis(data)
    if not std_A:
        assert not motions.any() and not taking_apart.any() and not prior.mean_A.any() and (variance == 1).all()
        return
    np.testing.assert_allclose(motions @ motions.T, np.linalg.inv(prior.precision), atol=1e-12)
    np.testing.assert_allclose(taking_apart.T @ motions, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(motions.T @ (data[:, None] * motions), np.diag(1 / variance - 1), atol=1e-12)


# trajectories


def common_of(rigid_A, dose, std_A=0.5):
    return common_prior(rigid_A, dose, np.linspace(1, 0.3, len(dose) - 1), std_A, 2.0)


def problem_of(rng, grid, common_std_A=0.5, number=np.float64, n=5, n_frames=7):
    values = rng.normal(size=(n, n_frames, grid.size, grid.size)).astype(number)
    centre = rng.integers(-2, 3, (n, n_frames, 2)).astype(float)
    position, dose = rng.uniform(0, 2000, (n, 2)), rng.uniform(0.5, 2, n_frames)
    modes = [
        prior_modes(position, dose, np.ones(n_frames - 1), Hyperparameters(strength, 40.0, 800.0))
        for strength in (0.1, 3.0)
    ]
    rigid = rng.normal(size=(n_frames, 2))
    problem = TrajectoryProblem(Windows(values, grid, centre, 1.3), modes, common_of(rigid, dose, common_std_A), rigid)
    problem.set_curvature(rng.uniform(0.5, 2, n_frames))
    return problem


@pytest.mark.parametrize("grid", [spline_grid(12, 48, 9.0), pixel_grid(9.0)], ids=["spline", "pixel"])
def test_gradient_is_that_of_the_energy(rng, grid):
    problem = problem_of(rng, grid)
    rows = np.arange(2)
    at = 0.3 * rng.normal(size=(2, problem.n_unknowns))
    _, gradient = energy(problem, at, rows)
    for i in rng.choice(problem.n_unknowns, 25, replace=False):
        step = np.zeros_like(at)
        step[:, i] = 1e-5
        slope = (energy(problem, at + step, rows)[0] - energy(problem, at - step, rows)[0]) / 2e-5
        np.testing.assert_allclose(gradient[:, i], slope, rtol=1e-5, atol=1e-6)


def test_energy_is_likelihood_and_prior(rng):
    problem = problem_of(rng, pixel_grid(9.0))
    at = 0.3 * rng.normal(size=(2, problem.n_unknowns))
    found, _ = energy(problem, at, np.arange(2))
    local, common = problem.parts(at)
    shown = displacement(problem, at)
    rebuilt = np.moveaxis(local + common[:, :, None], 1, -1) + problem.rigid_A
    np.testing.assert_allclose(shown, rebuilt)
    likelihood = problem.windows.sample(shown)[0].sum((1, 2))
    away = np.moveaxis(common, 1, -1) - problem.common.mean_A  # (set, frame, 2)
    weak = 0.5 * np.einsum("sfx,fg,sgx->s", away, problem.common.precision, away)
    dose_free = at[:, : 2 * problem.n_local].reshape(2, 2, *problem.std.shape[1:])[
        ..., 1:
    ]  # all but the first position
    np.testing.assert_allclose(found, -likelihood + weak + 0.5 * (dose_free**2).sum((1, 2, 3)))


def test_unknowns_of_a_trajectory_give_it_back(rng):
    problem = problem_of(rng, pixel_grid(9.0))
    track = rng.normal(size=(5, 7, 2))
    local, still = track - problem.rigid_A, np.zeros((2, 7, 2))
    shown = displacement(problem, problem.unknowns_of(local, still))
    np.testing.assert_allclose(shown, np.stack([track, track]), atol=1e-9)
    expected = displacement(problem, problem.unknowns_of(local))
    np.testing.assert_allclose(expected - shown, np.broadcast_to(problem.common.mean_A, shown.shape), atol=1e-9)


def test_a_trajectory_found_under_one_prior_is_the_start_under_another(rng):
    problem = problem_of(rng, pixel_grid(9.0))
    at = rng.normal(size=(2, problem.n_unknowns))
    local, common = (np.moveaxis(part, 1, -1) for part in problem.parts(at))
    modes = [
        PriorModes(
            problem.modes[i].spatial,
            problem.temporal[i, 1:],
            ratio**2 * problem.modes[i].spatial_precision,
            ratio**2 * problem.modes[i].acceleration_precision,
        )
        for i, ratio in enumerate((2.0, 3.0))
    ]
    elsewhere = common_of(rng.normal(size=(7, 2)), rng.uniform(0.5, 2, 7))
    other = TrajectoryProblem(problem.windows, modes, elsewhere, problem.rigid_A)
    other.set_curvature(np.ones(7))
    start = other.unknowns_of(local, common)
    for found, given in zip(other.parts(start), (local, common)):
        np.testing.assert_allclose(np.moveaxis(found, 1, -1), given, atol=1e-9)


def test_frames_that_a_prior_holds_still_have_unknowns_too(rng):
    problem = problem_of(rng, pixel_grid(9.0))
    profile = np.r_[np.ones(3), np.zeros(3)]
    modes = [prior_modes(rng.uniform(0, 2000, (5, 2)), np.ones(7), profile, Hyperparameters(1.0, 40.0, 800.0))]
    still = TrajectoryProblem(problem.windows, modes, common_of(problem.rigid_A, np.ones(7), 0.0), problem.rigid_A)
    still.set_curvature(np.ones(7))
    moved = np.where(np.arange(7)[:, None] < 4, rng.normal(size=(5, 7, 2)), 0.0)
    moved[:, 4:] = moved[:, 3:4]
    found, _ = still.parts(still.unknowns_of(moved))
    np.testing.assert_allclose(np.moveaxis(found[0], 0, -1), moved, atol=1e-9)


def test_numbers_do_not_depend_on_threads_or_on_how_many_sets_go_together(rng, monkeypatch):
    grid, n, n_frames = spline_grid(12, 48, 9.0), 40, 9
    values = rng.normal(size=(n, n_frames, grid.size, grid.size)).astype(np.float32)
    position, dose = rng.uniform(0, 4000, (n, 2)), rng.uniform(0.5, 2, n_frames)
    modes = [
        prior_modes(position, dose, np.ones(n_frames - 1), Hyperparameters(strength, 40.0, 800.0))
        for strength in (0.01, 0.1, 1.0, 3.0, 30.0)
    ]
    windows, rigid = Windows(values, grid, np.zeros((n, n_frames, 2)), 1.3), rng.normal(size=(n_frames, 2))
    found = []
    for threads, room in ((1, 1 << 30), (2, 1 << 30), (5, 1 << 30), (1, 1)):
        monkeypatch.setattr(trajectories, "SETS_BYTES", room)
        problem = TrajectoryProblem(windows, modes, common_of(rigid, dose), rigid, threads)
        problem.set_curvature(np.full(n_frames, 2.0))
        found.append(problem.solve())
    for other in found[1:]:
        np.testing.assert_array_equal(other.displacement_A, found[0].displacement_A)
        np.testing.assert_array_equal(other.iterations, found[0].iterations)
    assert found[0].iterations.min() > 2


@pytest.mark.parametrize("common_std_A", [0.0, 0.7])
@pytest.mark.parametrize("kind, apart_A", [(np.float64, 1e-6), (np.float32, 1e-2)])
def test_compiled_steps_lead_where_those_on_arrays_do(rng, kind, apart_A, common_std_A):
    grid, n, n_frames = spline_grid(12, 48, 9.0), 20, 9
    values = rng.normal(size=(n, n_frames, grid.size, grid.size)).astype(kind)
    centre, position = rng.integers(-3, 4, (n, n_frames, 2)).astype(float), rng.uniform(0, 4000, (n, 2))
    position[1] = position[0]  # a mode without a prior deviation
    dose, rigid = rng.uniform(0.5, 2, n_frames), rng.normal(size=(n_frames, 2))
    profile = np.r_[1.0, 0.3, np.full(n_frames - 3, 0.15)]
    modes = [prior_modes(position, dose, profile, Hyperparameters(s, 40.0, 800.0)) for s in (0.1, 3.0, 30.0)]
    problem = TrajectoryProblem(Windows(values, grid, centre, 1.3), modes, common_of(rigid, dose, common_std_A), rigid)
    problem.set_curvature(np.full(n_frames, 2.0))
    start = problem.unknowns_of(rng.normal(size=(n, n_frames, 2)))
    tolerance = 1e-10 * n * n_frames if kind is np.float64 else 1e-6
    expected, steps = minimise(partial(energy, problem), start, partial(precondition, problem), tolerance)
    found, iterations = problem._minimised(start, tolerance, 300)
    rows = np.arange(3)
    assert steps.min() > 10
    assert np.abs(iterations / steps - 1).max() < (0.03 if kind is np.float64 else 0.2)
    moved = [displacement(problem, unknowns) for unknowns in (found, expected)]
    assert np.abs(moved[0] - moved[1]).max() < apart_A
    if kind is np.float64:
        np.testing.assert_allclose(energy(problem, found, rows)[0], energy(problem, expected, rows)[0], rtol=1e-10)
    np.testing.assert_array_equal(problem._minimised(start, tolerance, 4)[1], 4)


def quadratic(problem, curvature):
    """Give all windows of a problem the same bowl per frame; Keys' interpolation of a parabola is exact."""
    grid = problem.windows.grid
    s = problem.windows.pixel_A * np.arange(-grid.half, grid.half + 1)
    bowl = -0.5 * (s[:, None] ** 2 + s[None] ** 2)
    problem.windows.values[:] = curvature[None, :, None, None] * bowl


def test_preconditioner_inverts_the_hessian_of_equal_windows(rng):
    problem = problem_of(rng, pixel_grid(12.0), common_std_A=0.0)
    curvature = rng.uniform(0.5, 2, 7)
    quadratic(problem, curvature)
    np.testing.assert_allclose(problem.windows.curvature(problem.windows.centre_px * 1.3 + 0.2), curvature, rtol=1e-6)
    problem.set_curvature(curvature)
    rows = np.arange(2)
    a, b = 0.2 * rng.normal(size=(2, 2, problem.n_unknowns))
    change = energy(problem, a, rows)[1] - energy(problem, b, rows)[1]
    np.testing.assert_allclose(precondition(problem, change, rows), a - b, atol=1e-6)
    solution = problem.solve(tolerance=1e-14)
    assert solution.iterations.max() <= 2
    lowest = problem.unknowns_of(solution.local_A, solution.common_A)
    assert np.abs(energy(problem, lowest, rows)[1]).max() < 1e-6


def test_limits_of_the_prior(rng):
    grid = pixel_grid(12.0)
    problem = problem_of(rng, grid, common_std_A=0.0)
    quadratic(problem, np.full(7, 1.0))
    peaks = problem.windows.centre_px * problem.windows.pixel_A
    position, dose = rng.uniform(0, 2000, (5, 2)), np.ones(7)
    for strength, check in ((1e-9, "peaks"), (1e9, "rigid")):
        modes = [prior_modes(position, dose, np.ones(6), Hyperparameters(strength, 40.0, 800.0))]
        free = TrajectoryProblem(problem.windows, modes, common_of(problem.rigid_A, dose, 0.0), problem.rigid_A)
        free.set_curvature(np.full(7, 1.0))
        found = free.solve(tolerance=1e-14)
        if check == "peaks":
            np.testing.assert_allclose(found.displacement_A[0], peaks, atol=1e-4)
        else:  # each particle moves with the frame, put where it fits best
            relative = found.displacement_A[0] - problem.rigid_A
            np.testing.assert_allclose(relative, np.broadcast_to(relative[:, :1], relative.shape), atol=1e-4)
            np.testing.assert_allclose(relative[:, 0], (peaks - problem.rigid_A).mean(1), atol=1e-4)
            assert np.abs(found.local_A - found.local_A[:, :, :1]).max() < 1e-4


# the minimiser


def bowls(rng, count=6, n=20):
    root = rng.normal(size=(count, n, n))
    hessian = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(n)
    lowest = rng.normal(size=(count, n))

    def objective(x, rows):
        slope = np.einsum("rij,rj->ri", hessian[rows], x - lowest[rows])
        return 0.5 * ((x - lowest[rows]) * slope).sum(1), slope

    return objective, hessian, lowest


def test_minimises_every_row(rng):
    objective, hessian, lowest = bowls(rng)
    start = np.zeros_like(lowest)
    found, iterations = minimise(objective, start, lambda g, rows: g, tolerance=1e-12, max_iterations=2000)
    np.testing.assert_allclose(found, lowest, atol=2e-4)
    inverse = np.linalg.inv(hessian)
    found, quick = minimise(
        objective, start, lambda g, rows: np.einsum("rij,rj->ri", inverse[rows], g), tolerance=1e-12
    )
    np.testing.assert_allclose(found, lowest, atol=1e-6)
    assert quick.max() <= 2 < iterations.min()


def test_a_minimum_is_left_alone(rng):
    problem = problem_of(rng, spline_grid(12, 48, 9.0))
    problem.set_curvature(np.full(7, 2.0))
    found = problem.solve(tolerance=1e-12, max_iterations=2000)
    again = problem.solve(problem.unknowns_of(found.local_A, found.common_A), tolerance=1e-9)
    assert found.iterations.min() > 2 and not again.iterations.any()
    np.testing.assert_allclose(again.displacement_A, found.displacement_A, atol=1e-9)


# the search's geometry


def test_rays_step_outwards_evenly_and_retire_when_twice_at_rest():
    steps = rays.strengths(3000.0)
    assert steps[0] == rays.FIRST_STRENGTH and steps[-1] <= 3000.0 < steps[-1] * 10 ** (1 / rays.STEPS_PER_DECADE) * (
        1 + 1e-9
    )
    np.testing.assert_allclose(np.diff(np.log10(steps)), 1 / rays.STEPS_PER_DECADE)
    counts = {name: len(rays.ray_table(name)[0]) for name in ("fast", "balanced", "extensive")}
    assert counts == {"fast": 9, "balanced": 16, "extensive": 36}
    for history, expected in (([], False), ([0.01], False), ([3, 0.04, 0.06], False), ([3, 0.04, 0.049], True)):
        assert rays.retired(np.array(history)) is expected


def test_activity_is_the_75th_percentile_of_length():
    displacement = np.zeros((1, 4, 3, 2))
    displacement[0, :, 1, 0] = [0, 3, 3, 6]
    displacement[0, :, 2, 0] = [0, 3, 3, 6]
    displacement[0, :, 2, 1] = [0, 4, 4, 8]
    np.testing.assert_allclose(rays.activity(displacement), np.percentile([0, 7, 7, 14], 75))


class Bowls:
    """Windows that all bend alike in a frame, around places of their own; a sample is an Å."""

    values, grid, pixel_A, step_A = np.zeros(1), SimpleNamespace(half=3), 1.0, 1.0

    def __init__(self, bend, centre_A):
        self.bend, self.centre_px = bend, centre_A

    def sample_at(self, position):
        away = position - self.grid.half
        return -0.5 * self.bend * (away**2).sum(1), -self.bend * away


@pytest.mark.parametrize("common_std_A", [0.0, 0.7])
def test_the_spread_of_displacements_is_that_of_the_inverse_hessian(rng, common_std_A):
    n, n_frames = 5, 6
    position, dose = rng.uniform(0, 3000, (n, 2)), rng.uniform(0.5, 3, n_frames)
    position[4] = position[3]  # a mode without a prior deviation
    profile, other = rng.uniform(0.2, 1, n_frames - 1), Hyperparameters(9.0, 60.0, 300.0)
    modes = [prior_modes(position, dose, profile, h) for h in (HYPER, other)]
    bend = rng.uniform(0.1, 4, n_frames)
    rigid = rng.normal(size=(n_frames, 2))
    bowls = Bowls(bend, rng.normal(size=(n, n_frames, 2)))
    problem = TrajectoryProblem(bowls, modes, common_of(rigid, dose, common_std_A), rigid)
    problem.set_curvature(bend)
    for row in range(2):
        rows = np.array([row])
        units = np.concatenate([np.zeros((1, problem.n_unknowns)), np.eye(problem.n_unknowns)])
        slopes = np.stack([energy(problem, one[None], rows)[1][0] for one in units])
        moves = np.stack([displacement(problem.some(slice(row, row + 1)), one[None])[0] for one in units])
        hessian, jacobian = slopes[1:] - slopes[0], moves[1:] - moves[0]
        covariance = np.einsum("aifx,ab,bifx->ifx", jacobian, np.linalg.inv(hessian), jacobian)
        for axis in range(2):
            np.testing.assert_allclose(problem.displacement_std(bend, row) ** 2, covariance[..., axis], rtol=1e-8)
