"""One micrograph looked at closely: trajectories by hand, correlation windows, and the truth to compare them with."""

from dataclasses import replace

import holoviews as hv
import numpy as np
import pytest

import refmotion_nb as rm
from refmotion_nb import plots
from refmotion_nb.data.maps import read_map
from refmotion_nb.numerics.prior import exponential, spatial_modes
from refmotion_nb.stages.alignment import Alignment, track
from refmotion_nb.stages.one_micrograph import before_and_after
from refmotion_nb.stages.reuse import read_weights
from refmotion_nb.stages.search import prior_from_attrs

NAME = "mic0000"


@pytest.fixture(scope="module")
def session(tiny):
    return rm.Session(tiny.open(), 2)


@pytest.fixture(scope="module")
def by_hand(session):
    return rm.hand_picked(session, rm.Hyperparameters(2.5, 53.0, 3000.0))


@pytest.fixture(scope="module")
def windows(session):
    return rm.correlation(session, NAME, reach_A=6.0, step_A=0.5)


def test_hyperparameters_given_by_hand_are_those_of_the_prior(session, by_hand):
    prior = prior_from_attrs(by_hand.attrs)
    assert rm.best(by_hand) == rm.Hyperparameters(2.5, 53.0, 3000.0)
    assert prior.grey_scale > 0 and set(by_hand.attrs["micrographs"]) == set(session)


def test_trajectories_come_close_to_the_truth(session, by_hand, tiny):
    found = {name: rm.trajectories(session, name, by_hand) for name in session}
    stiff = rm.hand_picked(session, rm.Hyperparameters(1e6, 5.0, 1e5))
    still = {name: rm.trajectories(session, name, stiff) for name in session}
    assert tiny.trajectory_error_A(found) < 0.75 * tiny.rigid_error_A
    assert tiny.trajectory_error_A(found) < tiny.trajectory_error_A(still)
    assert found[NAME]["shift"].dims == ("particle", "frame", "axis") and found[NAME]["shift"].attrs["units"] == "Å"


def test_the_errors_of_trajectories_lie_within_their_spread(session, by_hand, tiny):
    found = {name: rm.trajectories(session, name, by_hand, uncertainty=True) for name in session}
    expected = np.sqrt(2 * np.mean([table["shift_std"].values ** 2 for table in found.values()]))  # along x and y
    (drawn,) = plots.trajectories(found[NAME])
    assert "grey: one standard deviation" in drawn.opts.get().kwargs["title"]
    # a constant of each particle is no error; positions have it all the same
    assert expected / 3 < tiny.trajectory_error_A(found) < expected
    assert "shift_std" not in rm.trajectories(session, NAME, by_hand)


def test_trajectories_are_those_that_correction_writes(session, by_hand, tmp_path):
    dose = rm.DoseWeights(target_particles=24).run(session, by_hand)
    rm.MotionCorrection().run(session, by_hand, dose, out=tmp_path)
    written = rm.ResultStore(tmp_path / "results.zarr").read(f"tracks/{NAME}")
    np.testing.assert_array_equal(rm.trajectories(session, NAME, by_hand)["shift"], written["shift"])


def test_tables_of_an_earlier_run_on_more_references_are_told_and_none_is_removed(session, by_hand, tmp_path):
    dose = rm.DoseWeights(target_particles=24).run(session, by_hand)
    rm.MotionCorrection().run(session, by_hand, dose, out=tmp_path)
    mine = sorted(path.name for path in tmp_path.glob("particles*"))
    for name in mine:
        (tmp_path / name.replace("particles", "particles_2")).write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "particles_best.star").touch()  # a user's
    there, told = sorted(tmp_path.glob("particles*")), len(session.warnings)
    rm.MotionCorrection().run(session, by_hand, dose, out=tmp_path)
    assert sorted(tmp_path.glob("particles*")) == there
    (line,) = session.warnings[told:]
    assert line.startswith(f"particles_2.cs, particles_2.csg, particles_2.star in {tmp_path}: not of this run")


def test_b_factors_are_in_the_gauge_of_the_references_box(session, by_hand, tmp_path):
    """RELION counts one shell more than there are, of the reference's box, whatever that of the movies."""
    settings = {"box_size": 200}
    dose = rm.DoseWeights(target_particles=24, **settings).run(session, by_hand)
    rm.MotionCorrection(**settings).run(session, by_hand, dose, out=tmp_path)
    found = read_weights(tmp_path / "bfactors.star", session.data.movies, 112, 1.6)
    np.testing.assert_allclose(found["b_factor"][0], dose["b_factor"][0], atol=1e-4)


