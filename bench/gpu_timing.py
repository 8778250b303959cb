"""GPU time that is fair to every variant: cold launches in turn, and sustained runs in turn.

Cold: the L2 cache is flushed before each launch, and the variants take turns launch by launch.
Sustained: on a card that is hot already, each variant in its turn runs back to back until clocks
and power have settled, and goes on while it is measured; the L2 cache is not flushed, and launch
overhead is out of it wherever the launches could be captured in a CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch

Run = Callable[[], object]
Span = tuple[float, float]  # of time.perf_counter()
Item = TypeVar("Item")

GRAPH_MS = 10.0
GRAPH_LAUNCHES = 200


@dataclass(frozen=True)
class Batch:
    """Some launches of one variant, started by one call."""

    start: Run
    launches: int
    captured: bool
    """In a CUDA graph; else the host launches them one by one."""


class Timer(Protocol):
    """A device that runs work and says how long it took."""

    def launch_each(self, runs: Sequence[Run]) -> list[float]:
        """Milliseconds of each, run once in the order given, each with cold caches."""
        ...

    def batch(self, run: Run) -> Batch:
        """Launches of `run`, enough for their start not to matter."""
        ...

    def back_to_back(self, batch: Batch, seconds: float) -> float:
        """Milliseconds of a launch: the mean over at least so many seconds without a pause."""
        ...

    def finish(self) -> None:
        """Waits for everything that was started."""
        ...


class CudaTimer:
    """CUDA events on the current stream of the current device."""

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties().L2_cache_size
        # The flush is also the host's head start: it lasts longer than launching any variant.
        self._flush = torch.empty(16 * l2_bytes, dtype=torch.int8, device="cuda")

    def launch_each(self, runs: Sequence[Run]) -> list[float]:
        """See `Timer`."""
        events = [(_event(), _event()) for _ in runs]
        for run, (start, end) in zip(runs, events, strict=True):
            self._flush.zero_()
            start.record()
            run()
            end.record()
        self.finish()
        return [start.elapsed_time(end) for start, end in events]

    def batch(self, run: Run) -> Batch:
        """See `Timer`; `run` has run before, so that nothing is set up during capture."""
        launches = max(1, min(GRAPH_LAUNCHES, round(GRAPH_MS / self.launch_each([run])[0])))

        def one_by_one() -> None:
            for _ in range(launches):
                run()

        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                one_by_one()
        except RuntimeError:
            self.finish()
            return Batch(one_by_one, launches, captured=False)
        return Batch(graph.replay, launches, captured=True)

    def back_to_back(self, batch: Batch, seconds: float) -> float:
        """See `Timer`. One batch is always in the queue behind the one that runs."""
        events = [_event()]
        events[0].record()
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            batch.start()
            events.append(_event())
            events[-1].record()
            events[-2].synchronize()
        events[-1].synchronize()
        return events[0].elapsed_time(events[-1]) / ((len(events) - 1) * batch.launches)

    def finish(self) -> None:
        """See `Timer`."""
        torch.cuda.synchronize()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _rotated(items: list[Item], by: int) -> list[Item]:
    """From number `by` on, counted around, and then those before it."""
    first = by % max(1, len(items))
    return items[first:] + items[:first]


def alternate_launches(
    timer: Timer,
    variants: Mapping[str, Run],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 30,
    warmup: int = 2,
) -> dict[str, list[float]]:
    """Milliseconds of every launch, one of each variant a round.

    Every round starts with another variant: the first of a round finds the card rested, and runs
    at a higher clock.

    Args:
        timer: where they run.
        variants: what to time, by name.
        seconds: as many rounds as fit, by the last warm-up round, within the limits.
        min_rounds: even if they take longer.
        max_rounds: even if more fit.
        warmup: rounds before those, at least one.
    """
    runs = list(variants.values())
    for _ in range(warmup - 1):
        timer.launch_each(runs)
    round_ms = sum(timer.launch_each(runs))
    rounds = max(min_rounds, min(max_rounds, int(seconds * 1e3 / max(round_ms, 1e-3))))
    times: list[list[float]] = []
    for start in range(rounds):
        found = timer.launch_each(_rotated(runs, start))
        times.append(_rotated(found, -start))
    return dict(zip(variants, map(list, zip(*times, strict=True)), strict=True))


@dataclass
class Sustained:
    """One variant's turns."""

    captured: bool
    turns_ms: list[float] = field(default_factory=list)
    """Milliseconds of a launch, the mean of each turn."""
    spans: list[Span] = field(default_factory=list)
    """When each turn was measured."""


def alternate_sustained(
    timer: Timer,
    variants: Mapping[str, Run],
    *,
    turns: int,
    heat_s: float,
    warm_s: float,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Sustained]:
    """Times every variant back to back, in turn, so many turns.

    A card that comes from light work clocks higher for seconds, its clock swings by some 4% before
    it settles, and a kernel runs faster behind itself than behind another that draws as much. So
    the last variant heats the card up, and every round of turns starts with another variant: three
    and more never come behind themselves, and two do so equally often in an even number of rounds.

    Args:
        timer: where they run.
        variants: what to time, by name; each has run before.
        turns: of every variant.
        heat_s: seconds that the last variant runs before anything else.
        warm_s: seconds that a variant runs before it is measured, in every turn.
        seconds: at least so long is it measured.
        clock: seconds, for `Sustained.spans`.
    """
    batches = {name: timer.batch(run) for name, run in variants.items()}
    results = {name: Sustained(batch.captured) for name, batch in batches.items()}
    if batches:
        timer.back_to_back(list(batches.values())[-1], heat_s)
    for turn in range(turns):
        for name, batch in _rotated(list(batches.items()), turn):
            timer.back_to_back(batch, warm_s)
            began = clock()
            results[name].turns_ms.append(timer.back_to_back(batch, seconds))
            results[name].spans.append((began, clock()))
    return results
