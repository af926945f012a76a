"""Results used elsewhere: other frames, doses, pixel sizes and groups, and the files of other programs."""

import json
import re
import shutil
from dataclasses import replace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import tifffile
import xarray as xr
from conftest import TINY
from job import GIVEN, copied, error_A, inputs, run, said, store, tracks
from relion_project import edit

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.data.cryosparc.csfile import read_cs
from refmotion_nb.data.limits import cpu_count, memory_bytes
from refmotion_nb.data.relion.results import open_postprocess, read_bfactors, write_bfactors
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.store import read_netcdf, write_netcdf
from refmotion_nb.data.synthetic.simulate import _mapping, simulate
from refmotion_nb.numerics.dose import fcc, sums_at_doses, weights_at_doses
from refmotion_nb.numerics.energy import grant_grigorieff
from refmotion_nb.stages.alignment import Alignment, MotionPrior
from refmotion_nb.stages.base import Silent
from refmotion_nb.stages.correction import hash_of_weights
from refmotion_nb.stages.dose_weights import exposures, weights_on
from refmotion_nb.stages.execute import Execution
from refmotion_nb.stages.reuse import read_prior, read_weights, write_prior

PARTICLES, MICROGRAPHS = "Extract/particles.star", "MotionCorr/corrected_micrographs.star"


@pytest.fixture(scope="module")
def quick(tiny, tmp_path_factory):
    """Return the output folder of a job with given hyperparameters; do not change it."""
    out = tmp_path_factory.mktemp("quick") / "out"
    assert run(tiny.folder, out, *GIVEN) == 0
    return out


@pytest.fixture
def project(tiny, tmp_path):
    return shutil.copytree(tiny.folder, tmp_path / "project")


@pytest.fixture(scope="module")
def data(tiny):
    reference, _ = open_postprocess(tiny.postprocess, tiny.folder)
    return rm.open_relion(tiny.particles, tiny.micrographs, reference, tiny.folder)


def cut_otherwise(root, name, frames_of):
    """Write a movie anew, its frames as sums of the given ones, with its motion."""
    movie = root / f"Movies/{name}.tif"
    frames = tifffile.imread(movie).astype(int)
    tifffile.imwrite(
        movie, np.stack([frames[list(f)].sum(0) for f in frames_of]).astype(np.uint8), photometric="minisblack"
    )
    motion = root / f"MotionCorr/Movies/{name}.star"
    edit(motion, "general", lambda g: g.update(
        rlnImageSizeZ=len(frames_of), rlnMicrographDoseRate=float(g["rlnMicrographDoseRate"]) * len(frames_of[0])))  # fmt: skip

    def shifts(table):
        values = table[["rlnMicrographShiftX", "rlnMicrographShiftY"]].to_numpy(float)
        mean = np.stack([values[list(f)].mean(0) for f in frames_of])
        return pd.DataFrame({"rlnMicrographFrameNumber": np.arange(1, len(mean) + 1), "rlnMicrographShiftX": mean[:, 0],
                             "rlnMicrographShiftY": mean[:, 1]})  # fmt: skip

    edit(motion, "global_shift", shifts)


# weights at other doses


def test_weights_of_a_curve_are_that_curve_at_other_doses():
    frequency = np.linspace(0.01, 0.4, 30)

    def exact(edges):
        left = grant_grigorieff(frequency, 0.5 * (edges[1:] + edges[:-1]), 300)
        return left / left.sum(0)

    edges, finer, part = np.linspace(0, 40, 21), np.linspace(0, 40, 41), np.linspace(0, 24, 9)
    # finer frames at both ends lie beyond the middle of the first and last: they take its weight
    found = weights_at_doses(exact(edges), edges, finer)
    np.testing.assert_allclose(found[1:-1] / found[20], (exact(finer) / exact(finer)[20])[1:-1], rtol=1e-6)
    np.testing.assert_allclose(weights_at_doses(exact(edges), edges, part), exact(part), rtol=1e-6)
    np.testing.assert_allclose(found.sum(0), 1)


