"""Which GPU is taken, what is said where there is none, and what happens when its memory ends."""

import os
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy
from fake_results import fake_dose_weights, fake_search
from numba.core.caching import NullCache

import refmotion_nb as rm
from refmotion_nb.data.movies.look import sample_bytes
from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics import gpu, patches
from refmotion_nb.numerics.backend import irfft2, over_chunks, rfft2
from refmotion_nb.numerics.compiled import product
from refmotion_nb.numerics.correlation import spline_grid
from refmotion_nb.numerics.device_sizes import (
    TRANSFORMED_BYTES,
    MicrographSizes,
    plan_bytes,
    set_work_bytes,
    transform_batch,
)
from refmotion_nb.numerics.trajectories import Windows
from refmotion_nb.stages.alignment import Geometry, MotionPrior, alignment_windows, trajectory_problem
from refmotion_nb.stages.device import Device, choose, choose_like, take_one
from refmotion_nb.stages.execute import Execution
from refmotion_nb.stages.micrograph import device_sizes
from refmotion_nb.views.app.engine import Engine, Viewer
from refmotion_nb.views.app.roots import Roots
from refmotion_nb.views.app.tabs.correct import CorrectTab


def test_without_cupy_auto_takes_the_cpu_and_says_why(monkeypatch):
    device = choose("auto")
    assert (device.is_gpu, device.word, device.xp) == (False, "cpu", np)
    assert device.about(2) == "the CPU, 2 threads (CuPy is not installed)"
    assert choose("cpu").about(1) == "the CPU, 1 thread"
    monkeypatch.setattr(product, "_cache", NullCache())  # as Numba has it where nothing can be written to
    assert ", 1 thread; code is compiled anew by each process, for a minute: set NUMBA" in choose("cpu").about(1)


@pytest.mark.parametrize("word", ["cuda", "cuda:1"])
def test_without_cupy_a_gpu_cannot_be_had(word):
    with pytest.raises(
        InputError, match=rf'device {word}: CuPy is not installed; install it: .*"refmotion-nb\[cuda12\]"'
    ):
        choose(word)


def test_without_a_driver_the_remedy_is_another(strict):
    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    strict.cuda.runtime.getDeviceCount = no_driver
    with pytest.raises(InputError, match=r"device cuda: CuPy finds no usable GPU \(cudaErrorIns.*\); check nvidia-smi"):
        choose("cuda")
    assert "insufficient" in choose("auto").note
    strict.cuda.runtime.getDeviceCount = lambda: 0
    assert choose("auto").note == "CuPy finds no GPU"


def test_a_gpu_is_chosen_by_number_or_by_its_free_memory(strict):
    assert choose("cuda:0") == Device(0, "Stand-in 0", 8 << 30, 1)
    held = strict.empty((1 << 20,), np.uint8)
    assert choose("auto").number == choose("cuda").number == 1
    assert held.nbytes == strict_cupy.devices.used[0]
    assert str(gpu.gpus()[0][1]) == "cuda:1 (Stand-in 1, 8.6 of 8.6 GB free)"
    with pytest.raises(InputError, match=r"device cuda:2: there is no such GPU; there is cuda:0 \(Stand-in 0, "):
        choose("cuda:2")
    with pytest.raises(InputError, match="device 'gpu' is not known; give auto, cpu, cuda or cuda:N"):
        choose("gpu")


def test_workers_of_a_cluster_take_gpus_that_others_have_not(strict, monkeypatch):
    mine = [f"{os.getpid()}-{name}" for name in "abc"]
    marks, numbers = [], []
    for seen in (mine, mine, mine[1:] + mine[:1], mine[1:] + mine[:1], mine):  # two see them in another order
        number, mark = take_one(seen)
        numbers.append(seen[number][-1])
        marks.append(mark)
    assert numbers == ["a", "b", "c", "b", "a"]
    marks[2].close()  # its process ends
    number, marks[2] = take_one(mine)
    assert mine[number][-1] == "c"
    for mark in marks:
        mark.close()
    monkeypatch.setattr("refmotion_nb.stages.device._TAKEN", taken := [])
    held = strict.empty((1 << 20,), np.uint8)  # of the first, which others would leave alone
    here = choose("auto", elsewhere=True)
    assert (here.number, choose_like(here, False, "tcp://a:1", 2).number, held.nbytes) == (1, 0, 1 << 20)
    assert choose_like(here, False, "tcp://a:1", 2).number == 0  # the same again
    assert choose_like(here, False, "tcp://a:1", 1).number == 1  # alone
    taken[0][1].close()
    assert choose_like(Device(), False, "tcp://a:1", 2) == Device()


