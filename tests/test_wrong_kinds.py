"""Things of the wrong kind given to what people call from Python: one line at the door, before anything is read or written."""

import pytest
import xarray as xr
from fake_results import fake_dose_weights

import refmotion_nb as rm
from refmotion_nb.data.schema import SettingError

SEARCH = xr.Dataset(attrs={"strength": 2.0, "balance_deg": 45.0, "distance_A": 3000.0})


@pytest.fixture(scope="module")
def session(tiny):
    return rm.Session(tiny.open())


def opening(tiny, **changed):
    given = {
        "particles": tiny.particles,
        "micrographs": tiny.micrographs,
        "references": tiny.references,
        "root": tiny.folder,
    }
    return rm.open_relion(**(given | changed))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"particles": None}, "particles is None; give one path"),
        ({"particles": ["a.star", 3]}, r"one of particles is of type int \(3\); give one path"),
        ({"micrographs": ["a.star", "b.star"]}, "micrographs is of type list; give one path"),
        (
            {"references": "half1.mrc"},
            r"references is of type str \('half1.mrc'\); give Reference\(half1, half2, mask\), one",
        ),
        ({"references": [None]}, "one of references is None; give Reference"),
        ({"references": rm.Reference(["half1.mrc"], "half2.mrc")}, "half1 is of type list; give one path"),
        ({"root": ["here"]}, "root is of type list; give one path"),
        ({"first_frame": "3"}, r"first_frame is of type str \('3'\); give a whole number"),
        ({"first_frame": None}, "first_frame is None; give a whole number"),
        ({"last_frame": 3.5}, r"last_frame is of type float \(3.5\); give a whole number"),
        ({"eer_fractions": 2.0}, r"eer_fractions is of type float \(2.0\); give a whole number"),
        ({"hot_pixel_threshold": None}, "hot_pixel_threshold is None; give a number"),
        ({"dose_per_frame_e_A2": "3"}, r"dose_per_frame_e_A2 is of type str \('3'\); give a positive dose"),
        ({"gain": 3.0}, r"gain is of type float \(3.0\); give one path"),
    ],
)
def test_opening(tiny, changed, expected):
    with pytest.raises(rm.InputError, match=f"^{expected}"):
        opening(tiny, **changed)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"threads": -1}, "threads is -1; give a number from 0 on"),
        ({"cache_bytes": -1.0}, "cache_bytes is -1.0; give a number"),
        ({"cache_bytes": float("nan")}, "cache_bytes is nan; give a number"),
    ],
)
def test_what_a_session_cannot_have(tiny, given, expected):
    with pytest.raises(rm.InputError, match=f"^{expected}"):
        rm.Session(tiny.open(), **given)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"exposures": 3}, r"exposures is of type int \(3\); give one path"),
        ({"particles": ["a.cs", None]}, "one of particles is None; give one path"),
        ({"volumes": [("a.cs", 3)]}, r"one of volumes is of type int \(3\); give one path"),
    ],
)
def test_opening_cryosparc(changed, expected):
    with pytest.raises(rm.InputError, match=f"^{expected}"):
        rm.open_cryosparc(**({"exposures": "e.cs", "particles": "p.cs", "volumes": "v.cs"} | changed))


@pytest.mark.parametrize(
    "call",
    [
        lambda data: rm.Session(data),
        lambda data: rm.Job(data, "out"),
        lambda data: rm.InputAudit().run(data),
        lambda data: rm.HyperparameterSearch().run(data),
        lambda data: rm.DoseWeights().run(data, SEARCH),
        lambda data: rm.MotionCorrection().run(data, SEARCH, SEARCH, "out"),
        lambda data: rm.Validation().run(data, SEARCH, SEARCH),
    ],
)
def test_a_path_in_place_of_data(call):
    with pytest.raises(
        rm.InputError, match=r"^data is of type str .'Polish'.; give what open_relion or open_cryosparc returns"
    ):
        call("Polish")


