"""CryoSPARC's files: tables of both formats, groups, real ones, and what other programs make of ours."""

import json
import resource
import struct
import tracemalloc
from datetime import datetime

import numpy as np
import pytest
import yaml
from cryosparc_project import dataset_class, save
from scipy.linalg import expm
from scipy.ndimage import map_coordinates

from refmotion_nb.data.cryosparc.csfile import (
    columns,
    merge,
    names,
    read_cs,
    read_csg,
    read_group,
    table,
    text,
    write_cs,
    write_csg,
)
from refmotion_nb.data.cryosparc.files import later_iteration, locate, read_reference, read_rows
from refmotion_nb.data.cryosparc.hyperparameters import read_dose_weights
from refmotion_nb.data.cryosparc.motion import ORIENTATIONS, oriented_gain, read_rigid, read_spline
from refmotion_nb.data.cryosparc.particles import (
    NEEDED,
    _coordinate,
    aberrations,
    aberrations_A,
    euler_to_pose,
    pose_to_euler,
    read_particle_rows,
)
from refmotion_nb.data.files import save_array
from refmotion_nb.data.maps import write_map
from refmotion_nb.data.movies.detector import load_background, load_gain
from refmotion_nb.data.schema import Background, InputError, Optics
from refmotion_nb.data.spline_motion import mirrored, spline_displacement
from refmotion_nb.numerics.ctf import aberration_phases, wavelength_A
from refmotion_nb.numerics.patches import PatchSpectra, cut_patches
from refmotion_nb.numerics.projection import euler_to_matrix

# every column of the real files and what becomes of it
USED = {
    "uid", "movie_blob/path", "movie_blob/shape", "movie_blob/psize_A", "movie_blob/is_gain_corrected",
    "gain_ref_blob/path", "gain_ref_blob/flip_x", "gain_ref_blob/flip_y", "gain_ref_blob/rotate_num",
    "mscope_params/accel_kv", "mscope_params/total_dose_e_per_A2", "mscope_params/defect_path",
    "blob/idx", "blob/shape", "blob/psize_A", "ctf/exp_group_id", "ctf/accel_kv",
    "ctf/cs_mm", "ctf/amp_contrast", "ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad", "ctf/phase_shift_rad", "ctf/scale",
    "ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag", "ctf/bfactor", "alignments3D/split",
    "alignments3D/shift", "alignments3D/pose", "alignments3D/psize_A", "alignments3D/alpha", "alignments3D/class",
    "location/micrograph_uid", "location/micrograph_path", "location/micrograph_shape", "location/center_x_frac",
    "location/center_y_frac", "map_half_A/path", "map_half_B/path", "mask_refine/path", "mask_fsc/path",
    "mask_fsc_auto/path",
}  # fmt: skip
CARRIED = {  # written back with the particles, not needed
    "blob/path", "blob/sign", "blob/import_sig", "ctf/type", "ctf/scale_const", "location/exp_group_id",
    "location/min_dist_A", *(f"alignments3D/{name}" for name in (
        "error", "error_min", "resid_pow", "slice_pow", "image_pow", "cross_cor", "alpha_min", "weight", "pose_ess",
        "shift_ess", "class_posterior", "class_ess")),
}  # fmt: skip
IGNORED = {  # told by the files themselves, by particles, or by nothing that matters here
    "movie_blob/format", "movie_blob/has_defect_file", "movie_blob/import_sig", "gain_ref_blob/idx",
    "gain_ref_blob/shape", "mscope_params/cs_mm", "mscope_params/phase_plate", "mscope_params/neg_stain",
    "mscope_params/exp_group_id", *(f"micrograph_blob/{name}" for name in (
        "path", "idx", "shape", "psize_A", "format", "is_background_subtracted", "vmin", "vmax", "import_sig")),
    "map/path", "map_sharp/path", "precision/path", *(f"{name}/{what}" for what in ("shape", "psize_A") for name in (
        "map", "map_sharp", "map_half_A", "map_half_B", "mask_refine", "mask_fsc", "mask_fsc_auto", "precision")),
}  # fmt: skip


