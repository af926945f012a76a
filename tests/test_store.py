from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import xarray as xr
import zarr
from fake_results import (
    fake_dose_weights,
    fake_noise,
    fake_particles,
    fake_search,
    fake_tracks,
    fake_validation,
    fill,
    labelled,
)

from refmotion_nb.data import store as store_module
from refmotion_nb.data import zarr_v2
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.store import (
    ResultStore,
    read_hyperparameters,
    read_netcdf,
    write_hyperparameters,
    write_netcdf,
)

FAKES = {
    "search": fake_search,
    "dose_weights": fake_dose_weights,
    "tracks/mic 1 (ü)": fake_tracks,
    "noise/mic 1 (ü)": fake_noise,
    "particles": fake_particles,
    "validation": fake_validation,
}


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results.zarr")


@pytest.mark.parametrize("group", FAKES)
def test_what_is_written_is_read_back_by_the_store_by_xarray_and_by_zarr(store: ResultStore, group: str) -> None:
    expected = FAKES[group]()
    store.write(group, expected)
    found = store.read(group)
    assert found is not None
    xr.testing.assert_identical(found, expected)
    assert {name: variable.dtype for name, variable in found.items()} == {
        name: variable.dtype for name, variable in expected.items()
    }
    with xr.open_zarr(store.path, group=group, consolidated=False, chunks=None) as other:
        xr.testing.assert_identical(other.load(), expected)
    assert set(zarr.open_group(store.path, path=group, mode="r").array_keys()) == set(expected.variables)


@pytest.mark.parametrize(
    "values",
    [
        np.float32(2.5),
        np.zeros((0, 24, 2), "f4"),
        np.array([1.5, np.nan, np.inf], "f2"),
        np.array([2**63, 1], "u8"),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.array(["", "a\nb", "Å ü 漢"]),
        np.array(["", ""]),
        np.array(["short", "a good deal longer"], object),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    ],
    ids=lambda values: f"{values.dtype}{values.shape}",
)
@pytest.mark.parametrize("chunk_bytes", [8, 1 << 24])
def test_values_of_every_kind(
    store: ResultStore, values: np.ndarray, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_v2, "_CHUNK_BYTES", chunk_bytes)
    expected = xr.Dataset({"a": ([f"d{i}" for i in range(np.ndim(values))], values)})
    store.write("search", expected)
    xr.testing.assert_identical(store.read("search"), expected)
    with xr.open_zarr(store.path, group="search", consolidated=False, chunks=None) as other:
        xr.testing.assert_identical(other.load(), expected)


def test_attributes_come_back_in_json_types(store: ResultStore) -> None:
    attrs = {
        "a": np.float32(0.5),
        "b": (1, 2),
        "c": np.arange(3),
        "d": {"x": None, "y": True},
        "e": math.nan,
        "f": Path("a"),
    }
    store.write("search", xr.Dataset({"x": labelled("ray", [1.0], "X", "Å")}, attrs=attrs))
    found = store.read("search").attrs
    assert math.isnan(found.pop("e"))
    assert found == {"a": 0.5, "b": [1, 2], "c": [0, 1, 2], "d": {"x": None, "y": True}, "f": "a"}


def test_what_cannot_be_stored_is_refused_and_leaves_nothing(store: ResultStore) -> None:
    for values in (np.array([None, "a"], object), np.array(["2020-01-01"], "M8[ns]")):
        with pytest.raises(TypeError, match="wrong"):
            store.write("search", xr.Dataset({"wrong": ("ray", values)}))
    assert store.groups() == []
    assert [path.name for path in store.path.parent.iterdir()] == ["results.zarr"]


def test_keys(store: ResultStore) -> None:
    store.write("search", fake_search(), key="abc")
    assert store.has("search") and store.has("search", "abc") and not store.has("search", "abd")
    assert store.read("search", key="abd") is None and store.read("validation") is None
    assert "store_key" not in store.read("search", key="abc").attrs
    assert store.key("search") == "abc" and store.key("validation") == ""


@pytest.mark.parametrize(
    "name", ["", "tracks", "/search", "tracks/", "tracks/../search", "search/a", "tracks/a/b", ".x"]
)
def test_names_that_are_no_group_are_refused(store: ResultStore, name: str) -> None:
    with pytest.raises(ValueError, match="is no group of results"):
        store.write(name, fake_noise())


def test_groups_and_tree(store: ResultStore) -> None:
    fill(store, micrographs=2)
    assert store.groups("tracks") == ["tracks/mic_000", "tracks/mic_001"]
    assert store.groups()[:4] == ["dose_weights", "noise/mic_000", "noise/mic_001", "particles"]
    tree = store.tree()
    xr.testing.assert_identical(tree["tracks/mic_001"].to_dataset().load(), fake_tracks(1))
    assert tree.attrs["version"] == "0.1.0" and store.attrs["warnings"] == []
    with xr.open_datatree(store.path, engine="zarr", consolidated=False) as other:
        assert other.attrs == tree.attrs
        assert {node.path for node in other.leaves} == {node.path for node in tree.leaves}
        np.testing.assert_array_equal(other["search/cv_score"], tree["search/cv_score"])