def test_a_frame_left_out_takes_no_other_dose_along():
    edges, finer, coarser = np.linspace(0, 40, 11), np.linspace(0, 40, 21), np.linspace(0, 40, 6)
    weight = np.exp(-0.05 * edges[:-1, None] * [0.5, 1.0])
    whole, without = weights_at_doses(weight, edges, finer), weight.copy()
    without[[0, 4]] = 0
    found = weights_at_doses(without, edges, finer)
    out = [0, 1, 8, 9]
    assert not found[out].any()
    rest = np.delete(whole, out, 0)
    # the first of the others is extrapolated
    np.testing.assert_allclose(np.delete(found, out, 0)[1:], (rest / rest.sum(0))[1:], rtol=0.02)
    half = weights_at_doses(without, edges, coarser) / weights_at_doses(weight, edges, coarser)
    np.testing.assert_allclose(half / half[4], [[0.5] * 2, [1] * 2, [0.5] * 2, [1] * 2, [1] * 2], rtol=0.1)
    assert np.isfinite(weights_at_doses(without, edges, np.linspace(0, 4, 4))).all()  # nothing else is there


def test_sums_of_other_frames():
    frequency = np.linspace(0.01, 0.4, 30)

    def sums(edges):
        signal = np.diff(edges)[:, None] * grant_grigorieff(frequency, 0.5 * (edges[1:] + edges[:-1]), 300)
        noise = np.sqrt(np.diff(edges))[:, None]
        one = np.ones_like(signal)
        return np.stack([signal / noise, one, one])

    edges, finer = np.linspace(0, 40, 21), np.linspace(0, 48, 49)
    found = sums_at_doses(sums(edges), edges, finer)
    np.testing.assert_allclose(fcc(found)[1:39], fcc(sums(finer))[1:39], rtol=0.01)
    assert (found[:, 40:] == 0).all()  # beyond what was measured


def test_weights_are_those_of_the_group_or_the_pool():
    frequency = np.array([0.1, 0.2])
    weight = np.array([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.8], [0.1, 0.2]]])
    table = xr.Dataset(
        {"weight": (("group", "frame", "frequency"), weight), "dose": (("group", "frame"), [[5.0, 15.0]] * 2)},
        coords={"group": ["all", "b"], "optics_group": ("group", ["", "b"]), "frequency": frequency},
    )
    edges = np.array([0.0, 10, 20])
    np.testing.assert_allclose(weights_on(table, edges, frequency, "b"), weight[1])
    np.testing.assert_allclose(weights_on(table, edges, frequency, "c"), weight[0])
    four = weights_on(table, np.linspace(0, 20, 5), frequency, "b")
    assert (np.diff(four, axis=0) <= 1e-12).all() and np.allclose(four.sum(0), 1)
    with pytest.raises(rm.InputError, match="weights are for 0 to 20 e/Å², the movie has 0 to 60"):
        weights_on(table, np.linspace(0, 60, 7), frequency, "b")
    with pytest.raises(rm.InputError, match="the movie has 0 to 40"):
        weights_on(table.assign(dose=table["dose"] + 20), np.linspace(0, 40, 5), frequency)


def test_hyperparameters_and_weights_carry_over_to_other_frames(tiny, quick, project):
    """Pairs of frames summed: the same prior gives the same motion, and weights come from the doses of the pairs."""
    for name in ("mic0000", "mic0001"):
        cut_otherwise(project, name, [(0, 1), (2, 3), (4, 5), (6, 7)])
    out = project / "out"
    files = ["--hyperparameters", f"{quick}/hyperparameters.json", "--dose-weights", f"{quick}/dose_weights.nc"]
    assert run(project, out, *files) == 0
    truth = tiny.truth()
    coarse = dict(truth)
    for name in ("mic0000", "mic0001"):
        coarse[f"{name}_total"] = truth[f"{name}_total"].reshape(12, 4, 2, 2).mean(2)
    coarse["dose_mid"] = truth["dose_mid"].reshape(4, 2).mean(1)
    rigid = np.zeros(2)
    for i, name in enumerate(("mic0000", "mic0001")):
        shift = store(out).read(f"tracks/{name}")["rigid"].values
        rigid[i] = error_A({name: np.repeat(shift[None], 12, 0)}, coarse)
    assert error_A(tracks(out), coarse) < 0.8 * np.sqrt((rigid**2).mean())
    given = read_netcdf(quick / "dose_weights.nc")["weight"].values[0]
    edges = np.linspace(0, 32, 5)
    table = read_netcdf(quick / "dose_weights.nc")
    found = weights_on(table, edges, table["frequency"].values)
    expected = np.sqrt(given[::2] * given[1::2])
    np.testing.assert_allclose(found, expected / expected.sum(0), rtol=1e-6)


