"""The frame of the app without a browser: folders that may be used, rights, settings, opening, links."""

import argparse
import http.client
import os
import re
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import panel as pn
import pytest
from app_browser import serving
from cryosparc_project import convert
from fake_results import fake_search, fake_tracks, fill
from job import GIVEN, inputs, run

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.cli.app import access_of, opening_of, recorded_opening, recorded_settings, take_up_reused
from refmotion_nb.cli.parser import parser_for
from refmotion_nb.data.files import admit, only_within
from refmotion_nb.data.schema import Skipped
from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.base import Silent
from refmotion_nb.stages.correction import _key
from refmotion_nb.stages.describe import describe_inputs, describes
from refmotion_nb.stages.inputs import Inputs
from refmotion_nb.stages.job import STAGES
from refmotion_nb.stages.runs import Cancelled, Run
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.fields import Field, fields_of
from refmotion_nb.views.app.form import OpeningForm, ProgramForm
from refmotion_nb.views.app.header import Header, now_line
from refmotion_nb.views.app.opening import Opening, files_of
from refmotion_nb.views.app.page import Page
from refmotion_nb.views.app.rights import seat
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.serve import Access
from refmotion_nb.views.app.tabs.correct import CorrectTab
from refmotion_nb.views.app.tabs.data import DataTab, summary
from refmotion_nb.views.app.tabs.dose import DoseTab
from refmotion_nb.views.app.tabs.priors import PriorsTab
from refmotion_nb.views.app.tabs.results import ResultsTab
from refmotion_nb.views.app.tabs.settings import SettingsTab

OWNER = Viewer("owner", True, True)


@pytest.fixture
def project(tiny, tmp_path):
    """A project within the roots, and another folder beside them."""
    (tmp_path / "secret").mkdir()
    shutil.copytree(tiny.folder, tmp_path / "roots" / "project")
    return tmp_path / "roots" / "project"


@pytest.fixture
def engine(project):
    return Engine(Roots([project.parent]))


def relion(folder, **more):
    ref = folder / "Ref"
    return Opening("open_relion", {
        "particles": [folder / "Extract/particles.star"], "micrographs": folder / "MotionCorr/corrected_micrographs.star",
        "references": [rm.Reference(ref / "half1.mrc", ref / "half2.mrc", ref / "mask.mrc")], "root": folder, **more,
    })  # fmt: skip


def ended(run):
    run._ended.wait(60)
    return run


# folders


@pytest.mark.parametrize("path", ["../secret", "project/../../secret", "/etc/passwd", "out", "~root", "a\0b", "loop/x"])
def test_no_path_leads_out_of_the_roots(project, path):
    top = project.parent
    (top / "out").symlink_to(top.parent / "secret")
    (top / "loop").symlink_to(top / "loop")
    roots = Roots([top])
    with pytest.raises(rm.InputError, match=r"outside the folders|no path"):
        roots.place(path)
    assert not roots.holds(path)


def test_links_within_the_roots_are_left_as_they_are(project):
    (project.parent / "link").symlink_to(project)
    assert Roots([project.parent]).place("link/Ref") == project.parent / "link/Ref"


def test_a_folder_is_listed_sorted_without_what_is_hidden_or_leads_outside(project):
    top = project.parent
    for name in ("b.star", "a.star", "C.STAR", "x.mrc", ".hidden.star"):
        (top / name).touch()
    (top / "outside").symlink_to(top.parent / "secret")
    (top / "outside.star").symlink_to("/etc/passwd")
    (top / "inside.star").symlink_to(top / "a.star")
    found = Roots([top]).list(top, (".star",))
    assert found.folders == ("project",) and found.files == ("C.STAR", "a.star", "b.star", "inside.star")
    with pytest.raises(rm.InputError, match="outside the folders"):
        Roots([top]).list(top.parent)
    with pytest.raises(rm.InputError, match="cannot be listed"):
        Roots([top]).list(top / "a.star")


def test_readers_refuse_what_lies_outside_only_while_they_are_told_to(tmp_path):
    with only_within([tmp_path]):
        admit(tmp_path / "a.star")
        with pytest.raises(rm.InputError, match="outside the folders that may be read"):
            admit("/etc/passwd")
    admit("/etc/passwd")


# opening


def test_data_within_the_roots_are_opened_and_can_be_opened_again_from_the_record(engine, project):
    opening = relion(project)
    data = opening.open(engine.roots)
    assert data.particles.sizes["particle"] == 24
    assert Opening.of_record(opening.record()).open(engine.roots).sources == data.sources
    assert all(path.is_relative_to(project) for path in files_of(data))


@pytest.mark.parametrize("name", ["particles", "micrographs", "root", "gain"])
def test_no_argument_may_lead_outside(engine, project, name):
    outside = project.parents[1] / "secret"
    value = [outside] if name == "particles" else outside
    with pytest.raises(rm.InputError, match="outside the folders"):
        relion(project, **{name: value}).open(engine.roots)


