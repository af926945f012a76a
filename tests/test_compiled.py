"""Machine code on disk, with several processes that compile at once and such that are killed."""

import runpy
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
