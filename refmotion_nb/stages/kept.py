"""Micrographs that stay in memory for the next pass: on a GPU while much of it is free, else on the host within its limit."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

import numpy as np

from refmotion_nb.data.spool import Spool
from refmotion_nb.numerics.backend import to_host, xp_of
from refmotion_nb.numerics.room import settled
from refmotion_nb.stages.device import Device
from refmotion_nb.stages.micrograph import Micrograph

Key = tuple[str, ...]  # name of the micrograph, and how it was read


class KeptMicrographs:
    """Those kept first stay, since stages walk through micrographs in one order: the last kept would be needed last."""

    def __init__(self, spool: Spool):
        """Keep those on the host within the limit of ``spool``."""
        self._spool = spool
        self._kept: dict[Key, Micrograph] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._kept)

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys of those kept."""
        return iter(list(self._kept))

    def get(self, key: Key) -> Micrograph | None:
        """Return a micrograph where it is kept, None if it is not."""
        with self._lock:
            return self._kept.get(key)

    def add(self, key: Key, micrograph: Micrograph, device: Device) -> None:
        """Keep a micrograph, which is on ``device``, if it fits, in place of one whose patches are cropped to fewer px.

        Raises
        ------
        MemoryError
            The host has less memory than the limit says.
        """
        with self._lock:
            if known := self._kept.get(key):
                if known.spectra.box >= micrograph.spectra.box:
                    return
                self._give_up(key)
        # beside those at work; to the host and back takes about as long as to read it again
        several, at_work = device.at_once > 1, device.at_once * micrograph.nbytes
        if several and device.keeps(micrograph.spectra.stored, beside=at_work):
            with self._lock:
                self._kept.setdefault(key, micrograph)
        elif self._spool.reserve(micrograph.nbytes):
            try:
                # gigabytes from a GPU: nobody waits for them
                on_host = micrograph.on(lambda array: settled(to_host(array)))
            except BaseException:  # memory that ends, or somebody who stops it
                self._spool.release(micrograph.nbytes)
                raise
            with self._lock:
                if self._kept.setdefault(key, on_host) is not on_host:
                    self._spool.release(micrograph.nbytes)

    def make_room(self, n_bytes: int) -> None:
        """Give up micrographs on the host, the last first, until ``n_bytes`` of the limit are free or none is left."""
        with self._lock:
            while self._spool.held_bytes + n_bytes > self._spool.limit_bytes and (key := self._last(on_host=True)):
                self._give_up(key)

    def make_room_on(self, device: Device) -> None:
        """Give up micrographs on a GPU, the last first, while it has no memory to spare."""
        with self._lock:
            while (key := self._last(on_host=False)) and not device.has_spare():
                self._give_up(key)

    def leave_devices(self) -> None:
        """Give up those on GPUs: work goes on elsewhere."""
        with self._lock:
            while key := self._last(on_host=False):
                self._give_up(key)

    def clear(self) -> None:
        """Give up all."""
        with self._lock:
            for key in list(self._kept):
                self._give_up(key)

    def _last(self, on_host: bool) -> Key | None:
        return next((key for key in reversed(self._kept) if _on_host(self._kept[key]) == on_host), None)

    def _give_up(self, key: Key) -> None:
        micrograph = self._kept.pop(key)
        if _on_host(micrograph):
            self._spool.release(micrograph.nbytes)


def _on_host(micrograph: Micrograph) -> bool:
    return xp_of(micrograph.spectra.stored) is np
