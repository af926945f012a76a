"""Plots by what they hold: elements, dimensions with units, numbers of curves and points, words."""

import re

import holoviews as hv
import numpy as np
import pytest
import xarray as xr
from fake_results import FREQUENCY, N_FRAMES, fake_dose_weights, fake_noise, fake_search, fake_tracks, fake_validation
from panel.io import resources
from panel.io.notebook import load_notebook

import refmotion_nb as rm
from refmotion_nb import plots
from refmotion_nb.data.maps import write_map
from refmotion_nb.data.relion.motion import rigid_displacement
from refmotion_nb.views.figure_colours import ramp
from refmotion_nb.views.plots import look, page


def search(retire=True):
    table = fake_search(retire)
    table["strength"].attrs["units"] = "(e/Å²)/Å²"
    return table


TWO = {
    "search": {"one": search(), "two": search(False)},
    "dose": {"one": fake_dose_weights(), "two": fake_dose_weights()},
    "tracks": {"one": fake_tracks(), "two": fake_tracks(3)},
    "maps": {"one": fake_validation(), "two": fake_validation()},
    "noise": {"one": fake_noise(), "two": fake_noise(1)},
}
CASES = [
    (plots.rays, "search"), (plots.scores, "search"), (plots.activity, "search"), (plots.score_surface, "search"),
    (plots.fcc, "dose"), (plots.fcc_curves, "dose"), (plots.weights, "dose"), (plots.weight_map, "dose"),
    (plots.b_factors, "dose"),
    (plots.trajectories, "tracks"), (plots.local_trajectories, "tracks"), (plots.motion, "tracks"),
    (plots.fsc, "maps"), (plots.noise, "noise"),
]  # fmt: skip
UNITLESS = {"cv_score", "fcc", "frame_scale", "weight", "weight_lo", "fsc_corrected"}
# of the axes of each element; what is not here (lines across, words) has none
AXES = (hv.Curve, hv.Scatter, hv.Points, hv.Image, hv.QuadMesh, hv.Segments, hv.Area)


def elements(plot, kind):
    return plot.traverse(lambda item: item, [kind])


def one(kind):
    return next(iter(TWO[kind].values()))


def panels(plot):
    """Return the panels of a layout, or the one there is."""
    return list(plot) if isinstance(plot, hv.Layout) else [plot]


def title(panel):
    return panel.opts.get().kwargs["title"]


@pytest.fixture(scope="module")
def data(tiny):
    reference = rm.Reference(*tiny.half_maps, mask=tiny.mask)
    return rm.open_relion(tiny.particles, tiny.micrographs, reference, tiny.folder)


@pytest.fixture(scope="module")
def results(data):
    """Return session, search and dose weights of a small set."""
    session = rm.Session(data, 2)
    search = xr.Dataset(attrs={"strength": 2.5, "balance_deg": 53.0, "distance_A": 3000.0})
    return session, search, rm.DoseWeights(target_particles=24).run(session, search)


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize(("function", "kind"), CASES, ids=[function.__name__ for function, _ in CASES])
def test_everything_is_drawn_with_units_and_can_be_restyled(function, kind, several):
    plot = function(TWO[kind] if several else one(kind))
    found = [item for kind in AXES for item in elements(plot, kind)]
    assert found
    for item in found:
        dims = (
            item.kdims[:2]
            if isinstance(item, hv.Points | hv.Image | hv.QuadMesh | hv.Segments)
            else item.dimensions()[:2]
        )
        for dim in dims:
            assert dim.label[0].isupper() or dim.label in "xy", dim
            assert dim.unit or dim.name in UNITLESS, (function.__name__, dim)
    hv.renderer("bokeh").get_plot(plot)
    assert all(title(panel) for panel in panels(plot))
    kind = type(found[0]).__name__
    restyled = plot.opts(getattr(hv.opts, kind)(alpha=0.25))
    assert all(item.opts.get("style").kwargs["alpha"] == 0.25 for item in elements(restyled, type(found[0])))