def test_a_reference_may_not_lie_outside(engine, project):
    half = project / "Ref/half1.mrc"
    with pytest.raises(rm.InputError, match="passwd is outside the folders"):
        relion(project, references=[rm.Reference(half, half, Path("/etc/passwd"))]).open(engine.roots)


def moved_out(path, secret):
    """Move a file out of the roots and leave a link in its place."""
    to = secret / path.name
    shutil.move(path, to)
    path.symlink_to(to)
    return to


@pytest.mark.parametrize("pattern", ["Movies/*.tif", "gain.mrc", "MotionCorr/Movies/*.star", "Ref/mask.mrc"])
def test_links_within_the_data_that_lead_outside_are_refused_before_they_are_read(engine, project, pattern):
    moved_out(min(project.glob(pattern)), project.parents[1] / "secret").write_bytes(b"not a file of this kind")
    with pytest.raises(rm.InputError, match="outside the folders"):
        relion(project).open(engine.roots)


def test_movies_outside_that_a_star_file_names_are_refused(engine, project):
    motion = min(project.glob("MotionCorr/Movies/*.star"))
    movies = project.parents[1] / "secret" / "Movies"
    shutil.copytree(project / "Movies", movies)
    text = motion.read_text()
    motion.write_text(re.sub(r"(rlnMicrographMovieName\s+)\S+/", rf"\g<1>{movies}/", text))
    assert motion.read_text() != text
    with pytest.raises(rm.InputError, match=r"secret/Movies/.* is outside the folders"):
        relion(project).open(engine.roots)


def test_cryosparc_tables_may_not_name_what_lies_outside(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "roots" / "relion"))
    opening = Opening("open_cryosparc", convert(folder, tmp_path / "roots" / "P1"))
    roots = Roots([tmp_path / "roots"])
    assert opening.open(roots).particles.sizes["particle"] == 24
    (tmp_path / "secret").mkdir()
    moved_out(min((tmp_path / "roots" / "P1").rglob("*.npy")), tmp_path / "secret")
    with pytest.raises(rm.InputError, match="outside the folders"):
        opening.open(roots)


def test_links_in_the_output_folder_that_lead_outside_are_not_followed(engine, project):
    secret, out = project.parents[1] / "secret", project.parent / "out"
    engine.write_to(out)
    store = ResultStore(out / "results.zarr")
    for name in ("search", "dose_weights"):
        store.write(name, fake_search())
    for name in ("report.html", "particles.star"):
        (out / name).touch()
    assert engine.store.read("search") is not None
    moved_out(out / "report.html", secret)
    moved_out(out / "results.zarr/search/strength/0.0", secret)
    moved_out(out / "results.zarr/dose_weights/.zattrs", secret)
    for name in ("search", "dose_weights"):
        with pytest.raises(rm.InputError, match="outside the folders"):
            engine.store.read(name)
    tab = ResultsTab(engine, OWNER)
    tab._files()
    assert "particles.star" in tab.files.object and "report.html" not in tab.files.object
    with pytest.raises(rm.InputError, match=r"out/report.html leads to \S*secret/report.html, outside the folders"):
        engine.run("correct")
    shutil.move(out / "results.zarr", secret)
    (out / "results.zarr").symlink_to(secret / "results.zarr")
    assert engine.store is None


def test_given_weights_may_not_name_what_lies_outside(engine, project):
    array = project / "refm_empirical_dw.npy"
    np.save(array, np.ones((8, 4)))
    ended(engine.open(relion(project)))
    engine.change(spatial_strength=1.5, correlation_distance=3000.0, acceleration_strength=2.0)
    engine.dose_weights_file = array  # as it was when it was chosen
    moved_out(array, project.parents[1] / "secret")
    with pytest.raises(
        rm.InputError, match=r"dw.npy leads to \S*dw.npy, outside the folders that may be read .* --browse \S*/secret$"
    ):
        engine.run("dose-weights").wait(60)


def test_the_engine_opens_in_the_background_and_tells_what_is_wrong(engine, project):
    failed = ended(engine.open(relion(project, micrographs=project / "nothing.star")))
    assert "nothing.star does not exist" in failed.error and engine.session is None
    tab = DataTab(engine, OWNER)
    tab.refresh()
    assert tab.failed.visible and "nothing.star does not exist" in tab.failed.object
    ended(engine.open(relion(project)))
    tab.refresh()
    assert not tab.failed.visible and "<strong>24</strong><small>particles" in tab.held[0][1].object


