"""Against RELION 3.1 on the simulated apoferritin set: its numbers from its settings, and then better ones."""

import re
import shutil
import subprocess
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import xarray as xr

import refmotion_nb as rm
from refmotion_nb.data.relion.results import open_postprocess, read_bfactors, read_fsc, read_priors, read_tracks
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.synthetic.simulate import trajectory_error_A
from refmotion_nb.numerics.dose import fcc, fit_relion
from refmotion_nb.numerics.energy import own_noise_windows
from refmotion_nb.numerics.fourier import first_shell_below
from refmotion_nb.stages.alignment import Alignment, MotionPrior, alignment_windows
from refmotion_nb.stages.dose_weights import micrograph_fcc_sums
from refmotion_nb.stages.reuse import as_search
from refmotion_nb.stages.search import default_prior, prior_attrs, prior_from_attrs
from refmotion_nb.stages.validation import COMBINATIONS

# RELION does not recentre on the rounded origin when it polishes, nor does 3.1 repair hot pixels of TIFF movies
AS_RELION = {"energy": "relion", "recenter": False, "repair_hot_pixels": False}
TRACKS_A = 0.02  # RMS, within the tolerance at which RELION stops: its gradient there is far from 0
RELATIVE = 1e-3  # of the RMS
CHOSEN = rm.Hyperparameters.from_strengths(1.5, 3000, 2)


@pytest.fixture(scope="module")
def folder(test_data):
    return test_data / "apoferritin"


@pytest.fixture(scope="module")
def session(folder):
    reference, _ = open_postprocess(folder / "Ref/postprocess.star", folder)
    micrographs = folder / "MotionCorr/corrected_micrographs.star"
    data = rm.open_relion(folder / "Extract/particles.star", micrographs, reference, folder)
    return rm.Session(data, threads=2, cache_bytes=2e9)


@pytest.fixture(scope="module")
def trained(folder, session):
    """RELION's trained prior."""
    priors = read_priors(folder / "RelionPolish/opt_params_all_groups.txt")
    assert priors == (5.8305, 221250, 5.25)
    dose = session.data.movies[0].dose_per_frame_e_A2
    return MotionPrior(rm.Hyperparameters.from_relion(*priors, dose))


def relative(found, expected):
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


def relions_sums(folder, name):
    """RELION's FCC sums of one micrograph (3, frame, shell): cc, |X|² and |V|².

    RELION whitens X to a power of 1 in all Fourier components together.
    """
    files = [folder / f"{name}_FCC_{what}.mrc" for what in ("cc", "w0", "w1")]
    sums = np.stack([mrcfile.read(file).astype(float) for file in files])
    box = 2 * (sums.shape[2] - 1)
    components = 0.25 * np.pi * (box + 1) * box
    return sums * np.array([np.sqrt(components), components, 1.0])[:, None, None]


@pytest.mark.parametrize(("results", "all_components"), [("RelionPolish", True), ("RelionPolishOutCut", False)])
def test_trajectories_are_relions(folder, session, trained, results, all_components):
    settings = Alignment(all_fourier_components=all_components, **AS_RELION)
    squares = []
    for name in session:
        theirs = read_tracks(folder / results / f"Movies/{name}_tracks.star")
        ours = session.track(session.micrograph(name, settings), settings, trained).displacement_A
        squares.append(((ours - theirs) ** 2).sum(-1).mean())
    assert len(squares) == 6 and np.sqrt(np.mean(squares)) < TRACKS_A, np.sqrt(squares)


def test_fcc_sums_are_relions(folder, session):
    for name in session:
        theirs = relions_sums(folder / "RelionPolish/Movies", name)
        tracks = read_tracks(folder / f"RelionPolish/Movies/{name}_tracks.star")
        ours = micrograph_fcc_sums(session.micrograph(name, Alignment(**AS_RELION)), tracks, session.threads)
        errors = [relative(a, b) for a, b in zip(ours, theirs)]
        assert ours.shape == theirs.shape and max(errors) < RELATIVE, (name, errors)


@pytest.fixture(scope="module")
def relion_3():
    """Tell whether the RELION that is installed is of version 3."""
    if shutil.which("relion_motion_refine") is None:
        pytest.skip("RELION is not installed")
    told = subprocess.run(["relion_motion_refine", "--version"], capture_output=True, text=True, check=True).stdout
    return bool(re.search(r"version: 3\.", told))


@pytest.fixture
def alignment(relion_3):
    """Return the settings with which our trajectories are those of the RELION that is installed."""
    return Alignment(**{**AS_RELION, "repair_hot_pixels": not relion_3})


