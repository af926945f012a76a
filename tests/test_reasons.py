"""Why micrographs were left out, told once where thousands were."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import xarray as xr

from refmotion_nb.data.reasons import alike, told_once
from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.correction import particles_table
from refmotion_nb.stages.job import _lost


def damaged(name: str, image: int = 5) -> tuple[str, str]:
    return name, f"/data/Movies/00001_{name}.tif: image {image} is damaged (LZW); copy the file again"


def test_what_differs_in_name_and_numbers_only_is_told_once_with_the_first():
    many = [damaged(f"mic{i:04d}", i) for i in range(1000)]
    (line,) = told_once(many)
    assert line == f"mic0000, mic0001, mic0002 and 997 more: {many[0][1]} (and 999 more like it)"


def test_folders_and_names_as_tables_write_them_make_no_difference():
    gone = [
        (f"MotionCorr/job002/{one}_a/{one}.mrc", f"its movie /data/{one}_a/{one}.tif was not found") for one in "pqr"
    ]
    assert told_once(gone) == [f"{', '.join(name for name, _ in gone)}: {gone[0][1]} (and 2 more like it)"]


def test_what_differs_otherwise_is_told_apart():
    gone = "b", "/data/Movies/00001_b.tif does not exist"
    assert told_once([damaged("a"), gone]) == [": ".join(damaged("a")), ": ".join(gone)]


def test_a_reason_that_names_no_file_has_its_micrographs_as_often_as_they_are_given():
    outside = "it lies outside its movie"
    assert alike([("a", outside), ("b", outside), ("a", outside), ("", outside)]) == {outside: ["a", "b", "a", ""]}


def test_whether_particles_were_lost_is_found_without_a_copy_of_all_reasons():
    reason = np.full(20_000, "", dtype="U200")
    reason[7] = damaged("mic0003")[1]
    failed = dict(damaged(f"mic{i:04d}") for i in range(100))
    table = xr.Dataset({"written": ("particle", reason == ""), "reason": ("particle", reason)})
    tracemalloc.start()
    assert _lost(table, failed) and not _lost(table, dict([damaged("b")]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < reason.nbytes / 10


def test_one_long_reason_does_not_take_room_beside_every_particle(tmp_path):
    n, (name, reason) = 20_000, damaged("mic" + 40 * "x")
    row = np.arange(1, n)
    written = pd.DataFrame({"row": row, "reference": 0, "micrograph": "a", "image_name": [f"{i:06d}@a.mrcs" for i in row],
                            "box": 112, "pixel_size_A": 1.6})  # fmt: skip
    lost = xr.Dataset({"row": ("particle", [0]), "reference": ("particle", [0])})
    session = SimpleNamespace(data=SimpleNamespace(skipped=()), micrographs={name: (None, lost)})
    table = particles_table(session, written, [(name, reason)])
    assert table.nbytes < 50 * n and table["reason"].values[:2].tolist() == [reason, ""]
    store = ResultStore(tmp_path / "results.zarr")
    store.write("particles", table)
    xr.testing.assert_identical(store.read("particles"), table)