def test_opening_that_is_cancelled_changes_nothing(engine, project, monkeypatch):
    reading, cancelled = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        reading.set()
        assert cancelled.wait(20)
        return rm.open_relion(*args, **kwargs)

    read, read_text = [], Path.read_text
    monkeypatch.setattr("refmotion_nb.views.app.opening.open_relion", slow)
    monkeypatch.setattr(Path, "read_text", lambda path, **how: read.append(path.suffix) or read_text(path, **how))
    run = engine.open(relion(project))
    assert reading.wait(20)
    header = Header(engine, OWNER, False, True)
    header.refresh()
    assert header.cancel.visible and not header.pause.visible, "it would not wait"
    engine.pause()
    assert run.state == "running"
    header._cancel()
    tab = DataTab(engine, OWNER)
    tab.refresh()
    for told in (header.now, tab.going):
        assert "stopping opening data" in told.object, "at once, though the file is still being read"
    assert header.cancel.disabled and not header.pause.visible
    with pytest.raises(rm.InputError, match=r"opening data is still running; wait for it$"):
        engine.write_to("elsewhere")
    cancelled.set()
    assert ended(run).state == "cancelled" and engine.session is None and ".star" not in read
    header.refresh()
    assert not header.now.visible
    checked = Run(None)
    checked.cancel()
    with pytest.raises(Cancelled):
        relion(project).check(engine.roots, checked)


def test_other_data_take_nothing_over(engine, project, tiny):
    mine, others = tiny.open(), relion(project, first_frame=2).open(engine.roots)
    engine.take(mine, Opening("example"))
    store = fill(ResultStore(engine.out / "results.zarr"))
    store.update_attrs(inputs=describe_inputs(mine, {"dose weights": Path("elsewhere.nc")}))
    engine.change(s_vel=1.0, s_div=1.0, s_acc=1.0, seed=3, symmetry="O")
    engine.dose_weights_file, engine.explored, before = project / "weights.nc", Run(None), engine.session
    before.micrograph("mic0000", rm.HyperparameterSearch())
    tab, results = DataTab(engine, OWNER), ResultsTab(engine, OWNER)
    tab.refresh(), results.refresh()
    assert engine.result("search") is not None and not tab.others.visible and not results.nothing.visible
    engine.take(others)
    assert engine.settings == {"seed": 3} and engine.dose_weights_file is engine.explored is None
    assert not before.spool.held_bytes and not before._references
    assert engine.store is engine.result("search") is engine.result("validation") is None
    tab.refresh(), results.refresh()
    assert "read otherwise (24 particles of" in tab.others.object and results.nothing.visible
    engine.take(mine)
    assert engine.result("search") is not None and engine.settings == {"seed": 3}


def test_a_run_on_other_data_removes_results_that_do_not_hold(engine, project, tiny):
    session = rm.Session(tiny.open())
    store = fill(ResultStore(engine.out / "results.zarr"))
    job = rm.Job(session, engine.out)
    store.write(
        "audit", fake_search().assign_attrs(micrographs=["mic0000"], micrographs_key=session.keys.of(["mic0000"]))
    )
    still_valid = _key(session, "mic0000", ("settings", session.keys.common))
    store.write("tracks/mic0000", fake_tracks(), still_valid)
    store.update_attrs(inputs=describe_inputs(session.data))
    before = store.groups()
    job._describe(store, session)
    assert store.groups() == before
    store.update_attrs(inputs=describe_inputs(relion(project, first_frame=2).open(engine.roots)))
    job._describe(store, session)
    assert store.groups() == ["audit", "tracks/mic0000"]


def test_trajectories_of_other_data_are_not_shown_while_a_run_on_new_data_goes_on(engine, project, tiny):
    store = ResultStore(engine.out / "results.zarr")
    for name in ("mic0000", "mic0001"):
        store.write(f"tracks/{name}", fake_tracks())
    store.update_attrs(inputs=describe_inputs(tiny.open()))
    engine.take(relion(project, first_frame=2).open(engine.roots))
    engine.change(spatial_strength=1.5, correlation_distance=3000.0, acceleration_strength=2.0)
    tab, shown = CorrectTab(engine, OWNER), []

    class Looking(Silent):
        def advance(self, n=1, **facts):
            tab.update()
            shown.append((tab.tracks.visible, tab.told.object))

    engine.session.begin(1, 1e9)
    rm.Job(engine.session, engine.out, dict(engine.settings)).run("hyperparameters", Looking())
    assert shown and not any(visible for visible, _ in shown)
    tab.update()
    assert tab.told.object == "Nothing corrected yet." and not tab.tracks.visible


