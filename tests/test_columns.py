"""Column lists against the reference: exact."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from cases import DTYPES, INT_MAX, LAYOUTS, laid_out, poisoned_lists, random_mask, rng  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import reference  # noqa: E402

shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
widths = st.integers(0, 20) | st.integers(0, 300) | st.sampled_from([1024, 2000])


def assert_same_lists(ours: ck.ColumnLists, expected: tuple[torch.Tensor, torch.Tensor]):
    indices, counts = expected
    assert ours.indices.dtype == ours.counts.dtype == torch.int32
    assert ours.indices.shape == indices.shape
    assert torch.equal(ours.counts, counts)
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    assert torch.equal(ours.indices[listed], indices[listed])


def random_scores(shape, dtype, kind: str, device, generator):
    """Ties, signs, NaN and infinities as `kind` says."""
    scores = torch.rand(shape, generator=generator)
    if kind == "ties":
        scores = (scores * 4).floor() / 4
    elif kind == "signed":
        scores = scores - 0.5
    elif kind == "peaked":
        scores = scores**20
    elif kind == "odd":
        odd = torch.rand(shape, generator=generator)
        scores = scores.masked_fill(odd < 0.1, math.nan).masked_fill(odd > 0.95, -math.inf)
        scores = scores.masked_fill((odd > 0.4) & (odd < 0.42), -0.0)
    return scores.to(device, dtype)


@st.composite
def selections(draw, n: int) -> dict:
    bound = st.integers(0, n + 3)
    options: dict = {}
    if draw(st.booleans()):
        options["count"] = draw(bound)
    else:
        options["mass"] = draw(st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]))
    if draw(st.booleans()):
        options["max_count"] = draw(bound)
    if draw(st.booleans()):
        options["min_count"] = min(draw(bound), options.get("max_count", n + 3))
    if draw(st.booleans()):
        options["random_fraction"] = draw(st.sampled_from([0.1, 0.5, 1.0]))
        options["seed"] = draw(st.integers(0, 2**64 - 1))
    return options


@given(data=st.data())
def test_select_columns(device, data):
    shape = (*data.draw(shapes), data.draw(widths))
    generator = rng(data.draw(st.integers(0, 2**31)))
    kind = data.draw(st.sampled_from(["plain", "ties", "signed", "peaked", "odd"]))
    scores = random_scores(shape, data.draw(st.sampled_from(DTYPES)), kind, device, generator)
    scores = laid_out(scores, data.draw(st.sampled_from(LAYOUTS)))
    options = data.draw(selections(shape[-1]))
    if data.draw(st.booleans()):
        lead = data.draw(st.sampled_from([(), (1,), shape[:-1]]))
        always = torch.rand((*lead, shape[-1]), generator=generator) < 0.1
        options["always"] = always.to(device)
    ours = ck.select_columns(scores, **options, query_group=64)
    assert ours.query_group == 64
    assert_same_lists(ours, reference.select_columns(scores, **options))


@given(data=st.data())
def test_one_budget_per_list(device, data):
    """Numbers below 0, above n and NaN among them; any integer or floating dtype."""
    shape = (*data.draw(shapes), data.draw(widths))
    lead, n = shape[:-1], shape[-1]
    generator = rng(data.draw(st.integers(0, 2**31)))
    scores = random_scores(shape, torch.float32, "ties", device, generator)
    options = data.draw(selections(n))
    options["max_count"] = data.draw(st.integers(options.get("min_count", 0), n + 4))
    broadcast = data.draw(st.sampled_from([lead, (1,) * len(lead), lead[-1:], (*lead[:-1], 1)]))
    if options.pop("count", None) is not None:
        dtype = data.draw(st.sampled_from([torch.int32, torch.int64, torch.int16]))
        values = torch.randint(-3, n + 5, broadcast, generator=generator)
        options["count"] = values.to(device, dtype)
    else:
        del options["mass"]
        values = torch.rand(broadcast, generator=generator) * 1.4 - 0.2
        values[values > 1.1] = math.nan
        dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
        options["mass"] = values.to(device, dtype)
    ours = ck.select_columns(scores, **options)
    if "mass" in options:
        options["mass"] = options["mass"].float()
    assert_same_lists(ours, reference.select_columns(scores, **options))


def test_equal_budgets_are_one_number(device):
    scores = torch.rand(2, 3, 4, 90, device=device)
    for name, value in {"count": torch.tensor(7), "mass": torch.tensor(0.5)}.items():
        for shape in ((2, 3, 4), (3, 1), (1,)):
            array = value.expand(shape).to(device)  # strides of 0
            ours = ck.select_columns(scores, max_count=20, **{name: array})
            expected = ck.select_columns(scores, max_count=20, **{name: value.item()})
            assert_same_lists(ours, (expected.indices, expected.counts))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.uint64])
def test_counts_of_numpy(dtype):
    scores = np.random.default_rng(0).random((2, 3, 50), np.float32)
    counts = np.array([[0], [9]], dtype)
    lists = ck.select_columns(scores, count=counts, max_count=60)
    assert lists.counts.tolist() == [[0] * 3, [9] * 3]
    assert lists.indices.shape == (2, 3, 50)
    if dtype == np.uint64:
        lists = ck.select_columns(scores, count=counts + 2**63, max_count=60)
        assert (lists.counts == 50).all()


def test_counts_past_int32_are_all_columns(device):
    scores = torch.rand(2, 3, 50, device=device)
    counts = torch.tensor([2**33, -(2**33), 5], device=device)
    lists = ck.select_columns(scores, count=counts, max_count=40)
    assert lists.counts.tolist() == [[40, 0, 5]] * 2
    for dtype in (torch.uint32, torch.uint64):
        counts = torch.tensor([2**32 - 1, 0, 5], device=device, dtype=dtype)
        lists = ck.select_columns(scores, count=counts, max_count=40)
        assert lists.counts.tolist() == [[40, 0, 5]] * 2


def order_of(*rows):
    return torch.tensor(rows, dtype=torch.int32)


def test_lists_have_an_order_on_a_gpu_alone():
    lists = ck.select_columns(torch.rand(2, 3, 50), count=7)
    assert lists.order is None
    assert ck.columns_from_mask(torch.rand(2, 3, 50) < 0.5).order is None


def test_an_order_that_is_given_is_filled():
    """The CPU takes lists as they come."""
    given = ck.ColumnLists(
        torch.zeros(2, 3, 5).int(), torch.zeros(2, 3).int(), 64, torch.zeros(3, 6).int()
    )
    filled = ck.select_columns(torch.rand(2, 3, 50), count=5, out=given)
    assert filled.order is given.order
    assert (filled.order[0] == -1).all()
    given.order.zero_()
    ck.columns_from_mask(torch.rand(2, 3, 50) < 0.05, out=given)
    assert (given.order[0] == -1).all()
    given.validate(50)


def test_results_do_not_depend_on_the_order(device):
    q, k, v = (torch.randn(1, 2, 130, 64, device=device).to(torch.bfloat16) for _ in range(3))
    lists = poisoned_lists(torch.rand(1, 2, 3, 130, device=device) < 0.4, 64)
    expected = ck.column_sparse_attention(q, k, v, lists)
    # 4, 2's first rows; 1, 3, 5, 0, 2's last rows
    chains = order_of([16, 4, *[-1] * 4], [10, 12, -1, 20, 9, 0], [-1] * 6)
    for order in (torch.full((3, 6), -1).int(), chains):
        ordered = ck.ColumnLists(lists.indices, lists.counts, 64, order.to(device))
        ordered.validate(130)
        ours = ck.column_sparse_attention(q, k, v, ordered)
        assert torch.equal(ours[0], expected[0])
        assert torch.equal(ours[1], expected[1])


@pytest.mark.parametrize(
    "order",
    [
        order_of([0, 4], [-1, 0], [-1, -1]),  # list 0 twice
        order_of([0, -1], [-1, -1], [-1, -1]),  # list 1 never
        order_of([8, -1], [-1, -1], [-1, -1]),  # there is no list 2
        order_of([0, -1], [4, 0], [-1, -1]),  # in a circle
        order_of([0, -1], [5, -1], [-1, -1]),  # the second part of list 1 never
    ],
)
def test_validate_looks_at_the_order(order, monkeypatch):
    lists = ck.ColumnLists(torch.zeros(1, 1, 2, 3).int(), torch.zeros(1, 1, 2).int(), 64, order)
    with pytest.raises(ValueError, match=r"^validate: columns\.order: expected"):
        lists.validate(9)
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    q = torch.randn(1, 1, 100, 64)
    with pytest.raises(ValueError, match=r"^column_sparse_attention: columns\.order: expected"):
        ck.column_sparse_attention(q, q, q, lists)


@given(data=st.data())
def test_columns_from_mask_and_back(device, data):
    shape = (*data.draw(shapes), data.draw(widths))
    generator = rng(data.draw(st.integers(0, 2**31)))
    density = data.draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    mask = random_mask(shape, density, device, generator)
    mask = laid_out(mask, data.draw(st.sampled_from(LAYOUTS)))
    capacity = data.draw(st.none() | st.integers(0, shape[-1] + 4))
    ours = ck.columns_from_mask(mask, capacity=capacity)
    expected = reference.columns_from_mask(mask, capacity=capacity)
    assert_same_lists(ours, expected)
    again = ours.to_mask(shape[-1])
    assert again.dtype == torch.bool
    assert torch.equal(again, reference.to_mask(*expected, shape[-1]))
    if capacity is None:
        assert torch.equal(again, mask)


def test_one_seed_one_draw_and_none_a_fresh_one(device):
    scores = torch.rand(2, 3, 500, device=device)
    options = {"count": 50, "random_fraction": 0.5}

    def draw(**more):
        return ck.select_columns(scores, **options, **more).indices

    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    assert not torch.equal(draw(), draw())
    random.seed(5)
    first = draw()
    random.seed(5)
    assert torch.equal(first, draw())


def test_negative_seeds_are_their_bits(device):
    scores = torch.rand(2, 100, device=device)
    options = {"count": 10, "random_fraction": 1.0}
    a = ck.select_columns(scores, **options, seed=-3)
    b = ck.select_columns(scores, **options, seed=2**64 - 3)
    assert torch.equal(a.indices, b.indices)


def test_lists_filled_in_place(device):
    scores = torch.rand(2, 3, 100, device=device)
    first = ck.select_columns(scores, count=10, max_count=12)
    held = first.indices
    again = ck.select_columns(-scores, count=10, out=first)
    assert again.indices is held
    assert_same_lists(again, reference.select_columns(-scores, count=10, max_count=12))
    mask = scores > 0.95
    ck.columns_from_mask(mask, out=first)
    assert_same_lists(first, reference.columns_from_mask(mask, capacity=12))


def test_column_sums_feed_the_selection(device):
    q, k, v = (torch.randn(1, 2, 200, 64, dtype=torch.bfloat16, device=device) for _ in range(3))
    sums = ck.dense_attention_column_sums(q, k, v)[2]
    lists = ck.select_columns(sums, mass=0.9)
    kept = (sums * lists.to_mask(200)).sum(-1) / sums.sum(-1)
    assert (kept >= 0.9 * (1 - 1e-6)).all()
    fewer = (sums * lists.to_mask(200)).masked_fill(~lists.to_mask(200), math.inf).amin(-1)
    assert ((kept - fewer / sums.sum(-1)) < 0.9 * (1 + 1e-6)).all()


def lists_with(indices, counts) -> ck.ColumnLists:
    return ck.ColumnLists(
        np.array(indices, dtype=np.int32), np.array(counts, dtype=np.int32), query_group=64
    )


GOOD = [[[0, 3, 7], [5, INT_MAX, -2]]]


@pytest.mark.parametrize(
    ("indices", "counts", "n", "message"),
    [
        (GOOD, [[3, 1]], 8, None),
        (GOOD, [[3, 0]], 8, None),
        (GOOD, [[3, 1]], None, None),
        (
            GOOD,
            [[3, 4]],
            8,
            "validate: columns.counts: expected counts from 0 to capacity=3, got 4 at [0, 1]",
        ),
        (
            GOOD,
            [[-1, 1]],
            8,
            "validate: columns.counts: expected counts from 0 to capacity=3, got -1 at [0, 0]",
        ),
        (
            GOOD,
            [[3, 1]],
            7,
            "validate: columns.indices: expected columns from 0 to n=7, exclusive, got 7 at "
            "position 2 of list [0, 0]",
        ),
        (
            GOOD,
            [[3, 3]],
            2**31 - 1,
            "validate: columns.indices: expected columns from 0 to n=2147483647, exclusive, got "
            "2147483647 at position 1 of list [0, 1]",
        ),
        (
            [[[0, 3, 3], [5, 6, 7]]],
            [[3, 1]],
            8,
            "validate: columns.indices: expected ascending, unique columns, got 3 at position 2 "
            "of list [0, 0] after 3",
        ),
        (
            [[[0, 3, 4], [5, 2, 7]]],
            [[3, 2]],
            None,
            "validate: columns.indices: expected ascending, unique columns, got 2 at position 1 "
            "of list [0, 1] after 5",
        ),
    ],
)
def test_validate(indices, counts, n, message):
    lists = lists_with(indices, counts)
    if message is None:
        lists.validate(n)
        return
    with pytest.raises(ValueError, match="validate") as error:
        lists.validate(n)
    assert str(error.value) == message


def test_validate_looks_at_lists_on_a_gpu(gpu):
    lists = poisoned_lists(torch.rand(2, 3, 40, device=gpu) < 0.3, 64)
    lists.validate(40)
    lists.counts[1, 2] = 1000
    with pytest.raises(ValueError, match=r"got 1000 at \[1, 2\]"):
        lists.validate()


def test_repr_tells_shapes_and_not_contents():
    lists = ck.ColumnLists(torch.zeros(1, 2, 3, 5).int(), torch.zeros(1, 2, 3).int(), 128)
    assert repr(lists) == "ColumnLists(groups=[1, 2, 3], capacity=5, query_group=128, device=cpu)"
    lists = ck.ColumnLists(lists.indices, lists.counts, 128, torch.full((3, 6), -1).int())
    assert repr(lists).endswith("device=cpu, with an order)")


def test_to_moves_both_arrays():
    order = torch.full((3, 6), -1).int()
    lists = ck.ColumnLists(torch.zeros(2, 3, 5).int(), torch.zeros(2, 3).int(), 128, order)
    moved = lists.to("meta")
    assert moved.indices.device.type == moved.counts.device.type == "meta"
    assert moved.query_group == 128
    assert moved.order is None  # it was made for one device
    assert lists.to("cpu").order is order
    numpy_lists = lists_with(GOOD, [[3, 1]])
    assert numpy_lists.to("cpu").indices is numpy_lists.indices
    with pytest.raises(ck.UnsupportedError, match="numpy arrays live on the cpu, not cuda"):
        numpy_lists.to("cuda")


def test_lists_and_caches_can_be_saved(tmp_path):
    """In a process of its own, as nothing there has loaded them before."""
    lists = ck.ColumnLists(
        torch.zeros(2, 3, 5).int(),
        torch.zeros(2, 3).int(),
        np.int64(128),
        order_of([0], [-1], [-1]),
    )
    torch.save((lists, ck.MlpCache(torch.ones(2), torch.zeros(3))), tmp_path / "lists.pt")
    program = """
import sys, torch, chipmunk_kernels as ck
lists, cache = torch.load(sys.argv[1], weights_only=True)
assert isinstance(lists, ck.ColumnLists) and isinstance(cache, ck.MlpCache)
assert lists.query_group == 128 and lists.indices.shape == (2, 3, 5)
assert lists.order.shape == (3, 1)
assert cache.activations.tolist() == [1, 1]
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "lists.pt")], check=True)