def test_edited_weights_are_used(tiny, tmp_path, quick):
    table = read_netcdf(quick / "dose_weights.nc")
    table["weight"][:] = 0
    table["weight"][:, 2] = 1
    write_netcdf(tmp_path / "edited.nc", table)
    options = ["--hyperparameters", f"{quick}/hyperparameters.json", "--dose-weights"]
    assert run(tiny.folder, tmp_path / "one", *options, f"{tmp_path}/edited.nc") == 0
    with (
        mrcfile.open(tmp_path / "one/Particles/mic0000.mrcs") as one,
        mrcfile.open(quick / "Particles/mic0000.mrcs") as all8,
    ):
        a, b = one.data - one.data.mean(), all8.data - all8.data.mean()
        assert 0.1 < (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) < 0.9  # one frame of eight


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda t: t.drop_vars("dose"), "lacks dose; give the dose_weights.nc of a run"),
        (lambda t: t.assign(weight=t["weight"].where(t["frame"] != 2, -1)), "group 1, frame 3 at 0 1/Å is not a positive"),
        (lambda t: t.assign(weight=t["weight"] * np.nan), "group 1, frame 1 at 0 1/Å is not a positive"),
        (lambda t: t.assign(weight=t["weight"].isel(group=0, drop=True)), r"lacks weight \(group, frame, frequency\)"),
        (lambda t: t.drop_vars("group"), "lacks group; give"),
        (lambda t: t.isel(group=slice(0)), "lacks groups; give"),
        (lambda t: t.isel(frequency=slice(None, None, -1)), "frequencies are not numbers that rise; sort"),
        (lambda t: t.isel(frequency=slice(0)), "frequencies are not numbers that rise; sort"),
        (lambda t: t.assign_coords(frequency=t["frequency"] * np.nan), "frequencies are not numbers that rise; sort"),
        (lambda t: t.assign(frame_dose=t["frame_dose"] * 0), "the doses of group 1 are not numbers that rise from frame"),
        (lambda t: t.isel(frame=slice(None, None, -1)), "the doses of group 1 are not numbers that rise from frame"),
    ],
)  # fmt: skip
def test_spoilt_weights_are_refused(tiny, tmp_path, quick, capsys, spoil, line):
    write_netcdf(tmp_path / "spoilt.nc", spoil(read_netcdf(quick / "dose_weights.nc")))
    assert run(tiny.folder, tmp_path / "out", *GIVEN, "--dose-weights", f"{tmp_path}/spoilt.nc") == 1
    (found,) = said(capsys)
    assert re.search(line, found), found


# the files of other programs


def test_bfactors_of_relion_are_the_same_weights(tiny, quick, data):
    movie = data.movies[0]
    own = read_netcdf(quick / "dose_weights.nc")
    found = read_weights(quick / "bfactors.star", data.movies, 112, 1.6)
    k = own["frequency"].values[:50]
    np.testing.assert_allclose(
        weights_on(found, movie.dose_edges, k), weights_on(own, movie.dose_edges, k), rtol=1e-4
    )  # fmt: skip
    b_factor, log_scale = read_bfactors(quick / "bfactors.star")
    assert (b_factor <= 0).all() and (log_scale <= 0).all()
    six = [replace(m, n_frames=6) for m in data.movies]
    with pytest.raises(rm.InputError, match="weights for 8 frames and does not say at which dose; these movies have 6"):
        read_weights(quick / "bfactors.star", six, 112, 1.6)
    mixed = [data.movies[0], replace(data.movies[1], dose_per_frame_e_A2=3.0)]
    with pytest.raises(rm.InputError, match="8 frames of different doses; give the dose_weights"):
        read_weights(quick / "bfactors.star", mixed, 112, 1.6)


def test_bfactors_that_relion_could_not_fit_are_refused(data, tmp_path):
    b_factor, log_scale = np.full(8, -20.0), np.zeros(8)
    log_scale[7] = -np.inf  # no signal
    write_bfactors(tmp_path / "b.star", b_factor, log_scale)
    assert (read_weights(tmp_path / "b.star", data.movies, 112, 1.6)["weight"].values[0, 7] == 0).all()
    write_bfactors(tmp_path / "b.star", b_factor, np.full(8, -np.inf))
    with pytest.raises(rm.InputError, match="frame 1 has B-factor -20 and ln of scale -inf, RELION could"):
        read_weights(tmp_path / "b.star", data.movies, 112, 1.6)
    for value in (np.nan, -np.inf):
        b_factor[3] = value
        write_bfactors(tmp_path / "b.star", b_factor, log_scale)
        with pytest.raises(
            rm.InputError, match=f"b.star: frame 4 has B-factor {value:g} and ln of scale 0, RELION could"
        ):
            read_weights(tmp_path / "b.star", data.movies, 112, 1.6)