def test_gpus_of_a_cluster_need_not_be_here(tiny):
    remote = SimpleNamespace(elsewhere=True)
    for word in ("auto", "cuda"):
        device = rm.Session(tiny.open(), workers=remote, device=word).device
        assert (device.kind, device.is_gpu) == (word, False)
        assert device == Execution(device=word, dask="tcp://10.0.0.1:8786").choose_device()
        assert device.about(2) == "the CPU, 2 threads (CuPy is not installed)"
    assert (
        device.of_workers == ", on GPUs"
        and choose("auto", elsewhere=True).of_workers == ", on GPUs where they have any"
    )
    assert choose("auto").of_workers == choose("cpu", elsewhere=True).of_workers == ""
    for word, workers in (("cuda", SimpleNamespace(elsewhere=False)), ("cuda", None), ("cuda:1", remote)):
        with pytest.raises(InputError, match=rf"device {word}: CuPy is not installed"):
            rm.Session(tiny.open(), workers=workers, device=word)


def test_the_app_offers_gpus_by_name_and_free_memory(strict, tmp_path):
    engine = Engine(Roots([tmp_path]))
    tab = CorrectTab(engine, Viewer("owner", True))
    name = "cuda:1 (Stand-in 1, 8.6 of 8.6 GB free)"
    widget = tab.settings["device"].widget
    assert widget.options == {
        "auto": "auto", "cpu": "cpu", "cuda:0 (Stand-in 0, 8.6 of 8.6 GB free)": "cuda:0", name: "cuda:1",
    }  # fmt: skip
    widget.value = "cuda:1"
    assert engine.settings == {"device": "cuda:1"}
    engine.change(device="cuda")  # by another page
    tab.refresh()
    assert widget.value == "cuda"


def test_memory_decides_how_many_micrographs_are_there_at_a_time(strict):
    assert choose("cuda", oversubscription_GB=8).at_once == 2
    assert Execution(device="cuda", gpu_oversubscription_GB=8).choose_device().at_once == 2
    device = choose("cuda:0", oversubscription_GB=8)
    assert device.together({"a": 10**9, "b": 3 * 10**9}) == 2
    assert device.together({"a": 10**9, "b": 4 * 10**9}) == 1
    with pytest.raises(
        InputError, match=r"b needs 9.0 GB on cuda:0 \(Stand-in 0\), which has 8.6 GB; give a smaller box"
    ):
        device.together({"a": 10**9, "b": 9 * 10**9})


def test_sizes_are_those_of_the_arrays(tiny):
    session = rm.Session(tiny.open(), 2, 0, device="cpu")
    settings = rm.HyperparameterSearch()
    m = session.micrograph(next(iter(session)), settings)
    sizes = device_sizes(
        m.movie, m.n, session.references(False), session.extent_A(settings), settings.window_reach_A, m.spectra.box
    )
    assert sizes.spectra == m.spectra.stored.nbytes
    assert sizes.views == m.ctf.nbytes + m.own.nbytes + m.opposite.nbytes
    assert sizes.windows >= 2 * alignment_windows(m, settings, True, 2).windows.values.nbytes
    assert sizes.frames >= m.movie.width * m.movie.height * 4