def test_rays_are_all_there_with_why_they_ended():
    search = fake_search()
    search["strength"].attrs["units"] = "(e/Å²)/Å²"
    plot = plots.rays(search)
    assert len(plot) == 3 and "500 Å" in title(panels(plot)[0])
    steps = [points for points in elements(plot, hv.Points) if "why" not in points and points.label != "best step"]
    assert [d.name for d in steps[0].kdims] == ["strength", "balance"]
    assert steps[0].kdims[0].pprint_label == "Total prior strength, (e/Å²)/Å²"
    assert sum(map(len, steps)) == np.isfinite(search["cv_score"].values).sum()
    ends = [points for points in elements(plot, hv.Points) if "why" in points]
    words = [w for points in ends for w in points.dimension_values("why") if w]
    assert len(words) == 12 and sum(w.startswith("retired: local activity") for w in words) == search["retired"].sum()
    best = [
        points
        for points in elements(plot, hv.Points)
        if points.label == "best step" and np.isfinite(points["strength"]).any()
    ]
    assert len(best) == 1 and best[0]["strength"][0] == search.attrs["strength"]
    assert len(plots.rays(TWO["search"])) == 6


def test_few_reasons_have_a_mark_each():
    search = fake_search()
    search["reason"] = ("ray", np.where(search["retired"].values, "no motion left", "maximum strength reached"))
    labels = {points.label for points in elements(plots.rays(search), hv.Points)}
    assert {"retired: no motion left", "maximum strength reached", "best step"} <= labels


def test_curves_of_the_search():
    search = fake_search()
    curves = elements(plots.scores(search), hv.Curve)
    assert len(curves) == 12 and {c.label for c in curves} == {f"balance {b}°" for b in (10, 30, 50, 70)}
    assert curves[0].vdims[0].name == "cv_score"
    assert {float(line.data) for line in elements(plots.activity(search), hv.HLine)} == {0.05}
    mesh = elements(plots.score_surface(search), hv.QuadMesh)
    assert len(mesh) == 3 and mesh[0].interface.shape(mesh[0], gridded=True) == (4, 16)


def test_fcc_is_an_image_of_frequency_and_dose():
    image = elements(plots.fcc(fake_dose_weights()), hv.Image)[0]
    assert [(d.name, d.unit) for d in image.kdims] == [("frequency", "1/Å"), ("dose", "e/Å²")]
    low = image.dimension_values("fcc", flat=False)[0]  # of the lowest dose
    assert np.allclose(low, fake_dose_weights()["fcc"].values[0, 0])
    assert image.dimension_values("number", flat=False)[:, 0].tolist() == list(range(1, N_FRAMES + 1))
    assert np.allclose(image.dimension_values("frequency", expanded=False), FREQUENCY)
    table = fake_dose_weights()
    whole = table.assign_coords(frequency=table["frequency"] - table["frequency"][0])
    shown = elements(plots.fcc(whole), hv.Image)[0].dimension_values("fcc", flat=False)
    assert np.isnan(shown[:, 0]).all() and not np.isnan(shown[:, 1:]).any()  # nothing is measured at the origin


def test_one_group_of_dose_weights(results):
    table = fake_dose_weights(2).assign_coords(group=["all", "g2"])
    table["b_factor"][1] *= 2
    table["dose"][1, 20:] = np.nan
    pool, mine = (elements(plots.b_factors(table, group), hv.Points)[0] for group in (None, "g2"))
    assert len(pool) == N_FRAMES and len(mine) == 20
    assert np.allclose(mine["b_factor"], 2 * pool["b_factor"][:20])
    with pytest.raises(rm.InputError, match=r"no group 'g3'.*known: all, g2"):
        plots.fcc(table, "g3")
    with pytest.raises(rm.InputError, match=r"known: all$"):
        plots.fcc(results[2], "g3")


def test_weights_stand_beside_the_standard_curve_with_bands():
    plot = plots.weights(TWO["dose"])
    assert len(plot) == 4 and all(re.match(r"Weight at [\d.]+ Å", title(panel)) for panel in panels(plot))
    labels = [curve.label for curve in elements(panels(plot)[0], hv.Curve) if type(curve) is hv.Curve]
    assert labels == ["Grant & Grigorieff", "one", "two"]
    band = elements(plot, hv.Area)
    assert len(band) == 8 and (band[0].dimension_values(1) <= band[0].dimension_values(2)).all()


def test_weights_do_not_depend_on_how_the_dose_was_cut_into_frames():
    whole = TWO["dose"]["one"]
    cut = whole.isel(frame=np.repeat(np.arange(N_FRAMES), 2))
    for name in ("weight", "weight_lo", "weight_hi", "reference_weight", "frame_dose"):
        cut[name] = cut[name] / 2
    cut["dose"] = cut["dose"] + np.tile([-0.25, 0.25], N_FRAMES) * whole["frame_dose"].values[0, 0]
    plot = plots.weights({"whole": whole, "cut": cut})
    for panel in panels(plot):
        one, two = [curve for curve in elements(panel, hv.Curve) if curve.label in ("whole", "cut")]
        np.testing.assert_allclose(two.dimension_values(1)[::2], one.dimension_values(1), rtol=1e-5)
        assert panel.opts.get().kwargs["ylabel"] == "Weight per e/Å²" and one.vdims[0].unit == "Å²/e"


