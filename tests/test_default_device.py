"""torch's default device is the caller's own affair: no call here may put anything on it."""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch")

from cases import some_attention, some_mlp  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import dit, reference  # noqa: E402


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


OTHER_DEVICES = {
    "default": lambda: default_device("meta"),
    "context": lambda: torch.device("meta"),
}


def ops(q, k, v, columns):
    whole = ck.dense_attention_column_sums(q, k, v, query_group=64)
    lists = ck.select_columns(whole[2], mass=0.5, random_fraction=0.5, seed=3, query_group=64)
    lists.validate(k.shape[2])
    mask = lists.to("cpu").to_mask(k.shape[2])
    again = ck.columns_from_mask(mask, query_group=64)
    part = ck.column_sparse_attention(q, k, v, again)
    rest = ck.rest_of_attention(whole[:2], part)
    return *whole, lists.counts, mask, *ck.merge_attention(part, rest)


def reference_ops(q, k, v, columns):
    lists = columns.indices[..., :5], columns.counts.clamp(max=5)
    scores = reference.dense_attention_column_sums(q, k, v, query_group=64)[2]
    return (
        *reference.select_columns(scores, count=7, random_fraction=0.5, seed=3),
        reference.to_mask(*lists, k.shape[2]),
        *reference.column_sparse_attention(q, k, v, *lists, 64),
    )


def mlp(x, w1, b1, w2t, columns, cache):
    dense = ck.MlpCache.from_dense(x, w1, b1, w2t, None, "gelu")
    ck.column_sparse_mlp(x, w1, b1, w2t, columns, cache, activation="gelu")
    return dense.output, cache.output, cache.activations


def modules(q, k, v, columns):
    config = dit.ChipmunkConfig(
        attention=dit.AttentionConfig(count=9, query_group=64, random_fraction=0.5),
        mlp=dit.MlpConfig(count=9),
        step_cache=dit.StepCacheConfig(threshold=1e-6),
        dense_layers=0,
    )
    progress = dit.Progress()
    attention = dit.SparseAttention(config, progress=progress)
    weights = torch.empty(64, 64, device="cpu").copy_(q[0, 0, :64]).float()
    layers = [torch.nn.Linear(64, 64, device="cpu") for _ in range(2)]
    for layer in layers:
        layer.weight.data, layer.bias.data = weights, weights[0]
    part = dit.SparseMlp(config, *layers, "silu", progress=progress)
    cache, outs = dit.StepCache(config, progress), []
    order = ck.TokenOrder.patches((10, 13))
    for _ in range(3):
        progress.begin(image=(0, 90))
        outs.append(attention(order.apply(q), k, v))
        outs.append(part(order.restore(q[:, 0].float())))
        outs.append(cache(q, lambda x: 2 * x))
    return *outs, attention.columns_kept(), attention.mass_kept(), part.columns_kept()


CALLS = {
    "ops": (ops, some_attention),
    "reference": (reference_ops, some_attention),
    "mlp": (mlp, some_mlp),
    "modules": (modules, some_attention),
}


@pytest.mark.parametrize("where", OTHER_DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_nothing_lands_on_the_default_device(name, where):
    call, make = CALLS[name]
    torch.manual_seed(1)
    args = make()
    copies = list(args)
    if name == "mlp":
        cache = copies[-1]
        copies[-1] = ck.MlpCache(cache.activations.clone(), cache.output.clone())
    with torch.no_grad():
        expected = call(*args)
        with OTHER_DEVICES[where]():
            ours = call(*copies)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)
