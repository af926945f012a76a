from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from fake_results import (
    SECONDS,
    fake_audit,
    fake_dose_weights,
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

from refmotion_nb.data.store import ResultStore
from refmotion_nb.views import report_dose, report_html, report_search, report_tracks, svg
from refmotion_nb.views.png import png_of_levels
from refmotion_nb.views.report import _bound, render_report, write_report
from refmotion_nb.views.report_summary import sentences, warnings


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results.zarr")


class Checked(HTMLParser):
    """Fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def well_formed(html: str) -> bool:
    parser = Checked()
    parser.feed(html)
    return not parser.open


def test_a_whole_run(store: ResultStore, tmp_path: Path) -> None:
    fill(store)
    write_report(store, tmp_path / "out" / "report.html")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert well_formed(html)
    outside = re.sub(r'href="data:image/png;base64,[\w+/=]*"|<a href="https://doi.org/[\w./]+">', "", html)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(|src=|href=\"[^#]", outside)
    assert len(html) < 1e6
    shown = text_of(html)
    search, particles = fake_search(), fake_particles()
    written = particles["written"].values
    for expected in (
        f"{written.sum():,}", f"of {written.size:,}", "mic_031", "3.84 → 3.15 Å", "3 min 33 s",
        f"{search['cv_score'].values.min(initial=0, where=search['cv_score'].notnull().values):.6f}".replace("-", "−"),
        "2.56 · 30° · 2000 Å", "float16", "Extract/job012/particles.star", "7 min 41 s", "mic_005",
        "its movie has 20 frames, the others 24",
    ):  # fmt: skip
        assert expected in shown, expected
    assert "Not among these results" not in shown and "Worth a look" not in shown
    headings = [
        "Summary",
        "Inputs",
        "Hyperparameters",
        "Trajectories",
        "Dose weights",
        "Maps",
        "Noise",
        "Run",
        "References",
    ]
    assert re.findall(r"<h2>(.*?)</h2>", html) == headings
    assert re.findall(r'<a href="#(.*?)">', html) == re.findall(r'<section id="(.*?)">', html)


def test_every_figure_has_axes_with_units(store: ResultStore) -> None:
    fill(store)
    drawings = figures_of(render_report(store, title="t"))
    # scores and activity at 3 distances, all rays; 4 for each micrograph; dose; maps; noise
    assert len(drawings) == 2 * 3 + 1 + 6 * 4 + 7 + 3 + 2
    without_unit = {"Cross-validation score", "Score (lower is better)", "Total prior strength", "Fourier cylinder correlation",
                    "Weight per e/Å²", "Scale factor", "FSC, corrected for the mask", "FSC, masked", "FSC"}  # fmt: skip
    for drawing in drawings:
        labels = [unescape(text) for text in re.findall(r'class="axis m"[^>]*>([^<]*)<', drawing)]
        assert len(labels) in (2, 3)
        assert all(re.search(r"\(.+\)$", text) or text in without_unit for text in labels), labels
    assert sum("(e/Å²)" in drawing for drawing in drawings) == 6
    assert sum("Spatial frequency (1/Å)" in drawing for drawing in drawings) == 8


def test_every_figure_has_a_caption_that_says_how_to_read_it(store: ResultStore) -> None:
    fill(store)
    figures = re.findall(r"<figure.*?</figure>", render_report(store, title="t"), re.DOTALL)
    assert len(figures) == 3 + 6 + 5 + 2 + 2
    for found in figures:
        caption = text_of(re.findall(r"<figcaption>(.*)</figcaption>", found)[0]).strip()
        assert len(caption) > 150 and re.search(r"[Gg]ood|should", caption) and caption.endswith("."), caption


def test_units_are_those_of_the_dataset() -> None:
    search = fake_search()
    search["activity_local"].attrs["units"] = "furlong"
    assert "Trajectory activity, local (furlong)" in "".join(report_search.rays(search))
    search["strength"].attrs["units"] = "(e/Å²)/Å²"
    assert "Total prior strength, (e/Å²)/Å²" in "".join(report_search.rays(search))


@pytest.mark.parametrize("as_tree", [False, True])
def test_names_are_escaped(store: ResultStore, as_tree: bool) -> None:
    evil = '<script>"x"&'
    store.write(f"tracks/{evil}", fake_tracks())
    store.write(f"noise/{evil}", fake_noise())
    search = fake_search()
    search["reason"] = search["reason"].astype(object)
    search["reason"][:] = evil
    store.write("search", search)
    dose = fake_dose_weights(2).assign_coords(group=[evil, "b"])
    dose["fcc"].attrs["long_name"] = evil
    store.write("dose_weights", dose)
    particles = fake_particles()
    for name in ("micrograph", "reason"):
        particles[name] = particles[name].astype(object)
        particles[name][:] = f"{evil}</script>"
    particles["written"][:] = False
    store.write("particles", particles)
    store.write("validation", fake_validation().assign_coords(combination=[evil, "a", "b", "c"]))
    audit = fake_audit()
    audit.attrs["findings"] = [[evil, evil]]
    store.write("audit", audit)
    left = {"reason": evil, "particles": 0, "n_micrographs": 1, "micrographs": [evil]}
    inputs = {evil: evil, "files": [[evil, evil]], "skipped": [left]}
    store.update_attrs(inputs=inputs, command=evil, defaults={evil + "2": evil}, versions={evil: evil},
                       settings=json.dumps({evil: [evil]}), seconds={evil: 1.0}, warnings=[evil], version=evil)  # fmt: skip
    html = render_report(store.tree() if as_tree else store, title=evil)
    assert "<script" not in html and "</script" not in html and "script>" not in html
    assert html.count("&lt;script&gt;&quot;x&quot;&amp;") > 30
    assert well_formed(html)


def test_what_is_missing_is_said_and_how_to_get_it(store: ResultStore) -> None:
    html = render_report(store, title="t")
    for stage in ("hyperparameters", "dose-weights", "correct", "validate"):
        assert f"--until {stage}" in html
    store.write("search", fake_search())
    html = render_report(store, title="t")
    assert "--until hyperparameters" not in html and "--until dose-weights" in html and "<svg" in html


@pytest.mark.parametrize("group", ["search", "dose_weights", "tracks", "noise", "particles", "validation"])
def test_each_group_alone(store: ResultStore, group: str) -> None:
    make = {"search": fake_search, "dose_weights": fake_dose_weights, "tracks": fake_tracks, "noise": fake_noise,
            "particles": fake_particles, "validation": fake_validation}  # fmt: skip
    store.write(group if group not in ("tracks", "noise") else f"{group}/a", make[group]())
    assert well_formed(render_report(store, title="t"))


@pytest.mark.parametrize(
    ("group", "make"),
    [
        ("search", fake_search),
        ("dose_weights", fake_dose_weights),
        ("tracks/a", fake_tracks),
        ("noise/a", fake_noise),
        ("validation", fake_validation),
    ],
)
def test_values_that_are_not_numbers_do_not_stop_the_report(group: str, make: object) -> None:
    whole = make()  # type: ignore[operator]
    for name in (name for name, variable in whole.data_vars.items() if variable.dtype.kind == "f"):
        for where in (slice(None), slice(0, 1)):
            values = whole[name].values.copy()
            values[where] = np.nan
            tree = xr.DataTree.from_dict({group: whole.assign({name: (whole[name].dims, values, whole[name].attrs)})})
            assert well_formed(render_report(tree, title="t")), name


def test_small_results(store: ResultStore) -> None:
    store.write("search", fake_search().isel(ray=slice(0, 1), step=slice(0, 1)))
    store.write("dose_weights", fake_dose_weights().isel(frame=slice(0, 1)))
    store.write("tracks/none", fake_tracks().isel(particle=slice(0, 0)))
    store.write("tracks/one", fake_tracks().isel(particle=slice(0, 1), frame=slice(0, 1)))
    store.write("particles", fake_particles().isel(particle=slice(0, 0)))
    assert well_formed(render_report(store, title="t"))
    empty = fake_search().isel(ray=slice(0, 0))
    empty.attrs = {}
    store.write("search", empty)
    assert "No motion hyperparameters were searched" in render_report(store, title="t")
    store.write("search", xr.Dataset(attrs=fake_search().attrs))
    shown = text_of(render_report(store, title="t"))
    assert "hyperparameters were given: a total prior strength of 2.56, a balance of 30° and" in shown
    assert "Hyperparameter Given" in shown and "Spatial prior strength 2.217" in shown
    assert "were given, so there are no rays to show" in shown


def test_a_choice_refined_beyond_the_rays() -> None:
    search = fake_search()
    assert "refinement" not in "".join(report_search.hyperparameter_tables(search, []))
    search.attrs |= {"strength": 3.5, "cv_score": -0.061, "activity_local": 1.25}
    assert "before refinement (★) 2.56" in text_of("".join(report_search.hyperparameter_tables(search, [])))
    told = sentences({"search": search})[0]
    assert "down to 6.2 Å, judged by those from there to 4.4 Å against the opposite half map" in told
    assert (
        "score of these, −0.061, belongs to a total prior strength of 3.5," in told
        and "is 1.25 Å for local motion" in told
    )
    assert "(★), of strength 2.56, balance 30° and" in told
    search.attrs["cv_score"] = -0.04  # solved more exactly than the steps of rays, and not below the star's
    assert "−0.04 (the star's is that of a rougher solution), belongs to" in sentences({"search": search})[0]
    search.attrs["balance_deg"] = 60.0  # of another of the three best rays
    assert "before refinement (★) 30°" in text_of("".join(report_search.hyperparameter_tables(search, [])))


def test_the_fcc_is_drawn_as_far_as_it_was_measured() -> None:
    dose = fake_dose_weights().isel(group=0)
    whole = report_dose.damage(dose)[0]
    dose["fcc"][..., dose.sizes["frequency"] // 2 :] = np.nan
    cut = report_dose.damage(dose)[0]
    resolutions = [re.findall(r">([\d.]+) Å<", one) for one in (whole, cut)]
    assert min(map(float, resolutions[0])) < 5 < min(map(float, resolutions[1]))


def test_the_fitted_band_sets_what_is_shown_of_the_fcc() -> None:
    dose = fake_dose_weights()
    dose["fcc"][..., :5] = 0.9
    dose.attrs |= {"fitted_from_A": 25.0, "fitted_to_A": 4.0}
    image, curves, _, weights, _ = report_dose.damage(dose.isel(group=0))
    bar = float(re.findall(r'<image x="([\d.]+)"', image)[1]) + 13
    ticks = [float(text) for text in re.findall(rf'x="{bar:g}"[^>]*>([\d.]+)<', image)]
    assert 0.05 < max(ticks) < 0.2
    assert "0.90" not in curves and "<span" in weights and "4.0 Å" in weights


def test_without_a_split_of_the_motion(store: ResultStore) -> None:
    store.write("tracks/a", fake_tracks().drop_vars(["common", "rigid", "row"]))
    assert well_formed(render_report(store, title="t"))


def test_warnings_say_what_to_do(store: ResultStore) -> None:
    search = fake_search(retire=False)
    search["activity_local"][3] += 0.2
    search["cv_score"][3, -1] = search["cv_score"][3].min() - 1e-4  # still getting better where it ended
    last = float(search["activity_local"][3, -1])
    store.write("search", search)
    validation = fake_validation()
    validation["resolution_0143"][0] = [3.1, 3.1, 3.1, 3.4]
    store.write("validation", validation)
    store.update_attrs(warnings=["the frames were counted twice"])
    shown = text_of(render_report(store, title="t"))
    assert "on 1 of 12 rays" in shown and f"still move up to {last:.3g} Å. Raise max_strength." in shown
    assert "The frames were counted twice" in shown
    assert "Reference 1: the corrected particles give a worse map (3.40 Å)" in shown


def test_warnings_about_the_best() -> None:
    search = fake_search()
    search.attrs |= {"best_step": 0}
    assert any("first step" in text for text in warnings({"search": search}, {}))
    search["activity_local"] = search["activity_local"] * 0.01
    assert any("support" in text for text in warnings({"search": search}, {}))
    assert not warnings({"search": fake_search(), "validation": fake_validation()}, {})


def test_the_ray_table_has_the_best_first_and_says_why_each_ended() -> None:
    search = fake_search()
    rows = re.findall(r"<tr( class=best)?>(.*?)</tr>", report_search.ray_table(search))[1:]
    assert len(rows) == 12 and rows[0][0]
    assert f"<td class=n>{search.attrs['best_ray'] + 1}</td>" in rows[0][1]
    retired = sum("retired: local activity" in row for _, row in rows)
    assert retired == int(search["retired"].sum()) and 0 < retired < 12


def test_rays_off_a_grid_share_a_panel() -> None:
    search = fake_search()
    search["distance"] = ("ray", np.linspace(500, 9000, 12), search["distance"].attrs)
    assert [len(figures_of(found)) for found in report_search.rays(search)] == [1, 1, 1]
    assert [len(figures_of(found)) for found in report_search.rays(fake_search())] == [3, 3, 1]


def test_tracks_are_drawn_to_scale() -> None:
    tracks = fake_tracks(particles=2)
    for name in ("rigid", "common", "shift"):
        tracks[name][:] = 0
    tracks["coordinate"][:] = [[1000.0, 1000.0], [4760.0, 1000.0]]
    tracks["shift"][:, -1, 0] = 10.0
    drawing = figures_of(report_tracks.micrograph("m", tracks))[0]
    starts = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawing)]
    last = re.findall(r"M([\d.]+) [\d.]+l(-?[\d.]+) -?[\d.]+(?=M|$)", re.findall(r'--f7\)" d="(.*?)"', drawing)[0])
    ends = [float(x) + float(step) for x, step in last]
    scale, bar = float(re.search(r"×(\d+)", drawing)[1]), float(re.search(r">([\d.]+) Å, ×", drawing)[1])
    pixel = (starts[1] - starts[0]) / 3760.0
    np.testing.assert_allclose(np.array(ends) - starts, 10.0 * scale * pixel, atol=0.11)
    length = float(re.search(r'class="scale" d="M\d+ \d+h([\d.]+)"', drawing)[1])
    assert length == pytest.approx(bar * scale * pixel, abs=0.1)
    assert "path of 10.00 Å" in drawing


def test_images_hold_the_numbers(tmp_path: Path) -> None:
    levels = np.array([[0, 127, 254], [254, 255, 0]], np.uint8)
    (tmp_path / "a.png").write_bytes(png_of_levels(levels))
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(pixels[0, [0, 2], :3], [[0x44, 0x01, 0x54], [0xFD, 0xE7, 0x25]])
    np.testing.assert_array_equal(pixels[..., 3], [[255, 255, 255], [255, 0, 255]])
    luminance = pixels[0, :, :3] @ [0.3, 0.6, 0.1]
    assert (np.diff(luminance) > 0).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.0, "1234"), (12345.0, "12,345"), (0.05, "0.05"), (-0.0506031, "−0.0506"), (2.5e-7, "2.5×10⁻⁷"),
     (np.nan, "–"), (np.inf, "∞"), (2000.0, "2000"), (1e12, "1×10¹²")],
)  # fmt: skip
def test_numbers_for_people(value: float, text: str) -> None:
    assert svg.number(value) == text


@pytest.mark.parametrize(
    "limits",
    [
        (0.0, 1.0),
        (-0.051, -0.041),
        (0.0, 5760.0),
        (3.0, 3.0),
        (-1e-7, 1e-7),
        (1.0, 24.0),
        (0.1, 0.1),
        (7e-5, 2e-4),
        (1e6, 4e6),
    ],
)
def test_ticks_lie_within_the_axis_and_say_what_they_are(limits: tuple[float, float]) -> None:
    axis = svg.Axis.of("x", limits)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(-1e-6 <= axis.at(value) <= 1 + 1e-6 for value, _ in ticks)
    step = ticks[1][0] - ticks[0][0]
    power = 10.0**axis.power
    assert all(abs(float(text.replace("−", "-")) * power - value) < 1e-3 * step for value, text in ticks)
    assert all(len(text) <= 7 for _, text in ticks)
    assert ("×10" in axis.title) == (power != 1)


@pytest.mark.parametrize("limits", [(0.02, 655.0), (1e-12, 1e9), (2.0, 3.0), (7e-5, 1.6e-4), (1900.0, 15000.0)])
def test_ticks_on_log_axes(limits: tuple[float, float]) -> None:
    axis = svg.Axis.of("x", limits, [0.0, -1.0, np.nan], log=True)
    assert axis.low < limits[0] and axis.high > limits[1]
    assert 2 <= len(axis.ticks()) <= 10 and all(0 <= axis.at(value) <= 1 for value, _ in axis.ticks())
    assert not np.isfinite(axis.at([0.0, -1.0])).any()


def test_lines_break_where_values_are_missing() -> None:
    x, y = np.arange(5.0), np.array([1.0, 2.0, np.nan, 2.0, 1.0])
    drawing = svg.line_drawing("t", svg.Axis.of("x", x), svg.Axis.of("y", y), [svg.Line(x, y, points=list("abcde"))])
    path = re.search(r'<path d="([^"]*)"/><circle', drawing)[1]
    assert re.sub(r"[-\d. ]", "", path) == "MlMl"
    assert re.findall(r"<title>(.)</title>", drawing) == list("abde")


def test_the_report_imports_no_plotting_library() -> None:
    plotting = {"bokeh", "panel", "holoviews", "matplotlib"}
    code = f"import sys, refmotion_nb.views.report; print(sorted({plotting} & {{*sys.modules}}))"
    folder = Path(svg.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_times_are_summed() -> None:
    assert report_html.duration(sum(SECONDS.values())) == "7 min 41 s"
    assert report_html.duration(0.04) == "0.0 s" and report_html.duration(7261) == "2 h 1 min"


def test_a_legend_has_a_pale_line_for_a_pale_one(store: ResultStore) -> None:
    html = render_report(fill(store), title="t")
    assert '<i style="border-top:2px solid var(--c0);opacity:.45"></i>one micrograph' in html


def test_no_line_ends_between_a_number_and_its_unit() -> None:
    kept = '<svg><text>3 Å</text></svg><pre>4 px</pre><p title="5 e/Å²">'
    bound = _bound(f"{kept}at 47 e/Å², 15 % of 6 × 7 px</p>")
    assert bound == f'{kept}at 47\xa0<span class="unit">e/Å²</span>, 15\xa0% of 6\xa0×\xa07\xa0px</p>'


@pytest.mark.browser
@pytest.mark.parametrize("width", [900, 1200])
def test_in_a_narrow_window_no_table_is_cut_off(browser: object, store: ResultStore, width: int) -> None:
    page = browser.blank()  # type: ignore[attr-defined]
    page.set_viewport_size({"width": width, "height": 1000})
    page.set_content(render_report(fill(store), title="t"))
    assert (
        page.evaluate("[...document.querySelectorAll('.scroll')].filter(d => d.scrollWidth > d.clientWidth).length")
        == 0
    )


@pytest.mark.browser
def test_on_paper_it_is_light_and_nothing_hides(browser: object, store: ResultStore) -> None:
    page = browser.blank()  # type: ignore[attr-defined]
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 720, "height": 1000})  # of A4 between its margins
    page.set_content(render_report(fill(store), title="t"))
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 36, 48)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.tHead)")  # repeated where a page ends
    # the two drawings of the panel that is alone in its row
    left, right = (
        page.evaluate("""[...document.querySelector('#trajectories .panels > div:last-child').querySelectorAll('svg')]
        .map(s => [s.getBoundingClientRect().left, s.getBoundingClientRect().top])""")
    )
    assert left[1] == right[1] and left[0] < right[0]