@pytest.fixture
def t20s(test_data):
    return test_data / "cryosparc_t20s"


def rows_of(n=5):
    rng = np.random.default_rng(1)
    return table({
        "uid": rng.integers(1, 2**63, n).astype(np.uint64), "blob/path": [f"J1/a{'b' * i}.mrc" for i in range(n)],
        "blob/shape": rng.integers(1, 99, (n, 2)).astype(np.uint32), "ctf/type": [""] * n,
        "alignments3D/pose": rng.normal(size=(n, 3)).astype(np.float32), "ctf/df1_A": rng.normal(size=n)})  # fmt: skip


# tables


@pytest.mark.parametrize("name", ["a.npy", "a.cs"])
def test_arrays_that_a_disk_cannot_hold_are_an_error(tmp_path, name):
    values = np.arange(1010, dtype=np.float32)  # more than the disk takes, less than a stream of C's holds back
    array = values if name == "a.npy" else values.view([("uid", np.float32)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"too large: .*{name}"):
            (save_array if name == "a.npy" else write_cs)(tmp_path / name, array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


def test_every_column_of_the_real_files_is_accounted_for(t20s):
    assert not (USED & CARRIED | USED & IGNORED | CARRIED & IGNORED)
    seen = set()
    for path in sorted(t20s.glob("*.cs")):
        rows = read_cs(path)
        assert len(rows) == {"T20S_imported_movies.cs": 20, "cryosparc_P9_J209_000_particles.cs": 11764}.get(
            path.name, 1 if "volume" in path.name else 10)  # fmt: skip
        seen |= set(names(rows))
    assert seen == USED | CARRIED | IGNORED


def test_the_real_containers_are_the_same_table(t20s):
    plain, container = read_cs(t20s / "T20S_particles.cs"), read_cs(t20s / "T20S_particles_csdat.cs")
    assert names(plain) == names(container) and all((plain[name] == container[name]).all() for name in names(plain))
    both = read_rows(t20s / "T20S_particles.cs", NEEDED)  # finds the passthrough file beside it
    assert len(both) == 10 and text(both, "location/micrograph_path")[0].startswith("J14/motioncorrected/0129518682573")


def test_real_groups(t20s):
    group = read_csg(t20s / "P9_J209_volume.csg")
    assert (group.name, group.kind, len(group.results)) == ("volume", "volume", 8)
    assert group.results["map_half_A"] == (t20s / "cryosparc_P9_J209_005_volume_map_half_A.cs", "volume.blob", 1)
    for volume in ("P9_J209_volume.csg", "cryosparc_P9_J209_005_volume_map.cs"):
        reference, job = read_reference(t20s / volume, None, t20s)
        assert job == "J209" and reference.half2 == t20s / "J209/cryosparc_P9_J209_005_volume_map_half_B.mrc"
        assert reference.mask == t20s / "J209/cryosparc_P9_J209_005_volume_mask_refine.mrc"
    with pytest.raises(InputError, match=r"particles.csg names .*which does not exist; copy all files of the group"):
        read_group(t20s / "P9_J209_particles.csg")


def test_what_we_write_the_official_reader_reads_and_the_reverse(tmp_path):
    rows = rows_of()
    write_cs(tmp_path / "a.cs", rows)
    assert (read_cs(tmp_path / "a.cs") == rows).all()
    official = dataset_class().load(tmp_path / "a.cs")
    assert official.fields() == list(names(rows))
    assert official["blob/path"].tolist() == text(rows, "blob/path")
    assert (official["alignments3D/pose"] == rows["alignments3D/pose"]).all()
    for container in (False, True):
        official.save(tmp_path / "b.cs", format=2 if container else 1)
        assert (read_cs(tmp_path / "b.cs") == rows).all()


def test_real_poses_make_sense(t20s):
    """Rotation vectors of up to a whole turn are RELION's matrices exp(-[v]x); the half sets are of one size."""
    rows = read_cs(t20s / "cryosparc_P9_J209_000_particles.cs")
    pose = rows["alignments3D/pose"][::100].astype(float)
    assert np.linalg.norm(pose, axis=1).max() > np.pi
    x, y, z = pose.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    np.testing.assert_allclose(euler_to_matrix(pose_to_euler(pose)), expm(-cross), atol=1e-9)
    assert abs(rows["alignments3D/split"].mean() - 0.5) < 0.02


def test_real_particles_with_their_passthrough(t20s):
    with pytest.raises(
        InputError, match=r"T20S_particles.cs lacks alignments3D/pose, .*split; give the particles of a"
    ):
        read_particle_rows(t20s / "T20S_particles.cs")  # extracted, not refined


def test_uids_of_other_programs_match(tmp_path):
    """Signed ones, which NumPy compares with CryoSPARC's as floating-point numbers."""
    rows = columns(rows_of())
    write_cs(tmp_path / "a.cs", table(rows | {"uid": rows["uid"].astype(np.int64)}))
    assert read_cs(tmp_path / "a.cs")["uid"].dtype == np.uint64
    merged = merge(table({"uid": rows["uid"]}), [("a.cs", read_cs(tmp_path / "a.cs"))], "R.cs")
    assert (merged["ctf/df1_A"] == rows["ctf/df1_A"]).all()
    micrograph = np.full(5, 2**63 + 7, np.uint64)
    write_cs(tmp_path / "b.cs", table({"uid": rows["uid"], "location/micrograph_uid": micrograph.astype(np.int64)}))
    assert (read_cs(tmp_path / "b.cs")["location/micrograph_uid"] == micrograph).all()


def test_the_other_byte_order(tmp_path):
    rows = rows_of()
    write_cs(tmp_path / "x.cs", rows.astype(rows.dtype.newbyteorder(">")))
    found = read_cs(tmp_path / "x.cs")
    assert found.dtype == rows.dtype and (found == rows).all()  # pandas takes no other


def test_a_table_of_many_classes(tmp_path):
    """Before version 4.5 classification gave each class columns of its own."""
    rows = {"uid": np.arange(3, dtype=np.uint64)} | {
        f"alignments_class_{i}/{name}": np.full(3, i, np.float32) for i in range(40) for name in ("alpha", "class_posterior",
        "cross_cor", "error_min", "image_pow", "pose_ess", "psize_A", "resid_pow", "shift_ess", "slice_pow")}  # fmt: skip
    write_cs(tmp_path / "a.cs", table(rows))
    assert read_cs(tmp_path / "a.cs")["alignments_class_39/alpha"].tolist() == [39] * 3


def test_an_empty_table(tmp_path):
    for container in (False, True):
        found = read_cs(save(tmp_path / "a.cs", columns(rows_of()[:0]), container))
        assert len(found) == 0 and names(found) == names(rows_of())


def test_merging_by_uid(tmp_path):
    rows = rows_of()
    other = table({"uid": rows["uid"][::-1], "location/center_x_frac": np.arange(5.0), "ctf/type": ["x"] * 5})
    merged = merge(rows, [("P.cs", other)], "R.cs")
    assert merged["location/center_x_frac"].tolist() == [4, 3, 2, 1, 0] and text(merged, "ctf/type") == [""] * 5
    with pytest.raises(InputError, match=r"P.cs lacks 2 of the 5 items of R.cs \(by uid\); give the passthrough"):
        merge(rows, [("P.cs", other[:3])], "R.cs")
    last = sorted(rows["uid"].tolist())[-1]
    twice = np.concatenate([rows, rows, rows[rows["uid"] == last]])
    with pytest.raises(InputError, match=f"R.cs: uid {last} is listed 3 times; remove duplicates"):
        merge(twice, [], "R.cs")


def test_groups_are_written_as_cryosparcs_are(tmp_path, t20s):
    write_csg(
        tmp_path / "p.csg", "particles", "particle", "All", {"blob": ("p.cs", "particle.blob", 5)}, datetime.now()
    )
    ours, theirs = (yaml.safe_load(path.read_text()) for path in (tmp_path / "p.csg", t20s / "P9_J209_particles.csg"))
    assert {name: type(value) for name, value in ours.items()} == {name: type(value) for name, value in theirs.items()}
    for name in ("blob", "group"):
        a, b = ((one | one["results"])[name] for one in (ours, theirs))
        assert {key: type(value) for key, value in a.items()} == {key: type(value) for key, value in b.items()}


def test_groups_written_and_read(tmp_path):
    write_cs(tmp_path / "p.cs", rows_of())
    write_csg(
        tmp_path / "p.csg", "particles", "particle", "All", {"blob": ("p.cs", "particle.blob", 5)}, datetime.now()
    )
    assert read_csg(tmp_path / "p.csg").results == {"blob": (tmp_path / "p.cs", "particle.blob", 5)}
    assert (read_group(tmp_path / "p.csg") == rows_of()).all()


def test_each_result_of_a_group_is_from_its_own_table(tmp_path):
    """Results of other jobs: their tables hold more items, and older values of what a later job has found."""
    rows = rows_of()
    write_cs(tmp_path / "older.cs", rows)
    later = {"uid": rows["uid"][3:0:-1], "ctf/type": ["later"] * 3, "ctf/df1_A": np.arange(3.0)}
    write_cs(tmp_path / "later.cs", table(later))
    results = {"blob": ("older.cs", "particle.blob", 3), "ctf": ("later.cs", "particle.ctf", 3)}
    write_csg(tmp_path / "p.csg", "particles", "particle", "Some", results, datetime.now())
    found = read_group(tmp_path / "p.csg")
    assert text(found, "ctf/type") == ["later"] * 3 and found["uid"].tolist() == rows["uid"][3:0:-1].tolist()
    assert found["blob/shape"].tolist() == rows["blob/shape"][3:0:-1].tolist()


def broken(tmp_path, kind):
    path = save(tmp_path / "x.cs", columns(rows_of()), container=kind == "cut container")
    if kind.startswith("cut"):
        path.write_bytes(path.read_bytes()[:400])
    elif kind == "text":
        path.write_text("data_particles")
    elif kind == "array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "missing":
        path.unlink()
    elif kind == "pickled":
        with open(path, "wb") as file:
            np.save(file, np.array([{}], object), allow_pickle=True)
    elif kind == "heap":
        head = json.dumps({"length": 1, "dtype": [["uid", "<u8"], ["a", "|O"]], "compressed_fields": []}).encode()
        blocks = b"".join(struct.pack("<IQ", 8, value) for value in (1, 99))
        path.write_bytes(b"\x95CSDAT" + struct.pack("<I", len(head)) + head + blocks + b"\0")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [("cut plain", "is damaged"), ("cut container", "is damaged"), ("text", "is not a CryoSPARC table"),
     ("array", "has no column uid"), ("missing", "does not exist; check the path"), ("pickled", "is damaged"),
     ("heap", "is damaged")],
)  # fmt: skip
def test_bad_tables(tmp_path, kind, message):
    with pytest.raises(InputError, match=message) as error:
        read_cs(broken(tmp_path, kind))
    assert "\n" not in str(error.value)


def test_a_table_is_in_memory_once(tmp_path):
    rows = table({"uid": np.arange(5000, dtype=np.uint64), "blob/path": np.full(5000, b"a" * 200)})
    write_cs(tmp_path / "x.cs", rows)
    tracemalloc.start()
    try:
        found = read_cs(tmp_path / "x.cs")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found == rows).all() and peak < 1.5 * rows.nbytes


