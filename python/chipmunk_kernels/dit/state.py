"""State from step to step, kept apart by guidance branch; skipping of whole steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from chipmunk_kernels.dit.config import ChipmunkConfig
from chipmunk_kernels.dit.schedule import Progress

State = TypeVar("State")


class BranchStates(Generic[State]):
    """One state per guidance branch; all are dropped when a new generation begins."""

    def __init__(self, make: Callable[[], State]) -> None:
        """`make` gives the state of a branch that has none yet."""
        self._make = make
        self._states: dict[Hashable, State] = {}
        self._generation = 0

    def current(self, progress: Progress) -> State:
        """The state of the branch that `progress` stands in.

        Raises:
            RuntimeError: `progress.begin` was not called.
        """
        if progress.step < 0:
            raise RuntimeError("Progress: begin was not called before the model's forward pass")
        if self._generation != progress.generation:
            self._states.clear()
            self._generation = progress.generation
        if progress.branch not in self._states:
            self._states[progress.branch] = self._make()
        return self._states[progress.branch]

    def of(self, branch: Hashable) -> State | None:
        """The state of this branch, or None."""
        return self._states.get(branch)

    def clear(self) -> None:
        """Drops all states."""
        self._states.clear()


@dataclass
class _StepState:
    residual: Tensor | None = None  # what the blocks added to their input when they last ran
    last_input: Tensor | None = None
    change: float = 0.0  # relative changes of the input since then, summed


class StepCache:
    """Skips the transformer blocks on some steps and adds what they added when they last ran.

    Around the stack of blocks, after the embedding and before the final norm:

        x = step_cache(x, lambda x: run_blocks(x, ..))
    """

    def __init__(self, config: ChipmunkConfig, progress: Progress) -> None:
        """`config.step_cache` names the steps; None never skips. `progress` tells the step."""
        self._config = config
        self._progress = progress
        self._states = BranchStates(_StepState)

    def __call__(self, x: Tensor, blocks: Callable[[Tensor], Tensor]) -> Tensor:
        """blocks(x), or on a skipped step x plus the residual of the last run."""
        if self.skips(x):
            return self.skipped(x)
        out = blocks(x)
        self.store(x, out)
        return out

    def skips(self, x: Tensor) -> bool:
        """Decides, once a step, whether this step is skipped, from its number or from x."""
        config, state = self._config.step_cache, self._states.current(self._progress)
        if config is None:
            return False
        if config.threshold is not None:
            if state.last_input is not None and state.last_input.shape == x.shape:
                last = state.last_input.float()
                state.change += float((x.float() - last).abs().mean() / last.abs().mean())
            state.last_input = x.clone()
        if self._config.is_full(self._progress.step) or state.residual is None:
            return False
        if state.residual.shape != x.shape:
            return False
        if self._progress.step in config.skip_steps:
            return True
        return config.threshold is not None and state.change < config.threshold

    def skipped(self, x: Tensor) -> Tensor:
        """What a skipped step gives for the input x of the blocks."""
        residual = self._states.current(self._progress).residual
        if residual is None:
            raise RuntimeError("StepCache.skipped: no step has been run yet")
        return x + residual

    def store(self, x: Tensor, out: Tensor) -> None:
        """Notes a step that was run: input and output of the blocks."""
        if self._config.step_cache is None:
            return
        state = self._states.current(self._progress)
        state.residual, state.change = out - x, 0.0

    def reset(self) -> None:
        """Forgets everything."""
        self._states.clear()