def test_a_large_movie_needs_what_was_computed_by_hand():
    pixels = 4096 * 4096
    sizes = MicrographSizes.of(250, 40, 320, 320, 100, 41, pixels, 1, sample_bytes(40, pixels))
    assert sizes.spectra == 250 * 40 * 320 * 161 * 2 * 2
    assert sizes.views == 250 * 201 * 101 * (8 + 8 + 4)
    assert sizes.frames == pixels * (8 + 2 + 8) and sizes.gain == pixels * 4
    assert 2.4e9 < sizes.total < 2.7e9
    assert [sample_bytes(n, size) for n, size in ((3, 100), (40, 300 << 20), (40, 2 << 30))] == [300, 1 << 30, 2 << 30]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_trajectories_take_the_memory_that_is_planned(strict, kind):
    rng, (n, n_frames, n_sets) = np.random.default_rng(3), (60, 20, 5)
    grid, rigid = spline_grid(12, 48, 9.0), np.zeros((n_frames, 2))
    geometry = Geometry(
        rng.uniform(0, 3000, (n, 2)), np.ones(n_frames), np.arange(1.0, n_frames), rigid, np.zeros((n, n_frames, 2))
    )
    values = strict.asarray(rng.normal(size=(n, n_frames, grid.size, grid.size)).astype(kind))
    priors = [MotionPrior(rm.Hyperparameters(1.0, 40.0, z), 0.7, 10.0, 0.15) for z in np.geomspace(500, 5000, n_sets)]
    windows = Windows(values, grid, np.zeros((n, n_frames, 2)), 1.3)
    bend, held = np.ones(n_frames), strict_cupy.devices.used[0]
    strict_cupy.devices.most[0] = 0
    problem = trajectory_problem(windows, geometry, priors, False, bend)
    problem.descend(problem.unknowns_of(geometry.initial_A), max_iterations=2)
    planned = n_sets * set_work_bytes(n, n_frames, problem.n_unknowns, values.dtype.itemsize)
    assert 0.75 < (strict_cupy.devices.most[0] - held) / planned <= 1


def test_batches_fit_into_the_memory_that_is_free(strict):
    strict_cupy.devices.total = 1000
    like = strict.zeros(10, np.uint8)
    assert over_chunks(100, lambda part: part.stop - part.start, 4, like=like, item_bytes=10) == [49, 49, 2]
    assert over_chunks(100, lambda part: part.stop - part.start, 4, like=like, item_bytes=10**6) == [1] * 100
    assert over_chunks(3, lambda part: part.start, 1, chunk=1, like=np.zeros(1), item_bytes=10**6) == [0, 1, 2]


def test_work_that_does_not_fit_goes_on_with_half_of_it(strict):
    like, seen = strict.zeros(1), []

    def work(part):
        seen.append((part.start, part.stop))
        if part.stop - part.start > 3:
            raise strict_cupy.OutOfMemoryError("out of memory")
        return list(range(part.start, part.stop))

    found = over_chunks(10, work, 1, like=like, item_bytes=1)
    assert [one for part in found for one in part] == list(range(10))
    assert seen[:3] == [(0, 10), (0, 5), (0, 3)] and all(stop - start <= 3 for start, stop in seen[2:])
    assert "the memory of the GPU ran out" in gpu.note_of(0) and gpu.note_of(1) == ""
    with pytest.raises(MemoryError):
        over_chunks(4, lambda part: strict.empty(1 << 40, np.uint8), 1, like=like, item_bytes=1)
    smallest = gpu.memory_of(strict, 0).share
    for _ in range(100):
        over_chunks(10, lambda part: None, 1, like=like, item_bytes=1)
    assert smallest < 2 * smallest < gpu.memory_of(strict, 0).share <= 1


def test_few_plans_are_made_however_many_images_there_are(strict):
    images = np.random.default_rng(1).standard_normal((300, 16, 16), np.float32)
    for n in (300, 250, 123, 7, 77, 299):
        found = rfft2(strict.asarray(images[:n]))
        np.testing.assert_allclose(found.get(), rfft2(images[:n]), atol=1e-6)
        np.testing.assert_allclose(irfft2(found, 16).get(), images[:n], atol=1e-5)
    assert len(strict_cupy.devices.plans) <= 15 and transform_batch(300, 16) == 256
    for n, box in ((250, 320), (1000, 512), (3, 2048), (1, 8192)):
        held = sum(plan_bytes(min(n, transform_batch(n, box)), box) for _ in range(1))
        assert held <= 4 * TRANSFORMED_BYTES or transform_batch(n, box) == 1