def test_tables_of_the_stage_label_themselves(results):
    dose = results[2]
    for name in (
        "fcc",
        "weight",
        "weight_lo",
        "reference_weight",
        "dose",
        "frame_dose",
        "b_factor",
        "frame_scale",
        "frequency",
    ):
        assert {"units", "long_name"} <= set(dose[name].attrs), name
    assert elements(plots.fcc(dose), hv.Image)[0].kdims[1].pprint_label == "Accumulated dose (e/Å²)"


def test_trajectories_start_at_the_particles_and_are_magnified():
    tracks = fake_tracks()
    plot = plots.trajectories(tracks, magnified=20)
    paths = next(s for s in elements(plot, hv.Segments) if "moved" in s)
    assert len(paths) == 36 * (N_FRAMES - 1) and "× 20" in title(panels(plot)[0])
    last = tracks["coordinate"].values + 20 * (tracks["shift"][:, -1] - tracks["shift"][:, 0]).values
    ends = paths.array(["x_end", "y_end"])[N_FRAMES - 2 :: N_FRAMES - 1]
    assert np.allclose(ends, last, rtol=1e-4)
    assert paths["number"].min() == 2 and paths["number"].max() == N_FRAMES
    bar = next(s for s in elements(plot, hv.Segments) if "moved" not in s).array()[0]
    length = float(elements(plot, hv.Text)[0].data[2].split(" Å")[0])
    assert bar[2] - bar[0] == pytest.approx(20 * length)
    both = elements(plots.trajectories(TWO["tracks"]), hv.Segments)
    assert len(both) == 4
    local = next(s for s in elements(plots.local_trajectories(tracks, magnified=1), hv.Segments) if "moved" in s)
    assert local["moved"].max() < paths["moved"].max()


def test_local_motion_is_about_the_mean_however_a_run_shared_it_out():
    tracks = fake_tracks()
    other = tracks.assign(common=tracks["common"] * 0, rigid=tracks["rigid"] + 1)
    both = [next(s for s in elements(plots.local_trajectories(run, magnified=1), hv.Segments) if "moved" in s)
            for run in (tracks, other)]  # fmt: skip
    assert np.array_equal(*(paths["moved"] for paths in both))
    last = both[0].array(["x_end", "y_end"])[N_FRAMES - 2 :: N_FRAMES - 1]
    assert np.allclose(last.mean(0), tracks["coordinate"].values.mean(0), rtol=1e-4)


def test_panels_fit_a_notebook():
    for panel in panels(plots.scores(TWO["search"]))[:3]:
        assert title(panel).startswith("one\nCorrelation distance")
    first, *others = panels(plots.scores(search()))
    assert "yaxis" not in first.opts.get().kwargs and all(one.opts.get().kwargs["yaxis"] == "bare" for one in others)
    assert not hv.renderer("bokeh").center  # or the left is cut off where the page is narrower


def test_uncertainty_is_drawn_where_there_is_some():
    tracks = fake_tracks()
    assert not [p for p in elements(plots.trajectories(tracks), hv.Points) if "radius" in p]
    tracks["shift_std"] = tracks["shift"].copy(data=np.full(tracks["shift"].shape, 0.3))
    circles = next(p for p in elements(plots.trajectories(tracks, magnified=10), hv.Points) if "radius" in p)
    assert "standard deviation" in title(panels(plots.trajectories(tracks))[0])
    assert len(circles) == 36 * N_FRAMES and np.allclose(circles["radius"], 3.0)


def test_many_particles_are_thinned_out_and_that_is_said():
    plot = plots.trajectories(fake_tracks(particles=400))
    assert "300 of 400 particles" in title(panels(plot)[0])


def test_still_particles_can_be_drawn():
    tracks = fake_tracks()
    tracks["shift"][:] = 0
    assert "× 1" in title(panels(plots.trajectories(tracks))[0])


