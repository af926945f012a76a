"""One micrograph, one task: in this process, in others, on a Dask cluster, with workers that die; always the same results."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import param
import pytest
from distributed import Client, LocalCluster, Status
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm import CommClosedError
from distributed.utils import get_mp_context
from fake_worker import fake_worker
from job import copied, run, said, store

import refmotion_nb as rm
from refmotion_nb.cli import main
from refmotion_nb.numerics.threads import side_by_side
from refmotion_nb.stages.base import Cancelled, Silent
from refmotion_nb.stages.bundles import Held
from refmotion_nb.stages.correction import without_measurements
from refmotion_nb.stages.device import Device
from refmotion_nb.stages.dose_weights import weights_on
from refmotion_nb.stages.execute import _uninterrupted
from refmotion_nb.stages.particle_motion import ParticleMotion
from refmotion_nb.stages.session import Session
from refmotion_nb.stages.workers import There, Workers, WorkerSession


@pytest.fixture(scope="module", autouse=True)
def forked():
    """Let Dask fork workers from a process that has imported what they need: to start one anew takes seconds."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        context = get_mp_context()
        context.set_forkserver_preload(["distributed", "refmotion_nb.stages.workers", "refmotion_nb.stages.job"])
        yield


@pytest.fixture(scope="module")
def cluster():
    patient = dask.config.set(
        {"distributed.deploy.lost-worker-timeout": "1000 days"}
    )  # a worker is killed again and again
    with patient, LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": False},
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture(scope="module")
def workers(cluster):
    with Client(cluster) as client, rm.execute.dask(client) as workers:
        yield workers


@pytest.fixture(scope="module")
def alone(tiny):
    """Return search, dose weights and session of one process."""
    session = Session(tiny.open(), 2)
    search = rm.HyperparameterSearch().run(session)
    return search, rm.DoseWeights().run(session, search), session


class Killer(Silent):
    """Kills one worker, once, when work of a kind has come to a step."""

    def __init__(self, workers, what, step):
        self.workers, self.when, self.killed, self.now = workers, (what, step), None, ("", 0)

    def start(self, total, what):
        self.now = what, 0

    def advance(self, n=1, **facts):
        self.now = self.now[0], self.now[1] + n
        if self.now == self.when and not self.killed:
            # of all workers the one that holds something: its part has to be done again
            held = self.workers.client.has_what()
            self.killed = self.workers.client.run(os.getpid)[max(held, key=lambda one: len(held[one]))]
            os.kill(self.killed, signal.SIGKILL)


def wait_for_two(workers):
    workers.client.wait_for_workers(2, timeout=60)


def test_stages_give_the_same_bits_on_a_cluster(tiny, workers, alone, tmp_path):
    search, dose, session = alone
    there = Session(tiny.open(), workers=workers)
    assert rm.HyperparameterSearch().run(there).identical(search)
    assert rm.DoseWeights().run(there, search).identical(dose)
    assert rm.InputAudit().run(there).identical(rm.InputAudit().run(session))
    assert not there.kept and not there.tracks, "the movies were read here"
    for where, out in ((session, tmp_path / "one"), (there, tmp_path / "two")):
        rm.MotionCorrection().run(where, search, dose, out, image_root=out)
    files = sorted(
        p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.suffix in (".mrcs", ".star")
    )
    assert len(files) == 6
    for file in files:
        one, two = ((tmp_path / out / file).read_bytes() for out in ("one", "two"))
        begin = 1024 if file.suffix == ".mrcs" else 0  # headers hold the time
        assert one[begin:] == two[begin:], file
    one, two = (rm.ResultStore(tmp_path / out / "results.zarr") for out in ("one", "two"))
    assert one.groups() == two.groups()
    for group in one.groups():
        assert one.read(group).identical(two.read(group)) and one.key(group) == two.key(group), group
    # whole micrographs that move as these particles do
    movies, motion = rm.open_movies(tiny.micrographs, tiny.folder), ParticleMotion(one, 3000.0, "RELION")
    here, away = (
        rm.MicrographCorrection().run(movies, None, tmp_path / out, threads=2, particle_motion=motion, workers=at)
        for out, at in (("here", None), ("away", workers))
    )
    assert here.identical(away) and here["written"].values.all()