def test_plans_go_where_memory_ends_also_by_the_word_of_a_library(strict):
    class CuFFTError(RuntimeError):
        """As CuPy's, which is no MemoryError."""

    images = strict.zeros((64, 32, 32), np.float32)
    rfft2(images)
    assert strict_cupy.devices.plans
    strict_cupy.devices.fail_at, strict_cupy.devices.fail_with = 1, CuFFTError
    parts = over_chunks(64, lambda part: strict.zeros((part.stop - part.start,)), 1, like=images, item_bytes=1)
    assert len(parts) == 1
    parts = over_chunks(64, lambda part: strict.zeros((part.stop - part.start,)), 1, like=images, item_bytes=1)
    assert [len(one) for one in parts] == [32, 32] and not strict_cupy.devices.plans
    with pytest.raises(RuntimeError, match="another"):
        over_chunks(4, lambda part: (_ for _ in ()).throw(RuntimeError("another")), 1, like=images, item_bytes=1)


def test_what_is_large_is_uploaded_in_slices(strict, monkeypatch):
    monkeypatch.setattr(gpu, "UPLOAD_BYTES", 1000)
    array = np.arange(5000, dtype=np.int16).reshape(50, 100)
    for one in (array, array[:, ::2], array[:2]):
        np.testing.assert_array_equal(gpu.upload(one).get(), one)
    assert strict_cupy.devices.uploaded == 1000
    there = gpu.upload(array)
    assert gpu.upload(there) is there


def test_a_stage_survives_the_end_of_memory_and_says_so_once(strict, tiny, monkeypatch):
    settings = rm.MotionCorrection()
    expected = [m.spectra for _, m in rm.Session(tiny.open(), 2, 0, device="cuda:0").walk(names(tiny), settings)]
    session, calls, cut = rm.Session(tiny.open(), 2, 0, device="cuda:0"), count(), patches.cut_patches

    def ends_twice(*arguments):
        if next(calls) in (3, 7):
            strict_cupy.devices.fail_at = 0  # the next array
        return cut(*arguments)

    monkeypatch.setattr(patches, "cut_patches", ends_twice)
    found = [m.spectra for _, m in session.walk(names(tiny), settings)]
    assert len(session.warnings) == 1 and "the memory of the GPU ran out" in session.warnings[0]
    for one, two in zip(expected, found):
        np.testing.assert_array_equal(one.stored.get(), two.stored.get())


def test_memory_that_ends_is_told_with_the_gpu_and_the_remedy(strict, tiny):
    session, settings = rm.Session(tiny.open(), 2, 0, device="cuda:0"), rm.MotionCorrection()
    strict_cupy.devices.total = 1 << 20
    with pytest.raises(
        InputError, match=r"the memory of cuda:0 ran out while references were brought there .*set device to"
    ):
        session.references(False)
    strict_cupy.devices.total = 8 << 30
    session.references(False)
    name = names(tiny)[0]
    strict_cupy.devices.total = strict_cupy.devices.used[0] + (1 << 20)
    with pytest.raises(InputError, match=f"the memory of cuda:0 ran out while {name} was read"):
        session.micrograph(name, settings)
    assert name not in session.failed  # the movie can be used where there is room
    strict_cupy.devices.total = 8 << 30


