"""Timing that is fair to every variant, and results that say where they were measured.

Variants take turns, round by round, so that a machine that speeds up, heats up or serves somebody
else for a while does so to all of them. The figure of record is the median.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import chipmunk_kernels as ck

RESULTS = Path(__file__).parent / "results"


def alternate(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    pause_s: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Runs every variant once a round, in turn; CPU only.

    A pause before each run, if any, is for the threads of the run before: OpenMP's, torch's among
    them, keep their cores busy for some milliseconds after their work, waiting for more.

    Args:
        variants: what to time, by name.
        rounds: measured rounds.
        warmup: rounds before those.
        pause_s: seconds of sleep before each run.

    Returns:
        For each name `median_ms`, `min_ms` and `max_ms` of wall-clock time, and `median_cpu_ms`,
        the processor time of all threads: the one to look at where others use the machine.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    cpu_times: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(warmup + rounds):
        for name, run in variants.items():
            time.sleep(pause_s)
            cpu_start, start = time.process_time(), time.perf_counter()
            run()
            elapsed, cpu_elapsed = time.perf_counter() - start, time.process_time() - cpu_start
            if index >= warmup:
                times[name].append(elapsed * 1e3)
                cpu_times[name].append(cpu_elapsed * 1e3)
    return {
        name: {
            "median_ms": round(statistics.median(values), 4),
            "min_ms": round(min(values), 4),
            "max_ms": round(max(values), 4),
            "median_cpu_ms": round(statistics.median(cpu_times[name]), 4),
        }
        for name, values in times.items()
    }


def environment(commit: str | None = None) -> dict[str, Any]:
    """Where and of what a measurement was made: CPU, cores, commit, versions, other load.

    Args:
        commit: stands in for git's answer, where the tree is a copy without its history.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _commit(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_isa": ck.info().cpu_isa,
        "load_average_1min": round(os.getloadavg()[0], 2),
        "real_time_priority": os.sched_getparam(0).sched_priority,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def write(
    name: str, result: Mapping[str, Any], *, folder: Path = RESULTS, commit: str | None = None
) -> Path:
    """Writes `result`, with the environment, to `folder`/`name`.json, all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    unfinished = path.with_suffix(".json.part")
    text = json.dumps({"environment": environment(commit), **result}, indent=2)
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
    return path


def _commit() -> str:
    """HEAD, with a + where the code differs from it; what benchmarks write is not code."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    written = (":(top,exclude)bench/results", ":(top,exclude)docs/images")
    changed = commit != "unknown" and _git("diff", "HEAD", "--", ":/", *written)
    return f"{commit}+" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_name() -> str:
    """The model, with family and model numbers: clouds hide the name's last part."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor()
    name = fields.get("model name", platform.processor())
    return f"{name}, family {fields.get('cpu family')}, model {fields.get('model')}"