def test_a_check_lists_what_is_wrong_without_opening(engine, project):
    tab = DataTab(engine, OWNER)
    checked = ended(engine.check(relion(project, references=[])))
    assert checked.state == "done" and engine.session is None
    tab.refresh()
    assert tab.checked[0][0].object.startswith("<h3>Check: RELION project in") and not tab.form_card.collapsed
    engine.take(relion(project).open(engine.roots))
    tab.refresh()
    assert tab.form_card.collapsed and not len(tab.checked)  # that was of other data
    tab.form_card.collapsed = False  # for other data
    engine.checked = Run(None)
    tab.refresh()
    assert tab.going.visible and not tab.form_card.collapsed and tab.held[0][0].object == "<h3>What is open</h3>"


def test_the_summary_says_what_was_left_out_and_why(tiny):
    data = tiny.open()
    assert "left out" not in summary(data)
    skip = Skipped(3, "mic0001", "its movie has <7> frames, most have 8")
    told = summary(replace(data, skipped=(skip,), notes=("a & b",)))
    assert "<td>1</td><td>its movie has &lt;7&gt; frames, most have 8</td><td>e.g. on mic0001</td>" in told
    assert "a &amp; b" in told


# the form


def test_the_form_makes_the_call_that_is_filled_in(engine, project):
    form = ProgramForm(engine.roots, cryosparc=False)
    with pytest.raises(
        rm.InputError,
        match=r"not filled in: micrographs, particles, half map 1, half map 2 \(or postprocess.star in place of both\); choose",
    ):
        form.opening(Inputs())
    wanted = relion(project)
    form.movies[0].input.value = str(wanted.arguments["micrographs"])
    form.root.input.value = str(project)
    for name, path in (
        ("particles", "Extract/particles.star"),
        *((n, f"Ref/{n}.mrc") for n in ("half1", "half2", "mask")),
    ):
        form.references[0].fields[name].input.value = str(project / path)
    assert form.opening(Inputs()) == wanted
    assert form.opening(Inputs(first_frame=2)).arguments["first_frame"] == 2


def test_postprocess_names_the_maps_in_the_form_too(engine, project, tiny):
    form = ProgramForm(seat(engine, OWNER).roots, cryosparc=False)
    post, wanted = project / tiny.postprocess.relative_to(tiny.folder), relion(project).arguments["references"][0]
    form.movies[0].input.value, form.root.input.value = "movies.star", str(project)
    fields = form.references[0].fields
    fields["particles"].input.value, fields["fsc"].input.value = "particles.star", str(post)
    assert form.opening(Inputs()).arguments["references"] == [replace(wanted, postprocess=post)]
    fields["mask"].input.value = "other.mrc"
    assert form.opening(Inputs()).arguments["references"][0].mask == Path("other.mrc")
    fields["half1"].input.value = "one.mrc"
    with pytest.raises(rm.InputError, match="not filled in: half map 2; choose it"):
        form.opening(Inputs())
    form.roots, fields["half1"].input.value = seat(engine.roots, Viewer("other", False)), ""
    with pytest.raises(rm.InputError, match="looking on"):
        form.opening(Inputs())


def test_a_path_is_browsed_to(engine, project):
    field = ProgramForm(engine.roots, cryosparc=False).movies[0]
    field._toggle()
    assert field.entries.options == ["project/"]
    field._take("project/")
    assert field.entries.options[0] == ".. (up)" and "MotionCorr/" in field.entries.options
    field._take("MotionCorr/")
    field._take("corrected_micrographs.star")
    assert field.path == project / "MotionCorr/corrected_micrographs.star" and not field.panel.visible
    field._go(project.parents[1])
    assert "outside the folders" in field.problem.object


# settings


def test_every_parameter_has_one_field_with_its_help(engine):
    tab = SettingsTab(engine, OWNER)
    assert set(tab.fields) == {name for stage in STAGES for name in fields_of(stage)}
    assert "From 0 to 1." in tab.fields["alignment_fraction"].widget.description
    asked = []
    field = Field("gain_invert", Inputs.param["gain_invert"], lambda *change: asked.append(change))
    for value in ("on", "not given"):  # a browser would show an option whose value is None as nothing
        field.widget.value = field.widget.options[value]
    field.show(None, True)
    assert asked == [("gain_invert", True), ("gain_invert", None)] and field.widget.value == ""


def test_what_one_page_changes_another_shows_marked(engine):
    one, other = SettingsTab(engine, OWNER), SettingsTab(engine, Viewer("other", False))
    one.fields["max_strength"].widget.value = 100.0
    one.fields["energy"].widget.value = "relion"
    assert engine.settings == {"max_strength": 100.0, "energy": "relion"}
    other.refresh()
    field = other.fields["max_strength"]
    assert field.widget.value == 100.0 and "rm-changed" in field.widget.css_classes and field.widget.disabled
    assert "2 changed" in other.told.object
    one.fields["energy"].widget.value = "calibrated"  # the default
    assert engine.settings == {"max_strength": 100.0}
    one._reset()
    one.refresh()
    assert engine.settings == {} and one.fields["max_strength"].widget.value == 30000.0


