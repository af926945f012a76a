"""The device that a session computes on, chosen by a word: auto, cpu, cuda or cuda:N."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics import gpu
from refmotion_nb.numerics.backend import xp_of
from refmotion_nb.numerics.compiled import kept

USABLE_SHARE = 0.9  # of a GPU's memory; the rest is taken by CUDA, its libraries and fragments
KEPT_SHARE = 0.5  # of a GPU's memory, at most, for arrays kept between steps
APART = "with slicing_gpu_also_aligns off one GPU predicts views and others align: give gpus 2 or more, or leave it on"
ANEW = "; code is compiled anew by each process, for a minute: set NUMBA_CACHE_DIR to a folder that can be written to"
_EXTRAS = 'python -m pip install "refmotion-nb[cuda12]", or [cuda13] for a driver of CUDA 13'

# the GPU that this process takes among others, once it has one, and the mark that it is taken
_TAKEN: list[tuple[int, socket.socket]] = []
_TAKING = Lock()


@dataclass(frozen=True)
class Device:
    """Where arrays live and kernels run; by default the CPU."""

    number: int | None = None  # of the GPU
    name: str = "the CPU"
    total_bytes: int = 0  # memory of the GPU
    at_once: int = 2  # micrographs on it at the same time
    note: str = ""  # why it is not a GPU, where one was looked for
    oversubscription_GB: float = 20.0  # that it was chosen with
    slicer: Device | None = None  # another GPU, which holds the references and predicts views
    elsewhere: str = ""  # the word for other machines, where this one has no such device

    @property
    def word(self) -> str:
        """The word that chooses this device."""
        return "cpu" if self.number is None else f"cuda:{self.number}"

    @property
    def kind(self) -> str:
        """The word that chooses such a device on another machine."""
        return self.elsewhere or ("cuda" if self.is_gpu else "cpu")

    @property
    def of_workers(self) -> str:
        """What workers on other machines take, in words."""
        return {"auto": ", on GPUs where they have any", "cuda": ", on GPUs"}.get(self.kind, "")

    def about(self, threads: int) -> str:
        """Return what work is done on, in words."""
        return self._about(threads) + ANEW * (not kept())

    def _about(self, threads: int) -> str:
        processors = f"{threads} thread{'s' * (threads > 1)}"
        if self.is_gpu:
            views = f", views from {self.slicer.word}" if self.slicer else ""
            return f"{self.word} ({self.name}, {self.total_bytes / 1e9:.1f} GB){views}, {processors} reading movies"
        return f"the CPU, {processors}{f' ({self.note})' if self.note else ''}"

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.number is not None

    @property
    def xp(self) -> ModuleType:
        """The array module of its arrays."""
        return gpu.array_module() if self.is_gpu else np

    def activate(self) -> None:
        """Make it the device of the calling thread, which every thread has to do before it works on arrays of a GPU."""
        if self.number is not None:
            gpu.use(self.number)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it the device of the calling thread as long as the context lasts."""
        if self.number is None:
            yield
        else:
            with gpu.using(self.number):
                yield

    @contextmanager
    def telling_of_memory(self, what: str) -> Iterator[None]:
        """Tell where the memory of a GPU ended, and what helps; an error of the host's memory stays as it is.

        Raises
        ------
        InputError
            It ended while ``what``.
        """
        try:
            yield
        except Exception as error:
            if not (self.is_gpu and gpu.ended_there(error)):
                raise
            fewer = ", raise gpu_oversubscription_GB above its memory" * (self.at_once > 1)
            raise InputError(
                f"the memory of {self.word} ran out while {what} ({error}); end other programs there{fewer}, take another GPU, "
                "or set device to cpu"
            ) from None

    @property
    def slices_on(self) -> Device:
        """The device that holds the references and predicts views."""
        return self.slicer or self

    @property
    def words(self) -> tuple[str, str]:
        """The words that choose it and the device that predicts views."""
        return self.word, self.slices_on.word

    def put(self, array: Any) -> Any:
        """Return an array on the device: itself if it is there; it has to be the calling thread's."""
        return gpu.upload(array) if self.is_gpu else array

    def keeps(self, array: Any, beside: int = 0) -> bool:
        """Return whether an array is on a GPU and may stay there for long, if others will take ``beside`` bytes."""
        return xp_of(array) is not np and self.has_spare(beside)

    def has_spare(self, n_bytes: int = 0) -> bool:
        """Return whether a GPU, which has to be the calling thread's, has more free memory than work may need, by ``n_bytes``."""
        return gpu.free_bytes() - n_bytes > (1 - KEPT_SHARE) * self.total_bytes

    def together(self, sizes: Mapping[str, int], held: int = 0) -> int:
        """Return how many micrographs of these sizes, bytes by name, may be on it at a time, beside ``held`` bytes.

        Raises
        ------
        InputError
            One alone does not fit.
        """
        if not self.is_gpu:
            return self.at_once
        name = max(sizes, key=lambda one: sizes[one], default="")
        largest, room = sizes.get(name, 0), USABLE_SHARE * self.total_bytes - held
        if largest > room:
            raise InputError(
                f"{name} needs {(largest + held) / 1e9:.1f} GB on {self.word} ({self.name}), which has "
                f"{self.total_bytes / 1e9:.1f} GB; "
                "give a smaller box_size or window_reach_A, another GPU, or set device to cpu"
            )
        return self.at_once if self.at_once * largest <= room else 1

    def check_references(self, n_bytes: int) -> None:
        """Make sure that references of so many bytes fit beside those of the processes that share a GPU for views.

        Raises
        ------
        InputError
            They do not.
        """
        if self.slicer and n_bytes > USABLE_SHARE * self.slicer.total_bytes:
            share = f"{self.slicer.total_bytes / 1e9:.1f} GB on {self.slicer.word} ({self.slicer.name})"
            raise InputError(
                f"references take {n_bytes / 1e9:.1f} GB in each process, of which each has {share}; give fewer gpus, or "
                "leave slicing_gpu_also_aligns on"
            )

    @property
    def warnings(self) -> list[str]:
        """What went wrong with its memory, once, in words."""
        numbers = (one.number for one in (self, self.slices_on) if one.number is not None)
        return [said for said in dict.fromkeys(map(gpu.note_of, numbers)) if said]