def test_names_in_other_encodings_are_told():
    rows = table({"uid": np.arange(2, dtype=np.uint64), "movie_blob/path": np.array([b"a.tif", b"J1/caf\xe9.tif"])})
    with pytest.raises(InputError, match=r"^movie_blob/path J1/caf\\xe9.tif is not UTF-8; rename the file"):
        text(rows, "movie_blob/path")


def test_a_group_that_does_not_count_its_items(tmp_path):
    """Programs that select particles write such."""
    (tmp_path / "x.csg").write_text("results: {blob: {metafile: '>x.cs', num_items: null, type: particle.blob}}")
    assert read_csg(tmp_path / "x.csg").results == {"blob": (tmp_path / "x.cs", "particle.blob", 0)}


def test_bad_groups(tmp_path):
    for content in ("a: [", "group: {}", "results: 3", ""):
        (tmp_path / "x.csg").write_text(content)
        with pytest.raises(InputError, match=r"x\.csg is not a CryoSPARC result group \(\.csg\); export"):
            read_csg(tmp_path / "x.csg")
    with pytest.raises(InputError, match=r"none.csg does not exist; check the path"):
        read_csg(tmp_path / "none.csg")


# paths


def test_paths(tmp_path):
    root, beside = tmp_path / "P1", tmp_path / "exports"
    for path in (root / "J1/123456789012345678_a.tif", root / "J1/b.tif", beside / "c.mrc"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert locate(">c.mrc", root, beside) == beside / "c.mrc"
    assert locate("J1/b.tif", root, beside) == root / "J1/b.tif"
    assert locate("J1/999456789012345678_b.tif", root, beside) == root / "J1/b.tif"
    assert locate("J1/a.tif", root, beside) == root / "J1/123456789012345678_a.tif"
    assert locate("J1/d.tif", root, beside) == root / "J1/d.tif"
    assert locate("c.mrc", root, beside) == beside / "c.mrc"
    (root / "J1/123456789012345678_[1].tif").touch()  # no pattern, a name
    assert locate("J1/[1].tif", root, beside) == root / "J1/123456789012345678_[1].tif"


def test_a_mask_given_wins(tmp_path):
    for name in ("a", "b", "own", "given"):
        write_map(tmp_path / f"{name}.mrc", np.ones((4, 4, 4)), 1.0)
    uid = np.array([1], np.uint64)
    own = {"uid": uid, "map_half_A/path": [">a.mrc"], "map_half_B/path": [">b.mrc"], "mask_refine/path": [">own.mrc"]}
    write_cs(tmp_path / "v.cs", table(own))
    write_cs(tmp_path / "m.cs", table({"uid": uid, "mask/path": ["given.mrc"]}))
    assert read_reference(tmp_path / "v.cs", None, tmp_path)[0].mask == tmp_path / "own.mrc"
    for mask in ("m.cs", "given.mrc"):
        assert read_reference(tmp_path / "v.cs", mask, tmp_path)[0].mask == tmp_path / "given.mrc"
    write_cs(tmp_path / "w.cs", table({"uid": uid + np.uint64(1), "map/path": ["a.mrc"]}))
    with pytest.raises(InputError, match=r"w.cs has no map_half_A and no map_half_B; give the volume of a refinement"):
        read_reference(tmp_path / "w.cs", None, tmp_path)


def test_half_maps_and_mask_are_of_the_iteration_of_their_volume(tmp_path):
    """A job keeps the tables of all its iterations, and they share their uid."""
    for stem in ("cryosparc_P1_J5_000_volume", "cryosparc_P1_J5_005_volume"):
        for name in ("map", "map_half_A", "map_half_B", "mask_fsc_auto"):
            rows = {"uid": np.array([7], np.uint64), f"{name}/path": [f">{stem}_{name}.mrc"]}
            write_cs(tmp_path / f"{stem}_{name}.cs", table(rows))
    write_cs(tmp_path / "volume.cs", table({"uid": np.array([7], np.uint64), "map/path": [">volume.mrc"]}))
    for given, number in (
        ("cryosparc_P1_J5_005_volume_map.cs", 5), ("cryosparc_P1_J5_000_volume_map.cs", 0), ("volume.cs", 5)
    ):  # fmt: skip
        found, _ = read_reference(tmp_path / given, None, tmp_path)
        for path, name in ((found.half1, "map_half_A"), (found.half2, "map_half_B"), (found.mask, "mask_fsc_auto")):
            assert path == tmp_path / f"cryosparc_P1_J5_{number:03d}_volume_{name}.mrc", given
    later = later_iteration(tmp_path / "cryosparc_P1_J5_000_volume_map.cs")
    assert later == tmp_path / "cryosparc_P1_J5_005_volume_map.cs"
    assert later_iteration(later) is None and later_iteration(tmp_path / "volume.cs") is None


# conventions


def test_poses_are_relions_matrices():
    rng = np.random.default_rng(2)
    euler = np.stack([rng.uniform(-180, 180, 60), np.r_[rng.uniform(0, 180, 56), 0, 180, 0, 180],
                      rng.uniform(-180, 180, 60)], axis=1)  # fmt: skip
    found = pose_to_euler(euler_to_pose(euler))
    np.testing.assert_allclose(euler_to_matrix(found), euler_to_matrix(euler), atol=1e-9)
    quarter = np.array([[0, 0, np.pi / 2]])  # exp(-[v]x): x of the image is y of the map
    np.testing.assert_allclose(euler_to_matrix(pose_to_euler(quarter))[0] @ [0, 1, 0], [1, 0, 0], atol=1e-12)


def test_whole_pixels_stay_what_they_were_in_fractions_of_32_bits():
    for size in (3838, 4092, 5760, 11520):
        pixel = np.arange(size)
        frac = (pixel / size).astype(np.float32)
        rows = table({"location/center_x_frac": frac, "location/center_y_frac": frac,
                      "location/micrograph_shape": np.full((size, 2), size, np.uint32)})  # fmt: skip
        assert (_coordinate(rows, False) == pixel[:, None]).all()
        assert (_coordinate(rows, True)[:, 1] == size - pixel).all()


def test_aberrations_as_written_out():
    tilt, trefoil, tetra, kV = np.array([800, -300.0]), np.array([500, 250.0]), np.array([1e3, -2e3, 3e3, 500]), 300.0
    x, y = np.random.default_rng(3).uniform(-0.3, 0.3, (2, 50))
    k, phi, lam = np.hypot(x, y), np.arctan2(y, x), wavelength_A(kV)

    def wave(n):
        return np.stack([np.cos(n * phi), np.sin(n * phi)])

    odd, even = aberrations(tilt, trefoil, tetra, kV)
    found = aberration_phases(x, y, odd=odd, even=even)
    np.testing.assert_allclose(
        found[0], -2 * np.pi * lam**2 * k**3 * (tilt @ wave(1) + trefoil @ wave(3) / 3), atol=1e-12
    )
    np.testing.assert_allclose(
        found[1], 2 * np.pi * lam**3 * k**4 * (tetra[:2] @ wave(2) + tetra[2:] @ wave(4) / 4), atol=1e-12
    )
    # the beam tilt is RELION's for pyem's conversion
    mrad = tuple(np.arcsin(tilt / 2.7e7) * 1e3)
    only, _ = aberrations(tilt, np.zeros(2), np.zeros(4), kV)
    relions = aberration_phases(x, y, beam_tilt_mrad=mrad, spherical_aberration_mm=2.7, voltage_kV=kV)[0]
    np.testing.assert_allclose(aberration_phases(x, y, odd=only)[0], relions, atol=1e-9)
    assert aberrations(np.zeros(2), np.zeros(2), np.zeros(4), kV) == ((), ())
    back = aberrations_A(Optics("", kV, 2.7, 0.1, 1, 8, odd_zernike=odd, even_zernike=even))
    for found_A, given_A in zip(back, (tilt, trefoil, tetra)):
        np.testing.assert_allclose(found_A, given_A, rtol=1e-9)


@pytest.mark.parametrize("knots", [(4, 5, 6), (1, 2, 3), (7, 1, 1)])
def test_splines_are_structuras(knots):
    """The notebook's recipe: odd reflection by one knot, coefficients sampled without a prefilter."""
    rng = np.random.default_rng(0)
    c, n_frames, height, width = rng.normal(size=(2, *knots)), 20, 100, 150
    xy = rng.uniform(0, 1, (30, 2)) * [width - 1, height - 1]
    xy[:2] = [[0, 0], [width - 1, height - 1]]
    found = spline_displacement(c, xy, n_frames, (height, width), np.arange(n_frames))
    frame, at = np.meshgrid(np.arange(n_frames), np.arange(len(xy)))
    for axis in (0, 1):
        padded = np.pad(c[axis], 1, "reflect", reflect_type="odd")
        place = [frame * (knots[0] - 1) / (n_frames - 1), xy[at, 1] * (knots[1] - 1) / (height - 1),
                 xy[at, 0] * (knots[2] - 1) / (width - 1)]  # fmt: skip
        theirs = map_coordinates(padded, np.stack(place) + 1, order=3, prefilter=False, mode="constant")
        np.testing.assert_allclose(found[..., axis], theirs, atol=1e-12)
    ends, step = np.array([0.0, n_frames - 1]), np.array([1e-4, -1e-4])
    before, after = (spline_displacement(c, xy, n_frames, (height, width), t) for t in (ends - 1, ends + 1))
    inside = spline_displacement(c, xy, n_frames, (height, width), ends + step)
    slope = (inside - found[:, [0, -1]]) / step[:, None]  # beyond the ends it goes straight on
    np.testing.assert_allclose(before[:, 0], found[:, 0] - slope[:, 0], atol=1e-6)
    np.testing.assert_allclose(after[:, 1], found[:, -1] + slope[:, 1], atol=1e-6)
    turned_xy = xy * [1, -1] + [0, height - 1]
    turned = spline_displacement(mirrored(c), turned_xy, n_frames, (height, width), np.arange(n_frames))
    np.testing.assert_allclose(turned * [1, -1], found, atol=1e-12)


@pytest.mark.parametrize("rotate", range(4))
@pytest.mark.parametrize(("flip_x", "flip_y"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("suffix", [".mrc", ".tif"])
@pytest.mark.parametrize("name", list(ORIENTATIONS))
def test_gain_is_flipped_then_turned_as_arrays_are(tmp_path, name, suffix, flip_x, flip_y, rotate):
    import mrcfile
    import tifffile

    gain = np.random.default_rng(4).uniform(0.5, 2, (6, 8)).astype(np.float32)
    path = tmp_path / f"gain{suffix}"
    if suffix == ".mrc":
        mrcfile.write(path, gain)
    else:
        tifffile.imwrite(path, gain)
    expected = gain[:, ::-1] if flip_x else gain
    expected = np.rot90(expected[::-1] if flip_y else expected, rotate)
    orientation = ORIENTATIONS[name]
    settings = oriented_gain(path, bool(flip_x), bool(flip_y), rotate, tmp_path / "movie.tif", orientation)
    found = load_gain(settings, expected.shape, eer=False)
    np.testing.assert_array_equal(found, expected if orientation.rows_as_stored else expected[::-1])


def test_trajectory_files(tmp_path):
    motion = np.random.default_rng(5).normal(size=(10, 2))
    np.save(tmp_path / "a.npy", motion[None])
    np.save(tmp_path / "b.npy", motion[2:8])
    np.testing.assert_array_equal(read_rigid(tmp_path / "a.npy", 2, 8, 10), motion[2:8])
    np.testing.assert_array_equal(read_rigid(tmp_path / "b.npy", 2, 8, 10), motion[2:8])
    with pytest.raises(InputError, match="has 6 frames, but frames 1 to 9 of 10 were corrected; run motion correction"):
        read_rigid(tmp_path / "b.npy", 0, 9, 10)
    with pytest.raises(InputError, match=r"has shape \(6, 2\), not \(2, KZ, KY, KX\)"):
        read_spline(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.full((1, 4, 2), np.nan))
    with pytest.raises(InputError, match="holds values that are not numbers"):
        read_rigid(tmp_path / "c.npy", 0, 4, 4)
    with pytest.raises(InputError, match="does not exist; give root"):
        read_spline(tmp_path / "d.npy")


# background


def test_a_background_is_subtracted_from_patches():
    rng = np.random.default_rng(6)
    height, width, box = 96, 128, 32
    y, x = np.mgrid[:height, :width]
    bright = 1 + 0.3 * (x / width - 0.5) - 0.2 * (y / height - 0.5)  # linear, so that a coarse grid holds all of it
    coarse = bright.reshape(12, 8, 16, 8).mean((1, 3)).astype(np.float32)
    noise = rng.normal(0, 0.1, (height, width))
    noise -= noise[::7, ::7].mean()
    level = 5 / bright[::7, ::7].mean()
    corners = np.array([[10, 20], [80, 50], [40, 33]])
    gain = np.ones((height, width), np.float32)
    with_it, without = (PatchSpectra.empty(3, 1, box) for _ in range(2))
    with_it.add_frame(0, (noise + level * bright).astype(np.float32), gain, corners, coarse / bright[::7, ::7].mean())
    without.add_frame(0, noise.astype(np.float32), gain, corners)
    for p in range(3):
        found, expected = with_it.spectrum(p, 0), without.spectrum(p, 0)
        assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
    cut = cut_patches(np.zeros((height, width), np.uint8), gain, corners, box, coarse)
    np.testing.assert_allclose(cut[2], bright[33 : 33 + box, 40 : 40 + box], atol=1e-6)


@pytest.mark.parametrize("suffix", [".mrc", ".npy"])
def test_background_files(tmp_path, suffix):
    import mrcfile

    image = np.random.default_rng(7).uniform(1, 2, (6, 8)).astype(np.float32)
    path = tmp_path / f"b{suffix}"
    for factor in (1.0, 40.0):  # sum or mean of frames: only the shape counts
        np.save(path, image * factor) if suffix == ".npy" else mrcfile.write(
            path, image * np.float32(factor), overwrite=True
        )
        np.testing.assert_allclose(load_background(Background(path)), image / image.mean(), rtol=1e-6)
        np.testing.assert_allclose(load_background(Background(path, True)), image[::-1] / image.mean(), rtol=1e-6)
    np.save(tmp_path / "zero.npy", image * 0)
    with pytest.raises(InputError, match="the mean of the background is 0, not positive"):
        load_background(Background(tmp_path / "zero.npy"))
    with pytest.raises(InputError, match=r"none\.npy does not exist; run motion correction again"):
        load_background(Background(tmp_path / "none.npy"))
    np.save(tmp_path / "stack.npy", np.stack([image, image]))
    with pytest.raises(InputError, match=r"stack\.npy has shape \(2, 6, 8\), a background is one image"):
        load_background(Background(tmp_path / "stack.npy"))


@pytest.mark.parametrize("content", [b"", b"no", b"\x93NUMPY\x01\x00\x02\x00(\n", b"PK\x03\x04"])
def test_files_that_hold_no_array(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    for read in (read_spline, read_dose_weights, lambda path: load_background(Background(path))):
        with pytest.raises(InputError, match=r"a\.npy is not a readable NumPy array \(.*\); "):
            read(tmp_path / "a.npy")