def test_weights_of_cryosparc(quick, data, tmp_path):
    own = read_netcdf(quick / "dose_weights.nc")
    edges, k = data.movies[0].dose_edges, own["frequency"].values[1:50]
    for name in ("refm_empirical_dw.npy", "hyperparams.cs", "hyperparams.csg"):
        found = read_weights(quick / name, data.movies, 112, 1.6)
        np.testing.assert_allclose(weights_on(found, edges, k), weights_on(own, edges, k), rtol=0.02)
    alone = shutil.copy(quick / "refm_empirical_dw.npy", tmp_path)
    edited = np.load(alone)
    edited[0] = 0  # the first frame is not wanted
    np.save(alone, edited)
    found = read_weights(tmp_path / "refm_empirical_dw.npy", data.movies, 112, 1.6, 0.5)
    assert (weights_on(found, edges, k)[0] == 0).all()
    np.save(alone, np.load(quick / "refm_empirical_dw.npy"))
    with pytest.raises(rm.InputError, match=r"without refm_fcc.npy .* give dose_weights_last_frequency_per_A"):
        read_weights(tmp_path / "refm_empirical_dw.npy", data.movies, 112, 1.6)
    top = 1 / 1.6 * (1 - 1 / np.load(alone).shape[1])
    found = read_weights(tmp_path / "refm_empirical_dw.npy", data.movies, 112, 1.6, top)
    np.testing.assert_allclose(weights_on(found, edges, k), weights_on(own, edges, k), rtol=0.02)


def test_hyperparameters_of_other_programs(tmp_path, quick):
    settings = Alignment()
    (tmp_path / "opt_params_all_groups.txt").write_text("0.5 5000 2\n")
    relion = read_prior(tmp_path / "opt_params_all_groups.txt", settings, 4.0, None)
    assert relion.hyperparameters == rm.Hyperparameters.from_relion(0.5, 5000, 2, 4.0)
    for name in ("hyperparams.cs", "hyperparams.csg"):
        ours = read_prior(quick / name, settings, 4.0, None).hyperparameters
        assert (ours.spatial_strength, ours.distance_A) == pytest.approx((1.5, 3000))
    with pytest.raises(rm.InputError, match="on a scale that is not public, search again, or give spatial_strength"):
        read_prior(quick / "particles.cs", settings, 4.0, None)
    with pytest.raises(rm.InputError, match="of the calibrated energy; set energy to calibrated"):
        read_prior(quick / "hyperparameters.json", Alignment(energy="relion"), 4.0, None)


def test_movies_that_come_later_are_added_to_what_is_finished(tiny, tmp_path, capsys):
    folder, out = copied(tiny.folder, tmp_path), tmp_path / "out"
    late = folder / "Movies/mic0001.tif"
    late.rename(tmp_path / "late.tif")
    assert run(folder, out, "--skip-unusable-movies") == 0
    found = ["--hyperparameters", str(out / "hyperparameters.json"), "--dose-weights", str(out / "dose_weights.nc")]
    first = (out / "Particles/mic0000.mrcs").stat()
    (tmp_path / "late.tif").rename(late)
    for written in (24, 24):  # what was found still holds when it was read from and written to this folder
        assert run(folder, out, *found) == 0
        assert f"{written} of 24" in capsys.readouterr().err
        again = (out / "Particles/mic0000.mrcs").stat()
        assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns), "it was written again"
    assert (out / "Particles/mic0001.mrcs").exists()


def test_the_grey_scale_is_that_of_the_data_at_hand(quick, data, tmp_path):
    """A reference ten times as bright has a tenth of the scale: that of another run would be wrong."""
    values, scale = json.loads((quick / "hyperparameters.json").read_text()), {"grey_scale": 0.7, "scale_spread2": 0.01}
    assert values["data"]["micrographs"] == ["mic0000", "mic0001"] and values["reference_scale"]["grey_scale"] > 0
    one, fewer = rm.Session(data).keys, rm.Session(replace(data, movies=data.movies[1:])).keys
    write_prior(
        tmp_path / "h.json", MotionPrior(rm.Hyperparameters(1.0, 50.0, 2000.0), **scale), 1.0, "calibrated", one
    )
    same, other = (read_prior(tmp_path / "h.json", Alignment(), 4.0, keys) for keys in (one, fewer))
    assert (same.grey_scale, same.scale_spread2) == (0.7, 0.01) and np.isnan(other.grey_scale)
    assert not any(
        one.grown_from(damaged) for damaged in ({"key": "a"}, {"micrographs": []}, {"micrographs": 3, "key": "a"})
    )
    reference = data.references[0]
    bright = []
    for name in ("half1", "half2"):
        with mrcfile.open(getattr(reference, name)) as file:
            bright.append(tmp_path / f"{name}.mrc")
            with mrcfile.new(bright[-1]) as new:
                new.set_data(10 * file.data)
                new.voxel_size = file.voxel_size
    brighter = replace(data, references=(replace(reference, half1=bright[0], half2=bright[1]),))
    job = rm.Job(brighter, tmp_path / "out", {"threads": 2}, quick / "hyperparameters.json", quick / "dose_weights.nc")
    assert job.run()
    for name, expected in tracks(quick).items():
        # as near as the solver comes; with the scale of the other run they are up to 5 Å away
        np.testing.assert_allclose(tracks(tmp_path / "out")[name], expected, atol=0.03)