class Kept:
    """The array that was put on a device last: movies share their gain, which is uploaded once."""

    def __init__(self, put: Callable[[Any], Any]):
        """Put arrays where ``put`` does."""
        self._put = put
        self._array: Any = None
        self._there: Any = None
        self._lock = Lock()

    def put(self, array: Any) -> Any:
        """Return an array where it was put; not to be changed."""
        with self._lock:
            if array is not self._array:
                self._array = self._there = None  # before the next one needs its room
                self._there, self._array = self._put(array), array
            return self._there


def choices() -> dict[str, str]:
    """Return the words that a person can choose from, by what they stand for: GPUs with name and free memory."""
    return {"auto": "auto", "cpu": "cpu", **{str(one): f"cuda:{one.number}" for one in gpu.gpus()[0]}}


def choose_apart(oversubscription_GB: float = 20.0, worker: int = 0, sharing: int = 1) -> Device:
    """Return a GPU whose views are predicted on the first one, which does nothing else: workers take the others in turn.

    Where several processes are ``sharing`` these, their memory is divided.

    Raises
    ------
    InputError
        There are no two GPUs.
    """
    slicer = choose("cuda:0", oversubscription_GB, sharing)  # each has its references there
    n = gpu.count() - 1
    if not n:
        raise InputError(f"there is one GPU, {slicer.word} ({slicer.name}); {APART}")
    aligns = choose(f"cuda:{1 + worker % n}", oversubscription_GB, -(-sharing // n))
    return replace(aligns, slicer=slicer)


def choose(word: str, oversubscription_GB: float = 20.0, sharing: int = 1, elsewhere: bool = False) -> Device:
    """Return the device of a word; auto takes the GPU with most free memory, or the CPU where there is none.

    A GPU with more memory than ``oversubscription_GB`` holds two micrographs at a time; where several processes are
    ``sharing`` it, its memory is divided by as many. Where the work is done ``elsewhere``, on other machines, these look for
    GPUs of their own.

    Raises
    ------
    InputError
        There is no such device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", word):
        raise InputError(f"device {word!r} is not known; give auto, cpu, cuda or cuda:N")
    if word == "cpu":
        return Device(oversubscription_GB=oversubscription_GB)
    number = word.partition(":")[2]
    found, why = gpu.gpus(int(number) if number else None)
    if not found and (word == "auto" or (word == "cuda" and elsewhere)):
        return Device(note=why, oversubscription_GB=oversubscription_GB, elsewhere=word if elsewhere else "")
    if not found and (others := gpu.gpus()[0]):
        raise InputError(f"device {word}: there is no such GPU; there is {', '.join(map(str, others))}")
    if not found:
        remedy = (
            "check nvidia-smi and that CuPy is the one for its driver" if gpu.installed() else f"install it: {_EXTRAS}"
        )
        raise InputError(f"device {word}: {why}; {remedy}, or give cpu or auto")
    one = max(found, key=lambda each: each.free_bytes)
    total = one.total_bytes // sharing
    at_once = 2 if total > oversubscription_GB * 1e9 else 1
    return Device(one.number, one.name, total, at_once, oversubscription_GB=oversubscription_GB)


def choose_like(device: Device, spread: bool, worker: int | str = 0, sharing: int = 1) -> Device:
    """Return the device of a worker, on its own machine of which ``sharing`` workers make use, of the kind of ``device``.

    With ``spread`` it is the GPU that the worker's number falls on, of those that align; without, one that as few others as
    possible have taken.

    Raises
    ------
    InputError
        There is no such device.
    """
    word, GB = device.kind, device.oversubscription_GB
    if not (spread and device.is_gpu):
        several = sharing > 1 and word != "cpu" and gpu.bus_ids()
        return choose(f"cuda:{_taken()}" if several else word, GB)
    if device.slicer:
        return choose_apart(GB, int(worker), sharing)
    n = gpu.count()
    return choose(f"cuda:{int(worker) % n}", GB, sharing=-(-sharing // n))


def _taken() -> int:
    """Return the number of the GPU that this process takes among others, the same whenever it is asked for."""
    with _TAKING:
        if not _TAKEN:
            _TAKEN.append(take_one(gpu.bus_ids()))
        return _TAKEN[0][0]


def take_one(bus_ids: list[str]) -> tuple[int, socket.socket]:
    """Return which GPU fewest processes of this machine have taken, the first of several, and the mark that it is taken.

    The first: dask-cuda shows each worker the GPUs in another order. A mark is a name of Linux's sockets, which ends with the
    process. Free memory would not do: workers start at the same time, and look at it before anybody has taken any.
    """
    for others in count():
        for number, bus_id in enumerate(bus_ids):
            mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                mark.bind(f"\0refmotion_nb/{bus_id}/{others}")
            except OSError as error:
                mark.close()
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return number, mark
    raise AssertionError  # never reached: count() has no end
