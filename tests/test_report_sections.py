"""The sections of the report, each with results of its own: what is said and shown for which results."""

from __future__ import annotations

import base64
import json
import re
from html import unescape
from io import BytesIO
from pathlib import Path

import job
import numpy as np
import pytest
from conftest import Simulation
from fake_results import (
    COMMAND,
    EXPOSURE,
    FREQUENCY,
    INPUTS,
    N_FRAMES,
    fake_audit,
    fake_corrected,
    fake_dose_weights,
    fake_micrograph,
    fake_noise,
    fake_particles,
    fake_search,
    fake_tracks,
    fake_validation,
    figures_of,
    fill,
    text_of,
)
from PIL import Image
from relion_project import MICROGRAPHS, PARTICLES, edit, make_project, reference

import refmotion_nb as rm
from refmotion_nb.data.maps import write_map
from refmotion_nb.data.store import ResultStore
from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.stages.describe import describe_inputs
from refmotion_nb.views import report_dose, report_inputs, report_maps, report_search
from refmotion_nb.views.report import render_report, write_report
from refmotion_nb.views.report_summary import warnings


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results.zarr")


# inputs


def test_inputs_are_described(store: ResultStore) -> None:
    fill(store, micrographs=1)
    groups = [{**INPUTS["optics_groups"][0], "name": name} for name in ("one", "two")]
    store.update_attrs(inputs={**INPUTS, "half_sets": [[1, 700, 800], [2, 500, 496]], "optics_groups": groups})
    shown = text_of(render_report(store, title="t"))
    for expected in (
        "2,496 particles on 48 movies, of 2 references, as RELION left them",
        "micrographs MotionCorr/job002/corrected_micrographs.star", "half map 1 Refine3D/job020/run_half1_class001_unfil.mrc",
        "48 24 1.25 30 0.85 5760 × 4092 300", "1 700 800 1,500", "2 500 496 996", "two 2,496 0.85 384",
    ):  # fmt: skip
        assert expected in shown, expected


def test_the_record_of_a_job_is_what_the_report_expects(tmp_path: Path) -> None:
    root = make_project(tmp_path)

    def lose_one(table):  # type: ignore[no-untyped-def]
        table.loc[0, "rlnMicrographName"] = "MotionCorr/job002/Movies/gone.mrc"

    edit(root / PARTICLES, "particles", lose_one)
    data = rm.open_relion(root / PARTICLES, root / MICROGRAPHS, reference(), root)
    found = json.loads(json.dumps(describe_inputs(data, {"dose weights": Path("w.nc"), "hyperparameters": None})))
    assert found["particles"] == 29 and found["movies"] == 3 and found["program"] == "RELION"
    assert sum(found["half_sets"][0][1:]) == 29
    shown = text_of(report_inputs.inputs_section(found, None, None))
    for expected in (f"particles {root / PARTICLES}", f"micrographs {root / MICROGRAPHS}", f"mask {root / 'mask.mrc'}",
                     "dose weights w.nc", "3 4 1.5 6.5 1 96 × 64 200", "1 1 MotionCorr/job002/Movies/gone.mrc"):  # fmt: skip
        assert expected in shown, expected
    assert "None" not in shown and "hyperparameters" not in shown


def test_skipped_particles_are_counted_by_reason() -> None:
    particles = fake_particles()
    shown = text_of(report_inputs.skipped(INPUTS, particles))
    for reason in ("its movie has 20 frames, the others 24", "its patch leaves the movie in frames 1 to 24"):
        mine = particles["micrograph"].values[particles["reason"].values == reason]
        assert f"{reason} {len(mine)} {len(set(mine))} mic_" in shown
    assert "it has no particles 0 5 mic_050, mic_051 and 2 more" in shown
    all_written = particles.isel(particle=particles["written"].values)
    assert "Nothing: every particle of the input was used" in report_inputs.skipped({}, all_written)
    assert report_inputs.skipped({}, None) == ""


def test_what_was_skipped_is_told_where_the_run_ended_before_particles_were_written(store: ResultStore) -> None:
    store.write("search", fake_search())
    skipped = {"reason": "not on any micrograph", "particles": 1234, "n_micrographs": 1, "micrographs": ["mic_077"]}
    store.update_attrs(inputs={**INPUTS, "skipped": [skipped]})
    assert "not on any micrograph 1,234 1 mic_077" in text_of(render_report(store, title="t"))