def test_relions_energy_leaves_a_particle_alone_on_its_micrograph_where_motion_correction_saw_it(session, by_hand):
    """As the tracks that RELION 3.1 writes of such a micrograph do."""
    settings, prior = Alignment(energy="relion"), prior_from_attrs(by_hand.attrs)
    alone = session.micrograph(NAME, settings).subset(np.array([3]))
    tracks = track(alone, settings, prior, 1)
    np.testing.assert_array_equal(tracks.displacement_A, alone.placement.initial_A)
    ours = track(session.micrograph(NAME, Alignment()).subset(np.array([3])), Alignment(), prior, 1)
    assert np.abs(ours.displacement_A - alone.placement.initial_A).max() > 0.1


def test_trajectories_are_kept_within_a_tenth_of_the_cache(tiny, session, by_hand):
    settings, prior = Alignment(), prior_from_attrs(by_hand.attrs)
    m = session.micrograph(NAME, settings)
    size = session.track(m, settings, prior).displacement_A.nbytes
    for room, kept in ((9 * size, 0), (11 * size, 1)):
        other = rm.Session(session.data, 2, room)
        other.track(m, settings, prior)
        assert len(other.tracks) == kept


def test_positions_beyond_the_window_are_told_by_later_runs_too(tiny, by_hand, tmp_path, monkeypatch):
    line = "mic0000, mic0001: 6 positions lie beyond the window; raise window_reach_A"  # one, not one for each of thousands
    for run in ("first", "second"):
        session = rm.Session(tiny.open(), 2)
        dose = rm.DoseWeights(target_particles=24).run(session, by_hand)
        if run == "first":
            real = session.track
            monkeypatch.setattr(session, "track", lambda *given, real=real: replace(real(*given), edge_hits=3))
        rm.MotionCorrection().run(session, by_hand, dose, out=tmp_path)
        assert line in session.warnings


def test_particles_are_shown_as_they_are_written(session, by_hand, tmp_path):
    stage = rm.MotionCorrection(fourier_crop_to=56, all_fourier_components=False)
    dose = rm.DoseWeights(target_particles=24).run(session, by_hand)
    stage.run(session, by_hand, dose, out=tmp_path)
    written, _ = read_map(tmp_path / "Particles" / f"{NAME}.mrcs")
    shown = before_and_after(session, NAME, by_hand, {"after": dose}, 12, low_pass_A=0.0, stage=stage)["image"]
    np.testing.assert_allclose(shown.sel(picture="after"), written, atol=1e-4)
    assert not np.allclose(shown.sel(picture="before"), written, atol=0.1)
    assert rm.plots.particles(session, NAME, by_hand, dose, 2, stage=stage)[0].dimension_values(2).size == 56**2


def test_added_up_over_particles_the_correlation_shows_how_far_rigid_motion_is_off(windows, tiny):
    assert windows["correlation"].dims == ("particle", "frame", "y", "x")
    assert windows["x"].values[0] == -6.0 and windows["x"].attrs["units"] == "Å"
    true = (tiny.tracks()[NAME]["shift"] - windows["initial"]).mean("particle").values
    peaks = windows["correlation"].sum("particle").stack(at=("x", "y")).idxmax("at").values
    off = np.array([*peaks]) - true
    rms = [np.sqrt(((values - values.mean(0)) ** 2).mean()) for values in (off, true)]  # where it was picked is free
    assert rms[0] < 0.7 * rms[1]


def test_the_correlation_is_that_which_trajectories_follow(session, windows, by_hand):
    """Along the trajectories the sum lies above that along rigid motion, and both are read off the same windows."""
    found = rm.trajectories(session, NAME, by_hand, stage=rm.MotionCorrection(all_fourier_components=False))
    off = found["shift"] - windows["initial"]
    along = windows["correlation"].interp(
        x=off.sel(axis="x", drop=True), y=off.sel(axis="y", drop=True), method="linear"
    )
    still = windows["correlation"].sel(x=0.0, y=0.0)
    assert float(along.sum()) > float(still.sum()) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: rm.correlation(s, "mic00"), "no micrograph 'mic00'.*for example mic000"),
        (lambda s: rm.correlation(s, NAME, step_A=0.0), "step_A 0 and reach_A 8: give a step above 0"),
        (
            lambda s: rm.trajectories(s, "other", rm.hand_picked(s, rm.Hyperparameters(1, 2, 3))),
            "no micrograph 'other'",
        ),
    ],
)
def test_what_is_not_there_is_said(session, call, message):
    with pytest.raises(rm.InputError, match=message):
        call(session)


