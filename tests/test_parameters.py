"""Each setting of the alignment changes what it says it changes, and in the direction it should."""

from dataclasses import replace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import tifffile
from job import copied
from relion_project import edit

import refmotion_nb as rm
from refmotion_nb.data.maps import write_stack
from refmotion_nb.data.relion.results import open_postprocess
from refmotion_nb.data.synthetic.simulate import trajectory_error_A
from refmotion_nb.numerics.energy import grant_grigorieff, own_noise_windows, relion_damage
from refmotion_nb.numerics.fourier import band_indices
from refmotion_nb.numerics.patches import PatchSpectra
from refmotion_nb.stages.alignment import Alignment, Geometry, Tracks, alignment_windows, score_windows, solve, track
from refmotion_nb.stages.correction import tracks_table
from refmotion_nb.stages.micrograph import place
from refmotion_nb.stages.reuse import as_search
from refmotion_nb.stages.search import default_prior, prior_of

CHOSEN = rm.Hyperparameters.from_strengths(1.5, 3000, 2)
NAME = "mic0000"


@pytest.fixture(scope="module")
def opened(tiny):
    reference, _ = open_postprocess(tiny.postprocess, tiny.folder)

    def opened_with(**options):
        return rm.open_relion(tiny.particles, tiny.micrographs, reference, tiny.folder, **options)

    return opened_with


@pytest.fixture(scope="module")
def session(opened):
    return rm.Session(opened(), threads=2)


@pytest.fixture(scope="module")
def prior(session):
    return prior_of(as_search(session, Alignment(), default_prior(CHOSEN, Alignment()), 0))


def tracked(session, prior, **settings):
    stage = Alignment(**settings)
    return track(session.micrograph(NAME, stage), stage, prior, 2)


def error_A(tiny, displacement):
    truth = tiny.truth()
    return trajectory_error_A(displacement, truth[f"{NAME}_total"], truth["dose_mid"])


def test_a_default_is_changed_for_the_stage_that_it_is_changed_for(monkeypatch):
    """As in a notebook that measures dose weights on fewer particles."""
    monkeypatch.setattr(rm.DoseWeights, "target_particles", 77)
    found = [kind().target_particles for kind in (rm.DoseWeights, rm.HyperparameterSearch, rm.InputAudit)]
    assert found == [77, 5000, 5000]


def test_recenter_moves_boxes_by_whole_pixels_of_the_origins(session, prior):
    on, off = (session.micrograph(NAME, Alignment(recenter=flag)) for flag in (True, False))
    pixel = on.movie.pixel_size_A
    given = off.placement.origin_A
    np.testing.assert_allclose(given, on.particles["origin"].values)
    assert np.abs(given).max() > pixel and np.abs(on.placement.origin_A).max() <= pixel / 2 + 1e-9
    moved = off.placement.centre_px - on.placement.centre_px
    np.testing.assert_allclose(given - on.placement.origin_A, moved * pixel, atol=1e-9)
    # the particle's motion is the same motion
    tracks = [tracked(session, prior, recenter=flag).displacement_A for flag in (True, False)]
    assert np.sqrt(np.mean((tracks[0] - tracks[1]) ** 2)) < 0.15


def test_without_a_mask_a_box_has_to_hold_the_reference(session):
    (reference,) = session.data.references
    bare = rm.Session(replace(session.data, references=(replace(reference, mask=None),)), 2)
    extent_A = bare.extent_A(Alignment())
    box = round(extent_A / bare.data.movies[0].pixel_size_A)
    assert bare.extent_A(Alignment(box_size=box)) == pytest.approx(extent_A)  # that of box_size 0
    with pytest.raises(rm.InputError, match=f"box_size {box - 2} is"):
        bare.extent_A(Alignment(box_size=box - 2))