def test_a_data_set_in_place_of_a_table_of_movies(session, tmp_path):
    with pytest.raises(
        rm.InputError, match=r"^data is of type Dataset; give what open_movies or open_exposures returns"
    ):
        rm.MicrographCorrection().run(session.data, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda session, search, out: rm.best(search),
        lambda session, search, out: rm.DoseWeights().run(session, search),
        lambda session, search, out: rm.MotionCorrection().run(session, search, SEARCH, out),
        lambda session, search, out: rm.Validation().run(session, search, SEARCH, out=out),
        lambda session, search, out: rm.trajectories(session, "mic0000", search),
    ],
)
@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("rays", r"search is of type str \('rays'\); give what HyperparameterSearch\(\).run or hand_picked returned"),
        (
            xr.Dataset({"weight": 1.0}),
            "search is a Dataset without strength, balance_deg, distance_A among its attributes; give",
        ),
    ],
)
def test_no_result_of_a_search(session, tmp_path, call, search, expected):
    with pytest.raises(rm.InputError, match=f"^{expected}"):
        call(session, search, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda session, dose, out: rm.MotionCorrection().run(session, SEARCH, dose, out),
        lambda session, dose, out: rm.Validation().run(session, SEARCH, dose, out=out),
    ],
)
@pytest.mark.parametrize(
    ("dose", "expected"),
    [
        (None, r"dose is None; give what DoseWeights\(\).run returned"),
        (SEARCH, "dose is a Dataset without weight, dose, frequency, group; give what"),
    ],
)
def test_no_dose_weights(session, tmp_path, call, dose, expected):
    with pytest.raises(rm.InputError, match=f"^{expected}"):
        call(session, dose, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_path(session):
    for call in (lambda: rm.Job(session, ["out"]), lambda: rm.MotionCorrection().run(session, SEARCH, SEARCH, ["out"])):
        with pytest.raises(rm.InputError, match=r"^out is of type list; give one path|^dose"):
            call()
    with pytest.raises(rm.InputError, match=r"^path is None; give one path"):
        rm.ResultStore(None)


def test_no_session(session):
    h = rm.Hyperparameters(2.0, 45.0, 3000.0)
    for call in (lambda: rm.hand_picked(session.data, h), lambda: rm.trajectories(session.data, "mic0000", SEARCH)):
        with pytest.raises(rm.InputError, match=r"^session is of type Dataset; give a Session of"):
            call()
    with pytest.raises(rm.InputError, match=r"^hyperparameters is of type float \(2.0\); give Hyperparameters\("):
        rm.hand_picked(session, 2.0)


def test_settings_that_no_stage_has_are_not_dropped(session, tmp_path):
    with pytest.raises(SettingError, match=r"^threds is no setting; did you mean threads\?$"):
        rm.Job(session, tmp_path / "out", {"threds": 2}).run()
    with pytest.raises(SettingError, match=r"^threads is -1; give a whole number from 0$"):
        rm.Job(session, tmp_path / "out", {"threads": -1}).run()
    assert not (tmp_path / "out").exists()


def test_reading(tmp_path):
    for read in (rm.read_star, rm.read_cs, rm.read_map):
        with pytest.raises(rm.InputError, match=r"^path is None; give one path"):
            read(None)
    with pytest.raises(rm.InputError, match=r"holds no results; give the results.zarr of a run"):
        rm.write_report(tmp_path, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_simulating_and_plotting(tmp_path):
    with pytest.raises(rm.InputError, match=r"^settings is of type str \('big'\); give SimulationSettings"):
        rm.simulate("big", tmp_path)
    with pytest.raises(rm.InputError, match=r"^the result is str, no Dataset"):
        rm.plots.rays("x")


def test_values_that_no_prior_has_and_stages_that_no_job_has(session, tmp_path):
    for h in (
        rm.Hyperparameters(-1.0, 45.0, 3000.0),
        rm.Hyperparameters(1.0, 400.0, 3000.0),
        rm.Hyperparameters(1.0, 45.0, 0.0),
    ):
        with pytest.raises(
            rm.InputError, match=r"^strength .*, balance .*, distance .*; give a strength and a distance above 0"
        ):
            rm.hand_picked(session, h)
    with pytest.raises(
        rm.InputError, match=r"^until is 'tomorrow'; give hyperparameters, dose-weights, correct, validate"
    ):
        rm.Job(session, tmp_path / "out").run(until="tomorrow")
    assert not (tmp_path / "out").exists()


def test_output_folders_of_stages_are_looked_at_as_those_of_jobs(session, tiny, tmp_path):
    (tmp_path / "particles.star").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, expected in (("", "^out is empty; give a path"), (tmp_path, "particles.star is of no earlier run"),
                          (tmp_path / "file", "file is not a folder; check the path"),
                          (tiny.folder / "Extract", r"particles.star \(particles\) is read and would be over")):  # fmt: skip
        with pytest.raises(rm.InputError, match=expected):
            rm.MotionCorrection().run(session, SEARCH, fake_dose_weights(), out)
    with pytest.raises(rm.InputError, match="file is not a folder; check the path"):
        rm.Validation().run(session, SEARCH, fake_dose_weights(), out=tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "particles.star"]