def test_fsc_of_one_run_and_of_several():
    labels = [curve.label for curve in elements(plots.fsc(fake_validation()), hv.Curve)]
    assert labels == ["rigid · 3.84 Å", "+ weights · 3.62 Å", "+ trajectories · 3.31 Å", "both · 3.15 Å"]
    labels = [curve.label for curve in elements(plots.fsc(TWO["maps"]), hv.Curve)]
    assert labels == ["one · rigid · 3.84 Å", "one · both · 3.15 Å", "two · rigid · 3.84 Å", "two · both · 3.15 Å"]
    with pytest.raises(rm.InputError, match="no reference 1; the run has 1, counted from 0"):
        plots.fsc(fake_validation(), 1)


def test_noise_of_micrographs_and_their_median():
    curves = elements(plots.noise({f"m{i}": fake_noise(i) for i in range(3)}), hv.Curve)
    assert [c.label for c in curves] == ["one micrograph"] * 3 + ["median"]
    assert np.allclose(curves[-1]["noise_power"], np.median([c["noise_power"] for c in curves[:3]], 0))
    assert set(curves[1]["micrograph"]) == {"m1"}


def test_resolution_stands_under_frequencies():
    figure = hv.renderer("bokeh").get_plot(plots.fsc(fake_validation())).state
    assert "(1 / tick)" in figure.xaxis[0].formatter.code and "resolution" in figure.xaxis[0].axis_label


def test_movies_with_their_particles(data):
    movie, particles = next(data.micrographs())
    plot = plots.micrograph(data, movie.micrograph)
    image, points = elements(plot, hv.Image)[0], elements(plot, hv.Points)[0]
    assert [d.unit for d in image.kdims] == ["Å", "Å"] and len(points) == 12
    assert np.allclose(points.array(["x", "y"]), particles["coordinate"].values)
    assert np.allclose(image.bounds.lbrt(), (0, 0, 512 * 1.6, 512 * 1.6))
    frames = [
        elements(plots.frame(data, movie.micrograph, f), hv.Image)[0].dimension_values(2).sum() for f in range(1, 9)
    ]
    assert image.dimension_values(2).sum() == pytest.approx(sum(frames), rel=1e-5)  # rolled, nothing lost
    assert np.abs(rigid_displacement(movie)).max() > movie.pixel_size_A
    # particles are darker than what surrounds them
    at = points.array(["x", "y"])
    middle = np.mean([image.select(x=(x - 60, x + 60), y=(y - 60, y + 60)).dimension_values(2).mean() for x, y in at])
    assert middle < image.dimension_values(2).mean()
    with pytest.raises(rm.InputError, match="frames 1 to 8, not 9"):
        plots.frame(data, movie.micrograph, 9)
    with pytest.raises(rm.InputError, match=r"no micrograph 'mic000' .* for example mic000"):
        plots.micrograph(data, "mic000")


def test_trajectories_lie_over_a_micrograph(data):
    name = data.movies[0].micrograph
    tracks = fake_tracks(width=819.2, height=819.2)
    both = plots.micrograph(data, name) * panels(plots.trajectories(tracks))[0]
    figure = hv.renderer("bokeh").get_plot(both).state
    assert figure.frame_width == 420 and figure.xaxis[0].axis_label == "x (Å)" and figure.y_range.start < 0


def test_particles_before_and_after(results):
    session, search, dose = results
    plot = plots.particles(session, next(iter(session)), search, dose, number=3)
    assert [title(image).split(" · ")[1] for image in elements(plot, hv.Image)] == ["before"] * 3 + ["after"] * 3 + [
        "reference"
    ] * 3
    before, after, predicted = (
        np.stack([image.dimension_values(2, flat=False) for image in elements(plot, hv.Image)[i : i + 3]])
        for i in (0, 3, 6)
    )

    def likeness(images):
        return np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, predicted)])

    assert likeness(after) > 0.3 and likeness(before) > 0.3
    several = plots.particles(session, next(iter(session)), search, {"a": dose, "b": dose}, number=2)
    assert {title(image).split(" · ", 1)[1] for image in elements(several, hv.Image)} == {
        "before", "after · a", "after · b", "reference",
    }  # fmt: skip


@pytest.mark.parametrize("nothing", [{}, {"a": 3}, xr.Dataset()])
def test_what_cannot_be_drawn_is_refused(nothing):
    for function, _ in CASES:
        with pytest.raises(rm.InputError, match="give"):
            function(nothing)


