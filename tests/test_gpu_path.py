"""From movie to particles on a GPU, step by step, against the same on the CPU."""

import re
import runpy
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import strict_cupy
from fake_worker import fake_worker

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.data.maps import read_map
from refmotion_nb.numerics import device_sizes, trajectories
from refmotion_nb.numerics.backend import to_host, xp_of
from refmotion_nb.stages import workers
from refmotion_nb.stages.alignment import Geometry, MotionPrior, alignment_windows, score_windows, solve
from refmotion_nb.stages.device import USABLE_SHARE, choose
from refmotion_nb.stages.dose_weights import micrograph_fcc_sums
from refmotion_nb.stages.execute import Execution
from refmotion_nb.stages.exploration import PriorExploration
from refmotion_nb.stages.micrograph import device_sizes as sizes_of
from refmotion_nb.stages.micrograph import load_micrograph
from refmotion_nb.stages.micrographs import frame_weights
from refmotion_nb.stages.validation import COMBINATIONS
from refmotion_nb.stages.workers import Berths, WorkerSession

PRIOR = MotionPrior(rm.Hyperparameters(5.0, 50.0, 3000.0), 0.7, 10.0, 0.15)


def on_both(cupy, simulation, number=0):
    """Return a session on the CPU and one on the device."""
    data = simulation.open()
    return rm.Session(data, 2, 0, device="cpu"), rm.Session(data, 2, 0, device=f"cuda:{number}")


def close(found, expected, relative):
    found = to_host(found)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=relative, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize(("energy", "crop_to"), [("calibrated", 0), ("calibrated", 64), ("relion", 0)])
def test_from_movie_to_particles(cupy, tiny, energy, crop_to):
    settings = rm.MotionCorrection(energy=energy, fourier_crop_to=64)
    cpu, gpu = on_both(cupy, tiny)
    cpu.crop_to = gpu.crop_to = crop_to
    name = next(iter(cpu))
    expected, found = cpu.micrograph(name, settings), gpu.micrograph(name, settings)
    assert found.spectra.box == (76 if crop_to else 112)  # the references reach shell 37
    assert xp_of(found.spectra.stored) is cupy and xp_of(found.own) is cupy
    steps = np.abs(to_host(found.spectra.stored).astype(int) - expected.spectra.stored)
    assert (
        steps.max() <= 1 and steps.mean() < 0.01
    )  # transforms round their last digits differently: one in 500 of exact ones
    close(found.spectra.scale, expected.spectra.scale, 1e-5)
    close(found.noise_power, expected.noise_power, 1e-5)
    for view in ("ctf", "own", "opposite"):
        close(getattr(found, view), getattr(expected, view), 1e-5)
    one, two = (alignment_windows(m, settings, True, 2) for m in (expected, found))
    close(two.windows.values, one.windows.values, 1e-4)
    assert (two.cross, two.power) == pytest.approx((one.cross, one.power), rel=1e-4)
    one, two = (score_windows(m, settings, 2) for m in (expected, found))
    close(two.windows.values, one.windows.values, 1e-4)
    assert two.reference_power == pytest.approx(one.reference_power, rel=1e-5)
    tracks, on_device = cpu.track(expected, settings, PRIOR), gpu.track(found, settings, PRIOR)
    assert isinstance(on_device.displacement_A, np.ndarray)
    assert np.abs(on_device.displacement_A - tracks.displacement_A).max() < 1e-3  # Å
    sums, on_device = (micrograph_fcc_sums(m, tracks.displacement_A, 2) for m in (expected, found))
    assert isinstance(on_device, np.ndarray)
    close(on_device, sums, 1e-4)
    dose = rm.DoseWeights(energy=energy).run(cpu, rm.hand_picked(cpu, PRIOR.hyperparameters, settings))
    images, on_device = (settings.images(m, tracks, dose, 2) for m in (expected, found))
    assert isinstance(on_device, np.ndarray)
    assert np.linalg.norm(on_device - images) < 1e-4 * np.linalg.norm(images)
    assert np.abs(on_device - images).max() < 1e-3  # of the noise


def test_the_same_hyperparameters_are_found(cupy, tiny):
    search = rm.HyperparameterSearch(target_particles=20, max_strength=30.0)
    on_cpu, on_gpu = (search.run(session) for session in on_both(cupy, tiny))
    for name in ("cv_score", "activity_local", "activity_total"):
        np.testing.assert_allclose(on_gpu[name], on_cpu[name], atol=2e-4, rtol=1e-3)
    assert on_gpu.attrs["strength"] == on_cpu.attrs["strength"]


def test_a_whole_job(cupy, tiny, tmp_path):
    for word in ("cpu", "cuda:0"):
        job = rm.Job(tiny.open(), tmp_path / word[:4], {"device": word, "target_particles": 20, "max_strength": 30.0})
        assert job.run("validate")
    cpu, gpu = (rm.ResultStore(tmp_path / word / "results.zarr") for word in ("cpu", "cuda"))
    for name, _ in tiny.open().micrographs():
        one, two = (store.read(f"tracks/{name.micrograph}")["shift"].values for store in (cpu, gpu))
        assert np.abs(one - two).max() < 0.01  # Å


