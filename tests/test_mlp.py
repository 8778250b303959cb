"""MLP ops against the float64 reference."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from cases import MlpCase, laid_out, mlp_cases, poisoned_lists, randn, rng, threads  # noqa: E402
from numerics import assert_as_good_as_torch, largest, rounding_of_sums  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import reference  # noqa: E402

ACTIVATIONS = ["gelu_tanh", "gelu", "silu", "relu", "swiglu", "geglu"]


def doubled(*tensors):
    return tuple(None if t is None else t.double() for t in tensors)


def rounding_of_units(x, w1, b1, activation):
    """Of the pre-activations' sums, times the other factor in the gated forms."""
    w1 = w1.float().nan_to_num(0.0)
    z = x.float() @ w1.T + (0 if b1 is None else b1.float())
    factor = max(largest(z), 1.0) if activation in ("swiglu", "geglu") else 1.0
    return rounding_of_sums(x.shape[-1], largest(z)) * factor


def poison_unselected_w1(w1, mask):
    """NaN in the rows of w1 that no group selects; the gate's rows too."""
    unused = ~mask.any(0).any(0)
    w1.masked_fill_(unused.repeat(w1.shape[0] // max(unused.numel(), 1))[:, None], math.nan)


@given(data=st.data())
def test_column_sparse_fc1(device, data):
    case = data.draw(mlp_cases(device))
    x, (w1, b1, _) = case.x(device), case.weights(device)
    cache, _ = case.cache(device)
    mask = case.mask(device)
    poison_unselected_w1(w1, mask)
    columns = poisoned_lists(mask, 128, layout=case.layout)
    lists = (columns.indices, columns.counts)
    before = cache.clone()
    native_cache, exact_cache = cache.clone(), cache.double()
    with threads(case.threads):
        delta = ck.column_sparse_fc1(x, w1, b1, columns, cache, activation=case.activation)
    options = {"activation": case.activation}
    native = reference.column_sparse_fc1(x, w1, b1, *lists, native_cache, **options)
    exact = reference.column_sparse_fc1(*doubled(x, w1, b1), *lists, exact_cache, **options)
    assert delta.dtype == x.dtype
    listed = torch.arange(delta.shape[2], device=device) < columns.counts[..., None]
    sums = rounding_of_units(x, w1, b1, case.activation)
    assert_as_good_as_torch(delta[listed], native[listed], exact[listed], "packed_delta", sums=sums)
    assert_as_good_as_torch(cache, native_cache, exact_cache, "activation_cache", sums=sums)
    rows = mask.repeat_interleave(128, dim=1)[:, : case.tokens].transpose(1, 2)
    assert torch.equal(cache[~rows], before[~rows])  # what is not selected keeps its bits
    beyond = delta.transpose(2, 3).flatten(1, 2)[:, case.tokens :]  # tokens past the end
    assert (beyond.transpose(1, 2)[listed[:, -1]] == 0).all() if case.groups else True


@given(data=st.data())
def test_the_delta_is_the_difference_of_the_rounded_values(device, data):
    case = data.draw(mlp_cases(device))
    x, (w1, b1, _) = case.x(device), case.weights(device)
    cache, _ = case.cache(device)
    before = cache.clone()
    columns = poisoned_lists(case.mask(device), 128)
    delta = ck.column_sparse_fc1(x, w1, b1, columns, cache, activation=case.activation)
    change = (cache.float() - before.float()).to(case.dtype)  # [B, F, M]
    for b in range(case.batch):
        for g in range(case.groups):
            count = int(columns.counts[b, g])
            tokens = slice(128 * g, min(128 * (g + 1), case.tokens))
            expected = change[b, columns.indices[b, g, :count].long(), tokens]
            assert torch.equal(delta[b, g, :count, : expected.shape[1]], expected)


@given(data=st.data())
def test_column_sparse_fc2(device, data):
    case = data.draw(mlp_cases(device))
    w2t = case.weights(device)[2]
    _, out = case.cache(device)
    mask = case.mask(device)
    w2t.masked_fill_(~mask.any(0).any(0)[:, None], math.nan)
    columns = poisoned_lists(mask, 128, layout=case.layout)
    lists = (columns.indices, columns.counts)
    delta = randn((*columns.indices.shape, 128), case.dtype, device, rng(case.seed + 9))
    past = torch.arange(delta.shape[2], device=device) >= columns.counts[..., None]
    delta.masked_fill_(past[..., None], math.nan)
    delta = laid_out(delta, case.layout if case.layout != "transposed" else "contiguous")
    native_out, exact_out = out.clone(), out.double()
    # of what is added up: a lone output may come out near 0
    terms = max(largest(out), largest(delta) * largest(w2t))
    with threads(case.threads):
        assert ck.column_sparse_fc2(delta, w2t, columns, out) is out
    native = reference.column_sparse_fc2(delta, w2t, *lists, native_out)
    exact = reference.column_sparse_fc2(*doubled(delta, w2t), *lists, exact_out)
    sums = rounding_of_sums(case.hidden, max(largest(exact), terms))
    assert_as_good_as_torch(out, native, exact, "out", sums=sums)


@given(data=st.data())
def test_column_sparse_mlp(device, data):
    case = data.draw(mlp_cases(device))
    x, (w1, b1, w2t) = case.x(device), case.weights(device)
    activations, output = case.cache(device)
    columns = poisoned_lists(case.mask(device), 128, layout=case.layout)
    lists = (columns.indices, columns.counts)
    native = activations.clone(), output.clone()
    before = largest(output)
    exact = activations.double(), output.double()
    cache = ck.MlpCache(activations, output)
    with threads(case.threads):
        out = ck.column_sparse_mlp(x, w1, b1, w2t, columns, cache, activation=case.activation)
    assert out is cache.output
    options = {"activation": case.activation}
    reference.column_sparse_mlp(x, w1, b1, w2t, *lists, *native, **options)
    reference.column_sparse_mlp(*doubled(x, w1, b1, w2t), *lists, *exact, **options)
    units = rounding_of_units(x, w1, b1, case.activation)
    assert_as_good_as_torch(cache.activations, native[0], exact[0], "activations", sums=units)
    sums = units * case.hidden**0.5 * largest(w2t) + rounding_of_sums(
        case.hidden, max(largest(exact[1]), before)
    )
    assert_as_good_as_torch(out, native[1], exact[1], "output", sums=sums)


CASE = MlpCase(2, 300, 64, 200, 96, "gelu_tanh", True, torch.bfloat16, "contiguous", 0.3, 11)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_from_dense_is_the_dense_mlp(device, activation, bias):
    case = replace(CASE, activation=activation, bias=bias)
    x, (w1, b1, w2t) = case.x(device), case.weights(device)
    b2 = torch.randn(case.out_channels, device=device).to(case.dtype) if bias else None
    cache = ck.MlpCache.from_dense(x, w1, b1, w2t, b2, activation)
    native = reference.dense_mlp(x, w1, b1, w2t, b2, activation)
    exact = reference.dense_mlp(*doubled(x, w1, b1, w2t, b2), activation)
    assert_as_good_as_torch(cache.activations, native[0], exact[0], "activations")
    assert_as_good_as_torch(cache.output, native[1], exact[1], "output")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_input_again_changes_nothing(device, activation):
    case = replace(CASE, activation=activation)
    x, (w1, b1, w2t) = case.x(device), case.weights(device)
    cache = ck.MlpCache.from_dense(x, w1, b1, w2t, None, activation)
    activations, output = cache.activations.clone(), cache.output.clone()
    columns = poisoned_lists(case.mask(device), 128)
    ck.column_sparse_mlp(x, w1, b1, w2t, columns, cache, activation=activation)
    assert torch.equal(cache.activations, activations)
    assert torch.equal(cache.output, output)


def test_all_columns_make_up_for_any_cache(device):
    x, (w1, b1, w2t) = CASE.x(device), CASE.weights(device)
    cache = ck.MlpCache.from_dense(CASE.x(device, seed=50), w1, b1, w2t, None, "gelu_tanh")
    every = torch.ones(CASE.batch, CASE.groups, CASE.hidden, dtype=torch.bool, device=device)
    columns = ck.columns_from_mask(every, query_group=128)
    ck.column_sparse_mlp(x, w1, b1, w2t, columns, cache, activation="gelu_tanh")
    fresh = ck.MlpCache.from_dense(x, w1, b1, w2t, None, "gelu_tanh")
    assert torch.equal(cache.activations, fresh.activations)
    # the output carries the rounding of both steps
    exact = reference.dense_mlp(*doubled(x, w1, b1, w2t), None, "gelu_tanh")[1]
    error = (cache.output.double() - exact).abs().max()
    assert error <= 3 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


def test_fc2_that_refuses_leaves_the_cache_alone(device):
    x, (w1, b1, w2t) = CASE.x(device), CASE.weights(device)
    activations, output = CASE.cache(device)
    before = activations.clone()
    columns = poisoned_lists(CASE.mask(device), 128)
    cache = ck.MlpCache(activations, output)
    for wrong, argument in ((w2t[:, :5], "cache.output"), (w2t[:-1], "w2t")):
        with pytest.raises(ValueError, match=rf"column_sparse_mlp: {argument}: expected shape"):
            ck.column_sparse_mlp(x, w1, b1, wrong, columns, cache, activation="gelu_tanh")
    assert torch.equal(activations, before)


def test_the_same_bits_for_any_number_of_threads(device):
    x, (w1, b1, w2t) = CASE.x(device), CASE.weights(device)
    columns = poisoned_lists(CASE.mask(device), 128)

    def run():
        cache = ck.MlpCache(*(t.clone() for t in CASE.cache(device)))
        return ck.column_sparse_mlp(x, w1, b1, w2t, columns, cache, activation="gelu_tanh")

    first = run()
    for count in (2, 5):
        with threads(count):
            assert torch.equal(first, run())