# groups, frame counts and pixel sizes


def test_movies_of_different_frame_counts_on_their_own_dose_axes(tiny, project, quick):
    cut_otherwise(project, "mic0001", [(0,), (1,), (2,), (3,), (4,), (5,)])
    reference, _ = open_postprocess(project / "Ref/postprocess.star", project)
    both = rm.open_relion(
        project / PARTICLES, project / MICROGRAPHS, reference, project, mixed_frame_counts=True
    )  # fmt: skip
    job = rm.Job(both, project / "out", {"threads": 2}, quick / "hyperparameters.json")
    assert job.run() and job.particles["written"].values.all()
    dose = read_netcdf(project / "out/dose_weights.nc")
    assert dose["group"].values.tolist()[0] == "all" and dose.sizes == {"group": 3, "frame": 8, "frequency": 57}
    assert np.isnan(dose["weight"].values[2, 6:]).all() and np.allclose(dose["weight"].sum("frame"), 1)
    assert list(dose["particles"].values) == [24, 12, 12]
    few, session = rm.DoseWeights(target_particles=5), rm.Session(both, 2)
    chosen = dict(few.sample(session, exposures(session), lambda _, m: m.spectra.n_frames, Silent()))
    assert chosen == {"mic0000": 8, "mic0001": 6}  # each of its own frame count
    found, truth = tracks(project / "out"), tiny.truth()
    assert found["mic0000"].shape == (12, 8, 2) and found["mic0001"].shape == (12, 6, 2)
    short = {"mic0001_total": truth["mic0001_total"][:, :6], "dose_mid": truth["dose_mid"][:6]}
    rigid = store(project / "out").read("tracks/mic0001")["rigid"].values
    assert error_A({"mic0001": found["mic0001"]}, short) < 0.8 * error_A(
        {"mic0001": np.repeat(rigid[None], 12, 0)}, short
    )
    assert (project / "out/bfactors.star").exists() and len(list((project / "out").glob("bfactors_*.star"))) == 2
    assert np.load(project / "out/refm_empirical_dw.npy").shape[0] == 8


def test_optics_groups_have_their_own_weights_and_borrow_from_the_pool(tiny, project, quick, monkeypatch):
    def second(optics):
        other = optics.iloc[[0]].assign(rlnOpticsGroup=2, rlnOpticsGroupName="second")
        return pd.concat([optics, other], ignore_index=True)

    def split(table):
        table["rlnOpticsGroup"] = 1 + table["rlnMicrographName"].str.contains("mic0001").astype(int)

    edit(project / PARTICLES, "optics", second)
    edit(project / PARTICLES, "particles", split)
    options = ["--hyperparameters", f"{quick}/hyperparameters.json", "--until", "dose-weights"]
    found = {}
    for borrowed in (0, 24, 10**6):
        monkeypatch.setattr("refmotion_nb.stages.dose_weights.BORROWED_PARTICLES", borrowed)
        assert run(project, project / f"out{borrowed}", *options) == 0
        found[borrowed] = read_netcdf(project / f"out{borrowed}/dose_weights.nc")
    alone, some, pool = (found[n]["weight"].values[:, :, 5:25] for n in (0, 24, 10**6))
    assert found[0]["optics_group"].values.tolist() == ["", "opticsGroup1", "second"]
    assert np.abs(alone[1] - alone[2]).max() > 0.005  # each its own
    np.testing.assert_allclose(pool[1], pool[0], atol=2e-3)  # nothing but the pool
    between = [np.linalg.norm(one[1] - pool[0]) for one in (alone, some)]
    assert between[1] < between[0]
    movie = open_postprocess(project / "Ref/postprocess.star", project)[0]
    data = rm.open_relion(project / PARTICLES, project / MICROGRAPHS, movie, project)
    m = rm.Session(data, threads=2).micrograph("mic0001", Alignment())
    k = found[0]["frequency"].values
    np.testing.assert_allclose(weights_on(found[0], m.movie.dose_edges, k, m.group), found[0]["weight"].values[2])


