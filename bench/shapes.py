"""The problems that the GPU benchmarks measure, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

RANDOM, HOT_AND_LOCAL = "random", "hot+local"
EQUAL, LENGTHS, UNORDERED = "equal", "lengths", "lengths, no order"
FA3, CUDNN, FLEX = "fa3", "cudnn", "flex"
LOG_NORMAL, FULL_GROUPS = "log-normal", "3 of 24 full"
GUARD = "guard"


@dataclass(frozen=True)
class AttentionShape:
    """Self-attention of one picture or video, batch 1."""

    name: str
    heads: int
    tokens: int
    head_dim: int = 128


FLUX_1024 = AttentionShape("flux-1024", heads=24, tokens=4_608)
TOKENS_16K = AttentionShape("16k", heads=24, tokens=16_384)
WAN_480P = AttentionShape("wan-480p", heads=40, tokens=32_760)
WAN_720P = AttentionShape("wan-720p", heads=40, tokens=75_600)
HUNYUAN_720P = AttentionShape("hunyuan-720p", heads=24, tokens=119_056)


@dataclass(frozen=True)
class AttentionCase:
    """One row of a benchmark: a shape, the length of every list, and who is measured on it."""

    shape: AttentionShape
    count: int
    query_group: int = 192
    dtype: str = "bfloat16"
    target: float | None = None
    """Wanted speed-up over FlashAttention-3, sustained, on random columns."""
    patterns: tuple[str, ...] = (RANDOM,)
    peers: tuple[str, ...] = (FA3,)
    with_rest: bool = False
    """Whether the random columns are also timed with a rest merged."""
    lengths: str | None = None
    """How the lists' lengths differ, with a mean of `count` (`length_columns.list_lengths`)."""
    target_over_equal: float | None = None
    """Wanted useful TFLOP/s of lists of many lengths, over that of equal ones, sustained."""

    @property
    def title(self) -> str:
        """For messages."""
        lengths = f", {self.lengths}" if self.lengths else ""
        return f"{self.shape.name}, {self.count} columns{lengths}"

    @property
    def groups(self) -> int:
        return -(-self.shape.tokens // self.query_group)


def count_at(tokens: int, sparsity: float) -> int:
    """The multiple of 16 nearest to the columns that `sparsity` keeps."""
    return 16 * round((1 - sparsity) * tokens / 16)


_TARGETS = (
    AttentionCase(HUNYUAN_720P, 8_288, target=13.6),
    AttentionCase(WAN_720P, 5_264, target=13.4),
    AttentionCase(TOKENS_16K, 1_120, target=12.2),
    AttentionCase(FLUX_1024, 784, target=5.0),
    AttentionCase(FLUX_1024, 336, target=8.5),
)


def _anchors() -> list[AttentionCase]:
    """The targets first: a run that is cut short has them."""
    others = (
        (FLUX_1024, 0.708),
        (TOKENS_16K, 0.836),
        (WAN_480P, 0.93),
        (WAN_480P, 0.80),
        (WAN_720P, 0.80),
        (HUNYUAN_720P, 0.95),
        (HUNYUAN_720P, 0.80),
    )
    cases = [*_TARGETS, *(AttentionCase(s, count_at(s.tokens, sparsity)) for s, sparsity in others)]
    seen: set[AttentionShape] = set()
    for index, case in enumerate(cases):
        dense = () if case.shape in seen else (CUDNN,)  # does not depend on the lists: once a shape
        seen.add(case.shape)
        cases[index] = replace(case, patterns=(RANDOM, HOT_AND_LOCAL), peers=(FA3, *dense, FLEX))
    return cases


def _general() -> list[AttentionCase]:
    base = AttentionCase(TOKENS_16K, count_at(TOKENS_16K.tokens, 0.80))
    head_dims = {d: replace(base, shape=replace(TOKENS_16K, head_dim=d)) for d in (64, 96, 256)}
    return [
        base,
        replace(base, dtype="float16"),
        replace(base, query_group=128),
        *head_dims.values(),
        replace(head_dims[256], query_group=128),
    ]


_MANY_LENGTHS = AttentionCase(
    FLUX_1024,
    784,
    patterns=(EQUAL, LENGTHS, UNORDERED),
    peers=(),
    lengths=LOG_NORMAL,
    target_over_equal=0.92,
)

ATTENTION_SUITES: Mapping[str, Sequence[AttentionCase]] = {
    "anchors": _anchors(),
    "rest": [
        replace(case, target=None, peers=(), with_rest=True)
        for case in (*_TARGETS, AttentionCase(TOKENS_16K, count_at(TOKENS_16K.tokens, 0.80)))
    ],
    "general": _general(),
    "lengths": [
        replace(_MANY_LENGTHS, shape=TOKENS_16K, count=1_120),
        _MANY_LENGTHS,
        replace(_MANY_LENGTHS, lengths=FULL_GROUPS, target_over_equal=1 / 1.02),
    ],
    # Not part of "all": what .ci/run compares with the record.
    GUARD: [replace(case, target=None) for case in _TARGETS],
}
