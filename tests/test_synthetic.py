import gzip
import struct
from dataclasses import replace

import imagecodecs
import mrcfile
import numpy as np
import pandas as pd
import pytest
import tifffile
import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.synthetic import images as images
from refmotion_nb.data.synthetic import model as models
from refmotion_nb.data.synthetic import motion as motions
from refmotion_nb.data.synthetic import plan as planning
from refmotion_nb.data.synthetic import tables as tables
from refmotion_nb.data.synthetic.eer import encode_frame, split_into_events, write_eer
from refmotion_nb.data.synthetic.example import example
from refmotion_nb.data.synthetic.simulate import SimulationSettings, read_species, simulate, trajectory_error_A
from refmotion_nb.numerics.reconstruct import MaskedFSC, backproject, fsc, fsc_masked_corrected, reconstruct

# coarse pixels and strong exposure: seconds to make, and the particles stand out of the noise
SMALL = SimulationSettings(
    n_micrographs=2, size_px=288, height_px=256, n_frames=6, pixel_size_A=2.4, dose_per_frame_e_A2=8.0, box_px=72,
    particles_per_micrograph=6, edge_px=44, rigid_error_A=0.5, hot_pixels=3, workers=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def apoferritin():
    return models.read_model()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return simulate(SMALL, tmp_path_factory.mktemp("small"))


def rotation(rot, tilt, psi):
    """RELION's Euler matrix, written out from its definition Rz(psi) Ry(tilt) Rz(rot)."""
    a, b, g = np.deg2rad([rot, tilt, psi])

    def about_z(t):
        return np.array([[np.cos(t), np.sin(t), 0], [-np.sin(t), np.cos(t), 0], [0, 0, 1]])

    about_y = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    return about_z(g) @ about_y @ about_z(a)


# --- model and projection


def test_projection_is_the_sum_over_atoms(apoferritin):
    size, pixel_A = 96, 1.7
    turn = rotation(33, 71, -120)
    frequency = models.half_plane_frequency(size, pixel_A)
    factors = models.scattering_factors(apoferritin, frequency, 30.0)
    fast = models.project(apoferritin, turn, factors, pixel_A)
    scale = np.abs(fast).mean()
    for ky, kx in [(0, 0), (3, 5), (-20, 11), (40, 1), (-7, 44)]:
        k = np.array([kx, ky]) / (size * pixel_A)
        direct = sum(
            factor[ky, kx] * np.sum(occupancy * np.exp(-2j * np.pi * (xyz @ turn[:2].T) @ k))
            for xyz, occupancy, factor in zip(apoferritin.positions_A, apoferritin.occupancies, factors)
        )
        assert abs(fast[ky, kx] - direct) < 1e-3 * scale + 1e-4 * abs(direct)


def test_apoferritin_has_octahedral_symmetry(apoferritin):
    assert apoferritin.symmetry.shape == (24, 3, 3)
    assert np.allclose(apoferritin.symmetry[0], np.eye(3))
    assert 60 < apoferritin.radius_A < 70
    factors = models.scattering_factors(apoferritin, models.half_plane_frequency(64, 2.5), 50.0)
    turn = rotation(10, 20, 30)
    one = models.project(apoferritin, turn, factors, 2.5)
    other = models.project(apoferritin, turn @ apoferritin.symmetry[7], factors, 2.5)
    assert np.abs(one - other).max() < 1e-3 * np.abs(one).max()
    assert one[0, 0].real > 0  # denser than ice


def test_another_conformation_keeps_symmetry_and_subunits(apoferritin):
    other = models.displaced(apoferritin, 6.0, 10.0)
    before, after = (np.concatenate(model.positions_A) for model in (apoferritin, other))
    chain = np.concatenate(apoferritin.subunits)
    assert len(np.unique(chain)) == 24
    mine = np.flatnonzero(chain == chain[0])[::97]
    inner, outer = (np.linalg.norm(at[mine, None] - at[mine], axis=2) for at in (before, after))
    assert np.allclose(inner, outer)  # rigid bodies
    centres = [np.linalg.norm(at[chain == 3].mean(axis=0)) for at in (before, after)]
    assert centres[1] - centres[0] == pytest.approx(6.0)
    factors = models.scattering_factors(other, models.half_plane_frequency(64, 2.6), 50.0)
    one, same = (models.project(other, rotation(10, 20, 30) @ turn, factors, 2.6) for turn in other.symmetry[[0, 7]])
    assert np.abs(one - same).max() < 1e-3 * np.abs(one).max()
    only = replace(apoferritin, subunits=tuple(np.zeros_like(part) for part in apoferritin.subunits))
    with pytest.raises(InputError, match=r"lies in the middle of the model .* give a second_model"):
        models.displaced(only, 6.0, 0.0)


@pytest.mark.parametrize("suffix", ["pdb", "pdb.gz"])
def test_any_model_can_be_read(tmp_path, suffix):
    lines = [
        f"ATOM  {i:5d}  {name:<3s} GLY A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 10.00           {name[0]}  \n"
        for i, (name, x, y, z) in enumerate([("N", 0, 0, 0), ("CA", 2, 0, 0), ("C", 2, 4, 0), ("O", 2, 4, 6)], 1)
    ]
    text = "".join(lines) + "END\n"
    path = tmp_path / f"small.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    model = models.read_model(path)
    assert model.elements == ("C", "N", "O") and not model.has_hydrogens
    assert model.symmetry.shape == (1, 3, 3)
    assert np.allclose(np.concatenate(model.positions_A).mean(axis=0), 0)
    first, second = read_species(SimulationSettings.demo(second_share=0.2, second_model=path))
    assert first.radius_A > 60 and second.radius_A == model.radius_A


def test_atoms_beyond_all_bounds_are_refused():
    model = models.read_model()
    factors = models.scattering_factors(model, models.half_plane_frequency(32, 1.0), 20.0)
    with (
        np.errstate(over="ignore"),
        pytest.raises(InputError, match="atoms lie beyond all bounds in pixels of 1e-40 Å"),
    ):
        models.project(model, np.eye(3), factors, 1e-40)


def test_unreadable_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.cif"):
        models.read_model(tmp_path / "nowhere.cif")


def test_mask_is_soft_and_surrounds_the_model(apoferritin):
    mask = models.soft_mask(apoferritin, 64, 2.8, 3.0, 6.0)
    assert mask.min() == 0 and mask.max() == 1
    assert mask[32, 32, 32] == 0  # the shell is hollow
    volume_A3 = mask.sum() * 2.8**3
    assert 6e5 < volume_A3 < 1.2e6


# --- optics and damage


def test_microscope_constants_and_ctf():
    scope = images.Microscope(300.0, 2.7, 0.1, 0.0, 1.0)
    assert scope.wavelength_A == pytest.approx(0.019687, abs=1e-6)
    assert scope.interaction_rad_per_VA == pytest.approx(6.526e-4, rel=1e-3)
    ctf = scope.ctf(128, 10000.0, 9000.0, 30.0)
    assert ctf[0, 0] == pytest.approx(0.1, abs=1e-6)
    k = 8 / 128  # along x, 30 degrees from the axis of the larger defocus
    defocus = 9500 + 500 * np.cos(np.deg2rad(60))
    phase = np.pi * scope.wavelength_A * defocus * k**2 - np.pi / 2 * 2.7e7 * scope.wavelength_A**3 * k**4
    expected = np.sqrt(0.99) * np.sin(phase) + 0.1 * np.cos(phase)
    assert ctf[0, 8] == pytest.approx(expected, abs=1e-5)


def test_damage_is_averaged_over_the_frame():
    frequency = np.array([0.0, 0.1, 0.3])
    fine = np.exp(-np.linspace(4, 6, 2001)[:, None] / (2 * images.critical_dose(frequency, 300.0))).mean(axis=0)
    assert images.mean_decay(frequency, 4.0, 6.0, 300.0) == pytest.approx(fine, rel=1e-5)


# --- motion


def test_fields_move_most_at_the_start_and_alike_nearby():
    rng = np.random.default_rng(0)
    dose = motions.sample_doses(12, 2.0, 4)
    points = np.array([[0.0, 0.0], [1200.0, 0.0]])
    fields = np.stack([motions.random_field(points, dose, 1.0, 1200.0, "exponential", rng) for _ in range(400)])
    steps = np.diff(fields[..., 0, :], axis=2)  # from frame to frame
    rms = np.sqrt((steps**2).mean(axis=(0, 1, 3)))
    assert rms[0] > 3 * rms[-1]
    correlation = (steps[:, 0] * steps[:, 1]).mean() / (steps**2).mean()
    assert correlation == pytest.approx(np.exp(-1), abs=0.08)


def test_recorded_motion_follows_relions_model(tmp_path):
    coefficients = np.zeros(36)
    coefficients[3], coefficients[18], coefficients[18 + 9] = 0.5, 0.2, -0.3  # x: x·z; y: z and y·z
    general = {
        "rlnImageSizeX": 1000, "rlnImageSizeY": 800, "rlnImageSizeZ": 10, "rlnMicrographOriginalPixelSize": 2.0,
        "rlnMicrographDoseRate": 1.5, "rlnMotionModelVersion": 1, "rlnMicrographMovieName": "mic.tif",
    }  # fmt: skip
    shift = np.arange(10)[:, None] * [0.4, -0.1]
    blocks = {
        "general": general,
        "global_shift": pd.DataFrame(
            {"rlnMicrographFrameNumber": np.arange(1, 11), "rlnMicrographShiftX": shift[:, 0],
             "rlnMicrographShiftY": shift[:, 1]}
        ),
        "local_motion_model": pd.DataFrame(
            {"rlnMotionModelCoeffsIdx": np.arange(36), "rlnMotionModelCoeff": coefficients}
        ),
    }  # fmt: skip
    write_star(tmp_path / "mic.star", blocks)
    motion = motions.read_recorded_motion(tmp_path / "mic.star")
    points = np.array([[200.0, 1500.0], [1000.0, 800.0]])
    dose = motions.sample_doses(10, 1.5, 1)  # one step per frame: the middles, as in the recording
    rng = np.random.default_rng(0)
    local, whole = motions.recorded_field(motion, points, np.array([2000.0, 1600.0]), dose, rng)
    z = np.arange(10) + 0.5  # the motion starts half a frame before the middle of the first
    x, y = points[0] / [2000, 1600] - 0.5
    assert local[0, :, 0, 0] == pytest.approx(-2.0 * 0.5 * x * z)
    assert local[0, :, 0, 1] == pytest.approx(-2.0 * (0.2 - 0.3 * y) * z)
    assert whole[:, 0] == pytest.approx(-2.0 * z[:, None] * [0.4, -0.1])
    blocks["global_shift"].loc[9, ["rlnMicrographShiftX", "rlnMicrographShiftY"]] = -9999.0  # RELION's mark, no shift
    write_star(tmp_path / "mic.star", blocks)
    assert motions.read_recorded_motion(tmp_path / "mic.star").global_shift_A[9] == pytest.approx(2.0 * shift[8])


def test_patch_alignment_takes_local_motion_with_it(tmp_path):
    settings = SimulationSettings.demo(motion_scale=2.0, rigid_error_A=0.0)
    rigid = planning.plan_micrograph(settings, 68.0, 0)
    patch = planning.plan_micrograph(replace(settings, patch_alignment=True), 68.0, 0)
    truth = rigid.total_A.mean(axis=2)
    errors = [
        trajectory_error_A(-plan.particle_shift_px * settings.pixel_size_A, truth, settings.dose_mid)
        for plan in (rigid, patch)
    ]
    assert errors[1] < 0.6 * errors[0]
    (tmp_path / "MotionCorr" / "Movies").mkdir(parents=True)
    tables.write_motion(settings, patch, "gain.mrc", tmp_path)
    again = motions.read_recorded_motion(tmp_path / "MotionCorr" / "Movies" / "mic0000.star")
    assert again.coefficients_A == pytest.approx(patch.local_model_px * settings.pixel_size_A)


def test_motion_star_without_a_local_model_is_refused(small):
    with pytest.raises(InputError, match="local motion model"):
        motions.read_recorded_motion(small.folder / "MotionCorr/Movies/mic0000.star")


def test_motion_stars_of_real_movies(test_data):
    folder = test_data / "relion_tutorial_10204" / "MotionCorr" / "job002" / "Movies"
    settings = SimulationSettings.tutorial_motion(folder, n_micrographs=3)
    plans = [planning.plan_micrograph(settings, 68.0, i) for i in range(3)]
    for plan in plans:
        moved = np.linalg.norm(plan.total_A[:, -1].mean(axis=1) - plan.total_A[:, 0].mean(axis=1), axis=1)
        assert 1 < moved.mean() < 60
    assert not np.allclose(plans[0].drift_A, plans[1].drift_A)


def test_rigid_alignment_has_the_error_asked_for():
    rng = np.random.default_rng(3)
    truth = np.cumsum(rng.standard_normal((24, 2)), axis=0)
    shift = motions.rigid_alignment(truth, np.arange(24) * 2 + 1.0, 0.8, rng)
    assert np.all(shift[0] == 0)
    error = -shift - truth
    error -= error.mean(axis=0)
    assert np.sqrt((error**2).sum(axis=1).mean()) == pytest.approx(0.8, rel=0.25)


# --- EER


def test_eer_codes_decode_to_the_electrons_written():
    rng = np.random.default_rng(1)
    shape = (64, 48)
    pixels = np.unique(np.concatenate([[0, 126, 127, 128, 400, 1500, 64 * 48 - 1], rng.integers(0, 64 * 48, 60)]))
    sub = rng.integers(0, 16, len(pixels), dtype=np.uint8)
    for keep in (slice(None), slice(0, 0), slice(1, -1)):
        code = encode_frame(pixels[keep], sub[keep], shape[0] * shape[1])
        assert len(code) % 2 == 0
        decoded = imagecodecs.eer_decode(code, shape, skipbits=7, horzbits=2, vertbits=2)
        expected = np.zeros(shape[0] * shape[1], int)
        expected[pixels[keep]] = 1
        assert np.array_equal(decoded.ravel().astype(int), expected)


def test_eer_file_holds_every_frame(tmp_path):
    rng = np.random.default_rng(2)
    counts = rng.poisson(0.8, (32, 40))
    events = split_into_events(counts, 50, rng)
    write_eer(tmp_path / "a.eer", events, (32, 40), 50, 0.016)
    with tifffile.TiffFile(tmp_path / "a.eer") as file:
        assert file.is_bigtiff and len(file.pages) == 50
        assert b"numberOfFrames" in file.pages[0].tags[65001].value
        starts = [page.dataoffsets[0] for page in file.pages]
        sizes = [page.databytecounts[0] for page in file.pages]
    raw = (tmp_path / "a.eer").read_bytes()
    assert struct.unpack("<H", raw[2:4]) == (43,)
    total = sum(
        imagecodecs.eer_decode(raw[a : a + n], (32, 40), skipbits=7, horzbits=2, vertbits=2).astype(int)
        for a, n in zip(starts, sizes)
    )
    assert np.all(total <= counts) and total.sum() > 0.95 * counts.sum()


# --- reconstruction


def blobs(size, symmetric=False):
    """Gaussian blobs: their map (z, y, x), and their projections' rfft2, object at the origin."""
    rng = np.random.default_rng(5)
    centres = rng.uniform(-0.2, 0.2, (6, 3)) * size
    heights = rng.uniform(0.5, 1.5, 6)
    if symmetric:
        centres = np.concatenate([centres, centres * [-1, -1, 1]])
        heights = np.concatenate([heights, heights])
    sigma = 1.3
    r = np.arange(size) - size // 2
    z, y, x = np.meshgrid(r, r, r, indexing="ij")
    volume = sum(
        h * np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2) / (2 * sigma**2))
        for h, c in zip(heights, centres)
    )
    kx, ky = np.meshgrid(np.fft.rfftfreq(size), np.fft.fftfreq(size))

    def project(turn):
        xy = centres @ turn[:2].T
        waves = sum(h * np.exp(-2j * np.pi * (kx * a + ky * b)) for h, (a, b) in zip(heights, xy))
        envelope = (2 * np.pi) ** 1.5 * sigma**3 * np.exp(-2 * np.pi**2 * sigma**2 * (kx**2 + ky**2))
        return (waves * envelope).astype(np.complex64)

    return volume.astype(np.float32), project


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("symmetric", [False, True])
def test_reconstruction_returns_the_map(size, symmetric):
    volume, project = blobs(size, symmetric)
    rng = np.random.default_rng(0)
    turns = [rotation(*a) for a in zip(rng.uniform(-180, 180, 500), np.rad2deg(np.arccos(rng.uniform(-1, 1, 500))),
                                       rng.uniform(-180, 180, 500))]  # fmt: skip
    ctf = np.cos(np.linspace(0, 3, 500))[:, None, None].astype(np.float32) * np.ones((size, size // 2 + 1), np.float32)
    observed = np.stack([project(t) for t in turns]) * ctf
    symmetry = np.stack([np.eye(3), np.diag([-1.0, -1.0, 1.0])]) if symmetric else None
    found = reconstruct(backproject(observed * ctf, ctf**2, np.array(turns), symmetry=symmetry))
    assert found.shape == volume.shape
    inside = np.hypot.reduce(np.meshgrid(*[np.arange(size) - size // 2] * 3)) < 0.4 * size
    slope = (found * volume)[inside].sum() / (volume**2)[inside].sum()
    assert slope == pytest.approx(1, abs=0.03)
    assert fsc(found * inside, volume * inside)[1 : size // 3].min() > 0.98


def test_reconstruction_of_two_parts_adds_up():
    _, project = blobs(24)
    turns = np.array([rotation(20 * i, 50 + 9 * i, 7 * i) for i in range(8)])
    seen = np.stack([project(t) for t in turns])
    weights = np.ones(seen.shape, np.float32)
    whole = backproject(seen, weights, turns)
    parts = backproject(seen[:3], weights[:3], turns[:3]) + backproject(seen[3:], weights[3:], turns[3:])
    assert np.allclose(whole.sums, parts.sums, atol=1e-3)
    with pytest.raises(ValueError, match="fit together"):
        backproject(seen, weights[:3], turns)


def test_fsc_of_equal_and_of_unrelated_maps():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 32, 32, 32)).astype(np.float32)
    assert fsc(a, 3 * a)[1:] == pytest.approx(np.ones(16), abs=1e-5)
    assert np.abs(fsc(a, b)[4:]).max() < 0.2


def test_masked_noise_is_corrected_to_nothing():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 48, 48, 48)).astype(np.float32)
    r = np.arange(48) - 24
    mask = (np.hypot(np.hypot(r[:, None, None], r[:, None]), r) < 8).astype(np.float32)
    curves = fsc_masked_corrected(a + 1, b + 1, mask)
    assert curves.masked[3:].mean() > -0.2
    assert np.abs(curves.corrected[8:]).mean() < 0.2


def test_corrected_fsc_agrees_with_relion(test_data):
    folder = test_data / "apoferritin" / "Ref"
    half1, half2, mask = (mrcfile.read(folder / f"{name}.mrc") for name in ("half1", "half2", "mask"))
    curves = fsc_masked_corrected(half1, half2, mask)
    table = read_star(folder / "postprocess.star")["fsc"]
    relion = table["rlnFourierShellCorrelationCorrected"].to_numpy()
    band = slice(1, 60)
    assert np.abs(curves.masked - table["rlnFourierShellCorrelationMaskedMaps"])[band].max() < 0.01
    assert np.sqrt(np.mean((curves.corrected - relion)[band] ** 2)) < 0.02  # phases are random


# --- the whole


def test_everything_is_written(small):
    folder = small.folder
    for name in ("gain.mrc", "movies.star", "truth.npz", "particles_truth.npz", "Movies/mic0001.tif",
                 "MotionCorr/Movies/mic0001.star", "Ref/postprocess.star"):  # fmt: skip
        assert (folder / name).exists(), name
    for path in (small.particles, small.micrographs, *small.half_maps, small.mask):
        assert path.exists()
    particles = read_star(small.particles)["particles"]
    truth = small.truth()
    assert len(particles) == small.n_particles == sum(len(truth[f"mic{i:04d}_pos"]) for i in (0, 1))
    assert truth["mic0000_total"].shape == (len(truth["mic0000_pos"]), SMALL.n_frames, 2)
    assert truth["mic0000_total"] == pytest.approx(truth["mic0000_local"] + truth["mic0000_drift"])
    assert set(particles["rlnRandomSubset"]) == {1, 2}
    shifts = read_star(folder / "MotionCorr/Movies/mic0000.star")["global_shift"]
    tracks = -shifts[["rlnMicrographShiftX", "rlnMicrographShiftY"]].to_numpy(float) * SMALL.pixel_size_A
    error = trajectory_error_A(tracks[None], truth["mic0000_total"], truth["dose_mid"])
    assert 0.1 < error < 3


def test_counts_are_the_dose_and_the_gain_flattens_them(small):
    with tifffile.TiffFile(small.folder / "Movies" / "mic0000.tif") as file:
        movie = np.stack([page.asarray()[::-1] for page in file.pages])
    gain = mrcfile.read(small.folder / "gain.mrc")
    corrected = movie * gain
    hot = small.truth()["mic0000_hot"]
    assert (movie[:, hot[:, 1], hot[:, 0]] == 255).all()
    flat = np.median(corrected, axis=0)
    assert np.median(flat) == pytest.approx(SMALL.dose_per_frame_e_A2 * SMALL.pixel_size_A**2, rel=0.03)
    assert abs(np.corrcoef(flat.ravel(), gain.ravel())[0, 1]) < 0.1
    difference = (corrected[1] - corrected[0]).ravel()  # Poisson, and what moved
    assert np.var(difference) / 2 == pytest.approx(np.mean(corrected), rel=0.2)


def test_particles_are_where_the_tables_say(small, apoferritin):
    """Invert, align by the motion STAR, cut at the coordinates and compare with CTF-modulated projections."""
    stars = read_star(small.particles)["particles"]
    gain = mrcfile.read(small.folder / "gain.mrc")
    box, pixel_A = SMALL.box_px, SMALL.pixel_size_A
    factors = models.scattering_factors(apoferritin, models.half_plane_frequency(box, pixel_A), 150.0)
    truth, matches = small.truth(), []
    for mic in ("mic0000", "mic0001"):
        with tifffile.TiffFile(small.folder / "Movies" / f"{mic}.tif") as file:
            movie = np.stack([page.asarray()[::-1] for page in file.pages])
        hot = truth[f"{mic}_hot"]
        shifts = read_star(small.folder / f"MotionCorr/Movies/{mic}.star")["global_shift"]
        steps = -shifts[["rlnMicrographShiftX", "rlnMicrographShiftY"]].to_numpy(float)
        weights = np.ones((SMALL.n_frames, box, box // 2 + 1), np.float32)
        for row in stars[stars["rlnMicrographName"].str.contains(mic)].itertuples():
            centre = np.array([row.rlnCoordinateX, row.rlnCoordinateY]).astype(int)
            patch = images.dose_weighted_average(movie, gain, hot, centre, steps, weights)
            patch = images.centred(patch, np.array([row.rlnOriginXAngst, row.rlnOriginYAngst]) / pixel_A)
            turn = rotation(row.rlnAngleRot, row.rlnAngleTilt, row.rlnAnglePsi)
            ctf = SMALL.microscope.ctf(box, row.rlnDefocusU, row.rlnDefocusV, row.rlnDefocusAngle)
            predicted = models.project(apoferritin, turn, factors, pixel_A) * ctf
            patch[0, 0] = predicted[0, 0] = 0
            map_ = np.fft.irfft2(patch * predicted.conj())
            peak = np.array(np.unravel_index(map_.argmax(), map_.shape))
            norm = np.sqrt((np.fft.irfft2(patch) ** 2).sum() * (np.fft.irfft2(predicted) ** 2).sum())
            matches.append((map_[0, 0] / norm, np.abs((peak + box // 2) % box - box // 2).max()))
    correlation, offset = np.array(matches).T
    assert correlation.min() > 0.2  # the sign of the contrast, the pose and the rows
    assert offset.max() <= 1


def test_same_seed_same_bytes_whatever_the_workers(small, tmp_path):
    again = simulate(replace(SMALL, workers=1), tmp_path)
    names = sorted(p.relative_to(small.folder) for p in small.folder.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    for name in names:
        assert (small.folder / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert again.rigid_error_A == small.rigid_error_A


def test_formats_hold_the_same_movie(tmp_path):
    reported = []

    class Reporter:
        def start(self, total, what):
            reported.append(total)

        def advance(self, n, **facts):
            reported.append(n)

        def done(self):
            reported.append("done")

    settings = replace(SMALL, n_micrographs=1, dose_per_frame_e_A2=0.4, n_frames=3, eer_grouping=40)
    movies = {}
    for movie_format in ("tif", "mrc", "eer"):
        reported.clear()
        simulate(replace(settings, movie_format=movie_format), tmp_path / movie_format, Reporter())
        assert reported == [2, 1, 1, "done"]
        path = tmp_path / movie_format / "Movies" / f"mic0000.{movie_format}"
        if movie_format == "mrc":
            movies["mrc"] = mrcfile.read(path)
        else:
            with tifffile.TiffFile(path) as file:
                movies[movie_format] = np.stack([page.asarray() for page in file.pages]).astype(int)
    assert np.array_equal(movies["mrc"], movies["tif"][:, ::-1])
    electrons = movies["eer"].reshape(3, 40, *settings.shape).sum(axis=1)
    lost = movies["mrc"].astype(int) - electrons  # electrons that met another in one raw frame
    cold = movies["mrc"] < 50
    assert lost.min() >= 0
    assert lost[cold].sum() < 0.04 * electrons.sum()
    assert (tmp_path / "eer" / "gain.gain").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_size_A": 0.0}, "pixel_size_A"),
        ({"pixel_size_A": float("inf")}, "pixel_size_A is inf; give a number"),
        ({"defocus_max_A": float("nan")}, "defocus_max_A is nan; give a number"),
        ({"edge_px": float("nan")}, "edge_px is nan; give a number"),
        ({"workers": -1}, "workers is -1; give 1 or more"),
        ({"movie_format": "dm4"}, "tif, mrc, eer"),
        ({"motion": "recorded"}, "motion_stars"),
        ({"box_px": 161}, "even"),
        ({"defocus_max_A": 10.0}, "defocus_max_A"),
        ({"rigid_error_A": -1.0}, "negative"),
        ({"second_share": 1.0}, "second_share is 1.0; it lies between 0 and 1"),
        ({"second_share": 0.5, "second_box_px": 99}, "second_box_px, size_px and height_px must be even"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(InputError, match=message):
        SimulationSettings.demo(**change)


def test_a_field_without_room_is_refused(tmp_path):
    with pytest.raises(InputError, match="leaves no room"):
        simulate(replace(SMALL, size_px=80, height_px=80, edge_px=None), tmp_path)


def test_a_species_without_a_half_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no particles in one of its half sets; raise particles_per_micrograph"):
        simulate(replace(SMALL, particles_per_micrograph=3, n_micrographs=1, second_share=0.3), tmp_path)


def test_particles_that_make_no_half_maps_are_refused(tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match="no particles in one of the half sets; raise particles_per_micrograph or n_mic"
    ):
        simulate(replace(SMALL, particles_per_micrograph=1, n_micrographs=1), tmp_path / "one")
    assert not (tmp_path / "one").exists()
    wild = SimulationSettings(
        n_micrographs=1, size_px=256, n_frames=3, pixel_size_A=2.4, box_px=72, particles_per_micrograph=3, edge_px=44
    )
    # as by chance where all has moved off the field; where that leads depends on the processor
    unlike = MaskedFSC(*(np.full(37, -0.1) for _ in range(4)), randomised_from=0)
    monkeypatch.setattr("refmotion_nb.data.synthetic.simulate.fsc_masked_corrected", lambda *_, **__: unlike)
    with pytest.raises(InputError, match=r"agree in no shell .*Ref.; simulate more particles, or less motion"):
        simulate(wild, tmp_path / "wild")


def test_presets_differ_in_sampling_and_dose():
    rough = SimulationSettings.rough_motion()
    assert rough.n_micrographs * rough.particles_per_micrograph >= 400
    assert rough.pixel_size_A != 1 and rough.dose_per_frame_e_A2 == 1.3
    assert rough.correlation_distance_A == 1200.0


def test_the_example_is_made_once_and_found_again(tmp_path):
    folder = tmp_path / "example"
    made = example(folder, SMALL)
    stamp = made.particles.stat().st_mtime_ns
    found = example(folder, SMALL)
    assert found == made and found.particles.stat().st_mtime_ns == stamp
    assert sum(p.sizes["particle"] for _, p in found.open().micrographs()) == made.n_particles
    with pytest.raises(InputError, match="other settings"):
        example(folder, replace(SMALL, seed=7))


@pytest.mark.parametrize("name", ["thesis.tex", "Movies"])
def test_the_example_leaves_other_folders_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="other files"):
        example(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_simulation_that_was_stopped_is_made_again(tmp_path):
    class Stops:
        def start(self, total, what):
            pass

        def advance(self, n, **facts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(SMALL, tmp_path, Stops())
    with pytest.raises(InputError, match="other settings"):
        simulate(replace(SMALL, seed=7), tmp_path)
    assert simulate(SMALL, tmp_path).open().movies


def test_settings_that_cannot_be_simulated_leave_nothing(tmp_path):
    with pytest.raises(InputError):
        simulate(replace(SMALL, size_px=80, height_px=80, edge_px=None), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_trajectories_are_compared_with_the_truth_particle_by_particle(small):
    """Of some particles, in an order of their own, with a constant that does not count; noise is found as it was added."""
    truth, rng, pixel = small.truth(), np.random.default_rng(2), SMALL.pixel_size_A
    right, wrong = {}, {}
    for i, name in enumerate(("mic0000", "mic0001")):
        some = rng.permutation(6)[: 3 + 2 * i]
        place = pixel * (truth[f"{name}_pos"][some] + rng.normal(0, 1, (len(some), 2)))
        shift = truth[f"{name}_total"][some] + rng.normal(size=(len(some), 1, 2))
        one = xr.Dataset({"shift": (("particle", "frame", "axis"), shift), "coordinate": (("particle", "axis"), place)})
        right[name], wrong[name] = one, one.assign(shift=one["shift"] + np.arange(6)[:, None] * np.ones(2))
    assert small.trajectory_error_A(right) < 1e-9
    weight = np.exp(-truth["dose_mid"] / 16)
    mean = np.average(np.arange(6), weights=weight)
    expected = np.sqrt(2 * np.average((np.arange(6) - mean) ** 2, weights=weight))
    assert small.trajectory_error_A(wrong) == pytest.approx(expected)
