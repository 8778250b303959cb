"""Numbers of every kind: taken where they are numbers, else refused in the words of the ops."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from error_cases import LISTS, Q, dense, fc1, lists, message_of, select, sums  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import dit  # noqa: E402


class Index:
    """An integer of somebody's own."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


INTEGERS = (np.int8, np.int64, np.uint8, Index, np.array, torch.tensor)
REALS = (np.float32, np.float64, Fraction, Decimal, np.array, torch.tensor)
SCORES = torch.rand(2, 3, 50)
MASK = SCORES > 0.5


def same(ours, expected):
    assert torch.equal(ours.counts, expected.counts)
    assert torch.equal(ours.to_mask(50), expected.to_mask(50))
    assert ours.query_group == expected.query_group
    assert type(ours.query_group) is int


@given(
    st.sampled_from(INTEGERS), st.sampled_from(REALS), st.integers(0, 60), st.sampled_from([1, 64])
)
def test_select_columns_takes_integers_and_reals_of_any_kind(kind, real, number, group):
    def call(kind, real):
        options = {"min_count": kind(number // 2), "max_count": kind(number), "seed": kind(number)}
        by_mass = select(SCORES, mass=real(0.25), random_fraction=real(0.5), **options)
        options["query_group"] = kind(group)
        return by_mass, select(SCORES, count=20, random_fraction=real(0.5), **options)

    for ours, expected in zip(call(kind, real), call(int, float), strict=True):
        same(ours, expected)


@pytest.mark.parametrize("kind", [np.int32, np.uint64, Index])
def test_select_columns_takes_a_count_of_any_kind(kind):
    same(select(SCORES, count=kind(7)), select(SCORES, count=7))


@pytest.mark.parametrize("kind", INTEGERS)
def test_other_integers_of_any_kind(kind):
    same(
        ck.columns_from_mask(MASK, capacity=kind(40), query_group=kind(64)),
        ck.columns_from_mask(MASK, capacity=40, query_group=64),
    )
    assert torch.equal(LISTS.to_mask(kind(50)), LISTS.to_mask(50))
    LISTS.validate(kind(50))
    assert torch.equal(sums(query_group=kind(64))[2], sums(query_group=64)[2])


@pytest.mark.parametrize("kind", REALS)
def test_scales_of_any_kind(kind):
    q = torch.randn_like(Q)
    assert torch.equal(dense(q, softmax_scale=kind(0.25))[0], dense(q, softmax_scale=0.25)[0])


@given(st.integers(-(2**70), 2**70))
def test_seeds_and_numbers_of_columns_have_any_size(seed):
    options = {"random_fraction": 0.5, "count": 9}
    same(select(SCORES, seed=seed, **options), select(SCORES, seed=seed % 2**64, **options))
    same(select(SCORES, count=2**40 + abs(seed)), select(SCORES, count=50))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: select(count="20"),
            "select_columns: count: expected a number of columns >= 0, got '20'",
        ),
        (
            lambda: select(count=np.float32(20)),
            "select_columns: count: expected a number of columns >= 0, got np.float32(20.0)",
        ),
        (
            lambda: select(mass="0.5"),
            "select_columns: mass: expected a fraction from 0 to 1, got '0.5'",
        ),
        (
            lambda: select(count=1, random_fraction=0.5j),
            "select_columns: random_fraction: expected a fraction from 0 to 1, got 0.5j",
        ),
        (
            lambda: select(count=1, seed=0.5),
            "select_columns: seed: expected an integer, got 0.5",
        ),
        (
            lambda: select(count=1, min_count=None),
            "select_columns: min_count: expected a number of columns >= 0, got None",
        ),
        (
            lambda: dense(softmax_scale=torch.ones(2)),
            "dense_attention: softmax_scale: expected a finite number, got torch.Tensor",
        ),
        (
            lambda: dense(softmax_scale=10**400),
            f"dense_attention: softmax_scale: expected a finite number, got {10**400}",
        ),
        (
            lambda: dense(softmax_scale=torch.ones((), device="meta")),
            "dense_attention: softmax_scale: expected a finite number, got torch.Tensor",
        ),
        (
            lambda: sums(query_group=64.0),
            "dense_attention_column_sums: query_group: expected a positive number below 2^31, "
            "got 64.0",
        ),
        (
            lambda: lists(query_group=2**64),
            "ColumnLists: query_group: expected a positive number below 2^31, "
            "got 18446744073709551616",
        ),
        (
            lambda: LISTS.validate(2.5),
            "validate: n: expected a number of columns >= 0, got 2.5",
        ),
        (
            lambda: fc1(activation=3),
            "column_sparse_fc1: activation: expected one of gelu_tanh, gelu, silu, relu, swiglu, "
            "geglu, got 3",
        ),
        (
            lambda: dit.Schedule(steps="01"),
            "Schedule: steps: expected integers, got '01'",
        ),
        (lambda: dit.Schedule(every=2.0), "Schedule: every: expected an integer, got 2.0"),
        (
            lambda: dit.AttentionConfig(fraction="0.1"),
            "AttentionConfig: fraction: expected a number, got '0.1'",
        ),
        (
            lambda: dit.AttentionConfig(count=3, seed=None),
            "AttentionConfig: seed: expected an integer, got None",
        ),
        (
            lambda: dit.Progress().begin(step=0.5),
            "Progress.begin: step: expected an integer, got 0.5",
        ),
        (
            lambda: dit.Progress().begin(image=(1, 2, 3)),
            "Progress.begin: image: expected 0 <= start < stop, got (1, 2, 3)",
        ),
        (
            lambda: dit.SparseAttention(dit.ChipmunkConfig(), layer="0"),
            "SparseAttention: layer: expected an integer, got '0'",
        ),
        (
            lambda: ck.TokenOrder.voxels((4, 4.5, 4)),
            "TokenOrder.voxels: shape: expected positive extents, got (4, 4.5, 4)",
        ),
        (
            lambda: ck.TokenOrder.patches((4, 4), 2),
            "TokenOrder.patches: sizes: expected integers, got 2",
        ),
        (
            lambda: ck.TokenOrder.voxels((4, 4, 4), text_tokens="3"),
            "TokenOrder.voxels: text_tokens: expected an integer, got '3'",
        ),
        (
            lambda: ck.TokenOrder.voxels((4, 4, 4)).apply(np.zeros((64, 2)), 0.5),
            "TokenOrder.apply: dim: expected an integer, got 0.5",
        ),
    ],
)
def test_what_is_no_number_is_refused(call, message):
    assert message_of(call) == message