def test_micrographs_stay_with_the_worker_that_has_read_them(tiny, workers):
    wait_for_two(workers)
    there = Session(tiny.open(), workers=workers)
    search = rm.HyperparameterSearch().run(there)

    def seconds(dask_worker, plugin):
        return dask_worker.plugins[plugin].session.seconds.get("reading movies", 0.0)

    read = workers.client.run(seconds, plugin=there.place.plugin)
    assert sum(read.values()) > 0
    for _ in range(3):  # by chance they would be on the other one
        rm.DoseWeights().run(there, search)
    assert workers.client.run(seconds, plugin=there.place.plugin) == read


def test_workers_keep_no_micrographs_that_nobody_will_look_at_again(tiny, workers, alone, tmp_path):
    wait_for_two(workers)
    search, dose, _ = alone
    there = Session(tiny.open(), workers=workers)
    there.keeps_micrographs = False
    rm.MotionCorrection().run(there, search, dose, tmp_path)

    def kept(dask_worker, plugin):
        return len(dask_worker.plugins[plugin].session.kept)

    assert sum(workers.client.run(kept, plugin=there.place.plugin).values()) == 0


@pytest.mark.parametrize("tasks", [2, 0.001])  # a task for each micrograph, or for all that a worker has
@pytest.mark.parametrize(("what", "step"), [("reading movies", 2), ("searching hyperparameters", 5)])
def test_a_search_outlives_a_worker(tiny, workers, alone, what, step, tasks, monkeypatch):
    monkeypatch.setattr("refmotion_nb.stages.bundles.TASKS", tasks)
    wait_for_two(workers)
    killer = Killer(workers, what, step)
    there = Session(tiny.open(), workers=workers)
    assert rm.HyperparameterSearch().run(there, killer).identical(alone[0])
    assert killer.killed and killer.killed not in workers.client.run(os.getpid).values()


class Fatal(rm.MotionCorrection):
    """Ends its process in the middle of the work on a micrograph, the first time."""

    marker = param.String()

    def images(self, m, *rest):
        marker = Path(self.marker)
        if m.movie.micrograph == "mic0001" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().images(m, *rest)


def test_a_correction_outlives_a_worker(tiny, workers, alone, tmp_path):
    wait_for_two(workers)
    search, dose, session = alone
    there = Session(tiny.open(), workers=workers)
    stage = Fatal(marker=str(tmp_path / "killed"))
    table = stage.run(there, search, dose, tmp_path / "out")
    assert Path(stage.marker).exists() and table["written"].values.all()
    expected = rm.MotionCorrection().run(session, search, dose, tmp_path / "undisturbed")
    assert table.drop_vars("image_name").equals(expected.drop_vars("image_name"))
    for name in session:
        one, two = (
            rm.ResultStore(tmp_path / out / "results.zarr").read(f"tracks/{name}") for out in ("out", "undisturbed")
        )
        assert one.equals(two)


class FatalMicrographs(rm.MicrographCorrection):
    """Ends its process in the middle of a movie, the first time."""

    marker = param.String()

    def images(self, movie, *rest):
        marker = Path(self.marker)
        if movie.micrograph == "mic0001" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().images(movie, *rest)


