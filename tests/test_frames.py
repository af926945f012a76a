"""Part of a movie, or an EER movie cut anew: its motion and dose are those of the very frames used."""

import shutil
from dataclasses import replace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import tifffile
from cryosparc_project import convert
from job import GIVEN, error_A, run, tracks
from relion_project import MICROGRAPHS, PARTICLES, edit, make_project, motion_blocks, reference
from two_frame_counts import shorten, with_two_frame_counts

import refmotion_nb as rm
from refmotion_nb.data.cryosparc.csfile import read_cs, write_cs
from refmotion_nb.data.movies.frames import keep_frames, regroup_eer
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.relion.motion import initial_displacement, local_motion, read_motion, rigid_displacement
from refmotion_nb.data.schema import InputError, Movie
from refmotion_nb.data.star import write_star
from refmotion_nb.data.synthetic.eer import write_eer
from refmotion_nb.data.synthetic.simulate import SimulationSettings, simulate

H, W, RAW = 32, 48, 43  # of the EER file: 43 raw frames are 5 fractions of 8, and 3 left over
AT = np.array([[10.0, 5.0], [40.0, 30.0]])  # Å


@pytest.fixture
def eer(tmp_path):
    rng = np.random.default_rng(1)
    events = []
    for _ in range(RAW):
        pixels = np.flatnonzero(rng.random(H * W) < 0.1)
        events.append((pixels, rng.integers(0, 16, len(pixels), dtype=np.uint8)))
    write_eer(tmp_path / "a.eer", events, (H, W), RAW, 0.1)
    return Movie("a", tmp_path / "a.eer", 5, H, W, 1.0, 0.8, pre_exposure_e_A2=0.5, eer_grouping=8)


def polynomial_movie(n_frames=12, first_frame=0):
    rng = np.random.default_rng(2)
    return Movie(
        "a", "a.tif", n_frames, 64, 96, 0.5, 1.5, first_frame=first_frame, global_shift=rng.normal(size=(n_frames, 2)),
        local_motion=rng.normal(size=36) / np.tile([1.0, 10, 100], 12),
    )  # fmt: skip


def spline_movie(n_frames=12, first_frame=0):
    spline = np.random.default_rng(3).normal(size=(2, 5, 3, 4))
    movie = polynomial_movie(n_frames, first_frame)
    return replace(movie, local_motion=None, spline_motion=spline)


# frames first to last


@pytest.mark.parametrize("make", [polynomial_movie, spline_movie])
def test_kept_frames_move_as_they_did(make):
    movie = make()
    part = keep_frames(movie, 3, 10)
    assert (part.first_frame, part.n_frames) == (2, 8)
    np.testing.assert_allclose(part.dose_edges, movie.dose_edges[2:11])
    for motion in (initial_displacement, lambda m, _: rigid_displacement(m)[None]):
        np.testing.assert_allclose(motion(part, AT), motion(movie, AT)[:, 2:10], atol=1e-12)
    again = keep_frames(part, 5, 0)
    np.testing.assert_allclose(initial_displacement(again, AT), initial_displacement(movie, AT)[:, 4:10], atol=1e-12)


def test_numbers_are_the_movies_not_those_of_motion_correction():
    movie = polynomial_movie(10, first_frame=2)  # motion correction began at the third
    assert keep_frames(movie, 1, 0) is movie and keep_frames(movie, 3, 12) is movie
    part = keep_frames(movie, 5, 9)
    assert (part.first_frame, part.n_frames) == (4, 5)
    np.testing.assert_allclose(initial_displacement(part, AT), initial_displacement(movie, AT)[:, 2:7])
    np.testing.assert_allclose(part.dose_edges[0], 4 * 1.5)


def test_frames_that_are_not_there():
    with pytest.raises(InputError, match=r"a.tif: last_frame is 13, but 12 frames were corrected; give a smaller"):
        keep_frames(polynomial_movie(), 1, 13)
    with pytest.raises(InputError, match=r"no frame is left from first_frame 20 to last_frame 12, .*; give a smaller"):
        keep_frames(polynomial_movie(), 20, 0)


