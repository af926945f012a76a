"""CryoSPARC projects, made from RELION's by a writer of its own: the same particles, the same trajectories."""

import re
import shutil
from dataclasses import replace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import tifffile
from cryosparc_project import convert, dataset_class
from job import GIVEN, left_behind, said
from relion_project import edit
from scipy.interpolate import BSpline
from scipy.linalg import expm

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.data.cryosparc.csfile import columns, read_cs, read_csg, table, write_cs
from refmotion_nb.data.cryosparc.exposures import read_exposures, read_movies
from refmotion_nb.data.cryosparc.hyperparameters import read_dose_weights
from refmotion_nb.data.cryosparc.motion import ORIENTATIONS
from refmotion_nb.data.cryosparc.write import RESULTS, write_particle_group
from refmotion_nb.data.movies.look import look_at
from refmotion_nb.data.movies.reader import TiffReader, open_movie
from refmotion_nb.data.relion.micrographs import Options
from refmotion_nb.data.relion.motion import initial_displacement, rigid_displacement
from refmotion_nb.data.star import read_star
from refmotion_nb.data.synthetic.cryosparc import KNOTS
from refmotion_nb.numerics.projection import euler_to_matrix
from refmotion_nb.stages.alignment import Alignment, MotionPrior

SAME_A = 1e-3
MIRRORED_A = 0.05  # a mirrored box holds another outermost row
OVERRIDES = {
    "spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0, "threads": 2,
}  # fmt: skip
PRIOR = MotionPrior(rm.Hyperparameters.from_strengths(1.5, 3000, 2), 0.5)


@pytest.fixture(scope="module")
def projects(tiny, tmp_path_factory):
    made = {}
    for name in ("cryosparc", "relion"):
        folder = tmp_path_factory.mktemp(name)
        made[name] = convert(tiny.folder, folder, name, container=name == "relion")
    return made


@pytest.fixture(scope="module")
def from_relion(tiny):
    return relion(tiny.folder)


def relion(folder, subtract_background=False):
    reference = rm.Reference(*(folder / f"Ref/{name}.mrc" for name in ("half1", "half2", "mask")))
    return rm.open_relion(
        folder / "Extract/particles.star", folder / "MotionCorr/corrected_micrographs.star", reference, folder,
        subtract_background=subtract_background,
    )  # fmt: skip


@pytest.fixture
def project(projects, tmp_path):
    """Copy a project to spoil."""
    given = projects["cryosparc"]
    root = shutil.copytree(given["root"], tmp_path / "P1", symlinks=True)
    return {name: root / path.relative_to(given["root"]) for name, path in given.items()}


def trajectories(data, names=None):
    """Trajectories (particle, frame, 2) Å by micrograph, in the order of the input rows."""
    session, found = rm.Session(data, threads=2, cache_bytes=1e9), {}
    settings = Alignment(repair_hot_pixels=False)
    for name in names or list(session):
        tracks = session.track(session.micrograph(name, settings), settings, PRIOR).displacement_A
        found[name] = tracks[np.argsort(session.micrographs[name][1]["row"].values)]
    return found


def edited(path, **changes):
    """Change columns of a table (``__`` for /); None drops one."""
    values = columns(read_cs(path))
    for name, value in changes.items():
        key = name.replace("__", "/")
        if value is None:
            del values[key]
        else:
            values[key] = value(values[key]) if callable(value) else value
    write_cs(path, table(values))


# the same data by both entrances