def test_micrographs_are_the_same_on_a_cluster_that_loses_a_worker(tiny, workers, tmp_path):
    wait_for_two(workers)
    project = copied(tiny.folder, tmp_path)
    movie = project / "Movies/mic0000.tif"
    movie.write_bytes(movie.read_bytes()[:5000])
    data = rm.open_movies(project / tiny.micrographs.relative_to(tiny.folder), project)
    stage = FatalMicrographs(marker=str(tmp_path / "killed"))
    found = stage.run(data, None, tmp_path / "there", workers=workers)
    assert Path(stage.marker).exists()
    assert found.identical(rm.MicrographCorrection().run(data, None, tmp_path / "here", threads=2))
    assert found["written"].sum() == 1 and "mic0000.tif" in str(found["reason"].values)
    for name in found["image_name"].values[found["written"].values]:
        one, two = ((tmp_path / where / str(name)).read_bytes()[1024:] for where in ("here", "there"))
        assert one == two
    written = tmp_path / "here/Micrographs/mic0001.mrc"
    stamp, address = written.stat().st_mtime_ns, workers.client.scheduler.address
    table = ["--micrographs", str(project / tiny.micrographs.relative_to(tiny.folder)), "--root", str(project)]
    assert main(["micrographs", *table, "--out", str(tmp_path / "here"), "--dask", address]) == 1  # one is still broken
    assert f"at {address}" in (tmp_path / "here/run.log").read_text(encoding="utf-8")
    assert written.stat().st_mtime_ns == stamp, "what one process has finished is done anew by workers"


def test_what_cannot_be_used_is_told_as_in_one_process(tiny, workers, alone, tmp_path):
    wait_for_two(workers)
    project = copied(tiny.folder, tmp_path)
    data = replace(tiny, folder=project).open()
    movie = project / "Movies/mic0001.tif"
    whole = movie.read_bytes()
    movie.write_bytes(whole[:5000])
    here, there = Session(data, 2), Session(data, workers=workers)
    search = rm.HyperparameterSearch().run(there)
    assert search.identical(rm.HyperparameterSearch().run(here))
    assert list(there.failed) == ["mic0001"] and there.failed == here.failed
    movie.write_bytes(whole)  # a run that has told of it as failed does not write it nevertheless
    for where, out in ((here, tmp_path / "here"), (there, tmp_path / "there")):
        particles = rm.MotionCorrection().run(where, search, alone[1], out)
        assert particles["written"].values.sum() == 12 and store(out).groups("tracks") == ["tracks/mic0000"]


def test_a_correction_is_cancelled(tiny, workers, alone, tmp_path):
    class Stop(Silent):
        def advance(self, n=1, **facts):
            if "particles" in facts:
                raise Cancelled

    search, dose, _ = alone
    with pytest.raises(Cancelled):
        rm.MotionCorrection().run(Session(tiny.open(), workers=workers), search, dose, tmp_path / "out", Stop())
    assert "tracks/mic0000" in store(tmp_path / "out").groups()


def test_a_worker_that_comes_later_has_the_data_too(tiny, cluster, workers, alone):
    wait_for_two(workers)
    there = Session(tiny.open(), workers=workers)
    assert there.place
    old = list(workers.client.scheduler_info()["workers"])
    cluster.scale(3)
    workers.client.wait_for_workers(3, timeout=60)
    workers.client.retire_workers(old)
    assert rm.DoseWeights().run(there, alone[0]).identical(alone[1])
    cluster.scale(2)


def test_from_the_command_line(tiny, capsys, tmp_path):
    project = tiny.folder
    assert run(project, tmp_path / "one", "--until", "dose-weights") == 0
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
         "--scheduler-file", str(tmp_path / "scheduler.json")], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    worker = None
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "scheduler.json").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(tmp_path / "scheduler.json"),
             "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(tmp_path)],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        dask = ("--dask", str(tmp_path / "scheduler.json"))
        assert run(project, tmp_path / "two", "--until", "dose-weights", *dask) == 0
    finally:
        for process in filter(None, (worker, scheduler)):
            process.terminate()
            process.wait(30)
    assert "1 worker at tcp://" in capsys.readouterr().err
    for group in ("search", "dose_weights"):
        assert store(tmp_path / "one").read(group).identical(store(tmp_path / "two").read(group))


class Silenced:
    """A client whose scheduler is lost after some tasks; it notes what it was given."""

    scheduler, key = None, "key"

    def __init__(self, lost_after):
        self.left, self.given = lost_after, []

    def submit(self, *task, pure):
        self.given.append(task)
        self.left -= 1
        if self.left < 0:
            raise ClosedClientError("Client is closed")
        return self

    def result(self):
        raise FutureCancelledError("key", "scheduler-connection-lost")

    def gather(self, held):
        raise CommClosedError("in <TCP (closed)>")

    def cancel(self, futures):
        raise ClosedClientError("Client is closed")

    def scheduler_info(self, n_workers):
        return {}