def test_part_of_a_movie_is_aligned_by_the_command(tiny, tmp_path):
    """Frames 3 to 7 of 8 by options, and a project whose motion correction began and ended there: the same."""
    out = tmp_path / "part"
    assert run(tiny.folder, out, *GIVEN, "--first-frame", "3", "--last-frame", "7") == 0
    found = tracks(out)
    project = shutil.copytree(tiny.folder, tmp_path / "project")
    for name in found:
        shorten(project, name, 7)
        path = project / f"MotionCorr/Movies/{name}.star"
        edit(path, "general", lambda general: general.update(rlnMicrographStartFrame=3))
    assert run(project, tmp_path / "whole", *GIVEN) == 0
    theirs = tracks(tmp_path / "whole")
    for name, track in found.items():
        assert track.shape[1] == 5
        np.testing.assert_array_equal(track, theirs[name])
    truth = {key: value[:, 2:7] if key.endswith("_total") else value for key, value in tiny.truth().items()}
    truth["dose_mid"] = tiny.truth()["dose_mid"][2:7]
    rigid = {name: np.repeat(rigid_displacement(read_motion(project / f"MotionCorr/Movies/{name}.star", name))[None],
                             len(track), 0) for name, track in found.items()}  # fmt: skip
    assert error_A(found, truth) < 0.8 * error_A(rigid, truth)
    with rm.ResultStore(out / "results.zarr").read("dose_weights") as dose:
        mid = dose["dose"].values.ravel()
        np.testing.assert_allclose(mid[np.isfinite(mid)][:5], tiny.truth()["dose_mid"][2:7])


# EER fractions


def path_A(dose):
    """Position (time, 2) Å after a dose: a burst that decays, and a slow remainder."""
    burst = 2.0 * (0.15 * dose + 0.85 * 8 * (1 - np.exp(-dose / 8)))
    return np.stack([burst, 0.4 * dose - 0.5 * burst], axis=-1)


