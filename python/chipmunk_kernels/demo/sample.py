"""Runs the demo: the same seeds dense, column-sparse and under the controls."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from chipmunk_kernels import TokenOrder
from chipmunk_kernels.dit import (
    AttentionConfig,
    ChipmunkConfig,
    MlpConfig,
    Progress,
    Schedule,
    SparseAttention,
    SparseMlp,
)

from . import flow
from .model import Block, DiffusionTransformer, Mlp


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to draw and how. `columns` is the share of the image keys that each group of 192 queries
    keeps, `units` the share of the MLP's hidden units that each group of 128 tokens recomputes."""

    prompts: tuple[str, ...]
    steps: int
    columns: float
    units: float
    seed: int
    resolution: int
    guidance: float
    full_every: int
    dense_layers: int
    controls: bool

    def config(self, **changes: object) -> ChipmunkConfig:
        """The sparse modules' settings; `changes` go to AttentionConfig."""
        schedule = Schedule(every=self.full_every)
        attention = AttentionConfig(
            fraction=self.columns, query_group=192, full_steps=schedule, seed=self.seed
        )
        mlp = MlpConfig(fraction=self.units, full_steps=schedule, seed=self.seed)
        random = float(changes.get("random_fraction", 0.0) == 1)
        return ChipmunkConfig(
            attention=dataclasses.replace(attention, **changes),  # type: ignore[arg-type]
            mlp=dataclasses.replace(mlp, random_fraction=random),
            dense_layers=self.dense_layers,
            token_order="patches",
        )


@dataclasses.dataclass
class Run:
    """One way of drawing all pictures, and what it took."""

    key: str
    title: str
    steps: int
    states: list[Tensor]
    """The state after each step, ``[B, 3, R, R]`` float32 on the CPU; the last is the result."""
    step_ms: list[float]
    full: list[bool]
    """Which steps computed everything."""
    columns_kept: float | None = None
    """Share of all keys in the lists of the sparse layers."""
    units_kept: float | None = None
    """Share of the hidden units recomputed by the sparse layers."""
    mass_kept: float | None = None
    """Share of the softmax weight that the chosen keys held when they were chosen."""

    @property
    def pixels(self) -> Tensor:
        """The pictures, uint8 ``[B, R, R, 3]``."""
        return flow.to_pixels(self.states[-1])

    @property
    def total_ms(self) -> float:
        """Time of all steps."""
        return sum(self.step_ms)

    def mean_ms(self, full: bool | None = None) -> float | None:
        """Mean time of a step: all, the full ones or the sparse ones; None without any."""
        chosen = [
            ms
            for ms, is_full in zip(self.step_ms, self.full, strict=True)
            if full is None or is_full == full
        ]
        return statistics.fmean(chosen) if chosen else None


def make_sparse(
    model: DiffusionTransformer, config: ChipmunkConfig, resolution: int
) -> tuple[DiffusionTransformer, Progress]:
    """A copy of the model whose attention and MLPs are the sparse modules, and their `Progress`.

    The copy keeps its tokens in nested patches from the first block to the last, so that each
    group of queries looks at one part of the picture.
    """
    model = copy.deepcopy(model)
    progress = Progress()
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        assert isinstance(block.mlp, Mlp)
        block.attention.attend = SparseAttention(config, layer=layer, progress=progress)
        block.mlp = SparseMlp(
            config, block.mlp.fc1, block.mlp.fc2, "gelu_tanh", layer=layer, progress=progress
        )
    if config.token_order == "patches":
        side = resolution // model.config.patch
        model.order = TokenOrder.patches(
            (side, side), config.patch_sizes, text="last", text_tokens=model.config.word_slots
        )
    return model, progress


