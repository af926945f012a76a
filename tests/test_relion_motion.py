import dataclasses

import numpy as np
import pandas as pd
import pytest
from relion_project import motion_blocks

from refmotion_nb.data.relion.motion import (
    initial_displacement,
    local_motion,
    read_motion,
    rigid_displacement,
)
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.star import read_star, table, write_star


def read(tmp_path, change=None):
    blocks = motion_blocks("a")
    if change is not None:
        change(blocks)
    write_star(tmp_path / "a.star", blocks)
    return read_motion(tmp_path / "a.star", "a", locate=lambda name: tmp_path / name)


def with_model(coefficients):
    def change(blocks):
        blocks["general"]["rlnMotionModelVersion"] = 1
        blocks["local_motion_model"] = pd.DataFrame(
            {"rlnMotionModelCoeffsIdx": range(36), "rlnMotionModelCoeff": coefficients}
        )

    return change


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ([], [0, 1, 2, 3]),
        ([2], [0, 1, 1, 3]),
        ([0, 1], [0, 0, 2, 3]),
        ([3], [0, 1, 2, 2]),
        ([0, 1, 2, 3], [0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("absent", [False, True])
def test_unobserved_frames_take_the_last_observed(tmp_path, mark, expected, absent):
    def change(blocks):
        rows = blocks["global_shift"]
        rows.loc[mark, ["rlnMicrographShiftX", "rlnMicrographShiftY"]] = -9999.0
        if absent and len(mark) < 4:
            blocks["global_shift"] = rows.drop(index=mark)

    np.testing.assert_array_equal(read(tmp_path, change).global_shift[:, 0], expected)


@pytest.mark.parametrize(("mark", "whose"), [([2], [0, 1, 1, 3]), ([3], [0, 1, 2, 2]), ([0, 1], [-1, -1, 2, 3])])
def test_unobserved_frames_stay_with_their_local_motion_where_the_last_observed_was(tmp_path, mark, whose):
    coefficients, at = np.random.default_rng(0).normal(0, 0.1, 36), np.array([[30.0, 50.0], [10.0, 5.0]])

    def change(blocks):
        with_model(coefficients)(blocks)
        blocks["global_shift"] = blocks["global_shift"].drop(index=mark)

    full = initial_displacement(read(tmp_path, with_model(coefficients)), at)
    expected = np.where(np.array(whose)[:, None] >= 0, full[:, whose], 0)
    np.testing.assert_allclose(initial_displacement(read(tmp_path, change), at), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("block", "label", "value", "match"),
    [
        ("global_shift", "rlnMicrographFrameNumber", np.nan, "a frame in data_global_shift has no number"),
        ("global_shift", "rlnMicrographFrameNumber", 1, "frame 1 is in data_global_shift twice"),
        ("hot_pixels", "rlnCoordinateX", np.inf, "row 1 of data_hot_pixels is no place"),
        ("hot_pixels", "rlnCoordinateX", 1e20, "row 1 of data_hot_pixels is no place"),
        ("general", "rlnMotionModelVersion", np.inf, "is not a whole motion STAR file"),
    ],
)
def test_numbers_that_are_none(tmp_path, block, label, value, match):
    def change(blocks):
        blocks.setdefault("hot_pixels", pd.DataFrame({"rlnCoordinateX": [1.0], "rlnCoordinateY": [2.0]}))
        if block == "general":
            blocks[block][label] = value
        else:
            rows = blocks[block].astype({label: float})
            rows.loc[len(rows) - 1, label] = value
            blocks[block] = rows

    with pytest.raises(InputError, match=match):
        read(tmp_path, change)


def test_frames_before_the_first_used_count_as_dose(tmp_path):
    movie = read(tmp_path, lambda blocks: blocks["general"].update(rlnMicrographStartFrame=2))
    assert (movie.first_frame, movie.n_frames) == (1, 3)
    np.testing.assert_array_equal(movie.global_shift[:, 0], [1, 2, 3])
    np.testing.assert_allclose(movie.dose_edges, [2.0, 3.5, 5.0, 6.5])


def test_unknown_values_take_their_defaults(tmp_path):
    movie = read(tmp_path, lambda blocks: blocks["general"].update(rlnMicrographPreExposure=-1, rlnVoltage=-1))
    assert (movie.pre_exposure_e_A2, movie.voltage_kV, movie.gain, movie.defects) == (0, 300, None, None)


def test_cameras_and_eer(tmp_path):
    more = {"rlnMicrographGainName": "g.mrc", "rlnMicrographDefectFile": "d.txt", "rlnEERUpsampling": 2,
            "rlnEERGrouping": 30}  # fmt: skip
    movie = read(tmp_path, lambda blocks: blocks["general"].update(more))
    assert (movie.gain.path, movie.defects) == (tmp_path / "g.mrc", tmp_path / "d.txt")
    assert (movie.eer_upsampling, movie.eer_grouping) == (2, 30)
    assert read(tmp_path, lambda blocks: blocks["general"].update(rlnEERUpsampling=-1)).eer_upsampling == -1


def test_local_motion_terms():
    for index, term in enumerate(["1", "x", "x2", "y", "y2", "xy"]):
        coefficients = np.zeros(36)
        coefficients[18 + 3 * index + 1] = 1  # z² of this term, for y
        x, y = 0.25, -0.5
        value = {"1": 1, "x": x, "x2": x * x, "y": y, "y2": y * y, "xy": x * y}[term]
        shift = local_motion(coefficients, np.array([[x, y]]), np.arange(4))
        np.testing.assert_allclose(shift[0, :, 1], value * np.arange(4) ** 2)
        assert not shift[..., 0].any()


def test_displacement_is_minus_the_shift(tmp_path):
    coefficients = np.zeros(36)
    coefficients[3] = 4.0  # x · z, for x
    movie = dataclasses.replace(read(tmp_path, with_model(coefficients)), pixel_size_A=0.5)
    np.testing.assert_allclose(rigid_displacement(movie), np.outer(np.arange(4), [-0.5, 0.5]))
    at = np.array([[0.0, 0.0], [96 * 0.5, 64 * 0.5]])  # the corners, in Å
    local = initial_displacement(movie, at) - rigid_displacement(movie)
    np.testing.assert_allclose(local[..., 0], np.outer([0.5, -0.5], np.arange(4) * 4.0 * 0.5))
    assert not local[..., 1].any()
    still = dataclasses.replace(movie, global_shift=None, local_motion=None)
    assert not initial_displacement(still, at).any()


def fit_to_patches(path):
    """Coefficients (36,) that fit the patch shifts in a motion STAR file best."""
    blocks = read_star(path, ("general", "local_shift"))
    rows = table(blocks, "local_shift")
    xy, shift = (rows[[f"rln{what}X", f"rln{what}Y"]].to_numpy(float) for what in ("Coordinate", "MicrographShift"))
    xy = xy / [blocks["general"][f"rlnImageSize{axis}"] for axis in "XY"] - 0.5
    frame = rows["rlnMicrographFrameNumber"].to_numpy(int) - 1
    terms = [local_motion(one, xy, np.arange(frame.max() + 1))[np.arange(len(xy)), frame, 0] for one in np.eye(36)[:18]]
    scale = np.abs(terms).max(1)  # z³ and z differ by the square of the frame count
    return (np.linalg.lstsq(np.array(terms).T / scale, shift)[0].T / scale).reshape(36)


def test_refit_of_relions_own_patches(test_data):
    files = sorted((test_data / "relion_tutorial_10204/MotionCorr/job002/Movies").glob("*.star"))
    assert len(files) == 24
    line = np.linspace(-0.5, 0.5, 7)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    for path in files:
        movie = read_motion(path, path.stem)
        refitted = local_motion(fit_to_patches(path), grid, np.arange(movie.n_frames))
        difference = refitted - local_motion(movie.local_motion, grid, np.arange(movie.n_frames))
        assert np.sqrt((difference**2).sum(-1).mean()) < 0.15, path.name  # px


def test_rigid_displacement_has_the_known_error(test_data):
    truth = np.load(test_data / "apoferritin/truth.npz")
    weight = np.exp(-truth["dose_mid"] / 16)
    weight = weight[:, None] / weight.sum()
    squares = []
    for path in sorted((test_data / "apoferritin/MotionCorr/Movies").glob("*.star")):
        difference = initial_displacement(read_motion(path, path.stem), truth[f"{path.stem}_pos"])
        difference = difference - truth[f"{path.stem}_total"]
        difference -= (weight * difference).sum(axis=1, keepdims=True)
        squares.append((weight * difference**2).sum(axis=(1, 2)).mean())
    np.testing.assert_allclose(np.sqrt(np.mean(squares)), 1.226, atol=5e-4)  # Å, as measured when the set was made
