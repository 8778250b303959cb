"""The GPU that a benchmark runs on, and how its variants are timed there."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gpu_clocks import ClockSampler, Nvml
from gpu_timing import CudaTimer, Run, Timer, alternate_launches, alternate_sustained

import chipmunk_kernels as ck

LAUNCHES_S = 3.0


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    device: torch.device
    timer: Timer
    clocks: ClockSampler
    description: Mapping[str, Any]


class Budget:
    """Seconds after which nothing new is started; None: no end."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    def is_spent(self) -> bool:
        return self._end is not None and self._clock() >= self._end


def hopper() -> Machine:
    """Torch's current GPU; SystemExit where the kernels cannot run."""
    if not torch.cuda.is_available():
        raise SystemExit("bench_attention: needs a Hopper GPU, and torch sees no GPU")
    properties = torch.cuda.get_device_properties()
    if (properties.major, properties.minor) != (9, 0):
        raise SystemExit(
            f"bench_attention: needs a Hopper GPU (compute capability 9.0), this is a "
            f"{properties.name} ({properties.major}.{properties.minor})"
        )
    if not ck.info().cuda_compiled:
        raise SystemExit("bench_attention: this build of chipmunk_kernels has no CUDA kernels")
    description: dict[str, Any] = {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
    }
    try:
        nvml = Nvml()
        description.update(nvml.description())
        read = nvml.read
    except (OSError, AttributeError) as error:
        print(f"clocks and power are not recorded: {error}", flush=True)
        read = None
    return Machine(torch.device("cuda"), CudaTimer(), ClockSampler(read), description)


def timed(
    runs: Mapping[str, Run], options: argparse.Namespace, machine: Machine
) -> dict[str, dict[str, Any]]:
    """Figures of each variant by mode: "launches", "sustained", or both, by `options.mode`."""
    found: dict[str, dict[str, Any]] = {name: {} for name in runs}
    if options.mode in ("launches", "both") and runs:
        for name, ms in alternate_launches(machine.timer, runs, seconds=LAUNCHES_S).items():
            found[name]["launches"] = {
                "median_ms": round(statistics.median(ms), 5),
                "min_ms": round(min(ms), 5),
                "max_ms": round(max(ms), 5),
                "rounds": len(ms),
            }
    if options.mode in ("sustained", "both") and runs:
        turns = alternate_sustained(
            machine.timer,
            runs,
            turns=options.turns,
            heat_s=options.heat_s,
            warm_s=options.warm_s,
            seconds=options.seconds,
        )
        for name, result in turns.items():
            found[name]["sustained"] = {
                "median_ms": round(statistics.median(result.turns_ms), 5),
                "turns_ms": [round(ms, 5) for ms in result.turns_ms],
                "in_graph": result.captured,
                **machine.clocks.summary(result.spans),
            }
    return found