class Sampler:
    """Draws the settings' pictures from the same noise in several ways."""

    def __init__(
        self,
        model: DiffusionTransformer,
        settings: Settings,
        words: Tensor,
        *,
        announce: Callable[[int], None] = lambda steps: None,
        advance: Callable[[str], None] = lambda title: None,
    ) -> None:
        """`words` are the prompts' ids ``[B, word_slots]``, on the model's device. `announce` is
        told of so many further steps to come, `advance` the run's title after every step."""
        self.model = model
        self.settings = settings
        self.words = words
        self.announce = announce
        self.advance = advance
        seeds = [settings.seed + i for i in range(len(settings.prompts))]
        self.start = flow.noise(seeds, settings.resolution, words.device)

    def dense(self, key: str, title: str, steps: int) -> Run:
        """The model as it is: torch's own attention and MLP."""

        def branch(x: Tensor, t: Tensor, words: Tensor) -> Tensor:
            return self._call(self.model, x, t, words)

        run = Run(key, title, steps, [], [], [True] * steps)
        return self._draw(run, branch, branch)

    def sparse(self, key: str, title: str, config: ChipmunkConfig) -> Run:
        """The model with the sparse modules; each guidance branch has its own caches."""
        steps = self.settings.steps
        model, progress = make_sparse(self.model, config, self.settings.resolution)
        image = (0, (self.settings.resolution // model.config.patch) ** 2)

        def branch(name: str) -> flow.Model:
            def call(x: Tensor, t: Tensor, words: Tensor) -> Tensor:
                progress.begin(name, image=image)
                return self._call(model, x, t, words)

            return call

        run = Run(key, title, steps, [], [], [config.is_full(step) for step in range(steps)])
        seen: dict[str, list[float]] = {"columns": [], "units": [], "mass": []}
        self._draw(run, branch("cond"), branch("uncond"), lambda: _note_kept(model, seen))
        run.columns_kept = _mean(seen["columns"])
        run.units_kept = _mean(seen["units"])
        run.mass_kept = _mean(seen["mass"])
        return run

    def _call(self, model: DiffusionTransformer, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        dtype = model.patch_in.weight.dtype
        return model(x.to(dtype), t, words)

    def _draw(
        self,
        run: Run,
        conditional: flow.Model,
        unconditional: flow.Model,
        after_step: Callable[[], None] = lambda: None,
    ) -> Run:
        steps = flow.integrate(
            conditional,
            unconditional,
            self.start,
            self.words,
            steps=run.steps,
            guidance=self.settings.guidance,
        )
        with torch.no_grad():
            before = self._now()
            for x in steps:
                run.step_ms.append((self._now() - before) * 1e3)
                run.states.append(x.cpu())
                after_step()
                self.advance(run.title)
                before = self._now()
        return run

    def _now(self) -> float:
        if self.start.is_cuda:
            torch.cuda.synchronize(self.start.device)
        return time.perf_counter()


def draw_all(sampler: Sampler) -> list[Run]:
    """The dense run first, then the column-sparse one, then the controls if wanted.

    The last control is dense with as many steps as fit into the column-sparse run's time.
    """
    settings = sampler.settings
    sampler.announce((5 if settings.controls else 2) * settings.steps)
    dense = sampler.dense("dense", "dense", settings.steps)
    sparse = sampler.sparse("sparse", "column-sparse", settings.config())
    runs = [dense, sparse]
    if settings.controls:
        controls = (
            ("difference", "rest by difference (paper)", {"rest": "difference"}),
            ("random", "random columns", {"random_fraction": 1.0}),
            ("no_rest", "no rest cache", {"rest": "none"}),
        )
        for key, title, changes in controls:
            runs.append(sampler.sparse(key, title, settings.config(**changes)))
        steps = equal_time_steps(dense, sparse)
        sampler.announce(steps)
        runs.append(sampler.dense("fewer", f"dense, {steps} steps", steps))
    return runs


def equal_time_steps(dense: Run, sparse: Run) -> int:
    """How many dense steps take the time of the sparse run, at least 1, at most as many."""
    return min(max(round(sparse.total_ms / (dense.total_ms / dense.steps)), 1), dense.steps)


def _note_kept(model: DiffusionTransformer, seen: dict[str, list[float]]) -> None:
    """Adds the means over sparse layers and branches of what the last step kept."""
    for module in model.modules():
        if isinstance(module, SparseAttention):
            found = {"columns": module.columns_kept, "mass": module.mass_kept}
        elif isinstance(module, SparseMlp):
            found = {"units": module.columns_kept}
        else:
            continue
        for name, read in found.items():
            kept = [read(branch) for branch in ("cond", "uncond")]
            seen[name] += [value.mean().item() for value in kept if value is not None]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