@pytest.mark.parametrize(("local", "binning"), [(True, 1.0), (True, 1.5), (False, 2.0)])
def test_whole_micrographs(cupy, tiny, local, binning):
    data = rm.open_movies(tiny.micrographs, tiny.folder, hot_pixel_threshold=7.0)
    movie = data.movies[0]
    field = np.random.default_rng(5).normal(0, 0.02, 36)
    movie = replace(movie, local_motion=field if local else None)
    stage = rm.MicrographCorrection(binning=binning, save_nodw=True)
    weights = partial(frame_weights, None, movie, data.groups[0])
    assert (stage.motion(movie, weights).on_grid()[1] is not None) == local
    expected = stage.images(movie, weights, 2)
    for threads in (1, 3):
        found = stage.images(movie, weights, threads, device=choose("cuda:0"))
        assert len(found) == len(expected) == 2
        for one, other in zip(found, expected):
            assert isinstance(one, np.ndarray) and one.std() > 0
            close(one, other, 2e-5)


def test_micrographs_are_written_by_the_device_that_was_asked_for(strict, tiny, tmp_path, capsys):
    command = ["micrographs", "--micrographs", str(tiny.micrographs), "--root", str(tiny.folder), "--threads", "2"]

    def run(out, *options):
        code = main([*command, *options, "--out", str(tmp_path / out)])
        return code, capsys.readouterr().err

    for out, options, device in [("cpu", ("--device", "cpu"), "the CPU, 2"), ("gpu", ("--device", "cuda:1"), "cuda:1 (Stand-in"),
                                 ("two", ("--device", "cuda:1", "--gpu-oversubscription-GB", "0"), "cuda:1")]:  # fmt: skip
        code, told = run(out, *options)
        assert code == 0 and f"running on {device}" in told
    assert strict_cupy.devices.most[0] == 0 and strict_cupy.devices.most[1] > 1e6  # bytes
    names = [movie.micrograph for movie in rm.open_movies(tiny.micrographs, tiny.folder).movies]
    for name in names:
        one, two, three = (read_map(tmp_path / out / f"Micrographs/{name}.mrc")[0] for out in ("cpu", "gpu", "two"))
        close(two, one, 2e-5)
        assert np.array_equal(two, three)  # also two at a time
    strict_cupy.devices.total = 1 << 20
    code, told = run("small", "--device", "cuda:1")
    assert code == 1 and f"the memory of cuda:1 ran out while {names[0]} was summed" in told
    assert "gpu_oversubscription" not in told  # there was one at a time