def polished(folder, out, particles, optics, binning=1.0):
    """Have RELION polish some particles of mic0000, their micrograph ``binning`` times as coarse as the movie.

    Returns our session of the same input, RELION's tracks, and its FCC sums.
    """
    for name in ("Movies", "Ref", "gain.mrc"):
        (out / name).symlink_to(folder / name)
    motion = out / "MotionCorr/Movies/mic0000.star"
    motion.parent.mkdir(parents=True)
    for file in (folder / "MotionCorr").rglob("*.star"):
        shutil.copyfile(file, out / file.relative_to(folder))
    blocks = read_star(motion)
    write_star(motion, {**blocks, "general": {**blocks["general"], "rlnMicrographBinning": binning}})
    write_star(out / "particles.star", {"optics": optics, "particles": particles})
    command = ["relion_motion_refine", "--i", "particles.star", "--f", "Ref/postprocess.star", "--o", "Polish", "--j", "1",
               "--corr_mic", "MotionCorr/corrected_micrographs.star", "--first_frame", "1", "--last_frame", "-1"]  # fmt: skip
    subprocess.run(command, cwd=out, check=True, capture_output=True)
    reference, _ = open_postprocess(out / "Ref/postprocess.star", out)
    micrographs = out / "MotionCorr/corrected_micrographs.star"
    session = rm.Session(rm.open_relion(out / "particles.star", micrographs, reference, out), 2)
    results = out / "Polish/MotionCorr/Movies"
    return session, read_tracks(results / "mic0000_tracks.star"), relions_sums(results, "mic0000")


@pytest.fixture
def few(folder):
    """Fourteen particles of one micrograph, and their optics group."""
    blocks = read_star(folder / "Extract/particles.star")
    rows = blocks["particles"]
    return rows[rows["rlnMicrographName"].str.contains("mic0000")].iloc[:14].reset_index(drop=True), blocks["optics"]


def test_contrast_and_aberrations_are_relions(folder, few, relion_3, alignment, tmp_path):
    """RELION's sums of views with all that optics groups and particles may say of the microscope."""
    particles, optics = few
    coma = "1.1,-0.7" if relion_3 else "0,0"  # beside a beam tilt, where it does not count; in later versions it does
    along = np.linspace(0, 1, len(particles))
    particles = particles.assign(
        rlnPhaseShift=60 * along, rlnCtfBfactor=40 * along, rlnCtfScalefactor=0.8 + 0.3 * along,
        rlnDefocusV=particles["rlnDefocusU"] - 1500 * along, rlnDefocusAngle=170 * along,
    )  # fmt: skip
    optics = optics.assign(
        rlnBeamTiltX=1.7, rlnBeamTiltY=-0.9, rlnOddZernike=f"[0.3,-0.2,0.5,{coma},0.4]",
        rlnEvenZernike="[0.1,0.2,-0.3,0.15,0.7,-0.4,0.3,0.2,-0.6]",
        rlnMagMat00=1.02, rlnMagMat01=0.01, rlnMagMat10=-0.005, rlnMagMat11=0.985,
    )  # fmt: skip
    session, tracks, theirs = polished(folder, tmp_path, particles, optics)
    ours = micrograph_fcc_sums(session.micrograph("mic0000", alignment), tracks, 2)
    errors = [relative(a, b) for a, b in zip(ours, theirs)]
    assert max(errors) < (RELATIVE if relion_3 else 2 * RELATIVE), (
        errors
    )  # later versions hold movies in single precision


def test_tracks_count_from_relions_zero_on_binned_micrographs(folder, few, alignment, tmp_path):
    """RELION cuts coordinates to pixels of the particle images, which here are those of the movie."""
    particles, optics = few
    for label in ("rlnCoordinateX", "rlnCoordinateY"):
        particles = particles.assign(**{label: particles[label] / 2})
    session, theirs, _ = polished(folder, tmp_path, particles, optics, binning=2.0)
    prior = MotionPrior(rm.Hyperparameters.from_relion(0.5, 5000.0, 2.0, 2.0))
    ours = session.track(session.micrograph("mic0000", alignment), alignment, prior).displacement_A
    assert np.sqrt(((ours - theirs) ** 2).sum(-1).mean()) < TRACKS_A