@pytest.mark.parametrize("lost_after", [0, 1, 2, 9])
def test_a_lost_scheduler_is_said_and_work_is_sent_once(alone, lost_after):
    session = alone[2]
    client, settings = Silenced(lost_after), rm.MotionCorrection()
    there = There(client, "tcp://here:8786", session, "plugin")
    line = (
        r"the Dask scheduler at tcp://here:8786 is gone; start it again, then run again: finished micrographs are kept"
    )
    for work in (there.each, there.hold):
        with pytest.raises(rm.InputError, match=line):
            list(work(list(session), settings, print))
    with pytest.raises(rm.InputError, match=line):
        there.values([Held(client)])
    if lost_after == 9:
        assert [print in task for task in client.given] == [True, False, False, True, False, False, False, False]


class Registering:
    """A client that notes what is registered with its workers."""

    scheduler = cluster = None
    registered = ()

    def register_plugin(self, plugin, name):
        time.sleep(0.05)
        self.registered = (*self.registered, name)

    def wait_for_workers(self, n, timeout):
        pass

    def run(self, function):
        return {}

    def scheduler_info(self, n_workers):
        return {}


def test_stages_that_begin_at_a_time_share_the_sessions_of_workers(alone):
    workers = Workers(client := Registering())
    one, other = side_by_side(lambda _: workers.place(alone[2]), range(2), 2)
    assert one is other and len(client.registered) == 1


def test_a_table_of_weights_travels_without_what_it_was_found_from(alone):
    _, dose, session = alone
    sent = without_measurements(dose)
    assert sent.nbytes < 0.3 * dose.nbytes and not sent.attrs
    for movie, _ in session.micrographs.values():
        frequency = dose["frequency"].values
        np.testing.assert_array_equal(*(weights_on(one, movie.dose_edges, frequency) for one in (dose, sent)))


def test_workers_begin_afresh_for_another_job(tiny, workers):
    session = Session(tiny.open(), cache_bytes=1e9, workers=workers)
    plugins = [session.place.plugin for _ in range(2)]
    session.begin(1, 5e8)
    assert plugins[0] == plugins[1] != session.place.plugin
    known = list(workers.client.run(lambda dask_worker: [*dask_worker.plugins]).values())
    assert all(plugins[0] not in one and session.place.plugin in one for one in known)


def test_workers_let_go_of_sessions_that_are_gone(tiny, workers):
    first = Session(tiny.open(), workers=workers)
    plugin, gone = first.place.plugin, weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    second = Session(tiny.open(), workers=workers)
    known = list(workers.client.run(lambda dask_worker: [*dask_worker.plugins]).values())
    assert all(plugin in one for one in known)
    kept = second.place.plugin
    known = list(workers.client.run(lambda dask_worker: [*dask_worker.plugins]).values())
    assert all(plugin not in one and kept in one for one in known)


def test_processes_are_started_and_stopped(tiny, alone):
    with rm.execute.processes(1, 1) as workers:
        assert workers.about.startswith("1 worker at tcp://127.0.0.1:")
        pids = workers.client.run(os.getpid)
        assert rm.DoseWeights().run(Session(tiny.open(), workers=workers), alone[0]).identical(alone[1])
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_dies_comes_back_however_long_that_takes():
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100 ms"}), rm.execute.processes(1, 1) as workers:
        (pid,) = workers.client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not {*workers.client.run(os.getpid, on_error="ignore").values()} - {pid}:
            assert time.monotonic() < deadline, "nobody came"
            time.sleep(0.1)