def test_the_check_of_the_input_is_shown(store: ResultStore) -> None:
    store.write("audit", fake_audit())
    shown = text_of(render_report(store, title="t"))
    assert "Worth a look: 5 % of the particles are in the other half map few particles" in shown
    assert "Correlation with the reference 12.3 standard errors" in shown
    said = "5 % of the particles are in the other half map"
    assert warnings({"audit": fake_audit()}, {}) == [said]
    assert warnings({"audit": fake_audit()}, {"warnings": [said]}) == [said]  # once
    clean = fake_audit()
    clean.attrs = {}
    assert "Nothing speaks against it" in report_inputs.inputs_section({}, None, clean)


def test_of_many_doses_some_are_listed() -> None:
    doses = [1.25 + 0.01 * i for i in range(30)]
    inputs = {**INPUTS, "exposures": [{"movies": 1, **EXPOSURE, "dose_per_frame_e_A2": dose} for dose in doses]}
    assert "And movies of 18 other doses." in text_of(report_inputs.inputs_section(inputs, None, None))
    assert report_search.frame_doses(inputs, None) == [doses[0], doses[-1]]


# hyperparameters


def test_hyperparameters_in_relions_units(store: ResultStore) -> None:
    fill(store, micrographs=1)
    twice = [{"movies": 40, **EXPOSURE}, {"movies": 8, **EXPOSURE, "dose_per_frame_e_A2": 2.5}]
    store.update_attrs(inputs={**INPUTS, "exposures": twice})
    shown = text_of(render_report(store, title="t"))
    for dose in (1.25, 2.5):  # the same prior has other numbers at another dose per frame
        s_vel, s_div, s_acc = Hyperparameters(2.56, 30.0, 2000.0).to_relion(dose)
        assert f"RELION's, {dose} e/Å² per frame" in shown
        assert f"s_vel {s_vel:.4g} Å per e/Å² s_div {s_div:.0f} Å s_acc {s_acc:.4g} Å per e/Å²" in shown
    spatial = fake_search()
    spatial.attrs |= {"balance_deg": 0.0}
    assert "∞" in text_of("".join(report_search.hyperparameter_tables(spatial, [2.0])))
    assert report_search.frame_doses({}, fake_dose_weights()) == [1.25]


def test_the_scores_of_all_rays_are_an_image() -> None:
    search = fake_search()
    image = report_search.rays(search)[2]
    star = re.search(r"<title>best: ray (\d+)</title>", image)
    assert star and int(star[1]) == search.attrs["best_ray"] + 1 and "Ray (number)" in image
    search["strength"][2] *= 1.5
    assert len(report_search.rays(search)) == 2  # no common steps, no image


def test_micrographs_searched_with_are_listed() -> None:
    shown = report_search.search_section(fake_search(), {}, None)
    assert "<summary>The 8 micrographs searched with</summary>" in shown and "mic_006, mic_007" in shown


# trajectories


def test_20_movies_from_the_first_to_the_last_are_shown_and_most_of_them_folded(store: ResultStore) -> None:
    for i in range(22):
        store.write(f"tracks/mic_{i:03d}", fake_tracks(i, particles=300))
    html = render_report(store, title="t")
    assert html.count("<b>The micrograph as a whole</b>") == 20 and all(f"mic_{i:03d}" in html for i in (0, 11, 21))
    assert "20 of 22 micrographs, from the first to the last" in html
    assert html.count("<details open>") == 2 and html.count("<details>") == 18
    assert len(html) < 10e6
    assert render_report(store, title="t", micrographs=3).count("<b>The micrograph as a whole</b>") == 3


def test_noise_and_scale_are_shown_of_micrographs_from_the_first_to_the_last(store: ResultStore) -> None:
    for i in range(60):
        store.write(f"noise/mic_{i:03d}", fake_noise(i))
    html = render_report(store, title="t")
    assert html.count("40 of 60 micrographs, from the first to the last") == 2 and "<title>mic_059: " in html


# dose weights


