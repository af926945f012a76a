"""Dose weights changed by hand, and what a correction is said to cost."""

import numpy as np
import pytest

import refmotion_nb as rm
from refmotion_nb.stages.correction import _write_bfactors
from refmotion_nb.stages.cost import cost_of_correction
from refmotion_nb.stages.weight_edits import WeightEdits, edit_weights, factors_of


@pytest.fixture(scope="module")
def session(tiny):
    return rm.Session(tiny.open())


@pytest.fixture(scope="module")
def search(session):
    return rm.HyperparameterSearch(target_particles=10).run(session)


@pytest.fixture(scope="module")
def dose(session, search):
    return rm.DoseWeights(target_particles=10).run(session, search)


def test_no_edit_changes_nothing(dose):
    edited = edit_weights(dose, WeightEdits())
    np.testing.assert_allclose(edited["weight"], dose["weight"], rtol=1e-12)


def test_a_frame_left_out_gives_its_weight_to_the_others(dose):
    edited = edit_weights(dose, WeightEdits({0: 0.0, 2: 0.5}))["weight"].values
    before = dose["weight"].values
    assert (edited[:, 0] == 0).all()
    np.testing.assert_allclose(edited.sum(1), 1)
    np.testing.assert_allclose(edited[:, 2] / edited[:, 3], 0.5 * before[:, 2] / before[:, 3])


def test_edited_weights_have_no_b_factors(dose, tmp_path):
    """Those that were measured are not what particles are weighted by; those of an earlier correction go."""
    _write_bfactors(tmp_path, dose, 112)
    assert [path.name for path in tmp_path.iterdir()] == ["bfactors.star"]
    _write_bfactors(tmp_path, edit_weights(dose, WeightEdits({0: 0.0})), 112)
    assert not list(tmp_path.iterdir())


def test_the_standard_curve_can_be_taken_at_high_resolution_or_mixed_in(dose):
    fine = dose["frequency"].values > 1 / 8
    edited = edit_weights(dose, WeightEdits(standard_beyond_A=8.0))
    np.testing.assert_allclose(edited["weight"].values[..., fine], dose["reference_weight"].values[..., fine])
    np.testing.assert_allclose(edited["weight"].values[..., ~fine], dose["weight"].values[..., ~fine])
    mixed = edit_weights(dose, WeightEdits(standard_share=0.25))["weight"]
    np.testing.assert_allclose(mixed, 0.75 * dose["weight"] + 0.25 * dose["reference_weight"])


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (WeightEdits({99: 1.0}), "there is no frame 100"),
        (WeightEdits({0: -1.0}), "give 0"),
        (WeightEdits({0: float("inf")}), "give 0"),
        (WeightEdits(standard_beyond_A=0.0), "a resolution above 0"),
        (WeightEdits(standard_share=2.0), "a share from 0 to 1"),
        (WeightEdits(dict.fromkeys(range(8), 0.0)), "no frame is left"),
    ],
)
def test_senseless_edits_are_refused(dose, edits, said):
    with pytest.raises(rm.InputError, match=said):
        edit_weights(dose, edits)


def test_factors_of_frames_are_read_as_people_write_them():
    assert factors_of(" 1: 0, 3 - 5 : .5; 9:2 ") == {0: 0.0, 2: 0.5, 3: 0.5, 4: 0.5, 8: 2.0}
    assert factors_of("") == {}
    with pytest.raises(rm.InputError, match="'2=3' is no frame"):
        factors_of("1: 0, 2=3")
    for text in ("0: 1", "5-2: 0", "1-999999999: 0"):
        with pytest.raises(rm.InputError, match="they count from 1 upwards"):
            factors_of(text)


def test_the_cost_is_measured_and_falls_as_micrographs_are_finished(session, search, dose, tmp_path):
    unknown = cost_of_correction(rm.Session(session.data), rm.MotionCorrection(), tmp_path)
    assert unknown.seconds is None and (unknown.micrographs, unknown.particles) == (2, 24)
    assert unknown.bytes_needed == 24 * 112**2 * 4
    before = cost_of_correction(session, rm.MotionCorrection(float16=True, fourier_crop_to=56), tmp_path)
    assert before.basis == "measuring dose weights" and before.bytes_needed == 24 * 56**2 * 2
    assert before.seconds == pytest.approx(2 * before.seconds_per_micrograph)
    rm.MotionCorrection().run(session, search, dose, tmp_path)
    after = cost_of_correction(session, rm.MotionCorrection(), tmp_path)
    assert after.basis == "correcting" and (after.micrographs, after.finished, after.seconds) == (0, 2, 0.0)
    rm.ResultStore(tmp_path / "results.zarr").update_attrs(inputs={"particles": 7})
    assert cost_of_correction(session, rm.MotionCorrection(), tmp_path).finished == 0, "they are of other data"


def test_after_a_restart_the_cost_is_told_from_what_was_recorded(session, dose, tmp_path):
    store = rm.ResultStore(tmp_path / "results.zarr")
    store.write("dose_weights", dose.assign_attrs(micrographs=["mic0000"]))
    store.update_attrs(seconds={"dose weights": 3.0})
    cost = cost_of_correction(rm.Session(session.data), rm.MotionCorrection(), tmp_path)
    assert cost.seconds == 6.0 and cost.basis == "measuring dose weights in an earlier run"