PARTS = [
    (plots.rays, search(), {"ray": 0}), (plots.scores, search(), {"ray": [0, 1]}), (plots.activity, search(), {"ray": [11]}),
    (plots.score_surface, search(), {"ray": [0, 4]}), (plots.rays, search(), {"step": slice(0, 3)}),
    (plots.fcc, fake_dose_weights(), {"group": 0}), (plots.weights, fake_dose_weights(), {"frame": slice(0, 6)}),
    (plots.trajectories, fake_tracks(), {"particle": 3}), (plots.local_trajectories, fake_tracks(), {"particle": [3]}),
    (plots.path, fake_tracks(), {"particle": 3}), (plots.motion, fake_tracks(), {"particle": 3}),
    (plots.fsc, fake_validation(2), {"reference": 1}), (plots.fsc, fake_validation(), {"combination": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "result", "part"), PARTS, ids=[f"{one[0].__name__} {one[2]}" for one in PARTS])
def test_parts_of_results_are_drawn(function, result, part):
    plot = function(result.isel(part))
    assert [item for kind in AXES for item in elements(plot, kind)]


def test_the_star_is_at_the_best_step_of_what_is_drawn():
    few = search().isel(ray=[6, 7, 8])  # the best of all is not the one in their midst
    (star,) = (
        points for points in elements(plots.scores(few), hv.Points)
        if points.label == "best step" and np.isfinite(points["cv_score"]).all()
    )  # fmt: skip
    assert star["cv_score"][0] == few["cv_score"].min()


def test_what_leaves_nothing_to_draw_is_refused():
    with pytest.raises(rm.InputError, match="nothing is left of the result along particle"):
        plots.trajectories(fake_tracks().isel(particle=[]))
    with pytest.raises(rm.InputError, match="magnified is -3; give"):
        plots.trajectories(fake_tracks(), magnified=-3)
    for maps in ({}, "map.mrc"):
        with pytest.raises(rm.InputError, match="no map to draw; give"):
            plots.slices(maps)


def test_colours_are_the_reports():
    assert len(look.colours("c")) == 7 and len(look.colours("f")) == 8
    assert look.category(0) == "#0072b2" and look.category(7) == look.category(0)
    assert ramp()[0] == look.colours("f")[0] and ramp()[-1] == look.colours("f")[-1]


def test_sections_through_maps_show_their_middle_in_angstrom(tmp_path):
    volume = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    write_map(tmp_path / "a.mrc", volume, 2.0)
    whole, part = plots.slices({"a": tmp_path / "a.mrc"})[0], plots.slices({"a": tmp_path / "a.mrc"}, width_A=8.0)[0]
    np.testing.assert_array_equal(whole.dimension_values(2, flat=False), volume[8])
    np.testing.assert_array_equal(part.dimension_values(2, flat=False), volume[8, 6:10, 6:10])
    assert part.bounds.lbrt() == (-4.0, -4.0, 4.0, 4.0) and title(part) == "a"
    assert [d.unit for d in part.kdims] == ["Å", "Å"]


def test_a_notebook_asks_no_other_host_for_style_sheets():
    drawn = rm.plots.fcc(fake_dose_weights())  # which brings Bokeh
    data, _ = hv.Store.renderers["bokeh"].components(drawn, comm=False)
    assert "cdn.holoviz.org" not in data["text/html"] and "InlineStyleSheet" in data["text/html"]


@pytest.mark.parametrize("draw", [plots.rays, plots.scores, plots.activity])
def test_a_search_of_one_step_is_drawn_without_a_warning(draw):
    hv.render(draw(fake_search().isel(step=slice(0, 1))))


def test_a_page_that_comes_later_is_sent_the_scripts_once():
    class Kernel:
        page = "first"

        def get_parent(self):
            return {"header": {"session": self.page}}

    class Shell:
        kernel = Kernel()

    loaded = []
    pages = page.Pages(Shell(), lambda: loaded.append(Shell.kernel.page))
    for Kernel.page in ("first", "first", "reloaded", "reloaded", "first", "other"):
        pages.look()
    assert loaded == ["reloaded", "other"]


def test_a_notebook_is_sent_its_scripts_without_asking_the_jupyter_server(monkeypatch):
    """Panel would ask at the root of the host, which behind JupyterHub is another's, and say in red that it failed."""
    sent = []
    monkeypatch.setenv("PANEL_JUPYTER_ENDPOINT", "1")
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, **_: sent.append(str(data)))
    monkeypatch.setattr("bokeh.io.state.State.output_notebook", lambda *_: None)
    monkeypatch.setattr(resources, "RESOURCE_MODE", resources.RESOURCE_MODE)  # Panel changes it
    with page.sending_all():
        load_notebook(inline=True)
    assert sent and not any('method: "HEAD"' in one for one in sent)
