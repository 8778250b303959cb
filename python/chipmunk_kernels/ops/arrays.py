"""What the ops need of an array library: allocation, and a way to launch an op.

The library of an op's first array decides for the others: its outputs are of that library, on that
device, and the op runs on that library's current stream. torch lives in `ops/torch.py`, and is
touched only where the caller has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from chipmunk_kernels import _core
from chipmunk_kernels.arguments import type_name
from chipmunk_kernels.ops import checked
from chipmunk_kernels.ops.schemas import Op

_INT32_MAX = 2**31 - 1
_NONE: Mapping[str, Any] = {}


class ArrayLibrary(Protocol):
    """One array library, as the ops see it. Dtypes are names, e.g. "float32"."""

    def check(self, op: str, arrays: Mapping[str, Any], written: Mapping[str, Any] = _NONE) -> None:
        """Refuses arrays, by public name, that this library cannot hand to `op`.

        Args:
            op: for messages.
            arrays: what `op` gets; None for no array.
            written: what it writes.
        """
        ...

    def empty(self, shape: tuple[int, ...], dtype: str | None, like: Any) -> Any:
        """A row-major output, not initialised, on the device of `like`; None: of its dtype too."""
        ...

    def empty_like(self, like: Any) -> Any:
        """An output with the shape, dtype, device and order of dimensions of `like`."""
        ...

    def has_order(self, like: Any) -> bool:
        """Whether lists on the device of `like` carry an order: on CUDA devices."""
        ...

    def cast(self, array: Any, dtype: str) -> Any:
        """The array as float32, or as int32 with numbers past its ends brought to them."""
        ...

    def run(self, op: Op, args: tuple[Any, ...]) -> None:
        """Calls the out-variant `op` with its arguments in order, as `Op.arrange` gives them."""
        ...

    def finish(self, output: Any) -> Any:
        """What the caller gets for an output that has been filled."""
        ...

    def to_device(self, array: Any, device: Any) -> Any:
        """The array on another device, or itself where it is there already."""
        ...

    def to_host(self, array: Any) -> Any:
        """The array on the CPU, or itself where it is there already."""
        ...


class NumpyArrays:
    """numpy: arrays on the CPU; bfloat16 through ml_dtypes."""

    def check(self, op: str, arrays: Mapping[str, Any], written: Mapping[str, Any] = _NONE) -> None:
        """Nothing to refuse: the extension looks at every array."""

    def empty(self, shape: tuple[int, ...], dtype: str | None, like: Any) -> Any:
        """See `ArrayLibrary`."""
        return np.empty(shape, dtype or like.dtype)

    def empty_like(self, like: Any) -> Any:
        """See `ArrayLibrary`."""
        out = np.empty_like(like, subok=False)
        # broadcast dimensions (stride 0) would be laid out innermost
        last_is_contiguous = out.ndim == 0 or out.strides[-1] == out.itemsize
        return out if last_is_contiguous else np.empty(like.shape, like.dtype)

    def has_order(self, like: Any) -> bool:
        """See `ArrayLibrary`."""
        return False

    def cast(self, array: Any, dtype: str) -> Any:
        """See `ArrayLibrary`."""
        if dtype == "int32" and array.dtype.itemsize > 2:
            array = array.clip(0, _INT32_MAX)
        return array.astype(dtype)

    def run(self, op: Op, args: tuple[Any, ...]) -> None:
        """See `ArrayLibrary`."""
        checked.call(op, args, to_host=self.to_host)

    def finish(self, output: Any) -> Any:
        """See `ArrayLibrary`."""
        return output

    def to_device(self, array: Any, device: Any) -> Any:
        """Numpy arrays live on the CPU."""
        if str(device) != "cpu":
            raise _core.UnsupportedError(f"to: device: numpy arrays live on the cpu, not {device}")
        return array

    def to_host(self, array: Any) -> Any:
        """See `ArrayLibrary`."""
        return array


class CupyArrays:
    """cupy: arrays on a CUDA device, ops on cupy's current stream there."""

    def __init__(self, cupy: Any) -> None:
        """Takes the module."""
        self._cupy = cupy

    def check(self, op: str, arrays: Mapping[str, Any], written: Mapping[str, Any] = _NONE) -> None:
        """Nothing to refuse: the extension looks at every array."""

    def empty(self, shape: tuple[int, ...], dtype: str | None, like: Any) -> Any:
        """See `ArrayLibrary`."""
        with like.device:
            return self._cupy.empty(shape, dtype or like.dtype)

    def empty_like(self, like: Any) -> Any:
        """See `ArrayLibrary`."""
        with like.device:
            return self._cupy.empty(like.shape, like.dtype)

    def has_order(self, like: Any) -> bool:
        """See `ArrayLibrary`."""
        return True

    def cast(self, array: Any, dtype: str) -> Any:
        """See `ArrayLibrary`."""
        with array.device:
            if dtype == "int32" and array.dtype.itemsize > 2:
                array = self._cupy.clip(array, 0, _INT32_MAX)
            return array.astype(dtype)

    def run(self, op: Op, args: tuple[Any, ...]) -> None:
        """See `ArrayLibrary`."""
        with args[0].device:
            stream: int = self._cupy.cuda.get_current_stream().ptr
            checked.call(op, args, stream=stream, to_host=self.to_host)

    def finish(self, output: Any) -> Any:
        """See `ArrayLibrary`."""
        return output

    def to_device(self, array: Any, device: Any) -> Any:
        """Between CUDA devices, by number."""
        with self._cupy.cuda.Device(device):
            return self._cupy.asarray(array)

    def to_host(self, array: Any) -> Any:
        """See `ArrayLibrary`."""
        return self._cupy.asnumpy(array)