def test_the_benchmark_for_gpus_runs(cupy, tmp_path, monkeypatch, capsys):
    sizes = "--size 512 --frames 4 --particles 6 --boxes 96 --search-particles 4 --thoroughness fast --repeats 1 --threads 2"
    script = Path(__file__).parents[1] / "benchmarks/gpu.py"
    monkeypatch.setattr("sys.argv", [str(script), "--device", "cuda", *sizes.split(), "--folder", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    told = capsys.readouterr().out
    for what, most in (("trajectories differ by", 1e-3), ("particles by", 1e-3), ("micrographs differ by", 1e-5)):
        assert all(float(one) < most for one in re.findall(rf"{what} (\S+) ", told))
    assert "particles by" in told and "trajectories differ by" in told
    assert "ray search, fast, 1 × 6 particles" in told and told.count("micrographs differ") == 2


def test_the_second_gpu_does_all_the_work(strict, tiny):
    search = rm.HyperparameterSearch(target_particles=20, max_strength=0.2)
    session = on_both(strict, tiny, 1)[1]
    assert session.device.name == "Stand-in 1"
    search.run(session)
    assert strict_cupy.devices.crossings[0] > 0
    assert strict_cupy.devices.most[0] == 0 and strict_cupy.devices.most[1] > 1e6  # bytes


def test_every_gpu_has_a_worker(strict, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("refmotion_nb.data.limits.memory_bytes", lambda: 8e9)
    for name, n in ((0, 2), (1, 2), (3, 4)):
        mine = WorkerSession(tiny.open(), "50%", Counter({"10.0.0.1": n}), choose("cuda:0", 8), True)
        mine.setup(fake_worker(name, tmp_path))
        session = mine.session
        assert session.device == choose(f"cuda:{name % 2}", 8, sharing=n // 2)
        assert session.device.total_bytes == (16 << 30) // n and session.device.at_once == 4 // n
        assert session.cache_bytes == 4e9 / n
    assert Execution(device="cuda", gpus=2).check() is None
    with pytest.raises(rm.InputError, match=r"gpus 3: there are cuda:0 .*leave gpus at 1"):
        Execution(gpus=3).check()


def test_a_worker_keeps_to_the_plan_of_its_gpu(strict, tiny, tmp_path, monkeypatch):
    """As many micrographs at a time as there is room for, as many rays being solved."""
    device, berths, entered, leave = choose("cuda:0", 8), Berths(), [], Event()

    def enter(n_bytes):
        with berths.taken("one", n_bytes, device.together):
            entered.append(n_bytes)
            leave.wait(10)
            entered.remove(n_bytes)

    with ThreadPoolExecutor(3) as pool:
        for sizes, most in (((10**9,) * 3, 2), ((4 * 10**9,) * 2, 1), ((10**9, 5 * 10**9), 1)):
            leave.clear()
            futures = [pool.submit(enter, n) for n in sizes]
            time.sleep(0.05)
            assert len(entered) == most
            leave.set()
            assert not any(one.result() for one in futures)
    with (
        pytest.raises(rm.InputError, match=r"big needs 9.0 GB on cuda:0"),
        berths.taken("big", 9 * 10**9, device.together),
    ):
        pass
    mine = WorkerSession(tiny.open(), 0, Counter(), choose("cuda:0"))
    mine.setup(fake_worker("a", tmp_path, 4, "tcp://a:1"))
    monkeypatch.setattr(workers, "_mine", lambda plugin: mine)
    solving = []

    def solve_one(session):
        solving.append(session)
        time.sleep(0.02)
        assert solving.pop() is session and not solving
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert [one.value for one in pool.map(lambda _: workers._call("", solve_one, [[]]), range(4))] == [[1]] * 4


def test_one_micrograph_is_gone_before_the_next_one_is_read(strict, tiny, monkeypatch):
    data = tiny.open()
    cpu, stage = rm.Session(data, 2, 0, device="cpu"), rm.Validation(write_maps="none")
    names = list(cpu)
    name = names[0]
    references = cpu.references(False)
    held = sum(volume.ft.nbytes for volume in references[0].volumes)
    movie, particles = cpu.micrographs[name]
    extent, box = cpu.extent_A(stage), cpu.micrograph(name, stage).spectra.box
    size = sizes_of(movie, particles.sizes["particle"], references, extent, stage.window_reach_A, box).total
    strict_cupy.devices.total = int((held + size) / USABLE_SHARE) + 4096  # one, beside the references
    session, alive = rm.Session(data, 2, 0, device=choose("cuda:0", 0)), []
    assert session.device.at_once == 2 and session.references(False)
    assert session.together({name: size}) == 1 == choose("cuda:0", 0).together({name: size}, held)

    def load(*arguments, **options):
        assert not any(one() for one in alive), "two are there at a time"
        found = load_micrograph(*arguments, **options)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr("refmotion_nb.stages.session.load_micrograph", load)
    search = rm.hand_picked(session, PRIOR.hyperparameters, stage)
    dose = rm.DoseWeights(target_particles=12).run(session, search)
    stage.run(session, search, dose, combinations=COMBINATIONS[-1:])
    assert len(alive) >= 2 * len(names) and not session.warnings
    strict_cupy.devices.total, n = 8 << 30, len(alive)
    rm.Session(replace(data, references=data.references * 2), 2, 0, device="cuda:0").grey_scale(stage)
    assert len(alive) == n + len(names)


def test_rays_are_solved_in_parts_where_memory_is_short(strict, tiny, monkeypatch):
    session, settings = rm.Session(tiny.open(), 2, 0, device="cuda:0"), rm.HyperparameterSearch()
    m = session.micrograph(next(iter(session)), settings)
    windows = alignment_windows(m, settings, False, 2).scaled(PRIOR)
    priors = [PRIOR.with_hyperparameters(rm.Hyperparameters(r, 50.0, 3000.0)) for r in (0.1, 1.0, 10.0)]
    together = solve(windows, Geometry.of(m), priors, False)
    monkeypatch.setattr(trajectories, "set_work_bytes", lambda *_: 1 << 40)
    apart = solve(windows, Geometry.of(m), priors, False)
    assert device_sizes.set_work_bytes(10, 8, 100) > 8 * (10 * 10 + 100)
    assert np.abs(apart.displacement_A - together.displacement_A).max() < 1e-9
    assert (apart.iterations == together.iterations).all()


def test_a_prior_is_explored_from_any_thread(strict, tiny):
    found = []
    for word in ("cpu", "cuda:1"):
        exploration = PriorExploration.prepare(rm.Session(tiny.open(), 2, 0, device=word))
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(exploration.at, rm.Hyperparameters(2.0, 50.0, 3000.0)).result())
    assert np.abs(found[1]["shift"].values - found[0]["shift"].values).max() < 1e-3  # Å


def test_one_micrograph_is_looked_at_closely(cupy, tiny):
    cpu, gpu = on_both(cupy, tiny)
    settings = rm.HyperparameterSearch()
    one, two = (rm.correlation(session, next(iter(session)), settings)["correlation"] for session in (cpu, gpu))
    close(two.values, one.values, 1e-4)
