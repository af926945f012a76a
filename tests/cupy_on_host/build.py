"""Build CuPy for a machine without a GPU: its own code, with the host in place of CUDA.

    python tests/cupy_on_host/build.py FOLDER
    FOLDER/run python -m pytest -m gpu
    HOST_GPUS=2 FOLDER/run refmotion run ... --device cuda --gpus 2

Needs g++, `python -m pip` with a network, and five minutes. CuPy can be built without CUDA for its documentation; functions of
CUDA then do nothing. Those that CuPy calls for us are in ``device.cpp``, kernels are compiled behind ``kernel.h``. What
CuPy makes of our calls (indices, types, layouts, memory, plans, launches, threads, several devices) is tested so, and nothing
of what a GPU is: speed, work done side by side, cuFFT, cuBLAS and the machine code of NVRTC.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

CUPY = "14.2.0"
HERE = Path(__file__).parent
STUBS = ("cupy_backends/stub/cupy_cuda_runtime.h", "cupy_backends/stub/cupy_cublas.h", "cupy/cuda/cupy_cufft.h")
NO_CUDA = "#else  // defined(CUPY_NO_CUDA)"  # in the last of them, what is before this is for other builds
LIBRARY = "    return SoftLink(libname, prefix, mandatory=True"
OURS = '    import os; libname = os.environ["CUPY_ON_HOST"] + "/libdevice.so"\n'
PROPERTIES = """    return {'name': b'host', 'multiProcessorCount': 4, 'warpSize': 32, 'maxThreadsPerBlock': 1024, 'major': 9,
            'minor': 0}
"""
ARGSORT = """#include <cstddef>
#include <cstdint>
#include <vector>
extern "C" int host_argsort(int, size_t*, const void*, const ptrdiff_t*, int);
void thrust_argsort(int type, size_t* order, void* keys, void*, const std::vector<ptrdiff_t>& shape, intptr_t, void*) {
    host_argsort(type, order, keys, shape.data(), int(shape.size()));
}"""
RUNTIME = "cupy_backends/cuda/api/runtime.pyx"
CHANGES = [  # file, text, what takes its place
    ("cupy_backends/cuda/api/_driver_extern.pxi", LIBRARY, OURS + LIBRARY),
    ("cupy_backends/cuda/libs/_cnvrtc.pxi", LIBRARY, OURS + LIBRARY),
    ("cupy_backends/cuda/libs/__init__.py", "_pathfinder.load_nvidia_dynamic_lib(pathfinder_name)", "pass"),
    ("cupy/cuda/__init__.py", 'pathfinder.load_nvidia_dynamic_lib("cufft")', "pass"),
    ("cupy/_core/core.pyx", "_cuda_include_dir = find_nvidia_header_directory('cudart')", "_cuda_include_dir = ''"),
    (RUNTIME, "raise ValueError('Fetching memory unsupported.')", "return 0"),
    (RUNTIME, "    cdef DeviceProp props\n", PROPERTIES + "    cdef DeviceProp props\n"),
    ("cupy/cuda/cupy_thrust.h", "void thrust_argsort(...) {\n}", ARGSORT),
]
NAMESPACE = "#pragma once\n#define THRUST_NAMESPACE_BEGIN namespace thrust {\n#define THRUST_NAMESPACE_END }\n"
RUN = """#!/bin/sh
export CUPY_ON_HOST="{folder}" CUPY_CACHE_DIR="{folder}/kernels" CUPY_ACCELERATORS=
export LD_LIBRARY_PATH="{folder}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
export PYTHONPATH="{folder}/cupy:{folder}/packages${{PYTHONPATH:+:$PYTHONPATH}}"
exec "$@"
"""


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip"]
    stub = {**os.environ, "CUPY_INSTALL_USE_STUB": "1", "CXXFLAGS": "-O0 -g0", "CFLAGS": "-O0 -g0"}
    download = ["download", "-q", "--no-deps", "--no-binary", "cupy", f"cupy=={CUPY}", "-d", str(folder)]
    subprocess.run([*pip, *download], env=stub, check=True)
    with tarfile.open(next(folder.glob("cupy-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.glob("cupy-*/")).rename(folder / "cupy")
    change(source)
    device(folder)
    subprocess.run([*pip, "install", "-q", "--target", str(folder / "packages"), "cuda-pathfinder"], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = str(folder / "venv/bin/python")
    needed = ["setuptools>=77", "cython>=3.2,<3.3", "numpy"]
    subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True)
    link = {"LDFLAGS": f"-L{folder} -Wl,--no-as-needed,-ldevice"}
    build = ["setup.py", "-q", "build_ext", "--inplace", f"-j{os.cpu_count()}"]
    subprocess.run([python, *build], cwd=source, env={**stub, **link}, check=True)
    run = folder / "run"
    run.write_text(RUN.format(folder=folder))
    run.chmod(0o755)


def device(folder: Path) -> None:
    """Compile what stands for CUDA, and lay out what kernels are compiled with."""
    command = [
        "g++",
        "-std=c++20",
        "-O2",
        "-shared",
        "-fPIC",
        str(HERE / "device.cpp"),
        "-o",
        str(folder / "libdevice.so"),
    ]
    subprocess.run([*command, "-ldl"], check=True)
    namespace = folder / "include/thrust/detail/config/namespace.h"
    namespace.parent.mkdir(parents=True)
    namespace.write_text(NAMESPACE)
    shutil.copy(HERE / "kernel.h", folder / "include")
    (folder / "kernels").mkdir()


def change(source: Path) -> None:
    """Have CuPy call the functions of ``device.cpp``: stubs of these are only declared."""
    ours = set(re.findall(r"\b(cu[a-zA-Z0-9_]+)\(", (HERE / "device.cpp").read_text()))
    ours |= {f"cublas{letter}gemmBatched" for letter in "SDCZ"}
    stub = re.compile(r"\n([\w *]+?\b(cu\w+)\([^)]*\)) \{.*?\n\}", re.DOTALL)
    for name in STUBS:
        path = source / name
        text = path.read_text()
        start = max(0, text.find(NO_CUDA))
        declared = stub.sub(lambda one: f"\n{one[1]};" if one[2] in ours else one[0], text[start:])
        path.write_text(text[:start] + declared)
    for name, text, other in CHANGES:
        path = source / name
        before = path.read_text()
        if before.count(text) != 1:
            raise SystemExit(f"{name} of CuPy {CUPY} is not as expected: {text!r}")
        path.write_text(before.replace(text, other))


if __name__ == "__main__":
    main()
