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
    """Return the memory that this process may use: the machine's, or the limit of its job or container.

    That of a job is told by cgroups (v1 and v2), and by SLURM, which also ends jobs that it does not confine.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_slurm_bytes()]
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
    """Return the number of processors this process may use; a share of one that its job or container is given counts whole.

    Processors that a job of SLURM has not asked for are left alone also where it is not kept from them.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += _numbers("SLURM_CPUS_PER_TASK") or _numbers("SLURM_CPUS_ON_NODE")
    for folder, first_version in _groups(root, "cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if first_version else ("cpu.max",)
        with suppress(OSError, ValueError):
            quota, period = (
                int(word) for name in names for word in (folder / name).read_text(encoding="utf-8").split()
            )
            if quota > 0:  # -1: no limit
                limits.append(math.ceil(quota / period))
    return min(limits)


def _of_slurm_bytes() -> list[int]:
    """Return the limit of the job of SLURM that this process is part of, if there is one; SLURM counts in MiB."""
    each = _numbers("SLURM_MEM_PER_CPU")
    whole = [each[0] * one for one in _numbers("SLURM_CPUS_ON_NODE")] if each else _numbers("SLURM_MEM_PER_NODE")
    return [one << 20 for one in whole]


def _numbers(variable: str) -> list[int]:
    """Return a positive number in the environment as a list of it, else an empty one."""
    word = os.environ.get(variable, "")
    return [int(word)] if re.fullmatch(r"[1-9]\d*", word) else []


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the control groups of this process, and whether they are of cgroups v1."""
    with suppress(OSError):  # there are none
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, mine = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                folder = root / "sys/fs/cgroup" / controllers
                for group in (Path(mine), *Path(mine).parents):  # in a container only the last is to be seen
                    yield folder / group.relative_to("/"), bool(controllers)