def test_a_value_out_of_bounds_is_refused_where_it_was_entered(engine):
    tab = SettingsTab(engine, OWNER)
    tab.fields["window_reach_A"].widget.value = 0.5
    assert (
        "window_reach_A is 0.5; give a number from 1 to 200" in tab.fields["window_reach_A"].problem.object
        and engine.settings == {}
    )
    tab.fields["window_reach_A"].widget.value = 12.0
    assert tab.fields["window_reach_A"].problem is None and engine.settings == {"window_reach_A": 12.0}


# rights


CALLS = {
    "open": ("example",), "check": ("example",), "change": (), "write_to": ("x",), "run": ("correct",), "cancel": (), "pause": (),
    "resume": (), "take": (None,), "allow": (OWNER, False),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_who_looks_on_changes_nothing(engine, call):
    before = engine.stamp()
    with pytest.raises(rm.InputError, match="you are looking on; ask the owner"):
        getattr(seat(engine, Viewer("other", False)), call)(*CALLS[call])
    assert engine.stamp() == before and OWNER.may_run


def test_who_looks_on_sets_nothing_either(engine):
    with pytest.raises(rm.InputError, match="looking on"):
        seat(engine, Viewer("other", False)).out = Path("/")


def test_who_looks_on_lists_no_folder(engine):
    other = Viewer("other", False)
    for field in (DataTab(engine, other).out, PriorsTab(engine, other).reuse.path, DoseTab(engine, other).reuse.path):
        field._build()
        field._go(engine.roots.folders[0])
        assert "you are looking on" in field.problem.object and not field.entries.options


def test_the_owner_gives_the_right_and_takes_it(engine):
    other, third = Viewer("other", False), Viewer("third", False)
    for viewer in (OWNER, other, third):
        engine.join(viewer)
    seat(engine, OWNER).allow(other, True)
    seat(engine, other).change(seed=1)
    assert engine.settings == {"seed": 1}
    with pytest.raises(rm.InputError, match="only an owner"):
        seat(engine, other).allow(third, True)
    seat(engine, OWNER).allow(other, False)
    with pytest.raises(rm.InputError, match="looking on"):
        seat(engine, other).change(seed=2)
    engine.leave(other)
    assert [viewer.name for viewer in engine.viewers] == ["owner", "third"]


def test_the_right_to_run_is_a_persons_not_a_pages(engine):
    mine, bob = Access(), {Access().browser: "bobs"}
    page = Page(engine, OWNER)
    engine.join(OWNER)
    first, again = (mine.viewer(None, bob, engine) for _ in range(2))
    assert first.name == again.name == "viewer 1" and mine.viewer(None, {}, engine).name == "viewer 2"
    engine.join(first)
    page.header._unfold()
    line = page.header.menu[2]
    assert "viewer 1: looks on" in line[0].object
    engine.leave(first)  # reloads
    engine.join(again)
    line[1].clicks += 1  # of a list made before
    page.header.refresh()
    assert again.may_run and "viewer 1: may run" in page.header.menu[2][0].object
    later = mine.viewer(None, bob, engine)
    assert later.may_run and page.header.people.label == "2 viewers"
    engine.allow(again, False)
    engine.join(later)  # was made before the right was taken
    assert not later.may_run and not mine.viewer(None, bob, engine).may_run
    named, anybody = Access(login={"oauth_provider": "github"}), Access(login={"basic_auth": "sesame"})
    engine.allow(named.viewer("bob", {}, engine), True)
    assert named.viewer("bob", {}, engine).may_run and not named.viewer("ann", bob, engine).may_run
    assert not anybody.viewer("bob", {}, engine).may_run, "whoever knows the password can say that he is bob"


def test_the_top_says_whose_results_are_looked_at_without_data(engine):
    fill(ResultStore(engine.out / "results.zarr"))
    page = Page(engine, Viewer("other", False))
    assert f'no data open, results in <code title="{engine.out}' in page.header.data.object


def test_a_run_that_waits_tells_no_time_left():
    work = SimpleNamespace(what="searching hyperparameters", done=17, total=25, seconds_left=4.0)
    run = SimpleNamespace(stopping=False, state="running", snapshot=SimpleNamespace(works=[work]))
    assert "<small>searching hyperparameters 17 of 25, about 4 s left</small>" in now_line(run)
    run.state = "paused"
    assert "<small>paused: searching hyperparameters 17 of 25</small>" in now_line(run)


def test_a_page_shows_the_state_that_others_made(engine, tiny):
    page = Page(engine, Viewer("other", False))
    assert "<span>no data open</span>" in page.header.data.object
    engine.take(tiny.open())
    page.refresh()
    assert "24 particles on 2 micrographs" in page.header.data.object
    assert not page.header.cancel.visible and page.header.people.label == "Looking on"


def test_a_page_in_a_dark_notebook_turns_dark(engine):
    page = Page(engine, OWNER)
    assert not page.tab(0).movies.figure.dark
    page.layout[-1].dark = True  # as a browser tells
    assert page.layout.css_classes == ["rm-app", "rm-dark"] and page.tab(0).movies.figure.dark
    assert page.body[-1] is page.tab(0).view
    assert len(Page(engine, OWNER, served=True).layout) == 2, "a browser tells by its cookie"


def test_a_cell_that_is_run_again_ends_the_page_it_made_before(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session, ended = rm.Session(tiny.open()), []
    monkeypatch.setattr(
        pn.state, "add_periodic_callback", lambda call, period: SimpleNamespace(stop=lambda: ended.append(call))
    )
    first, second = rm.app(session), rm.app(session, browse=str(tmp_path))
    assert len(ended) == 1 and "it goes on there" in first[0].object and len(second) > 1


# who gets in


def access(*arguments):
    parser = parser_for("app")
    return access_of(parser.parse_args(["app", *arguments]))


GITHUB = ["--oauth-provider", "github", "--oauth-key", "key", "--oauth-secret", "secret"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "0.0.0.0"], "without a login; give --basic-auth or --oauth-provider, or --open-to-all"),
        (["--owner", "ann"], "--owner names who logs in"),
        (["--basic-auth", "password", "--owner", "ann"], "anybody can log in under the name of an --owner"),
        (["--basic-auth", "x", "--oauth-provider", "github"], "give one"),
        (["--basic-auth", ""], "--basic-auth is empty; give a file or a password"),
        (
            ["--basic-auth", "user.json"],
            "--basic-auth user.json does not exist; check the path, or give a password that is none",
        ),
        (["--basic-auth", __file__], f'--basic-auth {__file__} holds no {{"name": "password"}}; correct it'),
        (["--port", "99999"], "port 99999; give one from 1 to 65535"),
        (["--port", "0"], "port 0; give one from 1 to 65535"),
        (["--oauth-key", "x"], "--oauth-key without --oauth-provider"),
        (["--oauth-provider", "githb"], "--oauth-provider githb is not known; give one of"),
        ([*GITHUB[:2]], "github needs --oauth-key, or PANEL_OAUTH_KEY in the environment"),
        ([*GITHUB[:4]], "github needs --oauth-secret, or PANEL_OAUTH_SECRET in the environment"),
        ([*GITHUB, "--oauth-extra-params", "[]"], "--oauth-extra-params is no JSON object"),
        ([*GITHUB, "--oauth-extra-params", "{'a': 1}"], "--oauth-extra-params is no JSON (Expecting"),
        ([*GITHUB, "--prefix", "cryo"], "give --oauth-redirect-uri https://HOST/PREFIX/login"),
        (
            ["--oauth-provider", "generic", *GITHUB[2:], "--oauth-extra-params", '{"TOKEN_URL": "http://x"}'],
            "generic needs AUTHORIZE_URL in --oauth-extra-params, or PANEL_OAUTH_AUTHORIZE_URL in the environment",
        ),
        (["--everybody-runs"], "every account of this machine that reaches port 5006 would run; give --unix-socket"),
        (["--unix-socket", "app.sock"], "does not know its address; give --allow-websocket-origin"),
    ],
)
def test_strangers_are_kept_out(arguments, message):
    with pytest.raises(rm.InputError, match=re.escape(message)):
        access(*arguments).check()


