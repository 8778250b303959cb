"""The column ops on a GPU give the reference's lists, bit for bit."""

from __future__ import annotations

import random

import pytest
from gpu import needs_hopper, torch

import chipmunk_kernels as ck
from chipmunk_kernels import reference

pytestmark = needs_hopper

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_same_lists(got: ck.ColumnLists, indices: torch.Tensor, counts: torch.Tensor) -> None:
    assert torch.equal(got.counts.cpu(), counts)
    capacity = max(got.indices.shape[-1], indices.shape[-1])
    listed = torch.arange(capacity) < counts[..., None]

    def padded(x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.pad(x.cpu(), (0, capacity - x.shape[-1]))
        return torch.where(listed, x, -1)

    assert torch.equal(padded(got.indices), padded(indices))


def random_scores(rng: random.Random, dtype: torch.dtype) -> torch.Tensor:
    shape = (rng.randint(1, 3), rng.randint(1, 4), rng.choice([1, 7, 32, 33, 500, 1025, 5000]))
    kind = rng.randrange(4)
    scores = torch.rand(shape)
    if kind == 0:
        scores = (scores * 4).floor()  # ties
    elif kind == 1:
        scores = torch.randn(shape)
    elif kind == 2:
        scores = scores.masked_fill(torch.rand(shape) < 0.1, float("nan"))
    return scores.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_select_columns_agrees_with_the_reference(dtype: torch.dtype, seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(60):
        scores = random_scores(rng, dtype)
        n = scores.shape[-1]
        options: dict[str, object] = {"seed": rng.getrandbits(64)}
        if rng.random() < 0.6:
            options["count"] = rng.randint(0, n + 2)
        else:
            options["mass"] = rng.choice([0.0, 0.25, 0.8, 0.99, 1.0])
        if rng.random() < 0.3:
            options["min_count"] = rng.randint(0, n)
        if rng.random() < 0.3:
            options["max_count"] = rng.randint(int(str(options.get("min_count", 0))), n + 2)
        if rng.random() < 0.5:
            options["random_fraction"] = rng.choice([0.1, 0.5, 1.0])
        always = torch.rand(n) < 0.1 if rng.random() < 0.5 else None
        indices, counts = reference.select_columns(scores, always=always, **options)
        got = ck.select_columns(
            scores.cuda(), always=None if always is None else always.cuda(), **options
        )
        assert_same_lists(got, indices, counts)


def test_a_long_row_by_count_and_by_mass() -> None:
    torch.manual_seed(1)
    scores = torch.randint(0, 1 << 20, (1, 3, 119_056)).float()
    for options in ({"count": 8_288}, {"mass": 0.9}, {"count": 8_288, "random_fraction": 0.1}):
        indices, counts = reference.select_columns(scores, seed=7, **options)
        assert_same_lists(ck.select_columns(scores.cuda(), seed=7, **options), indices, counts)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 31, 512, 119_056])
def test_masks_make_the_round_trip(density: float, n: int) -> None:
    torch.manual_seed(n)
    mask = torch.rand(2, 3, n) < density
    lists = ck.columns_from_mask(mask.cuda())
    assert_same_lists(lists, *reference.columns_from_mask(mask))
    assert torch.equal(lists.to_mask(n).cpu(), mask)
    clamped = ck.columns_from_mask(mask.cuda(), capacity=max(1, n // 3))
    assert_same_lists(clamped, *reference.columns_from_mask(mask, capacity=max(1, n // 3)))


def test_strided_scores_and_masks() -> None:
    torch.manual_seed(3)
    scores = torch.rand(3, 2, 4, 700).cuda().transpose(0, 1)[:, :, 1:3, 5::2]
    got = ck.select_columns(scores, count=40)
    assert_same_lists(got, *reference.select_columns(scores.cpu(), count=40))
    mask = (scores > 0.5).expand(2, 3, 2, -1)
    assert_same_lists(ck.columns_from_mask(mask), *reference.columns_from_mask(mask.cpu()))


def test_a_captured_selection_follows_its_scores() -> None:
    scores = torch.rand(2, 3, 900, device="cuda")
    out = ck.select_columns(scores, mass=0.7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ck.select_columns(scores, mass=0.7, out=out)
    for seed in range(3):
        torch.manual_seed(seed)
        scores.copy_(torch.randint(0, 1000, scores.shape, device="cuda").float())
        graph.replay()
        torch.cuda.synchronize()
        assert_same_lists(out, *reference.select_columns(scores.cpu(), mass=0.7))


def test_repeats_are_the_same_bits_on_any_stream() -> None:
    scores = torch.randn(4, 5, 3000, device="cuda").exp().bfloat16()
    first = ck.select_columns(scores, mass=0.9, random_fraction=0.2, seed=5)
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            again = ck.select_columns(scores, mass=0.9, random_fraction=0.2, seed=5)
        torch.cuda.synchronize()
        assert_same_lists(again, first.indices.cpu(), first.counts.cpu())
