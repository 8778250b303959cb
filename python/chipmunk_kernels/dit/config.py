"""What is sparse, how much, and when: frozen settings, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chipmunk_kernels.arguments import take_numbers
from chipmunk_kernels.dit.schedule import Schedule

RestRule = Literal["merge", "difference", "none"]


def _check_fraction(owner: str, name: str, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise ValueError(f"{owner}: {name}: expected more than 0 and at most 1, got {value}")


def _check_share(owner: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name}: expected 0 to 1, got {value}")


def _check_least(owner: str, name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{owner}: {name}: expected at least {least}, got {value}")


def _count(columns: int, fraction: float | None, count: int | None, round_to: int) -> int:
    """How many of `columns` to keep: count, or fraction rounded to the nearest multiple."""
    if count is None:
        assert fraction is not None
        count = max(round(fraction * columns / round_to), 1) * round_to
    return min(count, columns)


@dataclass(frozen=True)
class AttentionConfig:
    """Sparse self-attention. Exactly one of `fraction`, `count` and `mass` is given.

    They speak of image keys; text keys are always selected, on top.
    """

    fraction: float | None = None
    """Share of the image keys that each query group keeps."""
    count: int | None = None
    """Number of image keys that each query group keeps."""
    mass: float | None = None
    """Each query group keeps the fewest keys that hold this share of its attention weight."""
    max_fraction: float = 1.0
    """With `mass`: keep no more than this share of the image keys; lists are as wide as that."""
    round_to: int = 1
    """With `fraction`: round the number of keys to the nearest multiple of this."""
    random_fraction: float = 0.0
    """Share of the kept keys drawn at random instead of by weight; 1 is the random control."""
    rest: RestRule = "merge"
    """What stands for the keys that are not selected. "merge": their attention as of the last full
    step, merged by the exact softmax rule. "difference": the change that they made to the output
    then, added (the paper's rule). "none": nothing, a control."""
    full_steps: Schedule = field(default_factory=lambda: Schedule(every=10))
    """Steps on which attention is dense and keys are chosen anew."""
    query_group: int = 192
    """Consecutive queries that share one list of keys."""
    seed: int = 0
    """Of the random keys."""

    def __post_init__(self) -> None:
        """Checks the values."""
        take_numbers(self)
        given = [name for name in ("fraction", "count", "mass") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"AttentionConfig: expected exactly one of fraction, count and mass, "
                f"got {', '.join(given) or 'none'}"
            )
        _check_fraction("AttentionConfig", "fraction", self.fraction)
        _check_fraction("AttentionConfig", "mass", self.mass)
        _check_fraction("AttentionConfig", "max_fraction", self.max_fraction)
        _check_share("AttentionConfig", "random_fraction", self.random_fraction)
        _check_least("AttentionConfig", "count", self.count, 1)
        _check_least("AttentionConfig", "round_to", self.round_to, 1)
        _check_least("AttentionConfig", "seed", self.seed, 0)
        if self.rest not in ("merge", "difference", "none"):
            raise ValueError(
                f'AttentionConfig: rest: expected "merge", "difference" or "none", '
                f"got {self.rest!r}"
            )
        if self.query_group not in (64, 128, 192, 256):
            raise ValueError(
                f"AttentionConfig: query_group: expected 64, 128, 192 or 256, "
                f"got {self.query_group}"
            )

    def kept_keys(self, image_keys: int) -> int:
        """How many image keys of `image_keys` a group keeps; with `mass`, at most."""
        fraction = self.max_fraction if self.mass is not None else self.fraction
        return _count(image_keys, fraction, self.count, self.round_to)


@dataclass(frozen=True)
class MlpConfig:
    """Sparse MLP. Exactly one of `fraction` and `count` is given."""

    fraction: float | None = None
    """Share of the hidden units that each group of 128 tokens computes anew."""
    count: int | None = None
    """Number of hidden units that each group of 128 tokens computes anew."""
    round_to: int = 1
    """With `fraction`: round the number of units to the nearest multiple of this."""
    random_fraction: float = 0.0
    """Share of those units drawn at random instead of by change."""
    full_steps: Schedule = field(default_factory=lambda: Schedule(every=10))
    """Steps on which the MLP is dense and the cache is filled anew."""
    seed: int = 0
    """Of the random units."""

    def __post_init__(self) -> None:
        """Checks the values."""
        take_numbers(self)
        if (self.fraction is None) == (self.count is None):
            raise ValueError(
                f"MlpConfig: expected exactly one of fraction and count, "
                f"got fraction={self.fraction} and count={self.count}"
            )
        _check_fraction("MlpConfig", "fraction", self.fraction)
        _check_share("MlpConfig", "random_fraction", self.random_fraction)
        _check_least("MlpConfig", "count", self.count, 1)
        _check_least("MlpConfig", "round_to", self.round_to, 1)
        _check_least("MlpConfig", "seed", self.seed, 0)

    def kept_units(self, hidden: int) -> int:
        """How many of `hidden` units a group computes anew."""
        return _count(hidden, self.fraction, self.count, self.round_to)


@dataclass(frozen=True)
class StepCacheConfig:
    """Steps whose transformer blocks are not run at all; their change of the last run is reused.

    Give `skip_steps`, or `threshold`, or both. Full steps are never skipped.
    """

    skip_steps: tuple[int, ...] = ()
    """Steps to skip, from 0."""
    threshold: float | None = None
    """Skip while the input's relative changes since the last run, mean |x - x'| / mean |x'| from
    step to step, sum to less than this. Reading that number makes the host wait for the device."""

    def __post_init__(self) -> None:
        """Checks the values."""
        take_numbers(self)
        if not self.skip_steps and self.threshold is None:
            raise ValueError("StepCacheConfig: expected skip_steps, threshold or both, got neither")
        if any(step < 0 for step in self.skip_steps):
            raise ValueError(
                f"StepCacheConfig: skip_steps: expected none below 0, got {self.skip_steps}"
            )
        if self.threshold is not None and not self.threshold > 0:  # nor NaN
            raise ValueError(
                f"StepCacheConfig: threshold: expected more than 0, got {self.threshold}"
            )


# 25 of 50 steps, in the published settings of the method for HunyuanVideo and WAN 2.1.
_PUBLISHED_SKIPS = (
    *(7, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26, 27, 29),
    *(31, 33, 34, 35, 37, 38, 39, 41, 42, 43),
)


@dataclass(frozen=True)
class ChipmunkConfig:
    """Everything a model's sparse modules need to know. A part that is None stays dense."""

    attention: AttentionConfig | None = None
    mlp: MlpConfig | None = None
    step_cache: StepCacheConfig | None = None
    dense_layers: int = 2
    """So many first layers (blocks) stay dense."""
    token_order: Literal["voxels", "patches"] | None = None
    """Order that puts neighbours into one group; None keeps the model's own."""
    voxel: tuple[int, int, int] = (4, 4, 4)
    """With "voxels": frames, rows and columns of a block."""
    patch_sizes: tuple[int, ...] = (8, 4)
    """With "patches": edges of the nested squares, largest first."""

    def __post_init__(self) -> None:
        """Checks the values."""
        take_numbers(self)
        _check_least("ChipmunkConfig", "dense_layers", self.dense_layers, 0)
        if self.token_order not in (None, "voxels", "patches"):
            raise ValueError(
                f'ChipmunkConfig: token_order: expected "voxels", "patches" or None, '
                f"got {self.token_order!r}"
            )
        for step in self.step_cache.skip_steps if self.step_cache else ():
            if self.is_full(step):
                raise ValueError(
                    f"ChipmunkConfig: step_cache: skip_steps: step {step} is a full step of "
                    f"attention or MLP and cannot be skipped"
                )

    def is_full(self, step: int) -> bool:
        """Whether attention or MLP refresh their caches on this step; step 0 always counts."""
        parts = (self.attention, self.mlp)
        return step == 0 or any(part and part.full_steps.is_full(step) for part in parts)

    @staticmethod
    def flux_dev() -> ChipmunkConfig:
        """FLUX.1-dev with the published settings: 16.5% of the image keys, 30% of the hidden units.

        At 1024 x 1024 a query group keeps 640 of 4,096 image keys and the 512 text keys.
        """
        return ChipmunkConfig(
            attention=AttentionConfig(fraction=0.165, round_to=128),
            mlp=MlpConfig(fraction=0.3, round_to=128, random_fraction=1 / 7),
            token_order="patches",
        )

    @staticmethod
    def hunyuan_video() -> ChipmunkConfig:
        """HunyuanVideo with the published settings: 5% of the image keys by weight, 1% at random.

        At 720 x 1280 x 129 a query group keeps 7,168 of 118,800 image keys and the text keys. The
        steps to skip and the full steps are made for 50 steps.
        """
        return ChipmunkConfig(
            attention=AttentionConfig(
                fraction=0.06,
                round_to=128,
                random_fraction=1 / 6,
                full_steps=Schedule(steps=(0, 1, 10, 40)),
            ),
            step_cache=StepCacheConfig(skip_steps=_PUBLISHED_SKIPS),
            token_order="voxels",
        )

    @staticmethod
    def wan_2_1() -> ChipmunkConfig:
        """WAN 2.1 with the published settings: 10% of the keys by weight and 1% at random.

        At 720 x 1280 x 81 a query group keeps 8,320 of 75,600 keys, at 480 x 832 x 81 3,584 of
        32,760. The steps to skip and the full steps are made for 50 steps.
        """
        return ChipmunkConfig(
            attention=AttentionConfig(
                fraction=0.11,
                round_to=128,
                random_fraction=1 / 11,
                full_steps=Schedule(steps=(0, 1, 10, 40)),
            ),
            step_cache=StepCacheConfig(skip_steps=_PUBLISHED_SKIPS),
            token_order="voxels",
        )