def test_the_tree_reads_only_what_is_asked_for(store: ResultStore) -> None:
    store.write("tracks/a", fake_tracks())
    tree = store.tree()
    (store.path / "tracks/a/shift/0.0.0").write_bytes(b"")
    np.testing.assert_array_equal(tree["tracks/a/common"][3:5, 1], fake_tracks()["common"][3:5, 1])
    with pytest.raises(InputError, match=r"shift is damaged; delete .*a to have it computed again"):
        tree["tracks/a/shift"].load()


def test_groups_written_by_xarray_are_read_too(store: ResultStore) -> None:
    store.write("search", fake_search())
    fake_noise().to_zarr(store.path, group="noise/a", zarr_format=2, consolidated=False, mode="a")
    xr.testing.assert_identical(store.read("noise/a"), fake_noise())
    xr.testing.assert_identical(store.tree()["noise/a"].to_dataset().load(), fake_noise())


def test_an_interrupted_write_leaves_the_group_as_it_was(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("search", fake_search())

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module.os, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        store.write("search", fake_search(retire=False))
    xr.testing.assert_identical(store.read("search"), fake_search())
    assert [path.name for path in store.path.parent.iterdir()] == ["results.zarr"]


_WRITE_FOR_EVER = """
import sys
sys.path[:0] = {paths!r}
from fake_results import ResultStore, fake_tracks
store, data = ResultStore(sys.argv[1]), fake_tracks(particles=400)
for i in range(10**9):
    store.write(f"tracks/mic_{{i % 5}}", data.assign_attrs(written=i))
"""


def test_a_killed_run_leaves_whole_groups(store: ResultStore) -> None:
    paths = [str(Path(__file__).parent), str(Path(store_module.__file__).parents[2])]
    process = subprocess.Popen([sys.executable, "-c", _WRITE_FOR_EVER.format(paths=paths), str(store.path)])
    try:
        while not store.has("tracks/mic_4"):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    names = store.groups("tracks")
    assert len(names) >= 4  # the one in hand may be between its two renames
    for name in names:
        xr.testing.assert_equal(store.read(name), fake_tracks(particles=400))
    assert len(store.tree()["tracks"].children) == len(names)


def test_what_killed_runs_left_is_removed_when_it_is_old(store: ResultStore) -> None:
    old, new, others = (store.path.with_name(f".{name}") for name in (
        "results.zarr.0123456789ab", "results.zarr.ba9876543210", "bashrc.0123456789ab"))  # fmt: skip
    for folder in (old, new, others):
        folder.mkdir()
    for folder in (old, others):
        os.utime(folder, (0, 0))
    store.path.with_name(".results.zarr.0123456789ff").symlink_to("gone")  # looked for after another has removed it
    store.write("search", fake_search())
    assert not old.exists() and new.exists() and others.exists()


def test_threads_write_at_the_same_time(store: ResultStore) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(8):
                store.write(f"tracks/own_{number}_{i}", fake_noise(number))
                store.write("tracks/shared", fake_noise(1))
                store.update_attrs(**{f"a{number}_{i}": i})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(store.groups("tracks")) == 33 and len(store.attrs) == 32
    xr.testing.assert_identical(store.read("tracks/shared"), fake_noise(1))


@pytest.mark.parametrize("part", ["_read_group", "_read_array"])
def test_a_group_that_is_written_anew_while_it_is_read_is_read_again(
    store: ResultStore, monkeypatch, part: str
) -> None:
    first, *others = (xr.Dataset({name: ("x", np.full(3, number)) for name in "abc"}) for number in range(3))
    store.write("search", first)
    real, last = getattr(zarr_v2, part), others[-1]

    def meanwhile(*arguments):
        if others:
            store.write("search", others.pop(0))
        return real(*arguments)

    monkeypatch.setattr(zarr_v2, part, meanwhile)
    xr.testing.assert_identical(store.read("search"), last)
    assert not others


def test_a_group_that_goes_while_it_is_read_is_none(store: ResultStore, monkeypatch) -> None:
    store.write("search", fake_search())
    has = ResultStore.has
    monkeypatch.setattr(ResultStore, "has", lambda *group: has(*group) and store.remove("search") is None)
    assert store.read("search") is None


def test_damaged_files_are_named(store: ResultStore) -> None:
    store.write("search", fake_search())
    (store.path / "search/cv_score/.zarray").write_text("{")
    with pytest.raises(InputError, match="cv_score"):
        store.read("search")
    (store.path / "search/cv_score/.zarray").write_text('{"shape": [1]}')
    with pytest.raises(InputError, match=r"search is damaged; delete it"):
        store.read("search")


def test_export_to_netcdf(store: ResultStore, tmp_path: Path) -> None:
    fill(store, micrographs=1)
    store.to_netcdf(tmp_path / "all.nc")
    with xr.open_datatree(tmp_path / "all.nc", engine="h5netcdf") as tree:
        np.testing.assert_array_equal(tree["tracks/mic_000/shift"], fake_tracks()["shift"])
        assert tree["search"].attrs["best_ray"] == fake_search().attrs["best_ray"]
        assert json.loads(tree.attrs["settings"])["float16"] is True


def test_netcdf_files_come_back_the_same(tmp_path: Path) -> None:
    expected = fake_dose_weights(2).assign_attrs(one=[1], many={"a": [1, None]}, yes=True, none=None, text="[not json")
    expected["flag"] = ("group", [True, False])
    write_netcdf(tmp_path / "new" / "dose_weights.nc", expected)
    xr.testing.assert_identical(read_netcdf(tmp_path / "new" / "dose_weights.nc"), expected)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["dose_weights.nc"]


def test_netcdf_on_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)  # HDF5, were it to write there itself, would end the process
    with pytest.raises(OSError, match=r"No space left on device: .*dose_weights\.nc"):
        write_netcdf(tmp_path / "dose_weights.nc", fake_dose_weights(2))
    assert not [*tmp_path.iterdir()]