@pytest.fixture(scope="module")
def two_pixel_sizes(tiny, tmp_path_factory):
    """Return a project with the tiny movies and others of 1.4 Å/px in an optics group of their own."""
    root = shutil.copytree(tiny.folder, tmp_path_factory.mktemp("two") / "project")
    settings = replace(TINY, pixel_size_A=1.4, box_px=128, size_px=576, seed=8, n_micrographs=1)
    other = simulate(settings, root / "other")
    for path in (other.folder / "Movies/mic0000.tif", other.folder / "MotionCorr/Movies/mic0000.star"):
        path.rename(root / path.relative_to(other.folder).with_stem("fine"))
    edit(root / "MotionCorr/Movies/fine.star", "general", lambda g: g.update(
        rlnMicrographMovieName="Movies/fine.tif", rlnMicrographGainName="other/gain.mrc"))  # fmt: skip
    for name in (PARTICLES, MICROGRAPHS):
        mine, added = read_star(root / name), read_star(other.folder / name)
        block = "particles" if "particles" in mine else "micrographs"
        table = added[block].assign(rlnOpticsGroup=2)
        for column in ("rlnMicrographName", "rlnMicrographMetadata", "rlnImageName"):
            if column in table:
                table[column] = table[column].str.replace("mic0000", "fine")
        mine[block] = pd.concat([mine[block], table], ignore_index=True)
        optics = added["optics"].assign(rlnOpticsGroup=2, rlnOpticsGroupName="fine")
        mine["optics"] = pd.concat([mine["optics"], optics], ignore_index=True)
        write_star(root / name, mine)
    return root, other.truth()


def test_movies_of_two_pixel_sizes(tiny, two_pixel_sizes, quick):
    root, truth = two_pixel_sizes
    out = root / "out"
    assert run(root, out, "--hyperparameters", f"{quick}/hyperparameters.json") == 0
    optics = read_star(out / "particles.star")["optics"].set_index("rlnOpticsGroup")
    assert optics["rlnImageSize"].astype(int).to_dict() == {1: 112, 2: 128}
    assert optics["rlnImagePixelSize"].astype(float).to_dict() == pytest.approx({1: 1.6, 2: 1.4})
    with mrcfile.open(out / "Particles/fine.mrcs") as file:
        assert file.data.shape == (12, 128, 128)
    found = tracks(out)
    rigid = {n: np.repeat(store(out).read(f"tracks/{n}")["rigid"].values[None], 12, 0) for n in found}
    every = {**tiny.truth(), "fine_total": truth["mic0000_total"]}
    for name in found:
        assert error_A({name: found[name]}, every) < 0.8 * error_A({name: rigid[name]}, every), name
    dose = read_netcdf(out / "dose_weights.nc")
    assert dose["group"].values.tolist() == ["all", "opticsGroup1", "fine"] and dose.sizes["frequency"] == 65
    shapes = [int(row[0]) for row in read_cs(out / "particles.cs")["blob/shape"]]
    assert sorted(set(shapes)) == [112, 128]


def test_one_optics_group_has_one_pixel_size(two_pixel_sizes, tmp_path, capsys):
    root = shutil.copytree(two_pixel_sizes[0], tmp_path / "project")
    edit(root / PARTICLES, "particles", lambda t: t.assign(rlnOpticsGroup=1))
    assert run(root, tmp_path / "out", *GIVEN) == 1
    line = "opticsGroup1 has particles on movies of 1.6 and of 1.4 Å/px (fine); give them different"
    assert line in said(capsys)[0]
    assert main(["check", *inputs(root)]) == 1 and line in " ".join(capsys.readouterr().out.split())
    reference = rm.Reference(*(root / f"Ref/{name}.mrc" for name in ("half1", "half2", "mask")))
    with pytest.raises(rm.InputError, match="opticsGroup1 has particles on movies of 1"):
        rm.open_relion(root / PARTICLES, root / MICROGRAPHS, reference, root)


def test_fourier_crop_must_fit_all_boxes(two_pixel_sizes, tmp_path, capsys):
    assert run(two_pixel_sizes[0], tmp_path / "out", *GIVEN, "--fourier-crop-to", "120") == 1
    assert "fourier_crop_to 120: the box in movie pixels is 112; give an even number up to that" in said(capsys)[0]