@pytest.mark.parametrize("arguments", [[], ["--address", "::1"], ["--address", "0.0.0.0", "--open-to-all"],
                                       ["--address", "0.0.0.0", "--basic-auth", "password"],
                                       ["--address", "0.0.0.0", "--owner", "ann", *GITHUB]])  # fmt: skip
def test_the_rest_may_be_served(arguments):
    access(*arguments).check()


def test_the_key_makes_an_owner_and_so_does_a_name_that_was_checked(engine, tmp_path):
    (tmp_path / "users.json").write_text('{"ann": "a"}')
    mine = Access(login={"basic_auth": str(tmp_path / "users.json")}, owners=("ann",))
    mine.check()
    assert mine.viewer(None, {mine.cookie: mine.key}, engine).owner
    assert mine.viewer("ann", {}, engine).may_run
    other = mine.viewer("bob", {mine.cookie: "guessed"}, engine)
    assert (other.name, other.may_run, other.owner) == ("bob", False, False)
    assert not Access().viewer(None, {mine.cookie: ""}, engine).may_run
    assert Access(prefix="/hub/user/").link(owner=True).startswith("http://127.0.0.1:5006/hub/user/owner?key=")


# folders of finished runs


def test_a_runs_folder_opens_its_data_again(tiny, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "project"))
    monkeypatch.chdir(tmp_path)
    assert run(Path("project"), Path("out"), "--until", "hyperparameters", "--first-frame", "2", *GIVEN) == 0
    monkeypatch.chdir(folder / "Ref")  # from elsewhere: found above the results
    opening = recorded_opening(tmp_path / "out")
    assert opening.arguments["first_frame"] == 2 and opening.arguments["micrographs"].is_file()
    data = opening.open(Roots([tmp_path]))
    assert data.movies[0].n_frames == 7
    assert describes(ResultStore(tmp_path / "out" / "results.zarr").attrs["inputs"], data), "paths were relative"
    os.rename(folder / "Extract", folder / "Gone")
    with pytest.raises(rm.InputError, match=r"particles.star is not found from here"):
        recorded_opening(tmp_path / "out")


