"""A stand-in for CuPy that runs on the host and forgives nothing: what CuPy would refuse, or do slowly, is an error here.

Its arrays are no NumPy arrays and do not mix with them; every crossing has to be said (``asarray``, ``get``). They belong to
the device that was their thread's when they were made. Device memory is counted and ends. Kernels are the real sources,
compiled by the host's compiler, with the type of every argument checked. Only what the project uses is there: a name that
is missing here has to be looked up in CuPy first.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from types import ModuleType, SimpleNamespace
from typing import Any

import cuda_on_host
import numpy as np
from scipy import fft

BINARY = "add sub mul truediv floordiv mod pow matmul and or lt le gt ge eq ne".split()
MOST = 4  # devices


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class Devices:
    """What the stand-in knows of its devices."""

    def __init__(self) -> None:
        self._thread = threading.local()  # of earlier tests: their plans are gone before counting begins
        self.count, self.total = 2, 8 << 30
        self.used, self.most = [0] * MOST, [0] * MOST  # bytes
        self.kernels: set[tuple[int, str]] = set()  # that ran, by device
        self.fail_at = -1  # allocations until one fails
        self.fail_with: type[Exception] = OutOfMemoryError
        self.uploaded = 0  # bytes of the largest upload
        self.crossings = [0, 0]  # uploads, and downloads or other waits for a value
        self.calls = (
            0  # arrays made, assignments, kernels: what a host has to ask a device for, at some microseconds each
        )
        self.moved = 0  # arrays, from device to device
        self.busy = [False] * MOST  # whether anything was asked for since it was last waited for
        self._lock = threading.RLock()

    @property
    def current(self) -> int:
        return getattr(self._thread, "number", 0)

    @current.setter
    def current(self, number: int) -> None:
        self._thread.number = number

    def take(self, array: ndarray) -> None:
        size, number = array._a.nbytes, array._device
        with self._lock:
            self.fail_at -= 1
            if self.fail_at == -1:
                raise self.fail_with("CUFFT_ALLOC_FAILED")
            if self.used[number] + size > self.total:
                raise OutOfMemoryError(f"out of memory allocating {size} bytes")
            self.used[number] += size
            self.most[number] = max(self.most[number], self.used[number])
        weakref.finalize(array._a, self._release, self.used, number, size)  # of this test, however late it goes

    @property
    def plans(self) -> Plans:
        """The plans of the calling thread, of its device."""
        known = vars(self._thread).setdefault("plans", {})
        return known.setdefault(self.current, Plans())

    def _release(self, used: list[int], number: int, size: int) -> None:
        with self._lock:
            used[number] -= size


class Plans(OrderedDict):
    """As CuPy's cache: the last 16 plans of a thread, each with room to work in as large as its data."""

    def want(self, kind: str, array: np.ndarray) -> None:
        key = kind, array.shape
        if key not in self:
            self[key] = ndarray(np.empty(array.size * 8, np.uint8))
        self.move_to_end(key)
        if len(self) > 16:
            self.popitem(last=False)


devices = Devices()


