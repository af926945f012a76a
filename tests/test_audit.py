"""The audit of the input: wrong axes, wrong contrast, wrong half sets and leaky half maps are told apart by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cryosparc_project import convert
from half_maps import Particles
from job import GIVEN, copied, run, said, store

import refmotion_nb as rm
from refmotion_nb.data import resemblance as resemblances
from refmotion_nb.data.maps import read_map, write_map
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.resemblance import resemblance_scores
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.synthetic.plan import euler_angles_deg
from refmotion_nb.numerics.fourier import band_of
from refmotion_nb.numerics.half_sets import ShellProducts, own_noise, resemblance, shell_products, wrong_share
from refmotion_nb.numerics.projection import euler_to_matrix
from refmotion_nb.stages import session
from refmotion_nb.stages.audit import _about_half_sets, findings, summary


def opened(folder: Path, references: int = 1) -> rm.Dataset:
    ref = folder / "Ref"
    maps = rm.Reference(ref / "half1.mrc", ref / "half2.mrc", ref / "mask.mrc")
    micrographs = folder / "MotionCorr/corrected_micrographs.star"
    return rm.open_relion(
        [folder / "Extract/particles.star"] * references, micrographs, [maps] * references, root=folder
    )


def audited(data: rm.Dataset, **settings):
    return rm.InputAudit(**settings).run(rm.Session(data, 2))


def found(data: rm.Dataset, **settings) -> list[tuple[str, str]]:
    return [(one.severity, one.text) for one in findings(audited(data, **settings))]


def only_error(data: rm.Dataset, **settings) -> str:
    ((severity, text),) = found(data, **settings)
    assert severity == "error"
    return text


def labelled(data: rm.Dataset, half: np.ndarray) -> rm.Dataset:
    return replace(data, particles=data.particles.assign(half=data.particles["half"].copy(data=half)))


def placed(data: rm.Dataset, coordinate_A: np.ndarray) -> rm.Dataset:
    moved = data.particles["coordinate"].copy(data=coordinate_A)
    return replace(data, particles=data.particles.assign(coordinate=moved))


def swapped(data: rm.Dataset) -> rm.Dataset:
    one = data.references[0]
    return replace(data, references=(replace(one, half1=one.half2, half2=one.half1),))


@pytest.fixture(scope="module")
def small(tiny):
    return opened(tiny.folder)


@pytest.fixture(scope="module")
def apoferritin(test_data):
    """Half of the set, to be quick; as long as it is in use, the same references are prepared once."""
    whole = opened(test_data / "apoferritin")
    names = [movie.micrograph for movie in whole.movies[:3]]
    rows = np.flatnonzero(np.isin(whole.particles["micrograph"].values, names))
    prepared, real = {}, session.prepare_references

    def prepare(data, all_shells, threads):
        key = data.references, all_shells
        if key not in prepared:
            prepared[key] = real(data, all_shells, threads)
        return prepared[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "prepare_references", prepare)
        yield replace(whole, movies=whole.movies[:3], particles=whole.particles.isel(particle=rows))


@pytest.fixture(scope="module")
def particles(small):
    return Particles(small)


# numbers


def test_products_are_plain_sums_over_shells_of_the_whole_plane():
    rng = np.random.default_rng(1)
    box, k = 16, 6
    y, a, b = rng.normal(size=(3, 4, box, box))
    back = -np.arange(box) % box
    bands = [band_of(np.fft.rfft2(v), k).astype(np.complex64) for v in (y, a, b)]
    found = shell_products(*bands, threads=2)
    fy, fa, fb, mirrored, exchanged = (np.fft.fft2(v) for v in (y, a, b, y[:, back], y.transpose(0, 2, 1)))
    n = np.fft.fftfreq(box, 1 / box)
    shell = np.floor(np.hypot(n[:, None], n) + 0.5)
    d = np.roll(fa - fb, -1, axis=0)
    expected = {
        "power": fy * fy.conj(), "own": fy * fa.conj(), "opposite": fy * fb.conj(), "mirrored": mirrored * fb.conj(),
        "exchanged": exchanged * fb.conj(), "own_power": fa * fa.conj(), "opposite_power": fb * fb.conj(),
        "both": fa * fb.conj(), "stranger": fy * d.conj(), "mean_stranger": (fa + fb) / 2 * d.conj(),
    }  # fmt: skip
    for name, products in expected.items():
        sums = np.stack([products.real[:, shell == s].sum(1) for s in range(k + 1)], 1)
        np.testing.assert_allclose(found[name], sums, rtol=1e-4, atol=1e-2, err_msg=name)
    np.testing.assert_array_equal(found.count, [np.sum(shell == s) for s in range(k + 1)])


def plain_sets(rng, n=400, k=10, mixed=0.0, foreign=False):
    """Particles in units of their noise, views of one map by phases of their own instead of poses, and half sets mixed."""

    def bands():
        whole = np.fft.rfft2(rng.normal(size=(n, 32, 32)), norm="ortho")
        return band_of(whole, k)

    pose = np.exp(1j * np.angle(bands()))
    signal, noise, other = 0.1 * bands()[0], bands(), bands()
    half = np.arange(n) % 2
    put = pose.conj() * (other if foreign else noise)
    maps = [signal + put[half == h].mean(0) for h in (0, 1)]
    said = np.where(rng.random(n) < mixed, 1 - half, half)
    own, opposite = ((pose * np.array([maps[h] for h in which])).astype(np.complex64) for which in (said, 1 - said))
    observed = 2.5 * (pose * signal + noise).astype(np.complex64)
    return shell_products(observed, own, opposite), said != half


@pytest.mark.parametrize("mixed", [0.0, 0.2, 0.5, 1.0])
def test_own_noise_is_found_in_the_expected_amount(mixed):
    parts, wrong = zip(*(plain_sets(np.random.default_rng(seed), mixed=mixed) for seed in range(10)), strict=True)
    noise = [own_noise(part, 2.5, 2) for part in parts]
    share, error = np.mean([one.found for one in noise], 0)
    assert share == pytest.approx(1 - 2 * np.mean(wrong), abs=3 * error / np.sqrt(10))
    assert np.mean([one.amplitude[0] ** 2 for one in noise]) == pytest.approx(1, abs=0.2)
    shares = np.array([wrong_share(one, 1.0) for one in noise])
    assert np.mean(shares[:, 0]) == pytest.approx(np.mean(wrong), abs=0.03)
    if mixed in (0.2, 0.5):  # at 0 and 1 the share is at the end of its range
        assert np.std(shares[:, 0] - [w.mean() for w in wrong]) < np.mean(shares[:, 1])


def test_particles_that_are_in_neither_map_leave_no_noise_there():
    noise = [own_noise(plain_sets(np.random.default_rng(seed), foreign=True)[0], 2.5, 2) for seed in range(10)]
    share, error = np.mean([one.found for one in noise], 0)
    assert abs(share) < 3 * error / np.sqrt(10)
    z = [one.excess / np.sqrt(one.variance) for one in noise]
    assert np.std(z) == pytest.approx(1, abs=0.06)


def test_shells_before_the_first_do_not_count_for_own_noise():
    """There half maps differ by more than noise, and refinements may join them."""
    products, _ = plain_sets(np.random.default_rng(2), n=6)
    sums = products.sums.copy()
    sums[:, 1:, :3] *= 7
    one, other = own_noise(products, 2.5, 3), own_noise(replace(products, sums=sums), 2.5, 3)
    np.testing.assert_allclose(other.excess, one.excess)
    np.testing.assert_allclose(other.expected, one.expected)
    assert abs(own_noise(replace(products, sums=sums), 2.5, 2).excess - own_noise(products, 2.5, 2).excess).max() > 0.1


def test_products_of_micrographs_come_together_up_to_the_last_common_shell():
    first, second = (plain_sets(np.random.default_rng(1), n=6, k=k)[0] for k in (10, 8))
    both = ShellProducts.together([first, second])
    assert both["own"].shape == (12, 9) and len(both.count) == 9
    np.testing.assert_array_equal(both["own"][:6], first["own"][:, :9])
    np.testing.assert_allclose(first.divided(2)["power"], first["power"] / 4)
    np.testing.assert_allclose(
        resemblance(first.divided(3), "opposite", 1, 8), resemblance(first, "opposite", 1, 8), rtol=1e-12
    )


# correct input


@pytest.mark.parametrize("settings", [{}, {"energy": "relion"}, {"recenter": False}], ids=str)
def test_correct_input_passes(small, settings):
    audit = audited(small, **settings)
    assert findings(audit) == []
    assert audit["resemblance"] > 20 and audit["lead_mirrored"] < -10
    assert audit["own_noise"] == pytest.approx(0.9, abs=0.15) and audit["own_noise_error"] < 0.05
    assert "24 particles resemble it by" in summary(audit)[0]


@pytest.mark.parametrize("orientation", ["cryosparc", "relion"])
def test_correct_input_passes_through_the_other_entrance(small, tiny, tmp_path, orientation):
    data = rm.open_cryosparc(**convert(tiny.folder, tmp_path, orientation), orientation=orientation)
    audit, ours = audited(data), audited(small)
    assert findings(audit) == [] and audit["resemblance"] > 15 and audit["lead_mirrored"] < -8
    np.testing.assert_allclose(audit["own_noise"], ours["own_noise"], atol=0.05)


def test_correct_apoferritin_passes(apoferritin):
    audit = audited(apoferritin)
    assert findings(audit) == [] and audit["resemblance"] > 50 and audit["lead_mirrored"] < -30
    assert audit["own_noise"] == pytest.approx(1, abs=0.1)


def test_few_particles_pass_with_a_note(small):
    few = replace(small, particles=small.particles.isel(particle=[0, 1]))
    ((severity, text),) = found(few)
    assert severity == "note" and text.startswith("2 particles")


# axes and contrast


def test_a_swapped_y_axis_of_the_coordinates_is_named(small, apoferritin):
    for data in (small, apoferritin):
        movie = data.movies[0]
        coordinate = data.particles["coordinate"].values
        mirrored = np.stack([coordinate[:, 0], movie.height * movie.pixel_size_A - coordinate[:, 1]], 1)
        text = only_error(placed(data, mirrored))
        assert text.startswith("the y axis of the coordinates runs against the rows of the movies: at mirrored y")
        assert "replace y by the height of the micrograph minus y" in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c[:, ::-1], "x and y of the coordinates are exchanged"),
        (lambda c: c / 2, "coordinates count pixels twice as large as said"),
    ],
)
def test_coordinates_of_other_conventions_are_named(small, change, named):
    assert only_error(placed(small, change(small.particles["coordinate"].values))).startswith(named)


@pytest.mark.parametrize("energy", ["calibrated", "relion"])
def test_movies_whose_rows_run_the_other_way_are_named(small, energy):
    movies = tuple(
        replace(m, rows_as_stored=True, gain=replace(m.gain, flip_y=not m.gain.flip_y)) for m in small.movies
    )
    text = only_error(replace(small, movies=movies), energy=energy)
    assert text.startswith("the rows of the movies run against coordinates, poses and motion")


def test_mirrored_poses_are_named(apoferritin):
    p = apoferritin.particles
    matrices = np.diag([1, -1, 1]) @ euler_to_matrix(p["euler"].values) @ np.diag([1, 1, -1])
    poses = replace(apoferritin, particles=p.assign(
        euler=p["euler"].copy(data=euler_angles_deg(matrices)), origin=p["origin"].copy(data=p["origin"].values * [1, -1]),
        defocus_angle=-p["defocus_angle"]))  # fmt: skip
    assert only_error(poses).startswith("the y axis of the poses runs against the rows of the movies")


def test_inverted_contrast_is_named(small, tmp_path):
    reference = small.references[0]
    for name in ("half1", "half2"):
        volume, pixel = read_map(getattr(reference, name))
        write_map(tmp_path / f"{name}.mrc", -volume, pixel)
    inverted = replace(reference, half1=tmp_path / "half1.mrc", half2=tmp_path / "half2.mrc")
    assert only_error(replace(small, references=(inverted,))).startswith("the contrast of the reference is inverted")


def test_half_maps_of_noise_are_refused(small, tmp_path):
    reference, rng = small.references[0], np.random.default_rng(0)
    volume, pixel = read_map(reference.half1)
    for name in ("half1", "half2"):
        write_map(tmp_path / f"{name}.mrc", rng.normal(size=volume.shape).astype(np.float32), pixel)
    noise = replace(reference, half1=tmp_path / "half1.mrc", half2=tmp_path / "half2.mrc", postprocess=None)
    with pytest.raises(rm.InputError, match=r"half1.mrc agree in no more than \d shells .*give those of a refinement"):
        rm.InputAudit().run(replace(small, references=(noise,)))


def test_particles_that_are_nowhere_near_get_a_warning(apoferritin):
    size = apoferritin.movies[0].width * apoferritin.movies[0].pixel_size_A
    somewhere = np.random.default_rng(1).uniform(0.15 * size, 0.85 * size, apoferritin.particles["coordinate"].shape)
    ((severity, text),) = found(placed(apoferritin, somewhere))
    assert severity == "warning" and text.startswith("particles hardly resemble their reference")


# half sets


@pytest.mark.parametrize("energy", ["calibrated", "relion"])
def test_swapped_half_maps_are_named(small, energy):
    text = only_error(swapped(small), energy=energy)
    assert text.startswith("half1 and half2 are swapped") and "half1.mrc" in text


def test_particles_that_all_lie_beside_their_place_are_not_taken_for_those_of_the_other_half_map(small):
    """Motion with another zero: own noise is looked for where its correlation with itself is negative."""
    moved = tuple(replace(one, global_shift=one.global_shift + np.array([4 / 1.6, 0])) for one in small.movies)
    ((severity, text),) = found(replace(small, movies=moved))
    assert severity == "warning" and text.startswith("particles lie 4 Å in x and 0 Å in y from where they should")


def test_half_sets_of_another_refinement_are_named(small):
    half = np.random.default_rng(3).permutation(small.particles["half"].values)
    text = only_error(labelled(small, half))
    assert text.startswith("leaky split: half sets are not those of the half maps") and "other half map;" in text


def test_apoferritin_with_wrong_half_sets(apoferritin):
    rng = np.random.default_rng(5)
    half = apoferritin.particles["half"].values
    assert only_error(swapped(apoferritin)).startswith("half1 and half2 are swapped")
    assert "half sets are not those of the half maps" in only_error(labelled(apoferritin, rng.permutation(half)))
    wrong = rng.random(len(half)) < 0.2
    audit = audited(labelled(apoferritin, np.where(wrong, 3 - half, half)))
    assert audit["wrong_share"] == pytest.approx(wrong.mean(), abs=0.01)
    assert "half sets are not those of the half maps, " in findings(audit)[0].text
    assert f"{100 * wrong.mean():.0f} ± 4 %" in findings(audit)[0].text


@pytest.mark.parametrize("wrong", [{"magnification": ((0.8, 0.0), (0.0, 1.25))}, {"beam_tilt_mrad": (400.0, 0.0)}])
def test_particles_are_compared_with_the_optics_of_their_own_group(small, wrong, monkeypatch):
    monkeypatch.setattr(resemblances, "standard_errors", np.mean)  # the mean correlation itself
    (optics,) = small.optics
    group = small.particles["optics"]

    def score(number):
        particles = small.particles.assign(optics=group.copy(data=number))
        data = replace(small, optics=(optics, replace(optics, **wrong)), particles=particles)
        return resemblance_scores({"": data})["", "opposite"]

    name = small.particles["micrograph"].values
    first = np.append(True, name[1:] != name[:-1])  # of each micrograph
    right, mixed, all_wrong = (score(group.values + more) for more in (0, first, 1))
    assert right - mixed < 0.2 * (right - all_wrong) and all_wrong < 0.6 * right


def test_bad_pixels_and_gain_are_those_of_the_movie(small, tmp_path):
    """A stripe of dead and one of burnt pixels through every box does no harm where the defects are listed."""
    movies, spoilt = [], []
    for movie in small.movies:
        with open_movie(movie) as reader:
            frames = np.stack([reader.frame(f) for f in range(movie.n_frames)])
        frames[:, :, ::40] = 200
        tifffile.imwrite(tmp_path / f"{movie.micrograph}.tif", frames[:, ::-1], compression="lzw")
        spoilt.append(replace(movie, path=tmp_path / f"{movie.micrograph}.tif", hot_pixel_threshold=0.0))
        listed = tmp_path / "defects.txt"
        listed.write_text("".join(f"{x} 0 1 {movie.height}\n" for x in range(0, movie.width, 40)))
        movies.append(replace(spoilt[-1], defects=listed))
    named = {"clean": small.movies, "listed": movies, "spoilt": spoilt}
    scores = resemblance_scores({name: replace(small, movies=tuple(some)) for name, some in named.items()})
    assert scores["listed", "opposite"] > 0.8 * scores["clean", "opposite"] > 2 * scores["spoilt", "opposite"]


def test_half_maps_both_made_from_all_particles_are_named(particles, small, tmp_path):
    rng, every = np.random.default_rng(2), np.ones(len(particles.half), bool)
    whole = particles.map(every)
    with pytest.raises(InputError, match="are the same; give one of each half set"):
        audited(particles.with_maps(tmp_path, whole, whole))
    rounded = whole + rng.normal(scale=1e-4 * whole.std(), size=whole.shape).astype(np.float32)
    assert "the same but for rounding" in only_error(particles.with_maps(tmp_path, whole, rounded))
    turned = [particles.map(every, rng, 0.3, 0.25) for _ in "ab"]
    both = particles.with_maps(tmp_path, *turned)
    assert only_error(both).startswith("leaky split: both half maps are made from all particles")
    assert only_error(both, energy="relion").startswith("leaky split: both half maps are made from all particles")
    one = particles.with_maps(tmp_path, whole, turned[0])
    assert only_error(one).startswith("leaky split: ")
    apart = [particles.map(particles.half == h) for h in (1, 2)]
    assert found(particles.with_maps(tmp_path, *apart)) == []


def test_a_leaky_split_of_apoferritin_is_named(apoferritin, tmp_path):
    rng, all_of = np.random.default_rng(2), Particles(apoferritin)
    every = np.ones(len(all_of.half), bool)
    leaky = all_of.with_maps(tmp_path, *(all_of.map(every, rng, 0.3, 0.25) for _ in "ab"))
    assert only_error(leaky).startswith("leaky split: both half maps are made from all particles")


def test_half_maps_of_other_particles_get_a_warning(particles, small, tmp_path):
    first = (small.particles["micrograph"] == small.movies[0].micrograph).values
    maps = [particles.map(~first & (particles.half == h)) for h in (1, 2)]
    data = replace(particles.with_maps(tmp_path, *maps), particles=small.particles.isel(particle=np.flatnonzero(first)))
    ((severity, text),) = found(data)
    assert severity == "warning" and text.startswith("the half maps hold hardly anything of these particles")


@pytest.mark.parametrize(("own_noise", "severity"), [(0.125, "note"), (0.02, "warning")])
def test_half_maps_of_corrected_particles_are_told_from_those_of_others(own_noise, severity):
    figures = {
        "own_noise": own_noise, "own_noise_error": 0.011, "amplitude": 0.187, "amplitude_square_error": 0.001, "power": 154.2,
        "wrong_share": 0.189, "wrong_share_error": 0.032, "wrong_share_1": 0.189, "wrong_share_2": 0.188,
        "map_correlation": 0.045, "map_correlation_at_A": 2.34, "displaced_x": 0.0, "displaced_y": 0.0,
    }  # fmt: skip  # of the apoferritin set and the half maps of its own corrected particles
    (finding,) = _about_half_sets(figures, rm.Reference(Path("a.mrc"), Path("b.mrc")))
    assert finding.severity == severity


# the job


def test_a_job_stops_at_swapped_half_maps_unless_told_otherwise(tiny, tmp_path, capsys):
    project = copied(tiny.folder, tmp_path)
    path = project / "Extract/particles.star"
    blocks = read_star(path)
    blocks["particles"]["rlnRandomSubset"] = 3 - blocks["particles"]["rlnRandomSubset"]
    write_star(path, blocks)
    out = tmp_path / "out"
    assert run(project, out, *GIVEN, "--until", "hyperparameters") == 1
    (line,) = said(capsys)
    assert line.startswith("half1 and half2 are swapped") and "check_input" in line
    assert store(out).has("audit") and not (out / "hyperparameters.json").exists()  # the next try need not read again
    assert run(project, out, *GIVEN, "--until", "hyperparameters", "--no-check-input") == 0
    assert any("half1 and half2 are swapped" in text for text in store(out).attrs["warnings"])
    assert store(out).read("audit").attrs["findings"][0][0] == "error"


@pytest.mark.parametrize("references", [1, 2])  # two are brought to one grey scale first
def test_a_job_reads_no_movie_for_the_audit_alone(tiny, tmp_path, monkeypatch, references):
    read = []
    monkeypatch.setattr(
        session,
        "load_micrograph",
        lambda *a, load=session.load_micrograph, **k: read.append(a[0].micrograph) or load(*a, **k),
    )
    data, out = opened(tiny.folder, references), tmp_path / "out"
    rm.Job(data, out).run("hyperparameters")
    assert sorted(read) == ["mic0000", "mic0001"]
    read.clear()
    rm.Job(data, out).run("hyperparameters")
    assert read == []
