"""The device that GPU tests run on: a strict stand-in for CuPy everywhere, and a real GPU where there is one (``-m gpu``)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import cuda_on_host
import pytest
import strict_cupy

from refmotion_nb.numerics import gpu


@pytest.fixture(autouse=True)
def cpu_unless_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests run on the CPU, also on a machine with a GPU, but for those that are about GPUs."""
    if "cupy" not in request.fixturenames:
        monkeypatch.setattr(gpu, "installed", lambda: False)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the stand-in, in place of CuPy."""
    if cuda_on_host.compiler() is None:
        pytest.skip("g++ is needed to run the kernels on the host")
    modules = strict_cupy.modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(gpu, "installed", lambda: True)
    yield modules["cupy"]
    strict_cupy.devices.current = 0


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest) -> Any:
    """Return a CuPy that works: the stand-in, and in a second run of the test the real one."""
    if request.param == "stand-in":
        return request.getfixturevalue("strict")
    found, why = gpu.gpus()
    if not found:
        pytest.skip(f"no GPU: {why}")
    return gpu.array_module()
