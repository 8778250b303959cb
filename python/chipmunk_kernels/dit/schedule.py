"""When steps are full, and where a generation stands."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from chipmunk_kernels.arguments import integer, integers, refuse, take_numbers


@dataclass(frozen=True)
class Schedule:
    """Which denoising steps are full, that is, dense and refreshing the caches.

    Give either a period or a list: `Schedule(every=10)` makes steps 0, 10, 20, .. full,
    `Schedule(steps=(0, 1, 10, 40))` just those. Step 0 is always full.

    Raises:
        ValueError: neither or both are given, `every` is below 1, or a step is negative.
    """

    every: int | None = None
    steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        take_numbers(self)
        if (self.every is None) == (self.steps is None):
            raise ValueError(
                f"Schedule: expected exactly one of every and steps, "
                f"got every={self.every} and steps={self.steps}"
            )
        if self.every is not None and self.every < 1:
            raise ValueError(f"Schedule: every: expected at least 1, got {self.every}")
        if self.steps is not None and any(step < 0 for step in self.steps):
            raise ValueError(f"Schedule: steps: expected none below 0, got {self.steps}")

    def is_full(self, step: int) -> bool:
        """Whether step number `step`, from 0, is full."""
        if step == 0:
            return True
        if self.every is not None:
            return step % self.every == 0
        return self.steps is not None and step in self.steps


class Progress:
    """Where a generation stands; one object shared by all sparse modules of a model.

    The model's caller announces every forward pass with `begin`, a new generation with `reset`:

        progress = Progress()
        for step in range(steps):
            progress.begin("cond")
            conditional = model(..)
            progress.begin("uncond")
            unconditional = model(..)
        progress.reset()

    Classifier-free guidance runs the model twice a step on different inputs. Each branch has its
    own caches, found by its name.

    Attributes:
        branch: the branch being computed.
        step: its denoising step, from 0.
        image: the range (start, stop) of tokens that are image; tokens outside are text, which
            stays dense. None means that all are image.
        generation: how often `reset` was called; modules drop their caches when it changes.
    """

    def __init__(self) -> None:
        """Starts before the first step of the first generation."""
        self.branch: Hashable = None
        self.step = -1
        self.image: tuple[int, int] | None = None
        self.generation = 0
        self._last_step: dict[Hashable, int] = {}

    def begin(
        self,
        branch: Hashable = None,
        *,
        image: tuple[int, int] | None = None,
        step: int | None = None,
    ) -> None:
        """Announces a forward pass.

        Args:
            branch: name of the guidance branch.
            image: range of image tokens, see the class.
            step: number of the denoising step; one more than the branch's last if None.

        Raises:
            ValueError: the step is negative, or the image range is empty or negative.
        """
        if step is None:
            step = self._last_step.get(branch, -1) + 1
        step = integer("Progress.begin", "step", step)
        if step < 0:
            raise ValueError(f"Progress.begin: step: expected at least 0, got {step}")
        if image is not None:
            expected = "0 <= start < stop"
            given = integers("Progress.begin", "image", image, expected)
            if len(given) != 2 or not 0 <= given[0] < given[1]:
                refuse("Progress.begin", "image", expected, given)
            image = given[0], given[1]
        self.branch, self.step, self.image = branch, step, image
        self._last_step[branch] = step

    def reset(self) -> None:
        """Announces a new generation: steps count from 0 again, caches are dropped on next use."""
        self.branch, self.step, self.image = None, -1, None
        self.generation += 1
        self._last_step.clear()