def test_the_truth_is_a_table_like_the_results(tiny):
    truth = tiny.tracks()
    assert tiny.trajectory_error_A(truth) == 0
    for table in truth.values():
        local = table["shift"] - table["rigid"]
        assert float(abs(local - local.isel(frame=0)).max()) > 0.5  # Å: they moved
    moved = {name: table.assign(shift=table["shift"] + 3.0) for name, table in truth.items()}
    assert tiny.trajectory_error_A(moved) == pytest.approx(0, abs=1e-9)
    with pytest.raises(rm.InputError, match="other was not simulated; there are mic0000, mic0001"):
        tiny.trajectory_error_A({"other": truth[NAME]})
    with pytest.raises(rm.InputError, match="8 frames; the tracks have 5"):
        tiny.trajectory_error_A({NAME: truth[NAME].isel(frame=slice(5))})
    assert tiny.trajectory_error_A({NAME: truth[NAME].isel(particle=[7, 2])}) == 0


def smooth(ratio):
    return np.exp(-(ratio**2))


class Smooth:
    """Neighbours alike to second order: a squared-exponential kernel."""

    def kernel(self, ratio):
        return smooth(ratio)


class SmoothSearch(Smooth, rm.HyperparameterSearch):
    """The search under that prior."""


class SmoothCorrection(Smooth, rm.MotionCorrection):
    """Correction under that prior."""


def test_a_kernel_of_ones_own_is_the_prior_everywhere(session, by_hand):
    position = np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 2500.0]])
    vectors, values = spatial_modes(position, 2000.0, smooth)
    d = np.linalg.norm(position[:, None] - position[None], axis=-1)
    np.testing.assert_allclose(vectors * values @ vectors.T, smooth(d / 2000.0), atol=1e-12)

    prior = prior_from_attrs(by_hand.attrs)
    assert SmoothCorrection().track_key(prior) != rm.MotionCorrection().track_key(prior)
    assert SmoothCorrection().track_key(prior) == type("Same", (Smooth, rm.DoseWeights), {})().track_key(prior)
    usual, other = (
        rm.trajectories(session, NAME, by_hand, stage) for stage in (rm.MotionCorrection(), SmoothCorrection())
    )
    assert 0.01 < float(abs(usual["shift"] - other["shift"]).max()) < 5
    rays = {kind: kind(max_strength=3.0).run(session) for kind in (rm.HyperparameterSearch, SmoothSearch)}
    usual, other = (table["cv_score"].values for table in rays.values())
    assert np.isfinite(other).all() and not np.allclose(usual, other, rtol=1e-6)
    np.testing.assert_array_equal(exponential(d), rm.MotionCorrection().kernel(d))


def test_correlation_is_drawn_with_its_highest_point(windows, tiny):
    truth = tiny.tracks()[NAME]["shift"] - windows["initial"]
    chosen = windows.assign(truth=truth)
    one, many = chosen.isel(particle=0, frame=2), chosen.isel(frame=2).mean("particle")
    plot = plots.correlation({"one": one, "many": many})
    for panel, run in zip(plot, (one, many), strict=True):
        image, highest, true = list(panel)
        values = run["correlation"].values
        row, column = np.unravel_index(values.argmax(), values.shape)
        assert highest.array()[0].tolist() == [run["x"].values[column], run["y"].values[row]]
        np.testing.assert_allclose(true.array()[0], run["truth"].values)
        assert [d.unit for d in image.kdims] == ["Å", "Å"] and image.vdims[0].label == "Log-likelihood"
        np.testing.assert_allclose(image.dimension_values(2, flat=False), values)  # both with y upwards
        assert image.bounds.lbrt() == (-6.25, -6.25, 6.25, 6.25)
    with pytest.raises(rm.InputError, match="still has particle; pick one by isel"):
        plots.correlation(windows.isel(frame=0))


def test_the_path_of_a_particle_is_drawn_for_each_run(session, by_hand, tiny):
    runs = {"truth": tiny.tracks()[NAME], "found": rm.trajectories(session, NAME, by_hand)}
    plot = plots.path(runs, particle=3)
    for panel, axis in zip(plot, "xy", strict=True):
        curves = panel.traverse(lambda item: item, [hv.Curve])
        assert [curve.label for curve in curves] == ["truth", "found"]
        for curve, run in zip(curves, runs.values(), strict=True):
            shift = run["shift"].isel(particle=3).sel(axis=axis).values
            np.testing.assert_allclose(curve.dimension_values(1), shift - np.median(shift))
            assert curve.dimension_values(0)[0] == 1 and curve.vdims[0].unit == "Å"
    with pytest.raises(rm.InputError, match="no particle 12; they count from 0 to 11"):
        plots.path(runs, particle=12)