@pytest.mark.parametrize("kind", [np.int64, Index, np.array])
def test_configs_hold_plain_numbers(kind):
    def make(kind, real, several):
        schedule = dit.Schedule(steps=several([kind(0), kind(4)]))
        return dit.ChipmunkConfig(
            attention=dit.AttentionConfig(
                count=kind(5), random_fraction=real(0.5), full_steps=schedule, seed=kind(3)
            ),
            mlp=dit.MlpConfig(fraction=real(0.25), round_to=kind(8), full_steps=schedule),
            step_cache=dit.StepCacheConfig(skip_steps=several([kind(2)]), threshold=real(0.5)),
            dense_layers=kind(1),
            voxel=several([kind(4), kind(4), kind(2)]),
            patch_sizes=several([kind(8)]),
        )

    plain = make(int, float, tuple)
    config = make(kind, np.float64, list)
    assert config == plain
    assert hash(config) == hash(plain)
    assert type(config.voxel) is type(config.attention.full_steps.steps) is tuple
    assert type(config.attention.count) is type(config.attention.full_steps.steps[1]) is int
    assert type(config.mlp.fraction) is float
    assert dit.Schedule(steps=range(3)) == dit.Schedule(steps=np.arange(3))


def test_modules_and_token_orders_take_integers_of_any_kind():
    config = dit.ChipmunkConfig(
        attention=dit.AttentionConfig(count=5, random_fraction=0.5, seed=np.int64(3)),
        dense_layers=0,
    )
    progress = dit.Progress()
    progress.begin(step=np.int64(2), image=np.array([0, 100]))
    assert (progress.step, progress.image) == (2, (0, 100))
    attention = dit.SparseAttention(config, layer=np.int32(1), progress=progress)
    k = torch.randn(1, 4, 100, 64)
    assert attention(torch.randn_like(Q), k, k).isfinite().all()
    order = ck.TokenOrder.voxels(np.array([4, 4, 4]), [np.int8(2)] * 3, text_tokens=np.int64(3))
    expected = ck.TokenOrder.voxels((4, 4, 4), (2, 2, 2), text_tokens=3)
    np.testing.assert_array_equal(order.permutation, expected.permutation)
    x = np.random.default_rng(0).random((67, 2))
    np.testing.assert_array_equal(order.apply(x, np.int64(0)), expected.apply(x, 0))


def test_a_nan_is_a_number_that_the_op_refuses():
    assert message_of(lambda: dense(softmax_scale=np.float32(math.nan))).endswith("got nan")