def test_groups_of_dose_weights(store: ResultStore) -> None:
    store.write("dose_weights", fake_dose_weights(3, fewer_frames=4))
    html = render_report(store, title="t")
    shown = text_of(html)
    assert "all 6,000 24 1.25 0.625 to 29.4 –" in shown
    assert "opticsGroup1 3,000 24 1.25 0.625 to 29.4 25 %" in shown  # 1000 of the pool beside 3000 of its own
    assert "opticsGroup2 3,000 20 1.25 0.625 to 24.4 25 %" in shown
    assert "each borrows from the pool" in shown
    assert len(figures_of(html)) == 3 * 7 and html.count("<details open>") == 1 and html.count("<details>") == 2
    assert "nan" not in re.sub(r'href="data:[^"]*"', "", html)
    last = report_dose.group_of(fake_dose_weights(3, fewer_frames=4), 2)
    assert last.sizes["frame"] == 20 and "frame 20," in "".join(report_dose.damage(last))


def test_dose_weights_from_a_file(store: ResultStore) -> None:
    given = fake_dose_weights().drop_vars(
        ["fcc", "fcc_model", "reference_weight", "weight_lo", "weight_hi", "b_factor", "frame_scale", "particles"]
    )
    given.attrs = {"from_file": "bfactors.star"}
    store.write("dose_weights", given)
    html = render_report(store, title="t")
    shown = text_of(html)
    assert "Dose weights were read from bfactors.star" in shown and "measured from the correlation" not in shown
    assert "so there are only the weights to show" in shown
    assert "dashed" not in shown and "standard curve for comparison" not in shown and "shaded" not in shown
    assert len(figures_of(html)) == 2


def test_weights_are_drawn_per_dose_as_plots_are() -> None:
    dose = fake_dose_weights()
    whole = report_dose.damage(report_dose.group_of(dose, 0))
    halved = dose.isel(frame=np.repeat(np.arange(N_FRAMES), 2))
    for name in ("weight", "weight_lo", "weight_hi", "reference_weight", "frame_dose"):
        halved[name] = halved[name] / 2
    halved["dose"] = halved["dose"] + np.tile([-0.25, 0.25], N_FRAMES) * dose["frame_dose"].values[0, 0]
    cut = report_dose.damage(report_dose.group_of(halved, 0))

    def ticks(drawn: str) -> list[str]:
        return re.findall(r'class="e">([\d.]+)<', figures_of(drawn)[0])

    assert (
        ticks(whole[3]) == ticks(cut[3])
        and "Weight per e/Å²" in whole[3]
        and "weight times dose adds up to 1" in text_of(whole[4])
    )
    unknown = report_dose.group_of(dose.assign(dose=dose["dose"] * np.nan), 0)
    assert "Dose weight" in report_dose.damage(unknown)[3] and "add up to 1" in text_of(report_dose.damage(unknown)[3])


def test_whether_first_frames_are_weighted_down() -> None:
    dose = fake_dose_weights()
    shell = int(np.flatnonzero(FREQUENCY <= 1.001 / 3.6)[-1])
    weight = dose["weight"].values[0, :, shell]
    told = report_dose.tell_dose(dose)
    assert "weighted down for blur by early motion: at 3.6 Å" in told
    assert f"first gets {100 * weight[0] / weight.max():.0f} % of the weight of frame {weight.argmax() + 1}," in told
    standard = dose.assign(weight=dose["reference_weight"])
    assert "The first frame is not weighted down (at 3.6 Å)" in report_dose.tell_dose(standard)


# maps


def test_what_was_gained_by_what(store: ResultStore) -> None:
    store.write("validation", fake_validation(2))
    html = render_report(store, title="t")
    shown = text_of(html)
    assert (
        "Reference 1: Compared to rigid (3.84 Å): empirical weights alone account for 0.22 Å (3.62 Å); trajectories alone "
        "account for 0.53 Å (3.31 Å); both together account for 0.69 Å (3.15 Å)." in shown
    )
    assert "Reference 2: Compared to rigid (4.34 Å)" in shown
    half = fake_validation(2)["resolution_05"].values
    assert f"1 both what both means 3.15 {half[0, 3]:.2f} 60" in shown
    assert f"2 rigid what rigid means 4.34 {half[1, 0]:.2f} 90" in shown
    assert len(figures_of(html)) == 2 * 3
    worse = fake_validation()
    worse["resolution_0143"][0] = [3.0, 3.0, 3.2, 3.0]
    assert "trajectories alone account for a loss of 0.20 Å (3.20 Å)" in report_maps.gains(worse)[0]
    other = fake_validation().assign_coords(combination=["a", "b", "c", "d"])
    assert "d accounts for 0.69 Å" in report_maps.gains(other)[0]