def test_trajectories_of_binned_particles_are_relions(folder, few, alignment, tmp_path):
    """RELION crops patches to the pixels of the particles, here of 1.5 Å, before it scales, whitens and correlates them."""
    particles, optics = few
    session, theirs, _ = polished(folder, tmp_path, particles, optics.assign(rlnImagePixelSize=1.5, rlnImageSize=128))
    prior = MotionPrior(rm.Hyperparameters.from_relion(0.5, 5000.0, 2.0, 2.0))
    ours = session.track(session.micrograph("mic0000", alignment), alignment, prior).displacement_A
    assert np.sqrt(((ours - theirs) ** 2).sum(-1).mean()) < TRACKS_A


def test_b_factors_and_scales_are_relions(folder, session):
    total = np.sum([relions_sums(folder / "RelionPolish/Movies", name) for name in session], axis=0)
    reference = session.data.references[0]
    box, pixel_A = 192, session.data.movies[0].pixel_size_A
    last = first_shell_below(read_fsc(reference.postprocess), 0.143)
    b_factor, log_scale = fit_relion(fcc(total), pixel_A, int(box * pixel_A / 20), last)
    expected = read_bfactors(folder / "RelionPolish/bfactors.star")
    assert relative(b_factor, expected[0]) < RELATIVE and relative(log_scale, expected[1]) < RELATIVE


@pytest.mark.parametrize("final", [False, True])
def test_own_noise_is_as_large_as_expected(session, final):
    # signal is the same in both half maps: what windows of the own one have beyond those of the other is own noise
    settings, unequal, expected = rm.MotionCorrection(), 0.0, 0.0
    for name in list(session)[:4]:
        m = session.micrograph(name, settings)
        own, other = (alignment_windows(one, settings, final, 2) for one in (m, replace(m, own=m.opposite)))
        scale = own.cross / own.power
        ((_, arguments),) = own.own_noise
        noise = own_noise_windows(**arguments, threads=2) * scale**2
        unequal += (scale * (own.windows.values - other.windows.values) * noise).sum()
        expected += (noise**2).sum()
    assert unequal / expected == pytest.approx(1, abs=0.15)


def test_own_search_comes_close_to_the_truth(folder, session):
    search = rm.HyperparameterSearch().run(session)
    prior, settings = prior_from_attrs(search.attrs), rm.MotionCorrection()
    with np.load(folder / "truth.npz") as truth:
        errors = []
        for name in session:
            tracks = session.track(session.micrograph(name, settings), settings, prior).displacement_A
            errors.append(trajectory_error_A(tracks, truth[f"{name}_total"], truth["dose_mid"]))
    assert len(errors) == 6 and sum(p.sizes["particle"] for _, p in session.micrographs.values()) == 220
    assert np.sqrt(np.mean(np.square(errors))) <= 0.42, errors  # rigid 1.226, RELION 0.986, with --out_cut 0.526


def test_early_frames_blurred_by_motion_get_less_weight_than_damage_alone_would_give(session):
    """The first frames of the apoferritin set moved by several Å each, and were exposed while they did."""
    stage = rm.DoseWeights()
    dose = stage.run(session, as_search(session, stage, default_prior(CHOSEN, stage), 0))
    at = dose.sel(group="all").sel(frequency=1 / 5, method="nearest")
    weight, standard = at["weight"].values, at["reference_weight"].values
    assert np.argmax(standard) == 0 and weight[0] < 0.7 * standard[0] and np.argmax(weight) > 0
    assert (at["weight_lo"].values <= weight + 1e-9).all() and (at["weight_hi"].values >= weight - 1e-9).all()
    assert weight[-1] < weight.max() / 3  # damage, after that


def test_rigid_particles_give_relions_curve(session):
    """RELION's: particles out of its own motion correction, relion_reconstruct --ctf --sym O, relion_postprocess."""
    stage = rm.Validation(symmetry="O")
    search = xr.Dataset(attrs=prior_attrs(default_prior(CHOSEN, stage)))
    found = stage.run(session, search, rm.DoseWeights().run(session, search), combinations=COMBINATIONS[:1])
    postprocess = session.data.references[0].postprocess
    theirs = read_star(postprocess, ["fsc"])["fsc"]["rlnFourierShellCorrelationMaskedMaps"].to_numpy(float)
    crossing = np.flatnonzero(theirs < 0.143)[0]
    ours = found["fsc_masked"].values[0, 0]
    np.testing.assert_allclose(ours[1 : crossing + 1], theirs[1 : crossing + 1], atol=0.02)
    assert float(found["resolution_0143"][0, 0]) == pytest.approx(192 / crossing, abs=0.1)
