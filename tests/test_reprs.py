"""What objects show of themselves, as text and as HTML."""

import dataclasses
import html
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_results import fake_dose_weights, fake_search, fill

import refmotion_nb as rm
from refmotion_nb.data.schema import Skipped
from refmotion_nb.stages.base import Cancelled, Stage
from refmotion_nb.views.live_rays import rays_drawing
from refmotion_nb.views.repr_page import Page, Part, Row, html_of, text_of

NASTY = "<script>alert('x')</script> & \"quoted\""
VOID = {"br", "circle", "rect", "input"}


class Tags(HTMLParser):
    """The text of a page and its elements; fails where they are not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.texts, self.hints = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.hints += [value for name, value in attrs if name == "title"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def shown(thing):
    """Return a thing's text and the elements of its HTML, after checking that the two say the same."""
    page = thing._repr_html_()
    assert str(thing) == repr(thing)
    assert f'<pre class="rm-plain">{html.escape(repr(thing))}</pre>' in page
    return repr(thing), Tags(page)


@pytest.fixture
def data(tiny):
    reference = rm.Reference(*tiny.half_maps, mask=tiny.mask)
    return rm.open_relion(tiny.particles, tiny.micrographs, reference, tiny.folder)


def test_changed_settings_stand_out_and_say_what_they_do():
    stage = rm.HyperparameterSearch(target_particles=20)
    text, tags = shown(stage)
    lines = text.splitlines()
    assert lines[:2] == ["HyperparameterSearch: not run yet", "  target_particles  20  (default 5000)"]
    assert "max_strength 30000" in text and text.count("target_particles") == 1
    assert stage._repr_html_().count('<tr class="rm-changed"') == 1
    hints = {name: stage.param[name].doc for name in stage.param if name != "name"}
    assert len(tags.hints) == len(hints) and all(any(doc in hint for hint in tags.hints) for doc in hints.values())
    assert any("1 to 200" in hint for hint in tags.hints) and any(
        "fast, balanced, extensive" in hint for hint in tags.hints
    )


@pytest.mark.parametrize("kind", ["HyperparameterSearch", "DoseWeights", "MotionCorrection", "Validation"])
def test_every_stage_has_both(kind):
    text, tags = shown(getattr(rm, kind)())
    assert text.startswith(f"{kind}: not run yet") and "details" in tags.seen


def test_a_stage_tells_how_its_last_run_went():
    class Step(Stage):
        def run(self, act):
            seen.append(repr(self))
            return act()

    def stop():
        raise Cancelled

    seen, step = [], Step()
    with pytest.raises(Cancelled):
        step.run(stop)
    assert seen[0].startswith("Step: running for ")
    assert repr(step).startswith("Step: cancelled after ")
    with pytest.raises(ZeroDivisionError):
        step.run(lambda: 1 / 0)
    text, _ = shown(step)
    assert text.startswith("Step: failed after ") and "division by zero" in text
    assert step.run(lambda: 3) == step.ran.result == 3 and repr(step).startswith("Step: done in ")


def test_a_stage_that_ran_shows_its_result(data):
    stage = rm.HyperparameterSearch(energy="relion", target_particles=12)
    search = stage.run(data)
    text, tags = shown(stage)
    assert stage.ran.result is search and text.startswith("HyperparameterSearch: done in ")
    assert "cv_score" in text and f"balance {search.attrs['balance_deg']:.3g}°" in text
    assert "xarray.Dataset" in "".join(tags.texts)  # results keep xarray's own


def test_dataset(data):
    skipped = (Skipped(3, "mic0000", NASTY), Skipped(5, "mic0001", NASTY), Skipped(-1, "mic0007", "no particles"))
    text, tags = shown(dataclasses.replace(data, skipped=skipped, notes=(NASTY,)))
    for fact in ("24 on 2 micrographs, half sets 12 + 12", "8 frames, 1.6 Å/px", "4 e/Å² per frame", "left out: 2 particles",
                 "e.g. on mic0000", "box 112 px of 1.6 Å", "no particles", "half1.mrc"):  # fmt: skip
        assert fact in " ".join(text.split()), fact
    assert "script" not in tags.seen and text.count(NASTY) == 2 and "".join(tags.texts).count(NASTY) == 4
    assert tags.seen.count("circle") == 24 and tags.seen.count("svg") == 2
    assert "left out" not in repr(data)


def test_names_of_users_are_escaped(tmp_path, data):
    movies = tuple(dataclasses.replace(m, micrograph=f"{NASTY}{i}") for i, m in enumerate(data.movies))
    names = dict(zip([m.micrograph for m in data.movies], [m.micrograph for m in movies]))
    micrograph = data.particles["micrograph"]
    table = data.particles.assign(micrograph=micrograph.copy(data=np.array([names[n] for n in micrograph.values])))
    session = rm.Session(dataclasses.replace(data, movies=movies, particles=table), threads=1)
    session.failed[NASTY] = NASTY
    session.warnings.append(NASTY)
    things = (
        session.data, session, rm.Reference(Path(NASTY), Path(NASTY)), rm.ResultStore(tmp_path / "a<b>c"),
        rm.Job(session.data, Path(NASTY), {NASTY: NASTY}, warnings=[NASTY]), rm.Validation(symmetry=NASTY),
    )  # fmt: skip
    for thing in things:
        text, tags = shown(thing)
        assert not {"script", "b>c"} & set(tags.seen), thing
        assert "script" in "".join(tags.texts) or "a<b>c" in text
    assert "not found" in repr(things[2])