def of_fractions(n, raw_frames=960, total_dose=48.0):
    """Mean position (fraction, 2) of equally long fractions."""
    at = path_A((np.arange(raw_frames) + 0.5) * total_dose / raw_frames)
    return at[: n * (raw_frames // n)].reshape(n, -1, 2).mean(axis=1)


@pytest.fixture
def any_eer(monkeypatch):
    """Movies of 960 raw frames, of which no file is needed."""
    from refmotion_nb.data.movies import frames
    from refmotion_nb.data.movies.eer import EerInfo

    monkeypatch.setattr(frames, "is_eer", lambda path: True)
    monkeypatch.setattr(frames, "eer_info", lambda path: EerInfo(960, 64, 96))


@pytest.mark.parametrize(("new", "most_A"), [(40, 1e-9), (20, 1e-9), (10, 1e-9), (80, 0.05), (30, 0.04), (96, 0.06)])
def test_regrouped_shifts_are_those_of_the_new_fractions(any_eer, new, most_A):
    """RELION's script, which takes a shift as that of the start of its fraction, is off by 0.4 to 2.9 Å here."""
    movie = Movie("a", "a.eer", 40, 64, 96, 0.5, 1.2, eer_grouping=24, global_shift=-of_fractions(40) / 0.5)
    other = regroup_eer(movie, new)
    assert (other.n_frames, other.eer_grouping) == (new, 960 // new)
    np.testing.assert_allclose(other.dose_edges[[0, -1]], [0, 48])
    difference = rigid_displacement(other) - of_fractions(new)
    assert np.abs(difference).max() < most_A


@pytest.mark.parametrize("new", [10, 20, 30, 80, 120])
@pytest.mark.parametrize("make", [polynomial_movie, spline_movie])
def test_regrouped_local_motion_is_evaluated_at_the_new_times(any_eer, make, new):
    """Mean over finely spaced times within each new fraction; fraction k of motion correction is at time k + 1/2."""
    movie = replace(make(40), eer_grouping=24, global_shift=None)
    if movie.local_motion is not None:  # of some 5 px at the end
        movie = replace(movie, local_motion=np.random.default_rng(4).normal(size=36) * np.tile([0.1, 3e-3, 6e-5], 12))
    other = regroup_eer(movie, new)
    fine = 16
    times = (np.arange(new * fine) + 0.5) / (new * fine) * 40 - 0.5
    dense = replace(movie, n_frames=new * fine, motion_time=times[:, None], motion_frames=40)
    expected = initial_displacement(dense, AT).reshape(2, new, fine, 2).mean(axis=2)
    found = initial_displacement(other, AT)
    assert np.abs(found - expected).max() < 0.02 and np.ptp(expected, axis=1).max() > 0.5  # Å
    inside = initial_displacement(regroup_eer(movie, 40), AT)
    np.testing.assert_allclose(inside, initial_displacement(movie, AT), atol=1e-12)


def test_raw_frames_left_over(eer):
    """40 of 43 raw frames have motion: 7 fractions of 5, of which 35 are used; their counts are those of these frames."""
    other = regroup_eer(eer, 7)
    assert (other.n_frames, other.eer_grouping, other.dose_per_frame_e_A2) == (7, 5, pytest.approx(0.5))
    np.testing.assert_allclose(other.dose_edges, 0.5 + 0.5 * np.arange(8))
    with open_movie(replace(eer, n_frames=RAW, eer_grouping=1)) as reader:
        raw = np.stack([reader.frame(f) for f in range(RAW)])
    with open_movie(other) as reader:
        for f in range(7):
            np.testing.assert_array_equal(reader.frame(f), raw[5 * f : 5 * f + 5].sum(axis=0))
    one = keep_frames(other, 3, 4)
    with open_movie(one) as reader:
        np.testing.assert_array_equal(reader.frame(1), raw[15:20].sum(axis=0))
    assert one.dose_edges[0] == pytest.approx(0.5 + 2 * 0.5)


def test_upsampling_stays(eer):
    finer = replace(eer, height=2 * H, width=2 * W, pixel_size_A=0.5, eer_upsampling=2)
    other = regroup_eer(finer, 20)
    assert (other.eer_upsampling, other.height, other.pixel_size_A) == (2, 2 * H, 0.5)
    with open_movie(other) as reader:
        assert reader.frame(19).shape == (2 * H, 2 * W)


def eer_project(root, movie, change=lambda blocks: None):
    """Make micrograph b of a project an EER movie; a and c are left out."""
    make_project(root)
    shutil.copy(movie.path, root / "Movies/b.eer")
    blocks = motion_blocks("b")
    frames = np.arange(1, movie.n_frames + 1)
    blocks["general"] |= {
        "rlnImageSizeX": W, "rlnImageSizeY": H, "rlnImageSizeZ": movie.n_frames, "rlnEERUpsampling": 1,
        "rlnEERGrouping": movie.eer_grouping, "rlnMicrographMovieName": "Movies/b.eer",
    }  # fmt: skip
    blocks["global_shift"] = pd.DataFrame({"rlnMicrographFrameNumber": frames, "rlnMicrographShiftX": frames - 1.0,
                                           "rlnMicrographShiftY": 0.0})  # fmt: skip
    change(blocks)
    write_star(root / "MotionCorr/job002/Movies/b.star", blocks)
    edit(root / MICROGRAPHS, "micrographs", lambda t: t[t["rlnMicrographName"].str.contains("b.mrc")])
    edit(root / PARTICLES, "particles", lambda t: t[t["rlnMicrographName"].str.contains("b.mrc")])
    return root


def opened(root, **more):
    return rm.open_relion(root / PARTICLES, root / MICROGRAPHS, reference(), root, **more)


def test_a_relion_project_with_other_fractions(tmp_path, eer):
    root = eer_project(tmp_path / "p", eer)
    (movie,) = opened(root, eer_fractions=10).movies
    assert (movie.n_frames, movie.eer_grouping, movie.dose_per_frame_e_A2) == (10, 4, pytest.approx(0.75))
    # fractions of 8 raw frames move by 1 px each: the first of 4 lies a quarter of one before the middle of theirs
    np.testing.assert_allclose(movie.global_shift[:, 0], np.arange(10) / 2 - 0.25)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda b: b["general"].update(rlnMicrographStartFrame=2), "saw fractions 2 to 5 of 5; leave eer_fractions out"),
        (lambda b: b["global_shift"].loc.__setitem__((4, "rlnMicrographShiftX"), -9999.0), "fractions 1 to 4 of 5; leave"),
        (lambda b: (b["general"].update(rlnImageSizeZ=4), b.update(global_shift=b["global_shift"].iloc[:4])),
         "fractions 1 to 4 of 5; leave eer_fractions out, or correct the motion of all"),
    ],
)  # fmt: skip
def test_frames_discarded_upstream(tmp_path, eer, change, expected):
    root = eer_project(tmp_path / "p", eer, change)
    assert len(opened(root).movies) == 1
    with pytest.raises(InputError, match=f"b.eer: motion correction .*{expected}"):
        opened(root, eer_fractions=10)