def test_a_scheduler_file_may_be_about_to_be_written(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("refmotion_nb.stages.execute.TRY_S", 1.0)
    file, answers = tmp_path / "cluster.json", json.dumps({"address": cluster.scheduler_address})

    def written():
        for content in (
            '{"address": "tcp://127.0.0.1:1"}',
            answers[:9],
            answers,
        ):  # an earlier scheduler's, half of this one's
            time.sleep(0.3)
            file.write_text(content)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(written)
        with rm.execute.dask(file) as workers:
            assert workers.n_workers and workers.elsewhere
    monkeypatch.setattr("refmotion_nb.stages.execute.PATIENCE_S", 0.3)
    with pytest.raises(rm.InputError, match=r"none\.json does not exist; check the path"):
        rm.execute.dask(str(tmp_path / "none.json"))
    with pytest.raises(rm.InputError, match=r"cache_size_GB 'much' is no size"):
        rm.execute.dask(file, "much")


def test_what_a_worker_keeps_is_bounded_by_its_own_limit(tiny, tmp_path):
    worker = fake_worker("a", tmp_path, limit=5e9)
    worker.status, memory = Status.paused, worker.memory_manager
    known = [WorkerSession(tiny.open(), cache, Counter({"10.0.0.1": 2}), Device()) for cache in (60e9, 3e9, "7")]
    for one in known:
        one.setup(worker)
    assert [one.session.cache_bytes for one in known] == [2e9, 1.5e9, 2e9]
    data = known[0].session.data
    assert not data.tables and data.particles.sizes["particle"] == 24, "it writes no tables"
    # it would pause for ever, since only its tasks let go of what it keeps
    assert (worker.status, memory.memory_pause_fraction) == (Status.running, False)
    worker.plugins["another"] = known[1]
    known[0].teardown(worker)
    assert not memory.memory_pause_fraction
    worker.plugins.clear()
    known[1].teardown(worker)
    assert memory.memory_pause_fraction == dask.config.get("distributed.worker.memory.pause") > 0


def test_bad_input_is_one_line(tiny, capsys, tmp_path, monkeypatch, workers):
    assert run(tiny.folder, tmp_path / "a", "--dask", "tcp://127.0.0.1:1", "--workers", "2") == 1
    assert said(capsys) == ["both dask and workers are given; a cluster has workers of its own, leave one out"]
    monkeypatch.setattr("refmotion_nb.stages.execute.PATIENCE_S", 0.5)
    for content in ("", "{}", "[1]"):
        (tmp_path / "cluster.json").write_text(content)
        assert run(tiny.folder, tmp_path / "b", "--dask", f"{tmp_path}/cluster.json") == 1
        assert said(capsys)[0].startswith(f"{tmp_path}/cluster.json is no scheduler file of Dask; give the one that")
    assert run(tiny.folder, tmp_path / "b", "--dask", "tcp://127.0.0.1:1") == 1
    (line,) = said(capsys)
    assert (
        line.startswith("no Dask scheduler answers at tcp://127.0.0.1:1") and "start one, or check the address" in line
    )
    monkeypatch.setattr("refmotion_nb.stages.workers.__version__", "9.9")
    closed = []
    with pytest.raises(
        rm.InputError, match=r"has refmotion_nb [\d.]+, Python .*, here is refmotion_nb 9\.9, .*; install"
    ):
        Workers(workers.client, lambda: closed.append("what was started for it"))
    assert closed
    monkeypatch.undo()
    monkeypatch.setattr(np, "__version__", "9.9")
    with pytest.raises(rm.InputError, match=r"NumPy \d, pandas \d, here is .*, NumPy 9, .*; install the same"):
        Workers(workers.client)
    monkeypatch.setitem(sys.modules, "refmotion_nb.stages.workers", None)
    with pytest.raises(rm.InputError, match=r"workers need Dask .*refmotion-nb\[dask\]"):
        rm.execute.processes(2)


def test_processes_are_started_without_interruption_and_ctrl_c_comes_after_that():
    told = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    begun = []
    with pytest.raises(KeyboardInterrupt), _uninterrupted():
        begun.append(subprocess.run([sys.executable, "-c", told], stdout=subprocess.PIPE, text=True).stdout.strip())
        signal.raise_signal(signal.SIGINT)
        begun.append("went on")
    assert begun == ["True", "went on"], "it reaches none of those that are started, whom this process ends in order"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