def test_a_runs_folder_opens_data_that_were_named_from_the_root(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    assert (
        run(Path("."), Path("out"), "--root", "project", "--until", "hyperparameters", "--symmetry", "O", *GIVEN) == 0
    )
    monkeypatch.chdir("/")
    given = {"spatial_strength": 1.5, "correlation_distance": 3000.0, "acceleration_strength": 2.0, "symmetry": "O"}
    assert recorded_settings(tmp_path / "out") == given, "nor those of the machine"
    data = recorded_opening(tmp_path / "out").open(Roots([tmp_path]))
    assert data.particles.sizes["particle"] == 24


def test_a_runs_folder_has_its_files_of_other_runs_taken_again(tiny, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    assert run(Path("project"), Path("first"), "--until", "dose-weights", *GIVEN) == 0
    reused = "--hyperparameters", "first/hyperparameters.json", "--dose-weights", "first/dose_weights.nc"
    assert run(Path("project"), Path("out"), "--until", "dose-weights", *reused) == 0
    monkeypatch.chdir("/")
    engine = Engine(Roots([tmp_path]), out=tmp_path / "out")
    take_up_reused(engine, tmp_path / "out")
    assert engine.hyperparameters_file == tmp_path / "first/hyperparameters.json"
    assert engine.dose_weights_file == tmp_path / "first/dose_weights.nc" and "not taken" not in capsys.readouterr().err
    (tmp_path / "first/dose_weights.nc").unlink()
    engine = Engine(Roots([tmp_path / "project"]), out=tmp_path / "project/out")
    take_up_reused(engine, tmp_path / "out")
    assert engine.hyperparameters_file is None and engine.dose_weights_file is None
    first, second = capsys.readouterr().err.splitlines()
    assert "the hyperparameters of the run are not taken again: " in first and "outside" in first
    assert "the dose weights of the run are not taken again: first/dose_weights.nc is not found from here" in second


def test_a_runs_command_need_not_be_of_this_version(tmp_path):
    (tmp_path / "h.json").touch()
    files = [("hyperparameters", str(tmp_path / "h.json"))]
    ResultStore(tmp_path / "results.zarr").update_attrs(
        command="refmotion run --out x --old 3", inputs={"files": files}
    )
    taken = []
    take_up_reused(SimpleNamespace(use_hyperparameters=taken.append), tmp_path)
    assert taken == [tmp_path / "h.json"]


def test_a_run_of_the_app_notes_how_its_data_were_opened(engine, project):
    ended(engine.open(relion(project)))
    engine.change(spatial_strength=1.5, correlation_distance=3000.0, acceleration_strength=2.0)
    engine.run("hyperparameters").wait(60)
    assert recorded_opening(engine.out) == relion(project)


def test_who_opens_a_finished_run_sees_its_results_first(engine, project, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr("refmotion_nb.views.app.serve.serve", lambda engine, *_: served.append(engine))
    fill(ResultStore(tmp_path / "out/results.zarr"), micrographs=1)
    start = ["app", str(tmp_path / "out"), "--browse", str(tmp_path), "--browse", str(project)]
    assert (
        main(start) == 0 and served[0].note and not served[0].first_tab
    )  # its data are not found, as the first tab says
    ResultStore(tmp_path / "out/results.zarr").update_attrs(opening=relion(project).record())
    assert main(start) == 0 and served[1].first_tab == "Results"
    served[1].cancel()


def test_what_is_not_filled_in_is_told_of_the_program_in_front(engine):
    form = OpeningForm(engine.roots, engine.check, engine.open, engine.example)
    form.check.clicks += 1
    assert form.problem.visible and "half map 1" in form.problem.object
    form.source.value = "CryoSPARC"
    assert not form.problem.visible


def test_the_app_ends_after_what_it_runs(tmp_path, monkeypatch):
    runs = []

    def serve(engine, *_):
        engine.opened = run = Run(rm.DoseWeights())
        runs.append(run)

        def work():
            while True:
                time.sleep(0.1)
                run.advance(0)

        threading.Thread(target=run.follow, args=(work,), daemon=True).start()

    monkeypatch.setattr("refmotion_nb.views.app.serve.serve", serve)
    monkeypatch.setattr("threading.excepthook", lambda _: None)  # of the thread that is cancelled
    assert main(["app", "--browse", str(tmp_path)]) == 0 and runs[0].state == "cancelled"


def test_inputs_on_the_command_line_are_those_of_run(tiny, tmp_path):
    options = parser_for("app").parse_args(["app", *inputs(tiny.folder)])
    assert isinstance(options, argparse.Namespace) and options.folder is None
    opening = opening_of(options, Path("/"))
    assert opening.open(Roots([tiny.folder])).particles.sizes["particle"] == 24


def test_paths_on_the_command_line_may_have_commas(tiny, tmp_path):
    (tmp_path / "P1, second try").symlink_to(tiny.folder)
    options = parser_for("app").parse_args(["app", *inputs(Path("P1, second try"))])
    assert opening_of(options, tmp_path).arguments["micrographs"].is_file()
    tables = ["--exposures", "e.cs", "--particles", "p.cs,passthrough.cs", "--volume", "v.cs"]
    opening = opening_of(parser_for("app").parse_args(["app", *tables]), Path("/P1"))
    assert opening.arguments["particles"] == [("/P1/p.cs", "/P1/passthrough.cs")]


def test_behind_a_login_of_its_own_everybody_may_run(engine):
    behind = access("--everybody-runs", "--unix-socket", "app.sock", "--allow-websocket-origin", "*")
    behind.check()
    assert behind.viewer(None, {}, engine).owner and behind.all_origins() == ["*"] and behind.link() == "/"


@pytest.mark.parametrize(("address", "host"), [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("Node.Lab", "node.lab")])
def test_a_page_may_come_from_the_address_that_is_served(address, host):
    assert f"{host}:5006" in Access(address=address).all_origins()
    assert Access(address=address).link() == f"http://{'[::1]' if host == '[::1]' else address}:5006/"


def opened(channel, host, origin):
    """Return the status of the answers to a page and to its websocket, asked for from ``origin``.

    The websocket is of a version that nobody speaks (426), as one of a stranger is refused before that (403).
    """
    connection = http.client.HTTPConnection(host)
    connection.sock = channel
    connection.request("GET", "/")
    page = connection.getresponse()
    page.read()
    asked = {"Upgrade": "websocket", "Connection": "Upgrade", "Origin": origin, "Sec-WebSocket-Version": "1"}
    connection.request("GET", "/ws", headers=asked)
    with connection.getresponse() as answer, channel:
        return page.status, answer.status


def test_the_app_is_served_on_ipv6(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return  # no IPv6 here; what browsers may come by is tested above
    with serving(tmp_path, address="::1") as served:
        port = int(served.url.split(":")[-1].strip("/"))
        for origin, answer in ((f"http://[::1]:{port}", 426), (f"http://[::2]:{port}", 403)):
            assert opened(socket.create_connection(("::1", port)), "[::1]", origin) == (200, answer)


def test_the_app_is_served_on_a_socket_that_only_its_owner_reaches(tmp_path):
    path = tmp_path / "app.sock"
    with serving(tmp_path, unix_socket=str(path), origins=("hub.org",)):
        assert path.stat().st_mode & 0o777 == 0o600
        for origin, answer in (("http://hub.org", 426), ("http://evil.org", 403)):
            channel = socket.socket(socket.AF_UNIX)
            channel.connect(str(path))
            assert opened(channel, "hub.org", origin) == (200, answer)


def test_everywhere_means_every_name_and_address_of_this_machine(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node")
    monkeypatch.setattr(socket, "getfqdn", lambda: "node.lab.org")
    found = [(socket.AF_INET6, 1, 6, "", ("fe80::1%eth0", 0, 0, 2)), (socket.AF_INET, 1, 6, "", ("10.0.0.7", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    origins = Access(address="0.0.0.0", origins=("proxy.org",)).all_origins()
    wanted = {"localhost:5006", "node:5006", "node.lab.org:5006", "10.0.0.7:5006", "[fe80::1]:5006", "proxy.org"}
    assert wanted <= set(origins) and not any("0.0.0.0" in one for one in origins)


def test_exposures_of_cryosparc_come_from_as_many_files_as_there_are(engine):
    form = ProgramForm(engine.roots, cryosparc=True)
    form._add_movies()
    for field, name in zip(form.movies, ("one.cs", "two.cs")):
        field.input.value = name
    for name in ("particles", "volume"):
        form.references[0].fields[name].input.value = f"{name}.cs"
    assert form.opening(Inputs()).arguments["exposures"] == [Path("one.cs"), Path("two.cs")]