def test_maps_before_and_after_are_pictures_in_the_same_greys(store: ResultStore) -> None:
    store.write("validation", fake_validation(2))
    maps = store.path.parent / "Maps"
    maps.mkdir()
    noise = np.random.default_rng(0).normal(size=(420, 420)).astype(np.float32)
    for name, contrast in (("rigid_1", 0.5), ("weights_1", 0.7), ("both_1", 1.0)):
        volume = np.zeros((3, 420, 420), np.float32)
        volume[1] = contrast * noise
        write_map(maps / f"{name}.mrc", volume, 0.85)
    (maps / "both_2.mrc").write_bytes((maps / "both_1.mrc").read_bytes()[:5000])  # not a whole one
    html = render_report(store, title="t")
    (drawn,) = re.findall(r'<figure class="card pictures">(.*?)</figure>', html, re.DOTALL)
    assert "Map, central slice, reference 1" in drawn and len(drawn) < 100_000
    first, last = figures_of(drawn)
    assert "rigid: central slice" in first and "both: central slice" in last
    spread = []
    for one in (first, last):
        png = Image.open(BytesIO(base64.b64decode(re.findall(r"base64,([^\"]+)", one)[0])))
        assert png.size == (140, 140)
        spread.append(np.asarray(png.convert("L"), float).std())
    assert spread[1] == pytest.approx(2 * spread[0], rel=0.1)


def test_curves_that_do_not_end_are_said_to_be_limited_by_pixels() -> None:
    maps = fake_validation()
    assert not any("limited" in text for text in report_maps.gains(maps))
    maps["fsc_corrected"][0, 3] = 0.3
    assert sum("with both is above 0.143 up to its end at 3.00 Å" in text for text in report_maps.gains(maps)) == 1


def test_a_validation_without_curves_of_the_mask() -> None:
    maps = fake_validation().drop_vars(["fsc_randomised", "b_factor", "fsc_unmasked", "meaning"])
    shown = text_of(report_maps.maps_section(maps))
    assert "What the mask does" not in shown and "B-factor" not in shown and "rigid 3.84" in shown
    assert "Reference" not in shown  # there is one


# whole micrographs


def test_whole_micrographs_with_their_motion_and_what_was_left_out(store: ResultStore) -> None:
    fill(store)
    store.write("corrected_micrographs", fake_corrected())
    for i in range(2):
        store.write(f"micrographs/mic_{i:03d}", fake_micrograph(i))
    record = {"command": "refmotion micrographs --out Corrected", "inputs": {"files": [["gain", "gain.mrc"]]}}
    store.update_attrs(micrographs=record)
    html = render_report(store, title="t")
    (section,) = re.findall(r'<section id="micrographs">(.*?)</section>', html, re.DOTALL)
    shown = text_of(section)
    assert "3 of 4 micrographs were written whole, motion-corrected and dose-weighted, in pixels of 0.85 Å" in text_of(
        html
    )
    assert "mic_003.tif was not found 1 mic_003" in shown and "2 of 3; all are" in shown
    one = fake_micrograph(0)["displacement"].values.reshape(25, N_FRAMES, 2)
    one = one - one[:, :1]
    length = np.linalg.norm(np.diff(one.mean(0), axis=0), axis=-1).sum()
    local = np.linalg.norm(one - one.mean(0), axis=-1).max()
    assert f"mic_000 5760 × 4092 0.85 motion correction {length:.2f} {local:.2f} Micrographs/mic_000.mrc" in shown
    assert "refmotion micrographs \\ --out Corrected" in shown and "gain gain.mrc" in shown
    figures = figures_of(section)
    assert len(figures) == 4 and "Accumulated dose (e/Å²)" in figures[1] and "Displacement (Å)" in figures[1]
    caption = text_of(re.findall(r"<figcaption>(.*?)</figcaption>", section)[0])
    assert "Good paths" in caption and "e/Å²" not in caption
    assert "Micrographs written 3 of 4" in text_of(html)
    assert 'id="micrographs"' not in render_report(fill(ResultStore(store.path.parent / "other.zarr")), title="t")


