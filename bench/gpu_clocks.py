"""Clock and power of a GPU while something runs on it. Asks only; sets nothing."""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

_NVML_CLOCK_SM = 1


@dataclass(frozen=True)
class Reading:
    """The state of a GPU at one moment."""

    sm_mhz: float
    power_w: float
    """On Hopper the driver's mean over about a second."""


class Nvml:
    """The driver's management library, as far as it is needed here.

    Raises OSError where there is none or it refuses.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")
        self._device = ctypes.c_void_p()
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        if count.value == 1:
            self._call("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self._device))
        else:  # torch numbers those that the process sees
            uuid = str(torch.cuda.get_device_properties().uuid)
            name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
            self._call("nvmlDeviceGetHandleByUUID", name, ctypes.byref(self._device))

    def read(self) -> Reading:
        return Reading(
            sm_mhz=self._number("nvmlDeviceGetClockInfo", _NVML_CLOCK_SM),
            power_w=self._number("nvmlDeviceGetPowerUsage") / 1e3,
        )

    def description(self) -> dict[str, Any]:
        """What limits it, and the driver's version."""
        driver = ctypes.create_string_buffer(80)
        self._call("nvmlSystemGetDriverVersion", driver, len(driver))
        return {
            "driver": driver.value.decode(),
            "max_sm_mhz": self._number("nvmlDeviceGetMaxClockInfo", _NVML_CLOCK_SM),
            "power_limit_w": self._number("nvmlDeviceGetEnforcedPowerLimit") / 1e3,
        }

    def _number(self, function: str, *arguments: int) -> int:
        value = ctypes.c_uint()
        self._call(function, self._device, *arguments, ctypes.byref(value))
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise OSError(f"{function} returned {status}")


class ClockSampler:
    """Reads a GPU's state every so often, in a thread, while the `with` block runs."""

    def __init__(self, read: Callable[[], Reading] | None, period_s: float = 0.1) -> None:
        """`read` None: there is nothing to read, and no summary."""
        self._read = read
        self._period_s = period_s
        self._samples: list[tuple[float, Reading]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> ClockSampler:
        if self._read is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def summary(self, spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
        """Median, lowest and highest within the spans of time.perf_counter(); {} without any."""
        found = [r for at, r in list(self._samples) if any(a <= at <= b for a, b in spans)]
        if not found:
            return {}
        return {
            name: {
                "median": round(statistics.median(values), 1),
                "min": round(min(values), 1),
                "max": round(max(values), 1),
            }
            for name, values in (
                ("sm_mhz", [reading.sm_mhz for reading in found]),
                ("power_w", [reading.power_w for reading in found]),
            )
        }

    def _sample(self) -> None:
        while self._read is not None and not self._stop.is_set():
            try:
                reading = self._read()
            except OSError:
                return  # what was read until now stands
            self._samples.append((time.perf_counter(), reading))
            self._stop.wait(self._period_s)
