"""The CUDA compiler takes the kernels, without a warning; no GPU and no driver is needed."""

import ctypes
import importlib.util
import sys
from functools import cache
from pathlib import Path

import cuda_on_host
import pytest

from refmotion_nb.numerics import kernels_gpu

# of Volta to Blackwell the oldest, that of an H100, the newest; sm_75 to 100 between them, compiled by hand, have said no more
ARCHITECTURES = [70, 90, 120]


@cache
def nvrtc():
    if sys.platform != "linux":
        pytest.skip("the compiler is tried on Linux only")
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(one) for one in spec.submodule_search_locations] if spec else []
    for library in (found for root in roots for found in sorted(root.glob("cuda_nvrtc/lib/libnvrtc.so.*"))):
        if "builtins" not in library.name and "alt" not in library.name:
            return ctypes.CDLL(str(library))
    return None


def text_of(program, size_of, get):
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert get(program, text) == 0
    return text.raw


def compiled(source, architecture):
    """Return (result, log, machine code) of compiling as CuPy does."""
    lib = nvrtc()
    if lib is None:
        pytest.skip("pip install nvidia-cuda-nvrtc-cu12 to compile the kernels")
    program = ctypes.c_void_p()
    assert lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    options = [f"--gpu-architecture=sm_{architecture}", *kernels_gpu.OPTIONS]
    array = (ctypes.c_char_p * len(options))(*(one.encode() for one in options))
    result = lib.nvrtcCompileProgram(program, len(options), array)
    log = text_of(program, lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog)
    code = b"" if result else text_of(program, lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return result, log.rstrip(b"\0").decode().strip(), code


@pytest.mark.parametrize("name", kernels_gpu.SOURCES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_a_warning(architecture, name):
    source = kernels_gpu.source(name)
    result, log, code = compiled(source, architecture)
    said = [line for line in log.splitlines() if line and "are deprecated" not in line]  # of Volta, not of the kernels
    assert (result, said) == (0, [])
    for kernel in cuda_on_host.signatures(source):
        assert f".text.{kernel}\0".encode() in code, kernel


def test_the_compiler_warns_and_refuses():
    kernel = 'extern "C" __global__ void one(float *a) { int unused; a[0] = b; }'
    result, log, _ = compiled(kernel, 80)
    assert result != 0 and '"b" is undefined' in log and "never referenced" in log
