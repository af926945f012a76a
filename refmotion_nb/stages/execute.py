"""Where and with how much memory the work is done; none of it changes what comes out."""

from __future__ import annotations

import os
import re
from typing import Any

import param

from refmotion_nb.data.schema import InputError
from refmotion_nb.numerics.backend import cpu_count
from refmotion_nb.stages.base import Stage


class Execution(Stage):
    """Device, processors and memory."""

    device: Any = param.String(
        default="auto",
        doc="auto, cpu, cuda or cuda:N; this version runs on the CPU, which auto takes and says.",
    )  # fmt: skip
    threads = param.Integer(default=0, bounds=(0, None), doc="Processors to use; 0: all.")
    cache_size_GB: Any = param.String(
        default="60%",
        doc="In-memory cache: GB, or a share of the memory such as 60%. What does not fit is read again or kept on disk.",
    )  # fmt: skip
    gpus = param.Integer(default=1, bounds=(1, None), doc="Number of GPUs.")
    gpu_oversubscription_GB = param.Number(
        default=20.0, bounds=(0, None), doc="GPUs with more memory than this (GB) work on two micrographs at a time."
    )
    slicing_gpu_also_aligns = param.Boolean(
        default=True,
        doc="The GPU that slices the references also computes trajectories; off saves memory there and needs two GPUs.",
    )

    def check(self) -> None:
        """Refuse settings that contradict each other or this machine.

        Raises
        ------
        InputError
            Which setting, and what to give instead.
        """
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InputError(f"device {self.device!r} is not known; give auto, cpu, cuda or cuda:N")
        if self.cache_bytes <= 0:
            raise InputError(f"cache_size_GB is {self.cache_size_GB}; give GB above 0, or a share such as 60%")
        if not self.slicing_gpu_also_aligns and self.gpus < 2:
            raise InputError(
                f"slicing_gpu_also_aligns off needs a second GPU for the trajectories, gpus is {self.gpus}; give --gpus 2 or "
                "more, or leave it on"
            )
        if self.device not in ("auto", "cpu"):
            raise InputError(f"device {self.device}: this version runs on the CPU; give --device cpu or auto")
        if self.gpus > 1:
            raise InputError(f"gpus {self.gpus}: this version runs on the CPU; leave gpus at 1")

    @property
    def cache_bytes(self) -> float:
        """Memory for the cache, bytes; InputError where the setting is neither a number of GB nor a share."""
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", str(self.cache_size_GB))
        if not found:
            raise InputError(f"cache_size_GB {self.cache_size_GB!r} is no size; give GB, or a share such as 60%")
        number, percent = found.groups()
        if percent:
            return float(number) / 100 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return float(number) * 1e9

    @property
    def n_threads(self) -> int:
        """Processors in use."""
        return self.threads or cpu_count()