def test_fractions_that_cannot_be(tmp_path, eer):
    with pytest.raises(InputError, match=r"b.eer: its 40 raw frames do not make 41 fractions; give fewer"):
        opened(eer_project(tmp_path / "p", eer), eer_fractions=41)
    with pytest.raises(InputError, match=r"a.mrcs is no EER movie, .*; leave eer_fractions out \(and 2 more like it\)"):
        opened(make_project(tmp_path / "q"), eer_fractions=10)


EER = SimulationSettings(
    n_micrographs=1, size_px=384, n_frames=8, pixel_size_A=1.6, dose_per_frame_e_A2=4.0, box_px=112, movie_format="eer",
    eer_grouping=80, particles_per_micrograph=8, hot_pixels=0, workers=2,
)  # fmt: skip


def test_trajectories_do_not_depend_on_how_the_movie_is_cut(tmp_path):
    simulation = simulate(EER, tmp_path / "eer")
    found = {}
    for n in (8, 16, 4):
        assert run(simulation.folder, tmp_path / f"{n}", *GIVEN, "--eer-fractions", f"{n}") == 0
        (found[n],) = tracks(tmp_path / f"{n}").values()
    assert [found[n].shape[1] for n in (8, 16, 4)] == [8, 16, 4]
    one, (truth,) = simulation.truth(), [v for k, v in simulation.truth().items() if k.endswith("_total")]
    weight = np.exp(-one["dose_mid"] / 16)
    weight = weight[:, None] / weight.sum()

    def apart(a, b, w):
        difference = a - b - (w * (a - b)).sum(axis=1, keepdims=True) / w.sum()
        return np.sqrt((w * difference**2).sum() / w.sum() / len(a))

    halved, doubled = found[16].reshape(8, 8, 2, 2).mean(axis=2), found[8].reshape(8, 4, 2, 2).mean(axis=2)
    moved = apart(truth, np.zeros_like(truth), weight)
    off = apart(found[8], truth, weight)
    assert apart(halved, found[8], weight) < 0.3 < off < 0.4 * moved
    assert apart(doubled, found[4], weight.reshape(4, 2, 1).sum(1)) < 0.3


# two frame counts


