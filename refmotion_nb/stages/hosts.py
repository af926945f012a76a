"""The machines that the workers of a Dask cluster run on, and what one worker may take of its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

from dask import config
from distributed import Client, Status
from distributed.comm import get_address_host

from refmotion_nb.data.limits import bytes_of

START_BYTES = 1e9  # that a worker takes whatever it keeps: Python, libraries, references, the movies it reads
KEPT_SHARE = 0.5  # of what its limit leaves it beside that; the rest is for what it works on


def workers_of(client: Client) -> dict[str, Any]:
    """Return what the scheduler says of its workers, by their addresses; nothing once it is lost."""
    return client.scheduler_info(n_workers=-1).get("workers", {})


def hosts_of(client: Client) -> Counter[str]:
    """Return how many workers each machine has."""
    return Counter(worker["host"] for worker in workers_of(client).values())


def sharing(hosts: Counter[str], worker: Any) -> int:
    """Return how many workers share a worker's machine."""
    return hosts.get(get_address_host(worker.address), max(hosts.values(), default=1))  # one that comes later: the most


def cache_bytes(cache: float | str, n_sharing: int, worker: Any) -> float:
    """Return what a worker may keep, bytes: its part of a machine's ``cache``, as far as its own limit of memory allows."""
    part = (bytes_of(cache) if isinstance(cache, str) else cache) / n_sharing
    limit = worker.memory_manager.memory_limit
    return min(part, KEPT_SHARE * max(0, limit - START_BYTES)) if limit else part


def never_pause(worker: Any) -> None:
    """Let a worker begin tasks whatever memory it uses: what it keeps, within ``cache_bytes``, only tasks give up again.

    Dask pauses a worker that uses 80 % of its limit until it uses less, which would be for ever.
    """
    worker.memory_manager.memory_pause_fraction = False
    if worker.status == Status.paused:
        worker.status = Status.running


def pause_again(worker: Any) -> None:
    """Let Dask pause a worker, as it is set up to."""
    worker.memory_manager.memory_pause_fraction = config.get("distributed.worker.memory.pause")