@pytest.mark.parametrize("where", ["a task", "priors", "half maps"])
def test_memory_that_ends_in_any_stage_is_told_with_the_gpu_and_that_of_the_host_is_not(
    strict, tiny, where, monkeypatch
):
    session, name = rm.Session(tiny.open(), 2, 0, device="cuda:0"), names(tiny)[0]

    def work(error):
        def ends(*_, **__):
            raise error

        if where == "a task":
            list(session.place.each([name], rm.MotionCorrection(), ends))
        elif where == "priors":
            session.place.apply(ends, [1, 2])
        else:
            monkeypatch.setattr(rm.Validation, "_back_project", ends)
            rm.Validation().run(session, fake_search(), fake_dose_weights())

    for error in (strict.cuda.memory.OutOfMemoryError("out of memory"), RuntimeError("CUFFT_ALLOC_FAILED")):
        with pytest.raises(InputError, match=r"the memory of cuda:0 ran out while .* \(.*\); end other programs there"):
            work(error)
    with pytest.raises(MemoryError, match="16 GiB"):
        work(MemoryError("Unable to allocate 16 GiB"))


def names(simulation):
    return [movie.micrograph for movie, _ in simulation.open().micrographs()]


def test_a_micrograph_stays_on_a_gpu_that_has_room_and_goes_to_the_host_from_one_that_has_not(strict, tiny):
    settings, ballast = rm.MotionCorrection(), []
    read = {}
    for room in (True, False):
        session = rm.Session(tiny.open(), 2, 1e9, device=choose("cuda:0", oversubscription_GB=1))
        if not room:
            ballast.append(strict.empty((5 << 30,), np.uint8))
        first = session.micrograph(names(tiny)[0], settings)
        kept = session.kept.get(*session.kept)
        assert isinstance(kept.spectra.stored, strict.ndarray if room else np.ndarray)
        assert isinstance(kept.own, type(kept.spectra.stored))
        assert (session.spool.held_bytes > 0) is not room
        read[room] = session.micrograph(names(tiny)[0], settings)
        assert isinstance(read[room].own, strict.ndarray) and (read[room] is first) is room
        np.testing.assert_array_equal(read[room].spectra.stored.get(), first.spectra.stored.get())
    np.testing.assert_array_equal(read[True].own.get(), read[False].own.get())


def test_micrographs_leave_a_gpu_when_others_need_its_memory_or_work_goes_on_elsewhere(strict, tiny):
    session, settings = rm.Session(tiny.open(), 2, 0, device=choose("cuda:0", 1)), rm.MotionCorrection()

    def read_all():
        for name in names(tiny):
            session.micrograph(name, settings)

    read_all()
    assert [name for name, *_ in session.kept] == names(tiny)
    ballast = strict.empty((4 << 30,), np.uint8)
    windows = strict.zeros(100)
    assert isinstance(session.keep(windows), np.ndarray) and not session.kept  # windows are read in every step
    del ballast
    read_all()
    assert session.keep(windows) is windows and len(session.kept) == len(names(tiny))
    session.begin(2, 1e9, choose("cuda:1", 1))
    assert not session.kept
    session.device.activate()
    assert session.micrograph(names(tiny)[0], settings).own.device.id == 1
    session.begin(2, 1e9, choose("cpu"))
    read_all()
    assert isinstance(session.micrograph(names(tiny)[0], settings).own, np.ndarray)


def test_what_is_kept_is_copied_once_there_is_room_and_nobody_waits(tiny, monkeypatch):
    session, copied = rm.Session(tiny.open(), 2, 0, device="cpu"), []
    m = session.micrograph(names(tiny)[0], rm.MotionCorrection())

    def on(self, put):
        assert not session.kept._lock.locked()
        copied.append(self)
        return self

    monkeypatch.setattr(type(m), "on", on)
    for limit in (0, 1e9):
        session.spool.limit_bytes = limit
        session.kept.add(("a",), m, session.device)
        session.kept.add(("a",), m, session.device)
    assert copied == [m] and list(session.kept) == [("a",)] and session.spool.held_bytes > 0


def test_windows_go_to_the_host_when_the_gpu_is_half_full(strict):
    device = choose("cuda:0")
    array = strict.zeros(4)
    assert device.keeps(array) and not device.keeps(np.zeros(4))
    ballast = strict.empty((5 << 30,), np.uint8)
    assert not device.keeps(array) and ballast.nbytes
