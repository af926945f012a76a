"""What this process may use of the machine: memory and processors, within the limits of its job or container."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from refmotion_nb.data.schema import InputError

ROOT = Path("/")


def memory_bytes(root: Path = ROOT) -> int:
    """Return the memory that this process may use: the machine's, or the limit of its job or container (cgroups v1 and v2)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, first_version in _groups(root, "memory"):
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            limits.append(
                int((folder / ("memory.limit_in_bytes" if first_version else "memory.max")).read_text(encoding="utf-8"))
            )
    return min(limits)


def bytes_of(cache_size_GB: str) -> float:
    """Return the bytes of a number of GB, or of a share of this process's memory; InputError where it is neither."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", cache_size_GB)
    if not found:
        raise InputError(f"cache_size_GB {cache_size_GB!r} is no size; give GB, or a share such as 60%")
    number, percent = found.groups()
    return float(number) * (memory_bytes() / 100 if percent else 1e9)


def size(n_bytes: float) -> str:
    """Return a size in memory or on disk in words."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"


def cpu_count(root: Path = ROOT) -> int:
    """Return the number of processors this process may use; a share of one that its job or container is given counts whole."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for folder, first_version in _groups(root, "cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if first_version else ("cpu.max",)
        with suppress(OSError, ValueError):
            quota, period = (
                int(word) for name in names for word in (folder / name).read_text(encoding="utf-8").split()
            )
            if quota > 0:  # -1: no limit
                limits.append(math.ceil(quota / period))
    return min(limits)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the control groups of this process, and whether they are of cgroups v1."""
    with suppress(OSError):  # there are none
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, mine = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                folder = root / "sys/fs/cgroup" / controllers
                for group in (Path(mine), *Path(mine).parents):  # in a container only the last is to be seen
                    yield folder / group.relative_to("/"), bool(controllers)
