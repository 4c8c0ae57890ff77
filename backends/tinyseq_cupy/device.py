"""Devices: why there is none, which one an operation runs on, and what to do when its memory is full.

Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from tinyseq.errors import BackendError

__all__ = ["careful", "device_count", "device_name", "device_number", "memory_explained", "why_no_device"]

Array = Any
INSUFFICIENT_DRIVER, NO_DEVICE = 35, 100  # of the CUDA runtime's errors


def why_no_device(cupy: Any) -> str | None:
    """Why CuPy has no GPU to run on, and the remedy, in one sentence; None if it has one."""
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return None
        status = NO_DEVICE
    except cupy.cuda.runtime.CUDARuntimeError as error:
        status = error.status
    driver, needed = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    if driver == 0:
        return "CuPy finds no NVIDIA driver: install one"
    if status == INSUFFICIENT_DRIVER:
        return (
            f"the NVIDIA driver is for CUDA {_version(driver)} and this CuPy for CUDA {_version(needed)}: update the driver, "
            f"or install the CuPy for CUDA {driver // 1000}"
        )
    if status == NO_DEVICE:
        return "the NVIDIA driver finds no GPU: look at nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides it"
    return f"CuPy cannot use the GPU: CUDA reports error {status}, and nvidia-smi may tell more"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def device_count(cupy: Any) -> int:
    """How many GPUs there are; 0 where CUDA cannot say."""
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0


@cache
def device_name(cupy: Any, number: int) -> str:
    """What the GPU is called; asking CUDA takes as long as a hundred operations."""
    name: bytes = cupy.cuda.runtime.getDeviceProperties(number)["name"]
    return name.decode()


def device_number(place: str, cupy: Any) -> int:
    """The number in ``"cupy:1"``.

    Raises:
        BackendError: it is none, or there is no such device.
    """
    count = device_count(cupy)
    if not (place.isascii() and place.isdigit() and int(place) < count):
        known = ", ".join(f"cupy:{number}" for number in range(count))
        raise BackendError(f"there is no device 'cupy:{place}'; choose one of: {known}")
    return int(place)


@contextmanager
def memory_explained(cupy: Any) -> Iterator[None]:
    """Say what to do where the device's memory does not suffice.

    Raises:
        BackendError: it did not.
    """
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise _no_memory(cupy, error) from error


def _no_memory(cupy: Any, error: Exception) -> BackendError:
    number = cupy.cuda.Device().id
    free, total = (size / 2**30 for size in cupy.cuda.runtime.memGetInfo())
    said = str(error).strip().rstrip(".")
    return BackendError(
        f"cuda:{number} is out of memory ({said}; {free:.1f} of its {total:.1f} GiB are free): use a smaller batch, shorter "
        "sequences or tinyseq.checkpoint, or end what else runs there"
    )


def careful(name: str, operation: Callable[..., Array], cupy: Any, several: bool) -> Callable[..., Array]:
    """An operation that runs where its arrays are, whichever device is the current one.

    Args:
        name: of the operation, for the error.
        operation: on arrays of one device.
        cupy: the module.
        several: whether there is more than one device.

    Raises (when called):
        BackendError: the arrays are on several devices, or the device's memory is full.
    """
    full = cupy.cuda.memory.OutOfMemoryError

    def here(*operands: Any, **params: Any) -> Array:
        try:
            return operation(*operands, **params)
        except full as error:
            raise _no_memory(cupy, error) from error

    def there(*operands: Any, **params: Any) -> Array:
        numbers = sorted({x.device.id for x in operands if isinstance(x, cupy.ndarray)})
        if len(numbers) > 1:
            places = " and ".join(f"cuda:{number}" for number in numbers)
            raise BackendError(f"{name} got arrays on {places}: move one of them with .to('cupy:{numbers[0]}')")
        if not numbers or numbers[0] == cupy.cuda.Device().id:
            return here(*operands, **params)
        with cupy.cuda.Device(numbers[0]):
            return here(*operands, **params)

    return there if several else here