def test_hyperparameters():
    text, tags = shown(rm.Hyperparameters(20.0, 30.0, 12000.0))
    assert "20 (e/Å²)/Å²" in text and "30°" in text and "12,000 Å" in text
    assert "acceleration strength 10" in text and "s_vel 0.301" in text
    assert any("RELION" in hint for hint in tags.hints)


def test_session_and_job(tmp_path, data):
    session = rm.Session(data, threads=1, cache_bytes=2e9)
    session.seconds["reading movies"] = 65.0
    session.failed["mic0001"] = "its movie is truncated"
    text, _ = shown(session)
    for fact in (
        "24 particles on 2 micrographs",
        "0.00 of 2.00 GB",
        "1 min 5 s",
        "could not be used: 1 micrograph",
        "truncated",
    ):
        assert fact in text, fact
    job = rm.Job(
        data,
        tmp_path,
        {"float16": True, "thoroughness": "fast"},
        seconds={"correction": 3.0, "reading movies (part)": 2.0},
    )
    text, _ = shown(job)
    assert job._repr_html_().count('class="rm-changed"') == 1  # fast is the default
    assert text.startswith("Job: not run yet") and "float16       on" in text and "time: 3.0 s" in text
    text, _ = shown(dataclasses.replace(job, search=fake_search(), dose=fake_dose_weights()))
    assert text.startswith("Job: done: search, dose") and "12 ray × 16 step" in text


def test_result_store(tmp_path):
    empty, _ = shown(rm.ResultStore(tmp_path / "none.zarr"))
    assert empty == f"ResultStore {tmp_path / 'none.zarr'}: empty"
    text, _ = shown(fill(rm.ResultStore(tmp_path / "results.zarr"), 3))
    for fact in ("tracks        3 micrographs", "search", "target_particles 5000", "time: 7 min 41 s"):
        assert fact in text, fact


def test_long_and_empty_pages():
    page = Page("A", "done", (Row("name", "word " * 500),), (Part("none"), Part("folded", (Row("b", "c"),))))
    text = text_of(page)
    assert "…" in text and max(map(len, text.splitlines())) <= 110
    tags = Tags(html_of(page, text))
    assert tags.seen.count("details") == 1


def test_rooms_below_know_nothing_of_reprs():
    code = """
import sys
from refmotion_nb.data.schema import Reference
assert "refmotion_nb.views.reprs" not in sys.modules and not hasattr(Reference, "_repr_html_")
import refmotion_nb as rm
rm.simulate, rm.open_relion
assert hasattr(Reference, "_repr_html_") and "holoviews" not in sys.modules
from refmotion_nb.data.schema import Dataset
assert hasattr(Dataset, "_repr_html_")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_particles_lie_is_worked_out_once_and_for_html_only(data, monkeypatch):
    asked = []
    monkeypatch.setattr(type(data), "micrographs", lambda self: asked.append(1) or iter(()))
    repr(data), str(data)
    assert not asked
    assert "where the particles lie" in data._repr_html_() and len(asked) == 1


VSCODE = {  # what the body of a notebook's output has in each theme, and its --vscode-editor-background and -foreground
    "vscode-light": ("#ffffff", "#000000"),
    "vscode-dark": ("#1e1e1e", "#d4d4d4"),
    "vscode-high-contrast": ("#000000", "#ffffff"),
    "vscode-high-contrast vscode-high-contrast-light": ("#ffffff", "#292929"),
}
FAINTEST = """() => {
    const rgba = text => text.match(/[\\d.]+/g).map(Number)
    const light = rgb => rgb.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], .05)
    const page = rgba(getComputedStyle(document.body).backgroundColor).slice(0, 3)
    const contrast = element => {
        const style = getComputedStyle(element)
        const [r, g, b, alpha = 1] = rgba(element instanceof SVGElement ? style.fill : style.color)
        let shown = alpha
        for (let e = element; e; e = e.parentElement) shown *= getComputedStyle(e).opacity
        const [low, high] = [light([r, g, b].map((v, i) => v * shown + page[i] * (1 - shown))), light(page)].sort((a, b) => a - b)
        return high / low
    }
    return [...document.querySelectorAll(".rm-page *:not(title)")]
        .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
        .map(e => [contrast(e), e.outerHTML]).sort((a, b) => a[0] - b[0])[0]
}"""


@pytest.mark.browser
@pytest.mark.parametrize("theme", VSCODE)
def test_words_can_be_read_in_the_themes_of_vs_code(browser, theme):
    background, foreground = VSCODE[theme]
    rows = (Row("box_size", "160", "default 0", changed=True), Row("seed", "0"))
    drawing = Part("rays", (), True, rays_drawing(fake_search(), True))
    shown = [
        html_of(Page("A", state, rows, (drawing,)), "") for state in ("done in 2 s", "failed after 2 s", "running")
    ]
    page = browser.blank()
    page.set_content(f"<body class='{theme}' style='background: {background}; --vscode-editor-background: {background}; "
                     f"--vscode-editor-foreground: {foreground}'>{''.join(shown)}</body>")  # fmt: skip
    contrast, element = page.evaluate(FAINTEST)
    assert contrast > 4.5, element