def test_files_that_are_no_netcdf_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nc").write_text("no")
    with pytest.raises(InputError, match="cannot be read as NetCDF"):
        read_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match="does not exist"):
        read_netcdf(tmp_path / "b.nc")
    write_netcdf(tmp_path / "c.nc", fake_dose_weights(2))
    whole = (tmp_path / "c.nc").read_bytes()
    at = whole.index(b"OHDR") + 50  # in the attributes of the whole file
    (tmp_path / "d.nc").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    besides = Mock()
    monkeypatch.setattr("sys.unraisablehook", besides)
    with pytest.raises(InputError, match=r"d\.nc cannot be read as NetCDF"):
        read_netcdf(tmp_path / "d.nc")
    besides.assert_not_called()  # with a traceback, by what went on closing the file
    for damage in (KeyError("incorrect metadata checksum"), RuntimeError("H5DSget_num_scales")):
        monkeypatch.setattr(xr, "open_dataset", Mock(side_effect=damage))
        with pytest.raises(InputError, match=r"c\.nc cannot be read as NetCDF"):
            read_netcdf(tmp_path / "c.nc")


def write_some(path: Path, **changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "strength": np.float64(2.0), "balance_deg": 30.0, "distance_A": 1500.0, "common_std_A": 0.7, "drift_strength": 3.0,
        "profile": np.array([1.0, 0.5]), "score": math.nan, "n_particles": np.int64(12), "note": "Å",
        "relion": {"s_vel": 0.9, "s_div": 1500.0, "s_acc": math.inf, "dose_per_frame_e_A2": 1.0},
    }  # fmt: skip
    write_hyperparameters(path, **{**values, **changes})
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def test_hyperparameters(tmp_path: Path) -> None:
    path = tmp_path / "hyperparameters.json"
    text = write_some(path)
    assert text["spatial_strength"] == pytest.approx(3**0.5) and text["acceleration_strength"] == pytest.approx(1)
    assert text["score"] is None and text["relion"]["s_acc"] is None and text["profile"] == [1.0, 0.5]
    found = read_hyperparameters(path)
    assert math.isnan(found["score"]) and found["note"] == "Å" and found["energy"] == "calibrated"
    assert (found["strength"], found["balance_deg"], found["distance_A"]) == (2.0, 30.0, 1500.0)


def test_hyperparameters_given_as_two_strengths(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"spatial_strength": 3, "acceleration_strength": 4, "distance_A": 900}')
    found = read_hyperparameters(path)
    assert found["strength"] == pytest.approx(5) and found["balance_deg"] == pytest.approx(
        math.degrees(math.atan2(4, 3))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 3.0}, "contradicts strength"),
        ({"strength": None}, "strength is None; it must be a positive number"),
        ({"distance_A": -1.0}, "distance_A is -1.0"),
        ({"balance_deg": 91.0}, "balance_deg is 91.0; it must be from 0 to 90"),
        ({"drift_strength": -3.0}, "drift_strength is -3.0; it must be 0 or a positive number"),
        ({"common_std_A": None}, "common_std_A is None; it must be 0 or a positive number"),
        ({"strength": "much"}, "does not hold hyperparameters"),
        ({"score": "good"}, "does not hold hyperparameters"),
    ],
)
def test_hyperparameters_that_make_no_sense(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**write_some(path), **change}))
    with pytest.raises(InputError, match=message):
        read_hyperparameters(path)


def test_no_file_of_a_group_is_read_twice(store: ResultStore, monkeypatch) -> None:
    store.write("tracks/mic1", fake_tracks())
    opened: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read_bytes(path))
    assert store.read("tracks/mic1") is not None
    assert len(opened) > 5 and len(opened) == len(set(opened))


def test_thousands_of_micrographs_are_listed_without_a_look_at_each(store: ResultStore, monkeypatch) -> None:
    store.write("tracks/mic000", fake_tracks())
    for i in range(1, 100):
        (store.path / f"tracks/mic{i:03d}").mkdir()
    stats: list[object] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: stats.append(path) or stat(path, **how))
    assert store.groups("tracks") == [f"tracks/mic{i:03d}" for i in range(100)] and store.groups("noise") == []
    assert len(stats) < 10
