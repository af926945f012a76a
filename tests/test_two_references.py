"""Two species on the same micrographs: one search, one FCC, each particle against its own reference, outputs for each."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
import xarray as xr
from conftest import TINY
from cryosparc_project import convert
from job import GIVEN, inputs, said

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.data.cryosparc.csfile import read_cs
from refmotion_nb.data.maps import read_map, write_map
from refmotion_nb.data.relion.motion import initial_displacement
from refmotion_nb.data.relion.results import read_tracks
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.store import ResultStore
from refmotion_nb.data.synthetic.simulate import simulate, trajectory_error_A
from refmotion_nb.stages import grey_scale
from refmotion_nb.stages.alignment import Alignment, MotionPrior
from refmotion_nb.stages.job import Job
from refmotion_nb.stages.validation import COMBINATIONS

TWO = replace(TINY, size_px=640, particles_per_micrograph=24, rigid_error_A=1.6, second_share=0.5)
PRIOR = MotionPrior(rm.Hyperparameters.from_strengths(1.5, 3000, 2), 0.5)
SPECIES = (0, 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return two micrographs of two species; do not change them."""
    return simulate(TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def data(two):
    return opened(two)


@pytest.fixture(scope="module")
def joint(two, data, tmp_path_factory):
    """Run the whole job on both species together."""
    out = tmp_path_factory.mktemp("joint")
    given = {"spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0, "symmetry": "O"}
    job = Job(data, out, given, combinations=(COMBINATIONS[0], COMBINATIONS[-1]))
    assert job.run("validate")
    return job


def opened(two, references=None, **options):
    return rm.open_relion(two.particle_tables, two.micrographs, references or two.references, two.folder, **options)


def errors(two, tracks):
    """Trajectory error (Å) of each species; ``tracks`` by micrograph, in the order of the truth."""
    truth, found = two.truth(), {0: [], 1: []}
    for name, track in tracks.items():
        for species in SPECIES:
            mine = truth[f"{name}_species"] == species
            found[species].append(trajectory_error_A(track[mine], truth[f"{name}_total"][mine], truth["dose_mid"]))
    return [float(np.sqrt(np.mean(np.square(found[species])))) for species in SPECIES]


def tracked(data, **settings):
    """Final trajectories of all micrographs under a given prior, in RELION's order; and warnings."""
    session, settings = rm.Session(data, threads=2), Alignment(**settings)
    found = {name: session.track(session.micrograph(name, settings), settings, PRIOR) for name in session}
    return {name: track.displacement_A for name, track in found.items()}, session.warnings


@pytest.fixture(scope="module")
def tracks(data):
    return tracked(data)[0]


# the simulation


def test_both_species_are_on_every_micrograph(two):
    tables = [read_star(path)["particles"] for path in two.particle_tables]
    truth = two.truth()
    assert [path.name for path in two.particle_tables] == ["particles.star", "particles_2.star"]
    for name in ("mic0000", "mic0001"):
        species = truth[f"{name}_species"]
        assert species.sum() == round(len(species) / 2)
        for which, table in enumerate(tables):
            mine = table[table["rlnMicrographName"].str.contains(name)]
            number = mine["rlnImageName"].str.partition("@")[0].astype(int).to_numpy() - 1
            assert number.tolist() == np.flatnonzero(species == which).tolist()
            assert set(mine["rlnRandomSubset"]) == {1, 2}
    with np.load(two.folder / "particles_truth.npz") as particles:
        assert particles["species"].sum() == len(tables[1])


def test_the_references_differ(two):
    (first, _), (second, _) = (read_map(reference.half1) for reference in two.references)
    inner, outer = (np.concatenate([read_map(r.mask)[0].ravel()]) for r in two.references)
    assert outer.sum() > 1.05 * inner.sum()  # the second conformation is swollen
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.7


def test_one_species_leaves_no_trace_of_a_second(tiny):
    assert len(tiny.references) == len(tiny.particle_tables) == 1
    assert not (tiny.folder / "Ref2").exists() and not any("species" in name for name in tiny.truth())


# one job


def test_each_reference_has_its_outputs(joint, two):
    for which in SPECIES:
        written = read_star(joint.out / f"particles_{which + 1}.star")["particles"]
        given = read_star(two.particle_tables[which])["particles"]
        columns = ["rlnAngleRot", "rlnDefocusU", "rlnRandomSubset"]
        assert (written[columns] == given[columns]).all(axis=None)
        rows = read_cs(joint.out / f"particles_{which + 1}.cs")
        assert len(rows) == len(given) and (rows["alignments3D/split"] + 1 == given["rlnRandomSubset"]).all()
        # the images of one micrograph stand in one stack, in the order in which they were extracted
        number = written["rlnImageName"].str.partition("@")[0].astype(int)
        assert (number.to_numpy() == given["rlnImageName"].str.partition("@")[0].astype(int).to_numpy()).all()
        assert (rows["blob/idx"] + 1 == number.to_numpy()).all()
    assert not (joint.out / "particles.star").exists() and not (joint.out / "particles.cs").exists()
    for path in sorted((joint.out / "Particles").glob("*.mrcs")):
        with mrcfile.open(path) as file:
            assert len(file.data) == len(two.truth()[f"{path.stem}_species"])


def test_both_species_move_as_they_did(joint, two, data):
    truth = two.truth()
    found = {name: read_tracks(joint.out / f"Tracks/{name}_tracks.star") for name in ("mic0000", "mic0001")}
    rigid = {m.micrograph: initial_displacement(m, p["coordinate"].values) for m, p in data.micrographs()}
    assert all(truth[f"{name}_total"].shape == track.shape for name, track in found.items())
    for ours, theirs in zip(errors(two, found), errors(two, rigid)):
        assert ours < 0.4 * theirs


def test_both_maps_gain(joint):
    curves = joint.validation["fsc_corrected"]
    band = (curves["frequency"] > 1 / 10) & (curves["frequency"] < 1 / 6)
    rigid, corrected = curves.values[..., band.values].mean(-1).T
    assert curves.sizes["reference"] == 2 and (corrected > rigid + 0.1).all()


# a particle belongs to its own reference


def test_particles_follow_their_own_reference(two, tracks):
    swapped, _ = tracked(opened(two, two.references[::-1]))
    for own, other in zip(errors(two, tracks), errors(two, swapped)):
        assert other > 1.4 * own


def test_a_reference_unlike_its_particles_is_told(two, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("half1", "half2"):
        volume, pixel_A = read_map(two.references[1].half1)
        write_map(tmp_path / f"{name}.mrc", rng.normal(0, volume.std(), volume.shape), pixel_A)
    noise = replace(two.references[1], half1=tmp_path / "half1.mrc", half2=tmp_path / "half2.mrc")
    session = rm.Session(opened(two, (two.references[0], noise)), threads=2)
    assert session.grey_scale(Alignment()).tolist() == [1, 1]
    assert len(session.warnings) == 1
    assert session.warnings[0].startswith("reference 2 has too few particles, or resembles them too little")


def test_the_grey_scale_of_a_reference_does_not_matter(two, tracks, tmp_path):
    second = two.references[1]
    for path in (second.half1, second.half2):
        volume, pixel_A = read_map(path)
        write_map(tmp_path / path.name, 3 * volume, pixel_A)
    second = replace(second, half1=tmp_path / "half1.mrc", half2=tmp_path / "half2.mrc")
    found, warnings = tracked(opened(two, (two.references[0], second)))
    assert not warnings
    for name, track in tracks.items():
        assert np.abs(found[name] - track).max() < 1e-3


def test_a_grey_scale_that_cannot_be_told_is_not_taken(monkeypatch):
    """Three standard errors are few: on that scale a reference would pull too little, or too much."""
    sums = {0: (100.0, 50.0), 1: (30.0, 100.0), 2: (80.0, 100.0)}
    monkeypatch.setattr(grey_scale, "scale_sums", lambda m, number, threads: sums[number])
    micrograph = SimpleNamespace(particles=xr.Dataset({"reference": ("particle", [0, 1, 1, 2])}))
    factors, warnings = grey_scale.scale_factors([micrograph], 3, 1)
    np.testing.assert_allclose(factors, [1, 1, 0.4])
    assert len(warnings) == 1 and warnings[0].startswith("reference 2 has too few particles")


def test_the_grey_scale_is_found_with_the_settings_in_use(two, data, tmp_path):
    """Views are the same whether or not their micrographs were kept; movies that cannot be used are remembered."""
    settings = Alignment(recenter=False, box_size=100)
    kept, not_kept = (rm.Session(data, 2, cache_bytes) for cache_bytes in (1e9, 0))
    for session in (kept, not_kept):
        assert session.grey_scale(settings)[0] == 1 and 0.8 < session.grey_scale(settings)[1] < 1.25
        assert session.grey_scale(settings)[1] != 1
    for name in data.movies[0].micrograph, data.movies[1].micrograph:
        ours, theirs = (session.micrograph(name, settings) for session in (kept, not_kept))
        assert ours.spectra.box == 100
        for view in ("own", "opposite", "ctf"):
            assert (getattr(ours, view) == getattr(theirs, view)).all()
        plain = not_kept._read(name, settings)
        factors = kept.grey_scale(settings)[plain.particles["reference"].values]
        assert (ours.own == plain.own * factors[:, None, None]).all()
    assert (kept.grey_scale(Alignment(energy="relion")) == 1).all()
    missing = replace(data.movies[0], path=tmp_path / "missing.tif")
    session = rm.Session(replace(data, movies=(missing, *data.movies[1:])), 2)
    session.grey_scale(settings)
    assert list(session.failed) == [missing.micrograph]


def test_references_may_have_different_boxes(two, tracks, tmp_path):
    second = two.references[1]
    for path in (second.half1, second.half2, second.mask):
        volume, pixel_A = read_map(path)
        write_map(tmp_path / path.name, volume[6:-6, 6:-6, 6:-6], pixel_A)
    smaller = rm.Reference(tmp_path / "half1.mrc", tmp_path / "half2.mrc", tmp_path / "mask.mrc")
    found, _ = tracked(opened(two, (two.references[0], smaller)))
    for ours, whole in zip(errors(two, found), errors(two, tracks)):
        assert ours == pytest.approx(whole, rel=0.05)


def test_a_poor_reference_does_not_blunt_a_good_one(two, tmp_path):
    first = two.references[0]
    table = read_star(two.references[1].postprocess)
    table["fsc"].loc[8:, "rlnFourierShellCorrelationCorrected"] = 0.0
    write_star(tmp_path / "postprocess.star", table)
    poor = replace(two.references[1], postprocess=tmp_path / "postprocess.star")
    session, settings = rm.Session(opened(two, (first, poor)), threads=2), Alignment()
    m = session.micrograph("mic0000", settings)
    good = session.references(False)[0]
    assert m.k_out == good.k_out and m.own.shape[2] - 1 == good.volumes[0].k_max
    which = m.particles["reference"].values
    last = np.abs(m.own[:, :, session.references(False)[1].volumes[0].k_max + 1 :]).max(axis=(1, 2))
    assert (last[which == 0] > 0).all() and (last[which == 1] == 0).all()


# what is left out


def test_particles_left_out_belong_to_their_reference(two, tmp_path):
    root = shutil.copytree(two.folder, tmp_path / "project")
    blocks = read_star(root / "Extract/particles_2.star")
    blocks["particles"].loc[3, "rlnCoordinateX"] = -1000.0
    write_star(root / "Extract/particles_2.star", blocks)
    names = [path.relative_to(two.folder) for path in two.particle_tables]
    second = [f"--{name}={root}/Ref2/{name}.mrc" for name in ("half1", "half2", "mask")]
    command = ["run", *inputs(root), "--particles", str(root / names[1]), *second, *GIVEN]
    assert main([*command, "--out", str(tmp_path / "out"), "--threads", "2"]) == 0
    table = ResultStore(tmp_path / "out/results.zarr").read("particles")
    left = np.flatnonzero(~table["written"].values)
    assert table["reference"].values[left].tolist() == [1] and table["row"].values[left].tolist() == [3]
    assert "outside" in str(table["reason"].values[left[0]])
    count = [len(read_star(tmp_path / f"out/particles_{n}.star")["particles"]) for n in (1, 2)]
    assert count == [len(read_star(root / names[0])["particles"]), len(blocks["particles"]) - 1]


def test_a_curve_for_each_reference(two, tmp_path, capsys):
    second = [f"--{name}={two.folder}/Ref2/{name}.mrc" for name in ("half1", "half2", "mask")]
    more = ["--particles", str(two.particle_tables[1]), *second, "--fsc", str(two.postprocess)]
    assert main(["run", *inputs(two.folder), *more, "--out", str(tmp_path / "out")]) == 1
    assert "1 --fsc for 2 references; give one for each, or none" in "\n".join(said(capsys))


# CryoSPARC


def test_both_entrances_agree(two, tracks, tmp_path):
    species = [("particles.star", "Ref"), ("particles_2.star", "Ref2")]
    data = rm.open_cryosparc(**convert(two.folder, tmp_path, "relion", species=species))
    relion = opened(two, [replace(one, postprocess=None) for one in two.references], subtract_background=False)
    assert data.particles["reference"].values.tolist() == relion.particles["reference"].values.tolist()
    ours, theirs = (tracked(one, repair_hot_pixels=False)[0] for one in (data, relion))
    for name, track in theirs.items():
        assert np.abs(ours[name] - track).max() < 1e-3 and np.abs(track).max() > 3


def test_particles_of_two_references_at_once_are_told(two):
    reference = two.references[0]
    data = rm.open_relion([two.particles] * 2, two.micrographs, [reference] * 2, two.folder)
    n = data.particles.sizes["particle"] // 2
    assert any(note.startswith(f"{n} particles are listed for more than one reference") for note in data.notes)
    assert not [note for note in opened(two).notes if "more than one reference" in note]