def test_everything_is_read(projects, from_relion):
    data = rm.open_cryosparc(**projects["relion"])
    ours, theirs = (d.particles.sortby("row") for d in (data, from_relion))
    for name in ("row", "micrograph", "half", "reference"):
        assert (ours[name].values == theirs[name].values).all(), name
    for name in ("origin", "defocus_u", "defocus_v", "defocus_angle", "ctf_scale", "scale", "phase_shift"):
        np.testing.assert_allclose(ours[name].values, theirs[name].values, rtol=2e-6, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(*(euler_to_matrix(d["euler"].values) for d in (ours, theirs)), atol=1e-6)
    for movie, other in zip(data.movies, from_relion.movies):
        for name in ("n_frames", "height", "width", "voltage_kV", "first_frame", "micrograph", "binning"):
            assert getattr(movie, name) == getattr(other, name), name
        assert np.isclose(movie.dose_per_frame_e_A2, other.dose_per_frame_e_A2)
        np.testing.assert_allclose(rigid_displacement(movie), rigid_displacement(other), atol=1e-6)
        assert movie.background.path.name == f"{movie.micrograph}_background.mrc"
    (optics,), (relions,) = data.optics, from_relion.optics
    assert (optics.voltage_kV, optics.box_size) == (relions.voltage_kV, relions.box_size)
    assert optics.magnification == ((1, 0), (0, 1)) and not optics.odd_zernike and not optics.even_zernike


@pytest.mark.parametrize(("name", "tolerance_A"), [("relion", SAME_A), ("cryosparc", MIRRORED_A)])
def test_the_same_trajectories(projects, from_relion, name, tolerance_A):
    ours, theirs = trajectories(rm.open_cryosparc(**projects[name])), trajectories(from_relion)
    sign = [1, 1 if name == "relion" else -1]
    assert list(ours) == list(theirs)
    for micrograph, tracks in theirs.items():
        assert np.abs(ours[micrograph] * sign - tracks).max() < tolerance_A
        assert np.abs(tracks).max() > 5


def test_the_same_trajectories_on_the_shared_data(test_data, tmp_path):
    """The background that is estimated for RELION's project is carried by CryoSPARC's tables."""
    folder, names = test_data / "apoferritin", ["mic0000", "mic0003"]
    expected, background = relion(folder, subtract_background=True), {}
    for movie in expected.movies:
        with open_movie(movie) as reader:
            background[movie.micrograph] = look_at(movie, reader, False, True).background
    assert np.ptp(background["mic0000"]) > 0.02
    data = rm.open_cryosparc(**convert(folder, tmp_path, "relion", background=background))
    ours, theirs = trajectories(data, names), trajectories(expected, names)
    for name in names:
        assert np.abs(ours[name] - theirs[name]).max() < SAME_A and len(ours[name]) > 30


def test_the_same_particles(projects, from_relion, tmp_path):
    """Stacks of both entrances, written with the same priors and weights."""
    data = {"relion": from_relion, "cryosparc": rm.open_cryosparc(**projects["relion"])}
    settings = {"repair_hot_pixels": False, "spatial_strength": 1.5, "correlation_distance": 3000.0,
                "acceleration_strength": 2.0}  # fmt: skip
    for name, one in data.items():
        assert rm.Job(one, tmp_path / name, dict(settings, threads=2)).run()
    for micrograph in ("mic0000", "mic0001"):
        ours, theirs = (mrcfile.read(tmp_path / name / f"Particles/{micrograph}.mrcs") for name in data)
        order = [[int(v.split("@")[0]) - 1 for v in read_star(tmp_path / name / "particles.star")["particles"]
                  ["rlnImageName"] if micrograph in v] for name in data]  # fmt: skip
        np.testing.assert_allclose(ours[order[0]], theirs[order[1]], rtol=1e-3, atol=2e-3 * ours.std())


def test_the_real_files_open_as_far_as_they_go(test_data):
    """Real particles are read whole; real movies that were only imported are refused for want of motion."""
    folder = test_data / "cryosparc_t20s"
    found = rm.survey_cryosparc(
        folder / "T20S_imported_movies.cs", folder / "cryosparc_P9_J209_000_particles.cs", folder / "P9_J209_volume.csg",
        root=folder,
    )  # fmt: skip
    assert len(found.problems) == 5, found.problems
    told = "\n".join(found.problems)
    assert "T20S_imported_movies.cs lacks rigid_motion/path, rigid_motion/psize_A; give the exposures of" in told
    assert "particles.cs lacks location/micrograph_uid, " in told and told.count(" not found: ") == 3, (
        "both half maps and the mask"
    )


# which way up


@pytest.mark.parametrize("name", ["cryosparc", "relion"])
def test_the_orientation_is_found_and_named(projects, name):
    found = rm.survey_cryosparc(**projects[name])
    assert found.ok and any(note.startswith(f"orientation {name}: particles resemble") for note in found.notes)
    assert all(movie.rows_as_stored == (name == "cryosparc") for movie in found.dataset.movies)
    told = rm.open_cryosparc(**projects[name], orientation=name)
    assert told.particles.identical(found.dataset.particles)


def test_no_frame_is_decoded_for_each_orientation_anew(projects, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        TiffReader, "_read", lambda self, i, read=TiffReader._read: decoded.append((self.path, i)) or read(self, i)
    )
    assert rm.survey_cryosparc(**projects["relion"]).ok
    assert len(decoded) == len(set(decoded)) > 8


def test_an_orientation_that_is_not_confirmed_is_said(project):
    edited(project["root"] / PASS, location__center_x_frac=lambda v: 1 - v)
    found = rm.survey_cryosparc(**project)
    assert any(note.startswith("orientation cryosparc is taken, but not confirmed") for note in found.notes)


def test_movies_whose_rows_run_the_other_way_are_told(project):
    """Then boxes are found by turning locations, while each image stays mirrored: it looks enough like the reference."""
    for path in (project["root"] / "J1/imported").glob("*.tif"):
        with mrcfile.new(path.with_suffix(".mrc")) as file:
            file.set_data(tifffile.imread(path)[:, ::-1].astype(np.int16))
    edited(project["exposures"], gain_ref_blob__path=[b""] * 2,
           movie_blob__path=lambda v: np.array([one.replace(b".tif", b".mrc") for one in v.tolist()]))  # fmt: skip
    (note,) = (note for note in rm.survey_cryosparc(**project).notes if note.startswith("orientation"))
    assert re.match(
        r"orientation relion is taken, but does not fit: .*; mirrored in y they do by [4-9]\d\.\d \(relion\)", note
    )


def test_the_background_is_subtracted(project, projects):
    """One that varies changes the patches, one that is level does not."""
    for file in (project["root"] / "J2/motioncorrected").glob("*_background.mrc"):
        mrcfile.write(file, np.linspace(0.5, 1.5, 256, dtype=np.float32).reshape(16, 16), overwrite=True)
    settings, power = Alignment(repair_hot_pixels=False), []
    for one in (projects["cryosparc"], project):
        session = rm.Session(rm.open_cryosparc(**one, orientation="cryosparc"), threads=2)
        power.append(session.micrograph("mic0000", settings).noise_power)
    assert power[1][1] > 1.2 * power[0][1] and np.allclose(power[0][20:], power[1][20:], rtol=0.02)


# smooth local motion, against the motion it was made from


def local_motion(xy, frame, n_frames, size):
    """Some smooth motion (particle, frame, 2) px of RELION's frame: it bends over the field and slows down."""
    x, y = (xy / size - 0.5).T[:, :, None]
    t = 1 - np.exp(-3 * frame / n_frames)
    return np.stack([(2 + 3 * x - 2 * y**2) * t, (-1 + 2 * x * y + 4 * y) * t], axis=-1)


def fitted(n_frames, height, width):
    """Coefficients (2, KZ, KY, KX) on Structura's knots, by least squares on a grid, axis by axis."""
    frame, y, x = np.arange(n_frames), np.linspace(0, height - 1, 40), np.linspace(0, width - 1, 40)
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    values = local_motion(grid, frame, n_frames, np.array([width, height])).reshape(40, 40, n_frames, 2)
    out = np.empty((2, *KNOTS))
    for axis in range(2):
        v = values[..., axis].transpose(2, 0, 1)
        for place, samples, k in ((frame, n_frames, KNOTS[0]), (y, height, KNOTS[1]), (x, width, KNOTS[2])):
            v = np.moveaxis(np.tensordot(solver(place, samples, k), v, (1, 0)), 0, -1)
        out[axis] = v
    return out


def solver(place, samples, k):
    """The matrix from values at ``place`` to K coefficients; two more follow from odd reflection."""
    basis = np.stack([cubic(place * (k - 1) / (samples - 1) - knot) for knot in range(-1, k + 1)], axis=1)
    extend = np.zeros((k + 2, k))
    extend[1:-1] = np.eye(k)
    extend[0, :2], extend[-1, -2:] = [2, -1], [-1, 2]
    return np.linalg.pinv(basis @ extend)


def cubic(u):
    """Evaluate the cubic B-spline about 0."""
    return np.nan_to_num(BSpline.basis_element(np.arange(-2, 3.0), extrapolate=False)(u))


@pytest.mark.parametrize("name", ["cryosparc", "relion"])
def test_splines_give_the_motion_they_were_made_from(tiny, tmp_path, name):
    s = tiny.settings
    height, width = s.shape
    coefficients = fitted(s.n_frames, height, width)
    data = rm.open_cryosparc(
        **convert(tiny.folder, tmp_path, name, spline={"mic0000": coefficients, "mic0001": -coefficients}),
        orientation=name,
    )
    for sign, (movie, particles) in zip((1, -1), data.micrographs()):
        xy = particles["coordinate"].values / movie.pixel_size_A
        local = (
            initial_displacement(movie, particles["coordinate"].values) - rigid_displacement(movie)
        ) / s.pixel_size_A
        if name == "cryosparc":  # seen in rows as stored
            xy, local = xy * [1, -1] + [0, height - 1], local * [1, -1]
        truth = sign * local_motion(xy, np.arange(s.n_frames), s.n_frames, np.array([width, height]))
        assert np.abs(truth).max() > 2
        np.testing.assert_allclose(local, truth, atol=0.1)  # as far as so few knots can follow
        assert np.sqrt(np.mean((local - truth) ** 2)) < 0.03


def test_a_spline_of_zeros_is_none(projects):
    data = rm.open_cryosparc(**projects["relion"], orientation="relion")
    assert all(movie.spline_motion is not None and not movie.spline_motion.any() for movie in data.movies)
    for movie, particles in data.micrographs():
        found = initial_displacement(movie, particles["coordinate"].values)
        np.testing.assert_array_equal(found, np.broadcast_to(rigid_displacement(movie), found.shape))


# what is written


@pytest.fixture(scope="module")
def finished(projects, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["run", *command(projects["cryosparc"]), "--out", str(out), "--threads", "2", *GIVEN]) == 0
    return out


def command(project):
    return ["--exposures", str(project["exposures"]), "--particles", str(project["particles"]), "--volume",
            str(project["volumes"]), "--root", str(project["root"])]  # fmt: skip


def test_tables_may_be_named_from_the_root(projects, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = projects["cryosparc"]["root"]
    given = {name: path.relative_to(root) for name, path in projects["cryosparc"].items()} | {"root": root}
    for passthrough in ("", ",J5/J5_passthrough_particles.cs"):
        given["particles"] = f"J5/particles.cs{passthrough}"
        assert main(["check", *command(given), "--mask", "J5/J5_volume_mask_refine.mrc"]) == 0
    assert capsys.readouterr().out.count("Ready to process") == 2
    assert len(rm.open_exposures(given["exposures"], root).movies) == 2


def test_a_comma_in_a_path_does_not_part_tables(projects, tmp_path, capsys):
    root = shutil.copytree(projects["cryosparc"]["root"], tmp_path / "P1, second try", symlinks=True)
    given = {
        name: root / path.relative_to(projects["cryosparc"]["root"]) for name, path in projects["cryosparc"].items()
    }
    assert main(["check", *command(given)]) == 0 and "Ready to process" in capsys.readouterr().out
    given["particles"] = f"{given['particles']},{given['particles']}"
    assert (
        main(["check", "--exposures", str(given["exposures"]), *command(given)[2:]]) == 1
    )  # such paths cannot be in a list


def test_the_official_reader_loads_what_is_written(finished, projects):
    given, found = read_cs(projects["cryosparc"]["particles"]), dataset_class().load(finished / "particles.cs")
    assert len(found) == len(given) == 24
    assert {"blob", "ctf", "alignments3D", "location", "motion"} <= set(found.prefixes())
    at = {int(uid): i for i, uid in enumerate(given["uid"])}
    order = [at[int(uid)] for uid in found["uid"]]
    for name in ("alignments3D/split", "alignments3D/pose", "alignments3D/error", "ctf/df1_A", "ctf/df_angle_rad"):
        assert (found[name] == given[name][order]).all(), name
    group = read_csg(finished / "particles.csg")
    assert group.kind == "particle" and set(group.results) == {"blob", "ctf", "alignments3D", "location", "motion"}
    assert all(path == finished / "particles.cs" and n == 24 for path, _, n in group.results.values())


def test_images_and_trajectories_are_where_the_table_says(finished, projects):
    found = dataset_class().load(finished / "particles.cs")
    for row in found.rows():
        assert row["blob/path"].startswith(">Particles/") and row["motion/path"].startswith(">Motion/")
        stack = finished / row["blob/path"][1:]
        with mrcfile.open(stack) as file:
            assert row["blob/idx"] < len(file.data) and tuple(row["blob/shape"]) == file.data.shape[1:]
            assert np.isclose(file.voxel_size.x, row["blob/psize_A"])
        motion = np.load(finished / row["motion/path"][1:])
        assert motion.dtype == np.float32 and motion.shape == (12, row["motion/frame_end"], 2)
    location = np.stack([found["location/center_x_frac"], found["location/center_y_frac"]], 1)
    assert ((location > 0) & (location < 1)).all()
    assert len({(row["blob/path"], int(row["blob/idx"])) for row in found.rows()}) == 24


@pytest.mark.parametrize("name", ["cryosparc", "relion"])
def test_motion_runs_along_cryosparcs_axes(projects, tmp_path, name):
    """Written trajectories are those found, in movie pixels, with the sign that the rigid motion came with."""
    job = rm.Job(rm.open_cryosparc(**projects[name]), tmp_path, {"spatial_strength": 1e4, "correlation_distance": 3000.0,
                 "acceleration_strength": 1e4, "split_motion": False, "threads": 2})  # fmt: skip
    assert job.run()
    found = np.load(tmp_path / "Motion/mic0000_traj.npy").mean(0)
    rigid = np.load(projects[name]["root"] / "J2/motioncorrected/mic0000_rigid_traj.npy")[0]
    for axis in range(2):
        slope = np.polyfit(rigid[:, axis] - rigid[0, axis], found[:, axis] - found[0, axis], 1)[0]
        assert 0.7 < slope < 1.3


def test_recentred_particles_stay_where_they_are(finished, projects):
    """Location less shift is where the particle sits; recentring moves both."""
    data = rm.open_cryosparc(**projects["cryosparc"], orientation="cryosparc")
    given = data.particles.sortby("row")
    found = read_cs(finished / "particles.cs")
    size = found["location/micrograph_shape"][:, ::-1] * found["location/micrograph_psize_A"][:, None]
    frac = np.stack([found["location/center_x_frac"], found["location/center_y_frac"]], 1)
    shift = found["alignments3D/shift"] * found["alignments3D/psize_A"][:, None]
    np.testing.assert_allclose(frac * size - shift, given["coordinate"].values - given["origin"].values, atol=1e-3)
    assert np.abs(shift).max() <= 0.5 * data.movies[0].pixel_size_A + 1e-6


def test_symmetry_copies_and_filaments_stay_marked(project, tmp_path):
    """Later jobs keep what belongs together in one half set by results of their own; shifts in 2D no longer hold."""
    n = len(read_cs(project["particles"]))
    edited(project["particles"], sym_expand__src_uid=np.arange(n, dtype="u8") // 2, sym_expand__idx=np.arange(n, dtype="u4") % 2,
           filament__filament_uid=np.arange(n, dtype="u8") // 5, alignments2D__shift=np.zeros((n, 2), "f4"))  # fmt: skip
    data = rm.open_cryosparc(**project, orientation="cryosparc")
    assert rm.Job(data, tmp_path / "out", OVERRIDES).run()
    results = read_csg(tmp_path / "out/particles.csg").results
    assert {name: kind for name, (_, kind, _) in results.items() if name not in RESULTS} == {
        "sym_expand": "particle.sym_expand", "filament": "particle.filament"}  # fmt: skip
    found, given = dataset_class().load(tmp_path / "out/particles.cs"), read_cs(project["particles"])
    at = {int(uid): i for i, uid in enumerate(given["uid"])}
    order = [at[int(uid)] for uid in found["uid"]]
    assert (found["sym_expand/src_uid"] == given["sym_expand/src_uid"][order]).all()


def test_shifts_count_pixels_of_the_images_they_go_with(project, tmp_path):
    """Of coarser ones than the particles were refined on: many programs know one pixel size only."""
    edited(project["particles"], alignments3D__localshift=np.ones((24, 2), "f4"))
    data = rm.open_cryosparc(**project, orientation="cryosparc")
    settings = {**OVERRIDES, "fourier_crop_to": 64, "recenter": False}
    assert rm.Job(data, tmp_path / "out", settings).run()
    found, given = read_cs(tmp_path / "out/particles.cs"), read_cs(project["particles"])
    order = [given["uid"].tolist().index(uid) for uid in found["uid"].tolist()]
    assert (found["alignments3D/psize_A"] == found["blob/psize_A"]).all() and found["blob/psize_A"][0] == np.float32(
        2.8
    )
    np.testing.assert_allclose(found["alignments3D/shift"] * 2.8, given["alignments3D/shift"][order] * 1.6, atol=1e-5)
    np.testing.assert_allclose(found["alignments3D/localshift"], 1.6 / 2.8, rtol=1e-6)


@pytest.mark.parametrize("name", ["cryosparc", "relion"])
def test_results_are_input_again(projects, tmp_path, name):
    """The written group, read with the same exposures and volume, names the same particles."""
    root = shutil.copytree(projects[name]["root"], tmp_path / "P1", symlinks=True)
    project = {what: root / path.relative_to(projects[name]["root"]) for what, path in projects[name].items()}
    edited(project["particles"], ctf__shift_A=lambda v: v + np.float32([1.3, -0.4]))
    first = rm.open_cryosparc(**project, orientation=name)
    assert rm.Job(first, tmp_path / "out", {**OVERRIDES, "check_input": False}).run()
    again = rm.open_cryosparc(**(project | {"particles": tmp_path / "out/particles.csg"}), orientation=name)
    for variable in ("half", "micrograph"):
        assert (again.particles[variable].values == first.particles[variable].values).all()
    place = [d.particles["coordinate"].values - d.particles["origin"].values for d in (again, first)]
    np.testing.assert_allclose(*place, atol=1e-3)


def test_relion_input_is_written_for_cryosparc_too(from_relion, tmp_path, test_data):
    """Its results have all the columns that CryoSPARC's have, of the same types."""
    assert rm.Job(from_relion, tmp_path, OVERRIDES).run()
    found = dataset_class().load(tmp_path / "particles.cs")
    written, real = read_cs(tmp_path / "particles.cs"), test_data / "cryosparc_t20s"
    for name in ("cryosparc_P9_J209_000_particles.cs", "T20S_particles.cs", "T20S_passthrough_particles.cs"):
        for field, (kind, _) in read_cs(real / name).dtype.fields.items():
            ours = written.dtype[field]
            assert ours.kind == "S" == kind.kind or ours == kind, field
    given = from_relion.particles.sortby("row")
    assert (found["alignments3D/split"] + 1 == given["half"].values).all()
    np.testing.assert_allclose(found["ctf/df1_A"], given["defocus_u"].values, rtol=1e-6)
    assert len(np.unique(found["uid"])) == 24 and len(np.unique(found["location/micrograph_uid"])) == 2


def test_results_of_several_runs_may_be_put_together(tiny, tmp_path):
    """CryoSPARC takes particles of one uid for one, and micrographs of other sessions may have the same names."""

    def uids(folder, change=lambda t: t):
        edit(folder / "Extract/particles.star", "particles", change)
        data = relion(folder)
        columns = dict.fromkeys(("x_px", "y_px", "origin_x_A", "origin_y_A"), 0.0) | {"box": 112, "pixel_size_A": 1.6}
        written = pd.DataFrame(
            {"row": range(24), "index": 0, "micrograph": data.particles["micrograph"].values} | columns
        )
        write_particle_group(tmp_path / "particles.cs", data, 0, written)
        rows = read_cs(tmp_path / "particles.cs")
        return set(rows["uid"]), set(rows["location/micrograph_uid"])

    here, there = (shutil.copytree(tiny.folder, tmp_path / name) for name in "ab")
    first, again, elsewhere = uids(here), uids(here), uids(there)
    assert first == again and len(first[0]) == 24 and len(first[1]) == 2
    assert not first[0] & elsewhere[0] and not first[1] & elsewhere[1]
    others = uids(here, lambda t: t.assign(rlnCoordinateX=t["rlnCoordinateX"] + 5))  # of another class
    assert not first[0] & others[0] and first[1] == others[1]


def test_the_hyperparameter_group(finished, tmp_path):
    (row,) = dataset_class().load(finished / "hyperparams.cs").rows()
    assert row["refmotion_hyperparameters/correlation_distance"] == 3000
    assert list(dataset_class().load(finished / "hyperparams.cs").fields())[3] == "refmotion_doseweights/psize_A"
    fcc, weights = np.load(finished / "refm_fcc.npy"), np.load(finished / "refm_empirical_dw.npy")
    assert weights.shape == (8, 2 * fcc.shape[1]) and fcc.shape[0] == 8
    found, frequency = read_dose_weights(finished / "refm_empirical_dw.npy")
    assert (found == weights).all() and frequency[fcc.shape[1]] == pytest.approx(0.5 / 1.6)
    shutil.copytree(finished, tmp_path / "copy")
    np.save(tmp_path / "copy/refm_fcc.npy", fcc[:, :-1])
    with pytest.raises(rm.InputError, match="twice the bins, else their frequencies are not known"):
        read_dose_weights(tmp_path / "copy/refm_empirical_dw.npy")


def test_results_of_other_motion_are_not_taken_up(project):
    def key():
        return rm.Session(rm.open_cryosparc(**project, orientation="cryosparc")).keys.all

    first = key()
    assert key() == first
    np.save(project["root"] / "J2/motioncorrected/mic0001_spline_traj.npy", np.full((2, *KNOTS), 0.5))
    assert key() != first


# the command line


def test_check(projects, capsys):
    assert main(["check", *command(projects["relion"])]) == 0
    out = capsys.readouterr().out
    assert "CryoSPARC project in" in out and "Ready to process." in out and "all particles have the same scale" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [*c, "--micrographs", "m.star"], "both --exposures (CryoSPARC) and --micrographs (RELION)"),
        (lambda c: [*c, "--half1", "a.mrc"], "--half1 does not go with CryoSPARC's --exposures; give --volume"),
        (lambda c: c[2:4], "no movies; give --micrographs (RELION) or --exposures (CryoSPARC)"),
        (lambda c: c[:4], "no volume given; give the volume of a refinement"),
    ],
)
def test_options_that_do_not_go_together(projects, tmp_path, capsys, change, message):
    assert main(["run", *change(command(projects["cryosparc"])), "--out", str(tmp_path / "out")]) == 1
    lines = said(capsys)
    assert len(lines) == 1 and message in lines[0]
    assert not left_behind(tmp_path / "out")