def test_a_store_of_whole_micrographs_alone_is_not_that_of_an_unfinished_run(
    store: ResultStore, tmp_path: Path
) -> None:
    store.write("corrected_micrographs", fake_corrected(failed=0))
    write_report(store, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>Motion-corrected micrographs</h1>" in html and "All 3 micrographs were written" in html
    assert "Not among these results" not in html and "10.7554/eLife.06980" in html and "IUCrJ" not in html
    store.write("corrected_micrographs", fake_corrected(failed=0).assign_attrs(dose_weights="measured"))
    html = render_report(store, title="t")
    assert "dose-weighted, by measured weights, in pixels" in html
    assert "10.7554/eLife.06980" not in html and "IUCrJ" in html  # where measuring them is described
    store.update_attrs(micrographs={"version": "1.2.3"})
    html = render_report(store, title="t")
    assert "<p>refmotion_nb 1.2.3 · " in html and "refmotion_nb 1.2.3, the program that made these results" in html


# the run


def test_the_report_says_which_folder_it_is_of_and_what_comes_next(store: ResultStore) -> None:
    html = render_report(fill(store), title="t")
    assert f"<title>{store.path.parent.name} · t</title>" in html
    assert "Refine particles.star in RELION" in text_of(html)
    store.update_attrs(inputs={**INPUTS, "program": "CryoSPARC", "half_sets": [[1, 5, 5], [2, 5, 5]]})
    told = text_of(render_report(store, title="t"))
    assert "Import Result Group takes particles_1.csg and particles_2.csg;" in told
    particles = fake_particles()
    particles["written"][:] = False
    store.write("particles", particles)
    assert "What next" not in render_report(store, title="t")


def test_settings_to_repeat_the_run(store: ResultStore) -> None:
    fill(store, micrographs=1)
    html = render_report(store, title="t")
    command = unescape(re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)[0])
    assert command.replace("\\\n  ", "") == COMMAND and command.count("\n") == 3  # can be pasted into a shell
    shown = text_of(html)
    for expected in ("target_particles 5000 10000", "thoroughness fast balanced", "float16 on off", "numpy 2.1.0"):
        assert expected in shown, expected
    assert re.search(r"<details><summary>All other settings \(1\), at their defaults</summary>.*seed", html)
    store.update_attrs(settings={}, command="")
    html = render_report(store, title="t")
    assert "None: all settings had their defaults" in html and "<pre>" not in html
    assert "<summary>All settings (" in html


def test_what_to_cite_depends_on_what_was_done(store: ResultStore) -> None:
    priors, exposure, phases = "10.1107/S205225251801463X", "10.7554/eLife.06980", "10.1016/j.ultramic.2013.06.004"
    store.write("search", fake_search())
    html = render_report(store, title="t")
    assert priors in html and exposure not in html and phases not in html
    store.write("dose_weights", fake_dose_weights())
    assert exposure in render_report(store, title="t")
    store.write("validation", fake_validation())
    assert phases in render_report(store, title="t")


def test_the_report_of_a_job_whose_weights_were_given(tiny: Simulation, tmp_path: Path) -> None:
    assert job.run(tiny.folder, tmp_path / "first", *job.GIVEN) == 0
    files = ["--dose-weights", f"{tmp_path}/first/bfactors.star"]
    assert job.run(tiny.folder, tmp_path / "out", *job.GIVEN, *files, "--float16") == 0
    first, shown = (text_of((tmp_path / name / "report.html").read_text(encoding="utf-8")) for name in ("first", "out"))
    for expected in ("Accumulated dose (e/Å²)", "Fourier cylinder correlation", "no confidence band"):
        assert expected in first, expected
    for expected in (
        "24 particles on 2 movies, as RELION left them", f"particles {tiny.particles}", f"dose weights {files[1]}",
        "2 8 4 32 1.6 512 × 512 300", "1 12 12 24", "Motion hyperparameters were given", "RELION's, 4 e/Å² per frame",
        "Dose weights were read from bfactors.star", "float16 on off", "All other settings", "To repeat this run",
    ):  # fmt: skip
        assert expected in shown, expected
    assert not (tmp_path / "out/refm_fcc.npy").exists() and (tmp_path / "out/refm_empirical_dw.npy").exists()


def test_warnings_are_said_once_and_names_stay_as_they_are() -> None:
    said = "mic_007: its movie cannot be read"
    assert warnings({}, {"warnings": [said, said, "the frames are dark"]}) == [said, "The frames are dark"]