def test_a_longer_exposure_of_few_particles_is_measured_too(tiny, project, quick):
    """Most particles are on the shorter movie: the pool must reach as far as the longest all the same."""
    cut_otherwise(project, "mic0001", [(0,), (1,), (2,), (3,), (4,), (5,)])
    edit(
        project / PARTICLES, "particles", lambda t: t.drop(t.index[t["rlnMicrographName"].str.contains("mic0000")][:6])
    )
    files = ["--hyperparameters", f"{quick}/hyperparameters.json", "--mixed-frame-counts"]
    assert run(project, project / "out", *files) == 0
    dose = read_netcdf(project / "out/dose_weights.nc")
    assert list(dose["particles"].values) == [18, 6, 12]
    assert float(dose["dose"].isel(group=0).max()) == 30  # of 0 to 32 e/Å²
    again = ["--hyperparameters", f"{quick}/hyperparameters.json", "--dose-weights", f"{project}/out/bfactors.star"]
    assert run(tiny.folder, project / "out2", *again) == 0


def test_files_of_other_weights_do_not_stay(tiny, tmp_path, quick):
    options = ["--hyperparameters", f"{quick}/hyperparameters.json"]
    assert run(tiny.folder, tmp_path, *options) == 0
    assert (tmp_path / "bfactors.star").exists() and (tmp_path / "refm_fcc.npy").exists()
    assert run(tiny.folder, tmp_path, *options, "--dose-weights", f"{quick}/refm_empirical_dw.npy") == 0
    assert not (tmp_path / "bfactors.star").exists() and not (tmp_path / "refm_fcc.npy").exists()


def test_doses_and_groups_of_edited_weights_count(quick):
    table = read_netcdf(quick / "dose_weights.nc")
    others = [table.assign(frame_dose=table["frame_dose"] * 0.9), table.assign_coords(group=["another"])]
    assert len({hash_of_weights(one) for one in (table, *others)}) == 3


# box size


@pytest.mark.parametrize("box", [100, 144])
def test_box_size(tiny, tmp_path, quick, box):
    out = tmp_path / "out"
    assert run(tiny.folder, out, *GIVEN, "--box-size", str(box)) == 0
    optics = read_star(out / "particles.star")["optics"]
    assert (int(optics["rlnImageSize"][0]), float(optics["rlnImagePixelSize"][0])) == (box, pytest.approx(1.6))
    with mrcfile.open(out / "Particles/mic0000.mrcs") as file, mrcfile.open(quick / "Particles/mic0000.mrcs") as usual:
        n = 44  # the middle shows the same
        a, b = (v[:, v.shape[1] // 2 - n : v.shape[1] // 2 + n, v.shape[1] // 2 - n : v.shape[1] // 2 + n]
                for v in (file.data, usual.data))  # fmt: skip
        assert file.data.shape == (12, box, box)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95
    truth = tiny.truth()
    assert error_A(tracks(out), truth) < 1.15 * error_A(tracks(quick), truth)


def test_movies_without_particles_decide_on_nothing(two_pixel_sizes, tmp_path, quick):
    """Box sizes are in the pixels of movies that have particles, all else is for their doses."""
    root, out = shutil.copytree(two_pixel_sizes[0], tmp_path / "project"), tmp_path / "out"
    edit(root / PARTICLES, "particles", lambda t: t[~t["rlnMicrographName"].str.contains("fine")])
    edit(root / MICROGRAPHS, "micrographs", lambda t: t.iloc[::-1])  # the one without any comes first
    edit(root / "MotionCorr/Movies/fine.star", "general", lambda g: g.update(rlnMicrographDoseRate=2.0))
    given = ["--s-vel", "0.5", "--s-div", "3000", "--s-acc", "2", "--dose-weights", f"{quick}/bfactors.star"]
    assert run(root, out, *given, "--box-size", "100") == 0
    optics = read_star(out / "particles.star")["optics"]
    assert (int(optics["rlnImageSize"][0]), float(optics["rlnImagePixelSize"][0])) == (100, pytest.approx(1.6))
    assert json.loads((out / "hyperparameters.json").read_text())["relion"]["dose_per_frame_e_A2"] == 4


@pytest.mark.parametrize("box", ["101", "40", "100000"])
def test_box_size_that_does_not_fit(tiny, tmp_path, capsys, box):
    assert run(tiny.folder, tmp_path / "out", *GIVEN, "--box-size", box) == 1
    assert f"box_size {box} is " in said(capsys)[0] and not (tmp_path / "out/Particles").exists()


# where the work is done


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--device", "cuda"], "device cuda: CuPy is not installed; install it: python -m pip install"),
        (["--device", "tpu"], "device 'tpu' is not known; give auto, cpu, cuda or cuda:N"),
        (["--cache-size-GB", "much"], "cache_size_GB 'much' is no size; give GB, or a share such as 60%"),
        (["--cache-size-GB", "0"], "cache_size_GB is 0; give GB above 0"),
        (["--gpus", "2"], "gpus 2: there are none (CuPy is not installed); leave gpus at 1"),
        (["--gpus", "0"], "gpus"),
        (
            ["--no-slicing-gpu-also-aligns"],
            "gpus is 1; with slicing_gpu_also_aligns off one GPU predicts views and others align: give gpus 2 or more",
        ),
        (["--gpu-oversubscription-GB", "-1"], "--gpu-oversubscription-GB is -1"),
    ],
)
def test_where_the_work_is_done_is_checked(tiny, tmp_path, capsys, options, line):
    assert main(["run", *inputs(tiny.folder), "--out", str(tmp_path / "out"), *GIVEN, *options]) == 1
    assert line in said(capsys)[0] and not (tmp_path / "out/Particles").exists()