# bad input


def bad(path, **changes):
    return lambda project: edited(project["root"] / path, **changes)


def gone(path):
    return lambda project: (project["root"] / path).unlink()


def swapped(pattern, array):
    return lambda project: np.save(next((project["root"] / "J2/motioncorrected").glob(pattern)), array)


EXPOSURES, PARTICLES, PASS = "J2/exposures.cs", "J5/particles.cs", "J5/J5_passthrough_particles.cs"
BAD = {
    "no motion": (bad(EXPOSURES, rigid_motion__path=None), r"exposures.cs lacks rigid_motion/path; give the exposures"),
    "no dose": (bad(EXPOSURES, mscope_params__total_dose_e_per_A2=lambda v: v * 0), r"has no total dose in .*; give dose"),
    "other pixels": (bad(EXPOSURES, rigid_motion__psize_A=lambda v: v * 2), r"rigid_motion is in pixels of 3.2 Å, the movie"),
    "no rigid file": (gone("J2/motioncorrected/mic0000_rigid_traj.npy"), r"mic0000_rigid_traj.npy does not exist; give root"),
    "short motion": (swapped("mic0001_rigid*", np.zeros((1, 3, 2))), r"has 3 frames, but frames 1 to 8 of 8 were corrected"),
    "no background": (gone("J2/motioncorrected/mic0001_background.mrc"), r"mic0001_background.mrc, the background of a mo"),
    "flat spline": (swapped("mic0001_spline*", np.zeros((2, 3, 3))), r"has shape \(2, 3, 3\), not \(2, KZ, KY, KX\)"),
    "frames": (bad(EXPOSURES, rigid_motion__frame_end=lambda v: v + 4), r"frames 1 to 12 were corrected, but it has 8"),
    "no movie": (lambda p: [m.unlink() for m in (p["root"] / "J1/imported").glob("*.tif")], r"2 of 2 movies not found in"),
    "no gain": (gone("J1/imported/gain.mrc"), r"gain reference J1/imported/gain.mrc not found in"),
    "no pose": (bad(PARTICLES, alignments3D__pose=None), r"particles.cs lacks alignments3D/pose; give the particles of"),
    "no location": (gone(PASS), r"lacks location/micrograph_uid, .*with their passthrough file"),
    "split": (bad(PARTICLES, alignments3D__split=lambda v: v + 1), r"row 2, .* has no half set"),
    "one half": (bad(PARTICLES, alignments3D__split=lambda v: v * 0), r"all particles are of half set 1; give both half sets"),
    "nan": (bad(PARTICLES, alignments3D__shift=lambda v: v * np.nan), r"row 1, 2, 3 and 21 more has a value that is not a"),
    "phase": (bad(PARTICLES, ctf__phase_shift_rad=lambda v: v * np.nan), r"row 1, 2, .* has a value that is not a number"),
    "tilt": (bad(PARTICLES, ctf__tilt_A=lambda v: v * np.nan), r"row 1, 2, 3 and 21 more has a value that is not a number"),
    "no voltage": (bad(PARTICLES, ctf__accel_kv=lambda v: v * 0), r"row 1, 2, .* has no voltage in kV .ctf/accel_kv."),
    "no refinement": (bad(PARTICLES, alignments3D__pose=lambda v: v * 0), r"alignments3D/pose is 0 in every row; give the"),
    "no CTF": (bad(PARTICLES, ctf__df1_A=lambda v: v * 0, ctf__df2_A=lambda v: v * 0),
               r"ctf/df1_A and ctf/df2_A are below 100 Å in every row; give particles whose CTF was estimated"),
    "magnified": (bad(PARTICLES, ctf__anisomag=lambda v: v + np.float32([1.01, 0, 0, 0.99])),
                  r"row 1, 2, .* is magnified far from 1 .ctf/anisomag, which is stored less the identity."),
    "volts": (bad(PARTICLES, ctf__accel_kv=lambda v: v * 1000), r"row 1, 2, .* has no voltage in kV .ctf/accel_kv."),
    "no pixel size": (bad(PARTICLES, alignments3D__psize_A=lambda v: v * 0), r"has no pixel size .alignments3D/psize_A."),
    "no image pixel size": (bad(PARTICLES, blob__psize_A=lambda v: v * 0), r"row 1, 2, .* has no pixel size"),
    "no micrograph": (bad(PASS, location__micrograph_shape=lambda v: v * 0), r"row 1, 2, .* has no location on a micrograph"),
    "no movie's name": (bad(EXPOSURES, movie_blob__path=lambda v: np.full_like(v, b"")),
                        r"exposures.cs names no movie for uid \d+; import the movies again"),
    "turned": (bad(PASS, location__micrograph_shape=lambda v: v * [[1, 2]]), r"located on a micrograph of 1024 × 512, of an"),
    "one turned": (bad(PASS, location__micrograph_shape=lambda v: np.where(np.arange(24)[:, None] == 3, v * [[1, 2]], v)),
                   r"row \d+ was located on a micrograph of another shape than others on it"),
    "other exposures": (bad(PASS, location__micrograph_uid=lambda v: v + np.uint64(1)), r"no particle can be used"),
    "no half map": (gone("J5/J5_volume_map_half_A.mrc"), r"half map 1 not found"),
    "damaged": (lambda p: (p["root"] / PARTICLES).write_bytes(b"\x93NUMPYxx"), r"particles.cs is damaged or not a"),
    "duplicates": (bad(PARTICLES, uid=lambda v: np.full_like(v, 7)), r"uid 7 is listed 24 times; remove duplicates"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_input_is_one_clear_line(project, kind):
    spoil, message = BAD[kind]
    spoil(project)
    with pytest.raises(rm.InputError, match=message) as error:
        rm.open_cryosparc(**project)
    assert len(str(error.value).splitlines()) <= 2, error.value


def test_movies_that_cannot_be_used_may_be_left_out(project):
    lost = sorted((project["root"] / "J1/imported").glob("*.tif"))[1]
    lost.unlink()
    with pytest.raises(rm.InputError, match=r"1 of 2 movies not found .* skip_unusable_movies"):
        rm.open_cryosparc(**project)
    data = rm.open_cryosparc(**project, skip_unusable_movies=True, orientation="cryosparc")
    assert len(data.movies) == 1 and data.movies[0].path.name != lost.name
    assert {skip.reason.split("/")[-1] for skip in data.skipped} == {f"{lost.name} was not found"}


def test_locations_on_binned_micrographs(project):
    """Fractions count; nothing else tells how far micrographs are binned, as in older tables."""
    whole = rm.open_cryosparc(**project, orientation="cryosparc")
    edited(project["root"] / PASS, location__micrograph_shape=lambda v: v // 2, location__micrograph_psize_A=None)
    half = rm.open_cryosparc(**project, orientation="cryosparc")
    assert all(movie.binning == 2 for movie in half.movies)
    moved = whole.particles["coordinate"].values - half.particles["coordinate"].values
    assert 0 <= moved.min() and moved.max() < 1.01 * whole.movies[0].pixel_size_A  # cut to whole binned pixels


@pytest.mark.parametrize("n_tables", [1, 2])
def test_locations_on_one_micrograph_in_two_sizes(project, n_tables):
    """Particles extracted from a micrograph and from its Fourier-cropped copy lie on one movie, in one table or in two."""
    given = project | {what: [project[what]] * n_tables for what in ("particles", "volumes")}
    whole = rm.open_cryosparc(**given, orientation="cryosparc")
    if n_tables == 1:
        coarse = np.arange(24)[:, None] % 2 == 0
        edited(project["root"] / PASS, location__micrograph_shape=lambda v: np.where(coarse, v // 2, v))
    else:
        other = project["root"] / "J6"
        shutil.copytree(project["particles"].parent, other)
        edited(other / "J5_passthrough_particles.cs", location__micrograph_shape=lambda v: v // 2)
        given["particles"] = [project["particles"], other / "particles.cs"]
    both = rm.open_cryosparc(**given, orientation="cryosparc")
    assert all(movie.binning == 1 for movie in both.movies) and not both.skipped
    moved = whole.particles["coordinate"].values - both.particles["coordinate"].values
    assert 0 <= moved.min() and moved.max() < 1.01 * whole.movies[0].pixel_size_A
    assert 10 <= (moved == 0).all(1).sum() < len(moved)


def test_the_voltage_is_that_of_the_ctf_where_the_microscope_does_not_tell(project):
    edited(project["exposures"], mscope_params__accel_kv=None, ctf__accel_kv=np.full(2, 200, np.float32))
    assert {movie.voltage_kV for movie in rm.open_cryosparc(**project, orientation="cryosparc").movies} == {200.0}


def test_the_voltage_is_that_of_the_particles_where_exposures_do_not_tell(project):
    edited(project["exposures"], mscope_params__accel_kv=lambda v: v * 0)
    edited(project["root"] / PARTICLES, ctf__accel_kv=lambda v: v * 0 + 200)
    assert {movie.voltage_kV for movie in rm.open_cryosparc(**project, orientation="cryosparc").movies} == {200.0}


def test_a_gain_given_by_a_relative_path_is_found_from_any_folder(project, monkeypatch):
    """Movies are also opened by workers that run in folders of their own."""
    monkeypatch.chdir(project["root"])
    opened = rm.open_cryosparc(**project, orientation="cryosparc", gain="J1/imported/gain.mrc")
    assert {movie.gain.path for movie in opened.movies} == {project["root"] / "J1/imported/gain.mrc"}


def test_exposures_are_listed_once(project):
    """Those of two jobs may overlap; two kinds of motion for one movie are a mistake."""
    first, again = project["exposures"], project["root"] / "J4/exposures.cs"
    again.parent.mkdir()
    shutil.copy(first, again)
    write_cs(first, read_cs(first)[:1])
    data = rm.open_cryosparc(**(project | {"exposures": [first, again]}), orientation="cryosparc")
    assert [movie.micrograph for movie in data.movies] == ["mic0000", "mic0001"] and not data.skipped
    assert len(rm.open_exposures([first, again], project["root"]).movies) == 2
    edited(again, rigid_motion__path=[b"J4/motioncorrected/a.npy", b"J4/motioncorrected/b.npy"])
    with pytest.raises(
        rm.InputError, match=r"J4/exposures.cs and .*J2/exposures.cs list uid \d+ with different motion; give"
    ):
        rm.open_cryosparc(**(project | {"exposures": [first, again]}), orientation="cryosparc")


def test_particles_of_another_job_are_told(project):
    moved = shutil.move(project["root"] / "J5/J5_volume.cs", project["root"] / "J9_volume.cs")
    edited(moved, map_half_A__path=["J9/a.mrc"], map_half_B__path=["J9/b.mrc"])
    notes = rm.survey_cryosparc(**(project | {"volumes": moved})).notes
    assert any("is of job J5, its volume of J9; poses and half sets should be those" in note for note in notes)


def test_particles_of_an_earlier_iteration_are_told(project):
    folder = project["particles"].parent
    for number in ("000", "005"):
        shutil.copy(project["particles"], folder / f"cryosparc_P1_J5_{number}_particles.cs")
    for number in ("000", "005"):
        given = project | {"particles": folder / f"cryosparc_P1_J5_{number}_particles.cs"}
        told = [note for note in rm.survey_cryosparc(**given, orientation="cryosparc").notes if "iteration" in note]
        assert len(told) == (number == "000") and all(
            "000_particles.cs is of an earlier iteration than" in one for one in told
        )


CALIBRATED = np.float32(1.008)
NOTED = {
    "particles calibrated": ([(PARTICLES, {"blob__psize_A": lambda v: v * CALIBRATED})],
        r"its box of 112 px of 1.6128 Å is 112.90 pixels of its movies \(1.6 Å\) wide, as if the pixel size had been"),
    "micrographs calibrated": ([(PASS, {"location__micrograph_psize_A": lambda v: v * CALIBRATED})],
        r"its micrographs have 1.6128 Å/px, those of its movies 1.6; give particles, volume and exposures the same"),
    "downsampled": ([(PARTICLES, {"blob__psize_A": lambda v: v * 2, "blob__shape": lambda v: v // 2})], None),
    "binned": ([(PASS, {"location__micrograph_psize_A": lambda v: v * 2, "location__micrograph_shape": lambda v: v // 2})], None),
    "defects": ([(EXPOSURES, {"mscope_params__defect_path": [b"J1/imported/defects.txt"] * 2})],
        r"J1/imported/defects.txt, the defect file of 2 movies, is not followed; hot pixels are found in the movies"),
    "scale": ([(PARTICLES, {"alignments3D__alpha": np.linspace(-0.5, 1.5, 24).astype("f4")})],
        r"6 particles have a scale \(alignments3D/alpha\) of 0 or below, taken as 1; take them out"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(NOTED))
def test_what_may_be_a_mistake_is_told(project, kind):
    changes, message = NOTED[kind]
    for path, change in changes:
        edited(project["root"] / path, **change)
    notes = rm.survey_cryosparc(**project, orientation="cryosparc").notes
    found = [note for note in notes if "same scale" not in note]
    assert len(found) == (message is not None), found
    assert message is None or re.search(message, found[0]), found


def test_two_references_belong_to_two_particle_files(project):
    data = rm.open_cryosparc(
        project["exposures"], [project["particles"]] * 2, [project["volumes"]] * 2, root=project["root"],
        orientation="cryosparc",
    )  # fmt: skip
    assert len(data.references) == 2 and (np.bincount(data.particles["reference"].values) == 24).all()
    with pytest.raises(rm.InputError, match="2 particle files for 1 volumes; give one for each"):
        rm.open_cryosparc(project["exposures"], [project["particles"]] * 2, project["volumes"], root=project["root"])


# The public way to a simulated project


def test_a_simulation_as_a_project(tiny, from_relion, tmp_path):
    """Its poses are matrix logarithms, it opens as the official writer's does, and is written again over itself."""
    project = tiny.as_cryosparc(tmp_path / "P1")
    data = rm.open_cryosparc(**project, subtract_background=False)  # none is given, so it would be estimated
    ours, theirs = trajectories(data), trajectories(from_relion)
    for micrograph, tracks in theirs.items():
        assert np.abs(ours[micrograph] * [1, -1] - tracks).max() < MIRRORED_A
    before = project["particles"][0].read_bytes()
    assert tiny.as_cryosparc(tmp_path / "P1")["particles"][0].read_bytes() == before
    assert any(note.startswith("orientation cryosparc") for note in data.notes)


def test_written_poses_are_matrix_logarithms(tiny, tmp_path):
    written = read_cs(tiny.as_cryosparc(tmp_path, "relion")["particles"][0])["alignments3D/pose"]
    rows = read_star(tiny.particles)["particles"]
    for v, rot, tilt, psi in zip(written, rows["rlnAngleRot"], rows["rlnAngleTilt"], rows["rlnAnglePsi"]):
        cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
        assert np.allclose(expm(-cross), euler_to_matrix(np.array([[rot, tilt, psi]]))[0], atol=1e-5)


def test_what_cannot_be_a_project(tiny, tmp_path):
    with pytest.raises(rm.InputError, match="orientation 'upright'; give cryosparc or relion"):
        tiny.as_cryosparc(tmp_path, "upright")
    with pytest.raises(
        rm.InputError, match=r"holds other files \(Extract\), which simulated ones would join or replace"
    ):
        tiny.as_cryosparc(tiny.folder)
    folder = shutil.copytree(tiny.folder, tmp_path / "mrc")
    for star in (folder / "MotionCorr/Movies").glob("*.star"):
        star.write_text(star.read_text().replace(".tif", ".mrc"))
    with pytest.raises(rm.InputError, match=r"mic0000\.mrc is no TIFF movie; simulate with movie_format='tif'"):
        replace(tiny, folder=folder).as_cryosparc(tmp_path / "P1")


# thousands of movies


def test_optics_groups_are_told_apart_wherever_their_particles_stand(project):
    n = len(read_cs(project["particles"]))
    number = 9 - np.arange(n, dtype="u4") % 3
    edited(project["particles"], ctf__exp_group_id=number, ctf__cs_mm=number.astype("f4") / 4)
    data = rm.open_cryosparc(**project)
    assert [one.spherical_aberration_mm for one in data.optics] == [1.75, 2.0, 2.25]
    found = data.particles.sortby("row")
    assert found["optics"].values.tolist() == (number[found["row"].values] - 7).tolist()


def test_names_that_are_wanted_are_gone_through_no_more_often_for_more_exposures(projects):
    class Counted(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    given, counts = projects["cryosparc"], []
    exposures = read_exposures([given["exposures"]], [])
    for n in (1, 4):
        tables = [(path, rows[:n]) for path, rows in exposures]
        wanted = Counted(str(uid) for _, rows in tables for uid in rows["uid"])
        read_movies(tables, wanted, given["root"], Options(), ORIENTATIONS["cryosparc"], {})
        counts.append(wanted.times)
    assert counts[0] == counts[1]
