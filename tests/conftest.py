"""What several test modules need."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_browser import app, browser, chromium, owner, owners_page, people  # noqa: F401, fixtures
from gpu_fixtures import cpu_unless_asked, cupy, strict  # noqa: F401, fixtures

from refmotion_nb.data.synthetic.simulate import Simulation, SimulationSettings, simulate
from refmotion_nb.numerics.backend import one_blas_thread

# so small that a whole job takes two seconds, yet the particles can be seen and their motion followed
TINY = SimulationSettings(
    n_micrographs=2, size_px=512, n_frames=8, pixel_size_A=1.6, dose_per_frame_e_A2=4.0, box_px=112,
    particles_per_micrograph=12, hot_pixels=3, workers=2,
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def blas_in_one_thread() -> Iterator[None]:
    """Keep OpenBLAS from threads of its own: beside those of the sessions they wait by spinning, for minutes in all."""
    with one_blas_thread():
        yield


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the shared test data."""
    folder = os.environ.get("REFMOTION_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set REFMOTION_TEST_DATA to the folder with the shared test data")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """Return two simulated micrographs in RELION's layout; do not change them, copy the folder.

    All processes that run tests share them: the first makes them, the others wait and find them.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return simulate(TINY, folder / "tiny")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that need no compiled kernel: while one process runs them, the other compiles, for both, in notebooks.

    Files that take long follow, lest one of them is last and alone.
    """
    first = ("plot_layout", "notebooks", "plot_colours", "plots", "workers", "validation", "two_references")
    place = {f"test_{name}.py": number for number, name in enumerate(first)}
    items.sort(key=lambda item: place.get(item.path.name, len(first)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With REFMOTION_NO_SKIP=1, count a skipped test as failed unless it needs a GPU or RELION's programs."""
    report = yield
    wanted = os.environ.get("REFMOTION_NO_SKIP", "") not in ("", "0")
    if wanted and report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("gpu"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.endswith("RELION is not installed"):
            report.outcome, report.longrepr = "failed", f"{item.nodeid}: {reason} (REFMOTION_NO_SKIP is set)"
    return report