class JaxArrays:
    """jax on the CPU, outside jit. Arrays are immutable: ops that write in place refuse them."""

    def __init__(self, jax: Any) -> None:
        """Takes the module."""
        self._jax = jax

    def check(self, op: str, arrays: Mapping[str, Any], written: Mapping[str, Any] = _NONE) -> None:
        """Refuses traced arrays, arrays on a GPU, and to write any."""
        for name, array in arrays.items():
            if isinstance(array, self._jax.core.Tracer):
                raise _core.UnsupportedError(
                    f"{op}: {name}: a traced jax array has no data; call the op outside jax.jit"
                )
            if isinstance(array, self._jax.Array) and any(
                device.platform != "cpu" for device in array.devices()
            ):
                raise _core.UnsupportedError(
                    f"{op}: {name}: jax arrays on a GPU are not supported, as jax does not tell "
                    "which stream it works on; use jax on the CPU, torch or cupy"
                )
        for name, array in written.items():
            if isinstance(array, self._jax.Array):
                raise _core.UnsupportedError(
                    f"{op}: {name}: is updated in place, and jax arrays are immutable; give a "
                    "numpy array"
                )

    def empty(self, shape: tuple[int, ...], dtype: str | None, like: Any) -> Any:
        """Memory of our own, which `finish` turns into a jax array without a copy."""
        return _core.HostBuffer(shape, dtype or _buffer_dtype(like))

    def empty_like(self, like: Any) -> Any:
        """See `ArrayLibrary`."""
        return _core.HostBuffer(like.shape, _buffer_dtype(like))

    def has_order(self, like: Any) -> bool:
        """See `ArrayLibrary`."""
        return False

    def cast(self, array: Any, dtype: str) -> Any:
        """See `ArrayLibrary`."""
        if dtype == "int32" and array.dtype.itemsize > 2:
            array = self._jax.numpy.clip(array, 0, _INT32_MAX)
        return array.astype(dtype)

    def run(self, op: Op, args: tuple[Any, ...]) -> None:
        """See `ArrayLibrary`."""
        self.check(op.name, op.arrays(args), op.arrays(args, written=True))
        self._jax.block_until_ready([a for a in args if isinstance(a, self._jax.Array)])
        checked.call(op, args, to_host=self.to_host)

    def finish(self, output: Any) -> Any:
        """See `ArrayLibrary`."""
        if isinstance(output, _core.HostBuffer):
            return self._jax.dlpack.from_dlpack(output)
        return output

    def to_device(self, array: Any, device: Any) -> Any:
        """See `ArrayLibrary`."""
        return self._jax.device_put(array, device)

    def to_host(self, array: Any) -> Any:
        """See `ArrayLibrary`."""
        return array


def _buffer_dtype(like: Any) -> str:
    """That of `like`; float32 if no buffer can have it: the op is going to refuse `like`."""
    name = str(like.dtype)
    return name if name in ("float32", "bfloat16", "float16") else "float32"


_NUMPY = NumpyArrays()


def library_of(op: str, argument: str, array: Any) -> ArrayLibrary:
    """The library that `array` belongs to.

    Raises:
        ValueError: `array` is no torch, numpy, cupy or jax array.
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        # torch.compile may trace this first call: it knows an import, not a look into sys.modules
        import chipmunk_kernels.ops.torch as registered

        return registered.TORCH
    if isinstance(array, np.ndarray):
        return _NUMPY
    cupy: Any = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return CupyArrays(cupy)
    jax: Any = sys.modules.get("jax")
    if jax is not None and isinstance(array, jax.Array):
        return JaxArrays(jax)
    raise ValueError(
        f"{op}: {argument}: expected a torch, numpy, cupy or jax array, got {type_name(array)}"
    )


def size(array: Any, dim: int) -> int:
    """Size of a dimension, 0 where the array has too few or is none: the op's own check tells."""
    shape = getattr(array, "shape", ())
    return shape[dim] if -len(shape) <= dim < len(shape) else 0


def dtype_name(array: Any) -> str:
    """For messages: "float32" of any library's array."""
    return str(array.dtype).removeprefix("torch.")


def device_name(array: Any) -> str:
    """For messages: "cpu", "cuda:1"; numpy's arrays live on the CPU."""
    return str(getattr(array, "device", "cpu"))
