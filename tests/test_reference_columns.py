"""The reference of the column lists against plain Python loops."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from chipmunk_kernels import reference as ref  # noqa: E402

INF = math.inf


def ranked(row, always):
    """Columns by rank, in plain Python."""
    key = [-INF if math.isnan(s) else s for s in row]
    return sorted(range(len(row)), key=lambda j: (not always[j], -key[j], j))


def splitmix64(x: int) -> int:
    mask = 2**64 - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def loop_select(row, row_number, always, *, count, mass, low, high, fraction, seed):
    n, limit = len(row), min(len(row), high if high is not None else len(row))
    order, fixed = ranked(row, always), sum(always)
    if count is not None:
        total = min(limit, max(count, fixed, low))
        drawn = min(math.floor(fraction * total), max(total - fixed, 0))
        by_rank = total - drawn
    else:
        weight = [max(row[j], 0.0) if not math.isnan(row[j]) else 0.0 for j in order]
        by_rank = 0
        while sum(weight[:by_rank]) < mass * sum(weight):
            by_rank += 1
        by_rank = min(limit, max(by_rank, fixed, low))
        drawn = min(math.floor(fraction * by_rank), limit - by_rank)
    chosen = order[:by_rank]
    left = sorted(
        (j for j in range(n) if j not in chosen),
        key=lambda j: splitmix64(splitmix64(seed) ^ (row_number << 32 | j)),
    )
    return sorted(chosen + left[:drawn])


@pytest.mark.parametrize(
    ("count", "mass"), [(0, None), (5, None), (40, None), (None, 0.6), (None, 1.0)]
)
@pytest.mark.parametrize(("low", "high"), [(0, None), (3, 9), (0, 2)])
@pytest.mark.parametrize("with_always", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_select_columns(count, mass, low, high, with_always, fraction):
    generator = torch.Generator().manual_seed(3)
    # small integers: ties, zeros, negatives, and sums that are exact
    scores = torch.randint(-2, 8, (2, 3, 2, 23), generator=generator).float()
    scores[0, 0, 0, 4] = math.nan
    always = torch.zeros(23, dtype=torch.bool)
    always[[1, 4, 20]] = with_always
    seed = 2**63 + 12345
    indices, counts = ref.select_columns(
        scores,
        count=count,
        mass=mass,
        min_count=low,
        max_count=high,
        always=always if with_always else None,
        random_fraction=fraction,
        seed=seed,
    )
    assert indices.dtype == counts.dtype == torch.int32
    for number, (row, listed, length) in enumerate(
        zip(scores.flatten(0, 2), indices.flatten(0, 2), counts.flatten(), strict=True)
    ):
        expected = loop_select(
            row.tolist(),
            number,
            always.tolist(),
            count=count,
            mass=mass,
            low=low,
            high=high,
            fraction=fraction,
            seed=seed,
        )
        assert listed[:length].tolist() == expected


def test_select_columns_capacity():
    scores = torch.rand(1, 1, 2, 10)
    assert ref.select_columns(scores, count=4)[0].shape[-1] == 4
    assert ref.select_columns(scores, count=4, min_count=6)[0].shape[-1] == 6
    assert ref.select_columns(scores, count=40)[0].shape[-1] == 10
    assert ref.select_columns(scores, count=4, always=torch.ones(10) > 0)[0].shape[-1] == 10
    assert ref.select_columns(scores, mass=0.5)[0].shape[-1] == 10
    assert ref.select_columns(scores, mass=0.5, max_count=3)[0].shape[-1] == 3


def test_select_columns_takes_infinite_scores():
    scores = torch.tensor([[[[1.0, INF, 2.0, -INF, math.nan, INF]]]])
    indices, counts = ref.select_columns(scores, mass=0.5)
    assert indices[0, 0, 0, : counts[0, 0, 0]].tolist() == [1]
    assert ref.select_columns(scores, count=4)[0].tolist() == [[[[0, 1, 2, 5]]]]
    assert ref.select_columns(scores, count=5)[0].tolist() == [[[[0, 1, 2, 3, 5]]]]


def test_select_columns_wants_one_rule():
    with pytest.raises(ValueError, match="exactly one of count and mass"):
        ref.select_columns(torch.rand(1, 1, 4))
    with pytest.raises(ValueError, match="expected a max_count with one budget per list"):
        ref.select_columns(torch.rand(1, 1, 4), count=torch.tensor(3))


@pytest.mark.parametrize(
    ("name", "budgets"),
    [
        ("count", torch.tensor([[0, 3, 9], [40, -2, 5]])),
        ("mass", torch.tensor([[0.0, 0.3, 1.0], [1.7, -0.5, math.nan]])),
    ],
)
def test_one_budget_per_list(name, budgets):
    """Each row is what its own number gives it, brought into range."""
    scores = torch.rand(2, 3, 23)
    options = {"min_count": 1, "max_count": 12, "random_fraction": 0.5, "seed": 3}
    indices, counts = ref.select_columns(scores, **{name: budgets}, **options)
    assert indices.shape == (2, 3, 12)
    for i, j in itertools.product(range(2), range(3)):
        number = budgets[i, j].clamp(0, 23 if name == "count" else 1).nan_to_num(0.0).item()
        one, length = ref.select_columns(scores, **{name: number}, **options)
        assert counts[i, j] == length[i, j]
        assert torch.equal(indices[i, j], one[i, j])


def test_random_hash_is_splitmix64():
    hashes = ref.random_hash(2**64 - 1, (2, 3, 5))
    for row in range(6):
        for column in range(5):
            expected = splitmix64(splitmix64(2**64 - 1) ^ (row << 32 | column))
            assert int(hashes.view(6, 5)[row, column]) % 2**64 == expected
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first number of the published generator


def test_masks_and_lists_are_inverse():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 3, 4, 17, generator=generator) < 0.4
    indices, counts = ref.columns_from_mask(mask)
    assert torch.equal(ref.to_mask(indices, counts, 17), mask)
    assert torch.equal(counts, mask.sum(-1).int())
    indices, counts = ref.columns_from_mask(mask, capacity=2)
    for row, listed, length in zip(
        mask.flatten(0, 2), indices.flatten(0, 2), counts.flatten(), strict=True
    ):
        assert listed[:length].tolist() == row.nonzero()[:2, 0].tolist()
    assert ref.columns_from_mask(mask, capacity=20)[0].shape[-1] == 20
