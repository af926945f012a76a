"""Machine code on disk, with several processes that compile at once and such that are killed."""

import errno
import os
import runpy
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from numba.core import caching
from numba.core.caching import IndexDataCacheFile

from refmotion_nb.numerics import compiled, kernels_cpu
from refmotion_nb.numerics.compiled import CodeFile, njit


def files(folder, stamp="now"):
    return CodeFile(str(folder), "f", stamp)


def test_code_of_two_processes_is_kept_for_the_types_it_is_of(tmp_path, monkeypatch):
    """Two processes (here threads, with files of their own) save code for different types, as slowly as a network allows."""
    read = IndexDataCacheFile._load_index

    def slowly(self):
        found = read(self)
        time.sleep(0.1)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_load_index", slowly)
        savers = [threading.Thread(target=files(tmp_path).save, args=(one, f"code for {one}")) for one in "ab"]
        for saver in savers:
            saver.start()
        for saver in savers:
            saver.join()
    assert [files(tmp_path).load(one) for one in "ab"] == ["code for a", "code for b"]


@pytest.mark.parametrize("at", ["_save_data", "_save_index"])
def test_code_of_an_older_source_is_not_taken_for_the_new_ones(tmp_path, monkeypatch, at):
    files(tmp_path, "before").save("a", "old")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CodeFile, at, killed)
        with pytest.raises(KeyboardInterrupt):
            files(tmp_path).save("a", "new")
    assert files(tmp_path).load("a") is None
    files(tmp_path).save("a", "new")
    assert files(tmp_path).load("a") == "new"


@pytest.mark.parametrize("left", [b"", bytes(64)])
def test_code_that_a_power_failure_left_empty_is_compiled_anew(tmp_path, left):
    for damaged in ("f.nbi", "f.1.nbc"):
        files(tmp_path).save("a", "code")
        (tmp_path / damaged).write_bytes(left)
        assert files(tmp_path).load("a") is None
    files(tmp_path).save("a", "code")
    assert files(tmp_path).load("a") == "code"


def test_without_room_on_the_disk_code_is_not_kept(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CodeFile, "_save_data", full)
    assert njit(nogil=True)(lambda a: 2 * a)(3) == 6


def test_without_a_folder_that_can_be_written_to_code_is_compiled_anew(monkeypatch):
    """As in a container whose files and home are read-only: Numba refuses such functions."""
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])

    def twice(x):
        return 2 * x

    assert njit(nogil=True, cache=True)(twice)(21) == 42


def test_kernels_are_kept_so(tmp_path):
    kept = [one for one in vars(kernels_cpu).values() if hasattr(one, "py_func")]
    assert kept and all(isinstance(one._cache._cache_file, CodeFile) for one in kept)


@pytest.mark.parametrize("theirs", [None, type("FunctionCache", (), {"__init__": lambda self, function: None})])
def test_with_another_numba_code_is_kept_in_its_own_way(monkeypatch, theirs):
    with monkeypatch.context() as patch:
        if theirs is None:
            patch.delattr(caching, "FunctionCache")
        else:
            patch.setattr(caching, "FunctionCache", theirs)
        with_another = runpy.run_path(compiled.__file__)["njit"]

    @with_another(nogil=True)
    def twice(a):
        return 2 * a

    assert twice(3) == 6 and twice._cache.cache_path and not isinstance(twice._cache._cache_file, CodeFile)


def test_what_is_not_kept_is_compiled(monkeypatch):
    @njit(cache=False, nogil=True)
    def twice(a):
        return 2 * a

    assert twice(3) == 6 and np.all(twice(np.ones(2)) == 2) and len(twice.overloads) == 2


BITS = """
import sys, hashlib, numba, numpy as np
from refmotion_nb.numerics import half_sets, kernels_cpu, kernels_dewarp, kernels_maps
rng = np.random.default_rng(0)
def random(*shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
if "another first" in sys.argv:
    multiply = numba.njit(error_model="python", fastmath=sys.argv[2] == "fast")(lambda a, b: a * b)
    multiply(np.complex64(1j), np.complex64(1j)), multiply(1j, 1j)
slices, spectrum = np.empty((3, 17, 9), np.complex64), np.zeros((8, 5), np.complex64)
ft, turns = random(8, 8, 5), np.empty((2, 30))
turn = np.linalg.qr(rng.standard_normal((3, 3, 3)))[0]
kernels_cpu.slice_kernel(random(35, 35, 18), 2, 8, turn, rng.random((3, 2)), 8, slices)
kernels_maps.randomise_phases_kernel(ft, rng.random(ft.shape, np.float32), 1, 0, 8)
kernels_dewarp.weigh_kernel(random(8, 5), 8, rng.random(20, np.float32), 0.1, random(8), random(5), 0, 8, spectrum, False)
kernels_cpu._turns(0.1, -3, 0.7, turns)
sums = np.zeros((3, 10, 9))
shell, share = np.add.outer(abs(np.arange(-8, 9)), np.arange(9)) // 2, np.ones((17, 9))
half_sets._multiply(*(random(3, 17, 9) for _ in range(3)), shell, share, 0, 3, sums)
print(*(hashlib.sha256(one.tobytes()).hexdigest()[:12] for one in (slices, ft, spectrum, turns, sums)))
"""


def test_bits_do_not_depend_on_what_was_compiled_before(tmp_path):
    orders = [[], ["another first", "fast"], ["another first", "exact"]]
    running = [
        subprocess.Popen([sys.executable, "-c", BITS, *order], stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / str(i))})
        for i, order in enumerate(orders)
    ]  # fmt: skip
    first, *others = (one.communicate()[0].split() for one in running)
    assert len(first) == 5 and all(one == first for one in others), (first, others)