def test_a_box_is_checked_against_the_movies_once_however_many_micrographs_ask(session, monkeypatch):
    looked, movies = [], session.data.movies_with_particles
    monkeypatch.setattr(rm.Dataset, "movies_with_particles", property(lambda _: looked.append(1) or movies))
    one = rm.Session(session.data, 2)
    settings = Alignment(box_size=round(session.extent_A(Alignment()) / movies[0].pixel_size_A))
    assert len({one.extent_A(settings) for _ in range(20)}) == 1 and len(looked) < 3


@pytest.mark.parametrize("binning", [1.0, 1.5, 2.0])
def test_recentred_particles_are_where_they_were_when_what_was_written_is_read(session, binning):
    """RELION, as we do, cuts coordinates to whole pixels of the micrograph."""
    movie, particles = session.micrographs[NAME]
    movie = replace(movie, binning=binning)
    placement = place(movie, particles, 100.0, True)
    m = replace(session.micrograph(NAME, Alignment()), movie=movie, placement=placement)
    written = tracks_table(m, Tracks(placement.initial_A, placement.rigid_A, placement.rigid_A, 1.0, 0), 8, 1.0)
    read = {"coordinate": written["coordinate_px"] * movie.pixel_size_A * binning, "origin": written["origin"]}
    again = place(movie, particles.assign(read), 100.0, True)
    np.testing.assert_array_equal(again.centre_px, placement.centre_px)
    np.testing.assert_allclose(again.origin_A, placement.origin_A)


def test_own_noise_is_taken_out_where_motion_correction_put_the_particle(session):
    m = session.micrograph(NAME, Alignment())
    raw = alignment_windows(m, Alignment(), True, 2)
    ((rows, arguments),) = raw.own_noise
    assert np.array_equal(rows, np.arange(m.n)) and np.abs(m.placement.initial_A).max() > 2 * m.movie.pixel_size_A
    noise = replace(raw.windows, values=own_noise_windows(**arguments))
    beside = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]) * 0.5  # Å
    found = noise.sample(m.placement.initial_A + beside[:, None, None])[0]
    assert (found[0] > found[1:].max(0)).all()