def test_cache_size_in_gigabytes_or_per_cent():
    assert Execution(cache_size_GB="2").cache_bytes == Execution(cache_size_GB=" 2.0 ").cache_bytes == 2e9
    half, whole = Execution(cache_size_GB="50%").cache_bytes, Execution(cache_size_GB="100 %").cache_bytes
    assert half == pytest.approx(whole / 2) and whole > 1e9


@pytest.mark.parametrize(
    ("cgroup", "limits", "found"),
    [
        ("0::/job/step\n", {"job/memory.max": "3000\n", "job/step/memory.max": "max\n"}, 3000),
        ("0::/../..\n", {"memory.max": "2000\n"}, 2000),  # of a container
        ("9:cpu:/a\n4:memory:/slurm/job_1\n", {"memory/slurm/job_1/memory.limit_in_bytes": "1000"}, 1000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        (None, {}, None),
    ],
)
def test_a_share_is_one_of_the_memory_that_a_job_or_container_may_use(tmp_path, cgroup, limits, found):
    within(tmp_path, cgroup, limits)
    assert memory_bytes(tmp_path) == found or (found is None and memory_bytes(tmp_path) > 1e9)


@pytest.mark.parametrize(
    ("cgroup", "limits", "found"),
    [
        ("0::/job/step\n", {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "max 100000\n"}, 3),
        ("0::/../..\n", {"cpu.max": "150000 100000\n"}, 2),  # of a container
        ("9:cpu,cpuacct:/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "200", "cpu,cpuacct/a/cpu.cfs_period_us": "200"}, 1),
        ("9:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "200"}, 64),
        (None, {}, 64),
    ],
)
def test_threads_are_as_many_as_a_job_or_container_may_use(tmp_path, monkeypatch, cgroup, limits, found):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    within(tmp_path, cgroup, limits)
    assert cpu_count(tmp_path) == found


@pytest.mark.parametrize(
    ("told", "threads", "n_bytes"),
    [
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_CPUS_PER_TASK": "8", "SLURM_MEM_PER_CPU": "128"}, 8, 16 << 27),
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_MEM_PER_NODE": "1000"}, 16, 1000 << 20),
        ({"SLURM_CPUS_ON_NODE": "128"}, 64, None),  # all that the process is bound to
        ({"SLURM_MEM_PER_NODE": "0", "SLURM_CPUS_PER_TASK": ""}, 64, None),
    ],
)
def test_a_job_of_slurm_takes_no_more_than_it_asked_for(tmp_path, monkeypatch, told, threads, n_bytes):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    for name in ("SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE"):
        monkeypatch.setenv(name, told.get(name, ""))
    assert cpu_count(tmp_path) == threads
    assert memory_bytes(tmp_path) == n_bytes or (n_bytes is None and memory_bytes(tmp_path) > 4e9)


def test_a_simulation_takes_no_more_threads_than_that(monkeypatch):
    monkeypatch.setattr("refmotion_nb.data.synthetic.simulate.cpu_count", lambda: 3)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    with _mapping(None) as mapping:
        assert mapping.__self__._max_workers == 3
    with _mapping(2) as mapping:
        assert mapping.__self__._max_workers == 2


def within(root, cgroup, limits):
    """Write what the system says of the control groups of a process."""
    if cgroup is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(cgroup)
    for name, value in limits.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