def test_two_frame_counts_each_have_their_own_dose_axis(tiny, tmp_path):
    project = with_two_frame_counts(tiny.folder, tmp_path / "project")
    with pytest.raises(
        InputError, match=r"mic0001 \(6\); use skip_.* to leave them out, or mixed_frame_counts to keep"
    ):
        relion(project)
    first, second = relion(project, mixed_frame_counts=True).movies
    np.testing.assert_allclose(first.dose_edges, 4.0 * np.arange(9))
    np.testing.assert_allclose(second.dose_edges, 4.0 * np.arange(7))
    assert len(rigid_displacement(second)) == 6
    # frames that both have make one frame count
    assert [m.n_frames for m in relion(project, last_frame=6).movies] == [6, 6]
    with pytest.raises(InputError, match=r"mic0001.tif: last_frame is 7, but 6 frames were corrected"):
        relion(project, last_frame=7)
    assert [m.n_frames for m in relion(project, last_frame=7, mixed_frame_counts=True).movies] == [7, 6]
    data = relion(project, last_frame=7, skip_movies_with_wrong_frame_count=True)
    assert [m.n_frames for m in data.movies] == [7]
    assert {skip.reason for skip in data.skipped} == {"its movie has 6 frames, last_frame is 7"}


def relion(folder, **more):
    reference = rm.Reference(*(folder / f"Ref/{name}.mrc" for name in ("half1", "half2", "mask")))
    return rm.open_relion(
        folder / "Extract/particles.star", folder / "MotionCorr/corrected_micrographs.star", reference, folder, **more
    )


def test_cryosparc_with_frames_left_out_or_of_two_counts(tiny, tmp_path):
    project = convert(with_two_frame_counts(tiny.folder, tmp_path / "relion"), tmp_path / "P1", "cryosparc")
    with pytest.raises(InputError, match=r"1 of 2 movies do not have 8 frames: mic0001 \(6\)"):
        rm.open_cryosparc(**project, orientation="cryosparc")
    # found out with movies of both counts
    first, second = rm.open_cryosparc(**project, mixed_frame_counts=True, first_frame=2).movies
    np.testing.assert_allclose(first.dose_edges, 4.0 * np.arange(1, 9), rtol=1e-6)
    np.testing.assert_allclose(second.dose_edges, 4.0 * np.arange(1, 7), rtol=1e-6)
    table = read_cs(project["exposures"])
    table["rigid_motion/frame_end"] = 5  # CryoSPARC's total dose is that of all frames, corrected or not
    write_cs(tmp_path / "P1/fewer.cs", table)
    fewer = rm.open_cryosparc(**(project | {"exposures": tmp_path / "P1/fewer.cs"}), orientation="cryosparc").movies
    assert [movie.n_frames for movie in fewer] == [5, 5]
    np.testing.assert_allclose([movie.dose_per_frame_e_A2 for movie in fewer], 4.0, rtol=1e-6)
    whole = rm.open_cryosparc(**project, orientation="cryosparc", mixed_frame_counts=True).movies
    for part, movie in zip((first, second), whole):
        np.testing.assert_allclose(initial_displacement(part, AT), initial_displacement(movie, AT)[:, 1:])
    with pytest.raises(InputError, match="is no EER movie"):
        rm.open_cryosparc(**project, orientation="cryosparc", eer_fractions=20)


def test_the_local_model_is_relions_at_whole_frames():
    movie = polynomial_movie()
    xy = AT / (np.array([96, 64]) * 0.5) - 0.5
    local = -local_motion(movie.local_motion, xy, np.arange(12)) * 0.5
    np.testing.assert_allclose(initial_displacement(movie, AT) - rigid_displacement(movie), local)


def test_the_helper_leaves_whole_movies(tiny, tmp_path):
    project = with_two_frame_counts(tiny.folder, tmp_path / "project")
    whole = tifffile.imread(tiny.folder / "Movies/mic0001.tif")
    np.testing.assert_array_equal(tifffile.imread(project / "Movies/mic0001.tif"), whole[:6])
    assert mrcfile.open(project / "gain.mrc").data.shape == whole.shape[1:]
