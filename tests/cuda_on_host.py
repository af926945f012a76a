"""CUDA C++ run by the host's compiler: what a kernel does is tested where there is no GPU.

A kernel's source is compiled by g++ behind what stands for CUDA (``cupy_on_host/kernel.h``): one thread runs after another, and
where threads wait for each other they take turns.

Where ``HOST_SANITIZER`` is set (``thread``, or ``address,undefined``) it watches them, and each is a thread of the host. Its
library must be there from the start: ``LD_PRELOAD=$(gcc -print-file-name=libtsan.so) HOST_SANITIZER=thread python -m pytest
-n 0 -s -k stand-in tests/test_gpu_kernels.py``. What it finds is told on standard error; it takes a hundred times as long.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

SHIM = Path(__file__).parent / "cupy_on_host/kernel.h"
TYPES = {
    "float": np.float32, "double": np.float64, "short": np.int16, "unsigned short": np.uint16, "int": np.int32,
    "unsigned int": np.uint32, "uint64": np.uint64,
    "signed char": np.int8, "unsigned char": np.uint8, "int64": np.int64, "float2": np.complex64, "short2": np.int16,
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel."""

    kind: str  # name of the C++ type, without const and *
    pointer: bool
    constant: bool

    @classmethod
    def parse(cls, text: str) -> Parameter:
        words = text.replace("*", " * ").replace("__restrict__", " ").split()
        kind = " ".join(word for word in words[:-1] if word not in ("const", "*"))
        return cls(kind, "*" in words, "const" in words)


def compiler() -> str | None:
    """Return the path of the host's compiler, if there is one."""
    return shutil.which("g++")


@cache
def signatures(source: str) -> dict[str, list[Parameter]]:
    """Return the parameters of every kernel, macros expanded."""
    command = [compiler(), "-E", "-P", "-x", "c++", "-"]
    expanded = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    found = re.findall(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(([^)]*)\)', expanded)
    return {name: [Parameter.parse(one) for one in parameters.split(",")] for name, parameters in found}


@cache
def library(source: str) -> ctypes.CDLL:
    """Compile the source with a launcher for every kernel."""
    together = "true" if "__sync" in source else "false"
    launchers = [
        f'extern "C" void launch_{name}(const unsigned *g, const unsigned *b, void **v) '
        f"{{ run({name}, g, b, v, {together}); }}\n"
        for name in signatures(source)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cpp"
        file.write_text(f'#include "{SHIM.name}"\n' + source + "".join(launchers))
        flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
        # products are added without a rounding in between, as on a GPU
        flags += ["-march=native", "-ffp-contract=fast", "-isystem", str(SHIM.parent)]
        if sanitizer := os.environ.get("HOST_SANITIZER"):
            flags += ["-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=undefined", "-DHOST_THREADS"]
        command = [compiler(), *flags, str(file), "-o", str(file.with_suffix(".so"))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return ctypes.CDLL(str(file.with_suffix(".so")))


def launch(source: str, name: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple) -> None:
    """Run a kernel; TypeError where an argument is not what the kernel's source says, as nobody would notice on a GPU."""
    parameters = signatures(source)[name]
    if len(arguments) != len(parameters):
        raise TypeError(f"kernel {name} takes {len(parameters)} arguments, {len(arguments)} were given")
    grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
    if not all(0 < n < 2**16 for n in grid[1:]) or not 0 < grid[0] < 2**31 or block[1:] != (1, 1):
        raise ValueError(f"kernel {name}: a grid of {grid} blocks cannot be")
    places = []
    for i, (value, parameter) in enumerate(zip(arguments, parameters)):
        expected = np.dtype(TYPES[parameter.kind])
        array = isinstance(value, np.ndarray)
        if array != parameter.pointer or value.dtype != expected:
            raise TypeError(f"kernel {name}, argument {i + 1}: {type(value).__name__} of {value.dtype} for {parameter}")
        if array and not value.flags.c_contiguous:
            raise TypeError(f"kernel {name}, argument {i + 1}: not contiguous")
        places.append(ctypes.c_void_p(value.ctypes.data) if array else value.tobytes())
    held = [ctypes.create_string_buffer(one, len(one)) if isinstance(one, bytes) else one for one in places]
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(one) for one in held))
    three = ctypes.c_uint * 3
    getattr(library(source), f"launch_{name}")(three(*grid), three(*block), pointers)