def test_the_grey_scale_is_that_of_views_that_decay_with_dose(session):
    stage, m = Alignment(), session.micrograph(NAME, Alignment())
    k, box = m.own.shape[2] - 1, m.spectra.box
    ky, kx = band_indices(k)
    left = stage.decay(m, int(1.5 * k) + 2)[:, np.hypot(ky, kx).astype(int)]  # (frame, ky, kx)
    half = np.zeros((m.n, len(left), box, box // 2 + 1), np.complex64)
    half[:, :, np.arange(-k, k + 1) % box, : k + 1] = 3 * m.own[:, None] * left
    step = np.abs(half).max() / 32767
    stored = np.rint(np.stack([half.real, half.imag], -1) / step).astype(np.int16)
    still = np.zeros_like(m.placement.initial_A)
    spectra = PatchSpectra(stored, np.full(still.shape[:2], step, np.float32), still)
    seen = replace(m, spectra=spectra, placement=replace(m.placement, initial_A=still))
    found = alignment_windows(seen, stage, False, 2)
    assert found.cross / found.power == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("box", [96, 160])
def test_a_grey_scale_holds_for_other_boxes(session, prior, box):
    """That a correction may have, whatever those of its search."""
    settings = Alignment(box_size=box)
    raw = alignment_windows(session.micrograph(NAME, settings), settings, True, 2)
    assert raw.scale(replace(prior, scale_spread2=0.0)) == pytest.approx(raw.cross / raw.power, rel=0.1)


def coarsen(project, name):
    """Give a movie half as many frames, twice as long, of pixels twice as wide, which count all electrons of four."""
    movie, size = project / f"Movies/{name}.mrc", 512
    with mrcfile.open(project / "gain.mrc") as file:
        frames = tifffile.imread(project / f"Movies/{name}.tif")[:, ::-1] * file.data
    spectra = np.fft.fftshift(np.fft.fft2(frames[::2] + frames[1::2]), axes=(1, 2))
    kept = slice(size // 4, 3 * size // 4)
    write_stack(movie, np.fft.ifft2(np.fft.ifftshift(spectra[:, kept, kept], axes=(1, 2))).real, 3.2)

    def general(values):
        values.update(rlnImageSizeX=size // 2, rlnImageSizeY=size // 2, rlnImageSizeZ=4, rlnMicrographOriginalPixelSize=3.2,
                      rlnMicrographDoseRate=8, rlnMicrographMovieName=f"Movies/{name}.mrc")  # fmt: skip
        del values["rlnMicrographGainName"]

    def thinned(table):
        out = table.iloc[::2] / 2 + (table.iloc[1::2] / 2).to_numpy()
        return (out / 2).assign(rlnMicrographFrameNumber=range(1, 5))

    motion = project / f"MotionCorr/Movies/{name}.star"
    edit(motion, "general", general)
    edit(motion, "global_shift", thinned)
    edit(motion, "hot_pixels", lambda table: table.iloc[:0])


def moved_to_coarse_pixels(rows, name):
    """Put the particles of a coarsened movie into the second optics group, each where it was."""
    mine = rows["rlnMicrographName"].str.contains(name)
    for axis in "XY":
        x = np.floor(rows.loc[mine, f"rlnCoordinate{axis}"])
        rows.loc[mine, f"rlnOrigin{axis}Angst"] += 3.2 * np.floor(x / 2) - 1.6 * x
        rows.loc[mine, f"rlnCoordinate{axis}"] = np.floor(x / 2)
    rows.loc[mine, "rlnOpticsGroup"] = 2
    return rows


def test_a_grey_scale_holds_for_movies_of_other_pixels_and_frames(tiny, tmp_path, session, prior):
    """It may be measured on movies of one kind only, since these are drawn."""
    project = copied(tiny.folder, tmp_path)
    coarsen(project, "mic0001")
    particles = project / "Extract/particles.star"
    other = {"rlnOpticsGroup": 2, "rlnOpticsGroupName": "coarse", "rlnImagePixelSize": 3.2, "rlnImageSize": 56}
    edit(particles, "optics", lambda table: pd.concat([table, table.assign(**other)]))
    edit(particles, "particles", lambda table: moved_to_coarse_pixels(table, "mic0001"))
    reference, _ = open_postprocess(tiny.postprocess, tiny.folder)
    mixed = rm.Session(rm.open_relion(particles, project / "MotionCorr/corrected_micrographs.star", reference, project,
                                      mixed_frame_counts=True), 2)  # fmt: skip
    fine, coarse = (
        alignment_windows(one.micrograph("mic0001", Alignment()), Alignment(), False, 2) for one in (session, mixed)
    )
    own = coarse.cross / coarse.power
    assert own == pytest.approx(8 * fine.cross / fine.power, rel=0.15)
    assert coarse.scale(replace(prior, scale_spread2=0.0)) == pytest.approx(own, rel=0.15)
    assert prior_of(rm.hand_picked(mixed, CHOSEN)).scale_spread2 < (0.15 * prior.grey_scale) ** 2
    # nor does the score count one kind more than the other
    scores = [score_windows(one.micrograph("mic0001", Alignment()), Alignment(), 2) for one in (session, mixed)]
    still = [one.micrograph("mic0001", Alignment()).placement.initial_A[None] for one in (session, mixed)]
    fine, coarse = (one.unit * one.windows.sample(at)[0].sum() for one, at in zip(scores, still))
    assert coarse == pytest.approx(fine, rel=0.3)


def test_without_all_fourier_components_the_band_of_the_search_aligns(session, prior):
    m = session.micrograph(NAME, Alignment())
    on, off = Alignment(), Alignment(all_fourier_components=False)
    assert np.flatnonzero(on.band(m, True).max(0))[-1] > np.flatnonzero(off.band(m, True).max(0))[-1]
    windows = alignment_windows(m, on, False, 2).scaled(prior)
    expected = solve(windows, Geometry.of(m), [prior], False).displacement_A[0]
    np.testing.assert_allclose(
        tracked(session, prior, all_fourier_components=False).displacement_A, expected, atol=1e-6
    )
    assert np.abs(tracked(session, prior).displacement_A - expected).max() > 0.02


def test_alignment_fraction_moves_the_edge_of_the_band(session):
    m = session.micrograph(NAME, Alignment())
    edges = [Alignment(alignment_fraction=f).k_cut(m) for f in (0.25, 0.5, 1.0)]
    assert edges == [int(m.k_out * np.sqrt(f)) for f in (0.25, 0.5, 1.0)]


@pytest.mark.parametrize("energy", ["calibrated", "relion"])
def test_a_search_without_fourier_components_to_score_by_is_refused(session, monkeypatch, energy):
    k_out = session.micrograph(NAME, Alignment(energy=energy)).k_out
    edge = k_out - 2.5 if energy == "relion" else k_out - 2
    most = (edge / k_out) ** 2
    some = rm.HyperparameterSearch(alignment_fraction=most - 1e-6, energy=energy)
    assert list(some.held_out(k_out)) == [k_out - 1]
    monkeypatch.setattr("refmotion_nb.stages.search.sample", None)  # reading a movie would be a TypeError
    with pytest.raises(
        rm.InputError, match=rf"alignment_fraction is 1: the FSC .* shell {k_out}, .* give less than 0\."
    ):
        rm.HyperparameterSearch(alignment_fraction=1.0, energy=energy).run(session)
    with pytest.raises(TypeError):
        some.run(session)
    assert session.warnings.pop().startswith(
        f"alignment_fraction {some.alignment_fraction:g} leaves 1 shell of Fourier"
    )


def test_a_reference_of_no_resolution_leaves_nothing_to_score_by():
    assert list(Alignment(alignment_fraction=0.1).held_out(5)) == [4]
    with pytest.raises(rm.InputError, match="give hyperparameters instead of searching"):
        Alignment(alignment_fraction=0.1).held_out(4)


def test_dose_and_pre_exposure_set_the_decay_and_the_prior(opened, session, prior):
    half, late = rm.Session(opened(dose_per_frame_e_A2=2.0), 2), rm.Session(opened(pre_exposure_e_A2=20.0), 2)
    frequency = np.array([0.1])
    for other, dose in ((session, 4 * (np.arange(8) + 0.5)), (half, 2 * (np.arange(8) + 0.5)),
                        (late, 20 + 4 * (np.arange(8) + 0.5))):  # fmt: skip
        m = other.micrograph(NAME, Alignment())
        shell = round(0.1 * m.extent_A)
        expected = grant_grigorieff(frequency * shell / (0.1 * m.extent_A), dose, 300)[:, 0]
        np.testing.assert_allclose(Alignment().decay(m, shell + 1)[:, shell], expected, rtol=1e-6)
    # velocities are per dose: the same strength at half the dose allows half as fast a motion per frame
    paths = [np.linalg.norm(np.diff(tracked(s, replace(prior, common_std_A=0.0)).displacement_A
                                    - tracked(s, replace(prior, common_std_A=0.0)).rigid_A, axis=1), axis=-1).sum()
             for s in (session, half)]  # fmt: skip
    assert paths[1] < 0.9 * paths[0]


def test_relions_damage_begins_with_the_first_frame_of_the_movie_and_without_pre_exposure(session):
    """At the start of every frame; frames that are left out count."""
    m = session.micrograph(NAME, Alignment(energy="relion"))
    late = replace(m, movie=replace(m.movie, first_frame=3, pre_exposure_e_A2=20.0))
    expected = relion_damage(m.frequency(20), 4.0 * np.arange(3, 11))
    np.testing.assert_allclose(Alignment(energy="relion").decay(late, 20), expected)


def test_split_motion_takes_up_errors_of_rigid_alignment(tiny, session, prior):
    split = tracked(session, prior)
    alone = default_prior(CHOSEN, Alignment(split_motion=False))
    single = tracked(session, prior_of(as_search(session, Alignment(), alone, 0)), split_motion=False)
    assert np.abs(split.common_A).max() > 0.3 and not single.common_A.any()
    assert error_A(tiny, split.displacement_A) < 0.9 * error_A(tiny, single.displacement_A)


def test_dose_profile_slows_late_motion_down(session, prior):
    flat = replace(prior, profile_decay_e_A2=np.inf, profile_floor=1.0)
    assert default_prior(CHOSEN, Alignment(dose_profile=False)).profile_decay_e_A2 == np.inf
    late = []
    for one in (prior, flat):
        found = tracked(session, one)
        local = found.displacement_A - found.common_A - found.rigid_A
        speed = np.linalg.norm(np.diff(local, axis=1), axis=-1).mean(0)
        late.append(speed[-3:].sum() / speed.sum())
    assert late[0] < 0.6 * late[1]


def test_parts_of_a_prior_that_are_off_are_left_out_wherever_it_was_found(session, prior):
    """As that of a search made with them, or of a file: the setting of the stage that takes it counts."""
    assert prior.common_std_A and prior.drift_strength and prior.profile_floor < 1 and np.isfinite(prior.grey_scale)
    alone = replace(prior, common_std_A=0.0, drift_strength=0.0)
    flat = replace(prior, profile_decay_e_A2=np.inf, profile_floor=1.0)
    relions = default_prior(CHOSEN, Alignment(energy="relion"))
    for less, settings in (
        (alone, {"split_motion": False}),
        (flat, {"dose_profile": False}),
        (relions, {"energy": "relion"}),
    ):
        found, expected = (tracked(session, one, **settings).displacement_A for one in (prior, less))
        np.testing.assert_array_equal(found, expected)
        assert np.abs(found - tracked(session, prior).displacement_A).max() > 0.1
        given = prior_of(as_search(session, Alignment(**settings), prior, 0))
        assert (given.common_std_A, given.profile_floor) == (less.common_std_A, less.profile_floor)


def test_a_search_with_relions_energy_tells_no_grey_scale_that_another_stage_would_take(session):
    found = prior_of(rm.HyperparameterSearch(energy="relion", max_strength=0.11).run(session))
    assert np.isnan(found.grey_scale) and not found.common_std_A
    raw = alignment_windows(session.micrograph(NAME, Alignment()), Alignment(), True, 2)
    assert raw.scale(found) > 1.1  # measured: RELION's energy takes it to be 1


def test_trajectories_tell_how_bright_the_reference_is_compared_to_other_micrographs(session, prior):
    raw = alignment_windows(session.micrograph(NAME, Alignment()), Alignment(), True, 2)
    darker = replace(prior, grey_scale=raw.cross / raw.power / raw.unit / 0.8, scale_spread2=1e6)
    assert tracked(session, darker).scale == pytest.approx(0.8, rel=1e-3)
    assert tracked(session, replace(prior, grey_scale=np.nan)).scale == 1, "no others are known"


def test_own_noise_pulls_back_to_where_the_particle_was(session, prior):
    away = []
    for flag in (True, False):
        found = tracked(session, prior, remove_own_noise=flag)
        away.append(np.sqrt(((found.displacement_A - found.rigid_A) ** 2).mean()))
    assert away[1] < 0.98 * away[0]


def test_windows_reach_as_far_as_is_asked_and_are_widened_where_that_is_too_little(session, prior):
    m = session.micrograph(NAME, Alignment())
    sizes = [alignment_windows(m, Alignment(window_reach_A=r), False, 2).windows.grid.reach_px * m.movie.pixel_size_A
             for r in (4.0, 12.0)]  # fmt: skip
    assert 4 <= sizes[0] < 8 and 12 <= sizes[1] < 16
    usual, short = tracked(session, prior), tracked(session, prior, window_reach_A=1.5)
    assert usual.edge_hits == 0
    largest = np.abs(usual.displacement_A - m.spectra.offset_px * m.movie.pixel_size_A).max()
    assert 1.5 < largest  # beyond the first window
    assert short.edge_hits == 0  # widened until nothing lay beyond
    np.testing.assert_allclose(short.displacement_A, usual.displacement_A, atol=0.1)