class ndarray:
    __array_ufunc__ = None  # NumPy leaves operators to us

    def __init__(self, array: Any) -> None:
        self._a = np.asarray(array)
        self._device = devices.current
        if self._a.base is None:
            devices.take(self)
            devices.calls += 1

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def get(self) -> np.ndarray:
        devices.crossings[1] += 1
        return np.array(host(self))

    shape, ndim, size, dtype, nbytes, flags, strides = (
        property(lambda self, name=name: getattr(self._a, name))
        for name in ("shape", "ndim", "size", "dtype", "nbytes", "flags", "strides")
    )

    @property
    def device(self) -> Device:
        return Device(self._device)

    real, imag, T = (
        property(lambda self, name=name: view(self, getattr(host(self), name))) for name in ("real", "imag", "T")
    )

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> ndarray:
        if any(isinstance(one, ndarray) and one.dtype == bool for one in (key if isinstance(key, tuple) else (key,))):
            raise IndexError("how many are true has to be waited for; say where they are")
        return view(self, host(self)[index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        devices.calls += 1
        host(self)[index(key)] = host(value)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __neg__(self) -> ndarray:
        return ndarray(-host(self))

    def __invert__(self) -> ndarray:
        return ndarray(~host(self))


def view(of: ndarray, array: Any) -> ndarray:
    """Return a view, or what NumPy copied for want of one, as an array of the same device."""
    return ndarray(array)


def host(value: Any, arrays_only: bool = False) -> Any:
    """Return what stands behind an argument; TypeError for host arrays, ValueError for arrays of another device."""
    if isinstance(value, ndarray):
        if value._device != devices.current:
            raise ValueError(f"the array is on device {value._device}, the thread works on device {devices.current}")
        devices.busy[value._device] = True
        return value._a
    if isinstance(value, (tuple, list)):
        return type(value)(host(one) for one in value)
    if isinstance(value, np.ndarray) or (arrays_only and not isinstance(value, np.generic)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def index(key: Any) -> Any:
    """Return an index; of arrays only those of the device."""
    parts = key if isinstance(key, tuple) else (key,)
    for one in parts:
        known = one is None or one is Ellipsis or isinstance(one, (int, np.integer, slice, ndarray))
        if not known:
            raise IndexError(f"arrays of the device are not indexed by {type(one)}")
    parts = tuple(host(one) for one in parts)
    return parts if isinstance(key, tuple) else parts[0]


def _operator(name: str) -> None:
    def left(self: ndarray, other: Any) -> ndarray:
        return ndarray(getattr(np.ndarray, f"__{name}__")(host(self), host(other)))

    def right(self: ndarray, other: Any) -> ndarray:
        return ndarray(getattr(np.ndarray, f"__r{name}__")(host(self), host(other)))

    def in_place(self: ndarray, other: Any) -> ndarray:
        devices.calls += 1
        getattr(np.ndarray, f"__i{name}__")(host(self), host(other))
        return self

    setattr(ndarray, f"__{name}__", left)
    if name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__r{name}__", right)
        setattr(ndarray, f"__i{name}__", in_place)


def _method(name: str) -> None:
    def method(self: ndarray, *arguments: Any, **options: Any) -> ndarray:
        return view(self, getattr(host(self), name)(*map(host, arguments), **options))

    setattr(ndarray, name, method)


for _name in BINARY:
    _operator(_name)
for _name in "reshape ravel astype copy view sum mean std max min any all transpose swapaxes".split():
    _method(_name)


def _function(name: str) -> Any:
    """Return a function of arrays: at least one argument has to be one of the device."""

    def function(*arguments: Any, **options: Any) -> ndarray:
        given = [one for a in arguments for one in (a if isinstance(a, (list, tuple)) else [a])]
        if not any(isinstance(one, ndarray) for one in given):
            raise TypeError(f"{name} of no array of the device")
        return ndarray(getattr(np, name)(*(host(one) for one in arguments), **options))

    return function


def _maker(name: str) -> Any:
    return lambda *arguments, **options: ndarray(getattr(np, name)(*map(host, arguments), **options))


def asarray(values: Any, dtype: Any = None) -> ndarray:
    """Upload, return the array itself, or copy it from another device, which has to have been waited for."""
    if isinstance(values, ndarray) and values._device != devices.current:
        if devices.busy[values._device]:
            raise RuntimeError(f"device {values._device} may still be writing what is copied from it")
        devices.moved += 1
        return ndarray(np.array(values._a, dtype))
    if isinstance(values, ndarray):
        return values if dtype is None or values.dtype == dtype else values.astype(dtype)
    devices.crossings[0] += 1
    devices.uploaded = max(devices.uploaded, np.asarray(values).nbytes)
    return ndarray(np.array(values, dtype, order="C" if np.ndim(values) == 0 else "K"))


def ascontiguousarray(values: ndarray, dtype: Any = None) -> ndarray:
    """As CuPy's; here it uploads nothing."""
    array = host(values, arrays_only=True)
    same = array.flags.c_contiguous and (dtype is None or array.dtype == dtype)
    return values if same else ndarray(np.array(array, dtype, order="C"))


class Device:
    """As cupy.cuda.Device."""

    def __init__(self, number: int | None = None) -> None:
        self.id = devices.current if number is None else number
        if not 0 <= self.id < devices.count:
            raise ValueError("cudaErrorInvalidDevice: invalid device ordinal")

    @property
    def pci_bus_id(self) -> str:
        return f"{os.getpid()}:0{self.id}:00.0"  # of a machine of this process alone

    def use(self) -> Device:
        devices.current = self.id
        return self

    def __enter__(self) -> Device:
        self._last = devices.current
        return self.use()

    def __exit__(self, *_: object) -> None:
        devices.current = self._last


class RawModule:
    """As CuPy's, compiled by the host's compiler."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self.code, self.device = code, devices.current

    def get_function(self, name: str) -> Any:
        def kernel(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple) -> None:
            if self.device != devices.current:
                raise ValueError("a module is loaded for one device")
            for one in arguments:
                if not isinstance(one, (ndarray, np.generic)):
                    raise TypeError(f"kernel {name}: {type(one)}; give arrays of the device and NumPy's scalars")
            devices.calls += 1
            devices.kernels.add((devices.current, name))
            cuda_on_host.launch(self.code, name, grid, block, tuple(host(one) for one in arguments))

        return kernel


def _transform(name: str) -> Any:
    def function(array: ndarray, *arguments: Any, axis: int = -1, norm: str | None = None) -> ndarray:
        values = host(array, arrays_only=True)
        devices.plans.want(name, values)
        options = {} if name.endswith("2") else {"axis": axis}
        found = getattr(fft, name)(values, *arguments, norm=norm, **options)
        if options and axis != -1:  # cuFFT transforms the last axis; CuPy returns a view with axes exchanged
            found = np.ascontiguousarray(found.swapaxes(axis, -1)).swapaxes(axis, -1)
        return ndarray(found)

    return function


def flatnonzero(array: ndarray) -> ndarray:
    """As CuPy's, which waits for how many there are."""
    devices.crossings[1] += 1
    return ndarray(np.flatnonzero(host(array, True)))


def multiply(one: Any, other: Any, out: ndarray | None = None, dtype: Any = None) -> ndarray:
    """As CuPy's, into an array of the device if one is given."""
    if not isinstance(one, ndarray):
        raise TypeError("multiply of no array of the device")
    found = np.multiply(host(one), host(other), dtype=dtype)
    if out is None:
        return ndarray(found)
    out[...] = ndarray(found)
    return out


def _wait() -> None:
    devices.busy[devices.current] = False


def _properties(number: int) -> dict[str, Any]:
    return {"name": f"Stand-in {number}".encode(), "major": 9, "minor": 0}


def modules() -> dict[str, ModuleType]:
    """Return what goes into ``sys.modules``: a new CuPy, with empty devices."""
    devices.__init__()
    cupy = ModuleType("cupy")
    makers = {name: _maker(name) for name in "empty zeros ones arange".split()}
    functions = {
        name: _function(name)
        for name in "concatenate stack where maximum minimum abs exp sqrt clip moveaxis swapaxes broadcast_to matmul einsum "
        "argsort searchsorted".split()
    }
    runtime = SimpleNamespace(
        getDevice=lambda: devices.current, getDeviceCount=lambda: devices.count, getDeviceProperties=_properties,
        memGetInfo=lambda: (devices.total - devices.used[devices.current], devices.total), deviceSynchronize=_wait,
    )  # fmt: skip
    pool = SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)
    vars(cupy).update(
        makers, **functions, ndarray=ndarray, asarray=asarray, ascontiguousarray=ascontiguousarray, RawModule=RawModule,
        flatnonzero=flatnonzero, multiply=multiply,
        linalg=SimpleNamespace(inv=lambda a: ndarray(np.linalg.inv(host(a, True)))),
        cuda=SimpleNamespace(
            Device=Device, runtime=runtime, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            alloc_pinned_memory=bytearray,
        ),
        get_default_memory_pool=lambda: pool, __version__="13.0",
    )  # fmt: skip
    transforms = ModuleType("cupyx.scipy.fft")
    vars(transforms).update({name: _transform(name) for name in ("rfft2", "ifft", "irfft")})
    parents = {name: ModuleType(name) for name in ("cupyx", "cupyx.scipy", "cupy.fft")}
    config = ModuleType("cupy.fft.config")
    config.get_plan_cache = lambda: devices.plans
    return {"cupy": cupy, **parents, "cupyx.scipy.fft": transforms, "cupy.fft.config": config}
