"""The ops as torch operators: schemas, fakes, torch.compile, CUDA graphs, streams."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from cases import poisoned_lists, threads  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels.ops import torch as torch_ops  # noqa: E402
from chipmunk_kernels.ops.schemas import OPS as OPS_BY_NAME  # noqa: E402

OPS = torch.ops.chipmunk_kernels


def randn(*shape, device="cpu"):
    return torch.randn(*shape, device=device).to(torch.bfloat16)


def part(device="cpu"):
    return randn(1, 2, 130, 64, device=device), torch.randn(1, 2, 130, device=device)


def attention_lists(device="cpu"):
    return poisoned_lists(torch.rand(1, 2, 3, 90, device=device) < 0.3, 64)


def mlp_lists(device="cpu"):
    return poisoned_lists(torch.rand(2, 2, 64, device=device) < 0.3, 128)


def as_they_come(lists):
    return torch.full((3, lists), -1, dtype=torch.int32)


def out_variant_calls(device):
    """(operator, arguments) for every registered operator."""
    q, k, v = randn(1, 2, 130, 64), randn(1, 2, 90, 64), randn(1, 2, 90, 64)
    lists, mlp = attention_lists(), mlp_lists()
    rows = torch.randperm(130).int()
    x, w1, b1, w2t = randn(2, 200, 64), randn(64, 64), randn(64), randn(64, 96)
    cache, delta = randn(2, 64, 200), randn(*mlp.indices.shape, 128)
    scores = torch.rand(1, 2, 3, 90)
    ordered = {"indices": lists.indices, "counts": lists.counts, "order": as_they_come(6)}
    calls = {
        "dense_attention": (q, k, v, rows, None, *part()),
        "dense_attention_column_sums": (
            *(q, k, v, torch.randn(1, 2, 130), torch.rand(1, 2, 90), rows, 64, 0.1),
            *(*part(), torch.empty(1, 2, 3, 90)),
        ),
        "column_sparse_attention": OPS_BY_NAME["column_sparse_attention"].arrange(
            **dict(zip("qkv", (q, k, v), strict=True)),
            **{"query_group": 64, "query_rows": rows, "softmax_scale": None, **ordered},
            **dict(zip(("rest_out", "rest_lse", "out", "lse"), (*part(), *part()), strict=True)),
        ),
        "merge_attention": (*part(), *part(), *part()),
        "rest_of_attention": (*part(), *part(), *part()),
        "select_columns": OPS_BY_NAME["select_columns"].arrange(
            **{"scores": scores, "always": scores > 0.9, "query_group": 64, **ordered},
            **{"count": None, "count_per_list": None, "mass": None},
            mass_per_list=torch.tensor([[0.2], [0.7]]),
            **{"min_count": 0, "max_count": 20, "random_fraction": 0.5, "seed": 7},
        ),
        "columns_from_mask": OPS_BY_NAME["columns_from_mask"].arrange(
            mask=scores > 0.8, query_group=64, **ordered
        ),
        "columns_to_mask": (lists.indices, lists.counts, scores > 0.5),
        "column_sparse_fc1": (x, w1, b1, mlp.indices, mlp.counts, "gelu_tanh", cache, delta),
        "column_sparse_fc2": (delta, w2t, mlp.indices, mlp.counts, randn(2, 200, 96)),
        "column_sparse_mlp": (
            *(x, w1, b1, w2t, mlp.indices, mlp.counts, "silu"),
            *(cache, delta, randn(2, 200, 96)),
        ),
    }
    return {
        op: tuple(a.to(device).clone() if isinstance(a, torch.Tensor) else a for a in args)
        for op, args in calls.items()
    }


def test_every_operator_has_a_call_here():
    assert out_variant_calls("cpu").keys() == OPS_BY_NAME.keys()


@pytest.mark.parametrize("op", sorted(OPS_BY_NAME))
def test_opcheck(device, op):
    args = out_variant_calls(device)[op]
    getattr(OPS, op).default(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))
    torch.library.opcheck(getattr(OPS, op).default, args)


def select(scores, always):
    by_count = ck.select_columns(scores, count=10, query_group=64)
    by_mass = ck.select_columns(
        scores, mass=0.5, max_count=30, always=always, random_fraction=0.5, seed=3, query_group=64
    )
    from_mask = ck.columns_from_mask(scores > 0.7, query_group=64)
    per_list = ck.select_columns(scores, count=from_mask.counts.long() // 2, max_count=15)
    per_head = ck.select_columns(scores, mass=scores[0, :, :1, 0].double(), max_count=25)
    return by_count, by_mass, from_mask, per_list, per_head, by_mass.to_mask(scores.shape[-1])


def attention(q, k, v, columns):
    whole = ck.dense_attention(q, k, v)
    _, lse, sums = ck.dense_attention_column_sums(q, k, v, reference_lse=whole[1], query_group=64)
    selected = ck.column_sparse_attention(q, k, v, columns)
    rest = ck.rest_of_attention(whole, selected)
    merged = ck.merge_attention(rest, selected)
    both = ck.column_sparse_attention(q * 1.1, k, v, columns, rest=rest, softmax_scale=0.1)
    chosen = ck.select_columns(sums, mass=0.8, query_group=64)
    return *whole, lse, sums, *merged, *both, chosen


def mlp(x, w1, b1, w2t, b2, columns):
    cache = ck.MlpCache.from_dense(x, w1, b1, w2t, b2, "gelu_tanh")
    before = cache.output.clone()
    out = ck.column_sparse_mlp(x * 1.1, w1, b1, w2t, columns, cache, activation="gelu_tanh")
    delta = ck.column_sparse_fc1(x, w1, b1, columns, cache.activations, activation="gelu_tanh")
    again = ck.column_sparse_fc2(delta, w2t, columns, cache.output.clone())
    return before, out, again, cache.activations


def leaves(value):
    if isinstance(value, ck.ColumnLists):
        listed = torch.arange(value.indices.shape[-1], device=value.indices.device)
        indices = torch.where(listed < value.counts[..., None], value.indices, -1)
        return [indices, value.counts, torch.tensor(value.query_group)]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def assert_same(ours, expected):
    ours, expected = leaves(ours), leaves(expected)
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


def compiled_calls(device):
    scores = torch.rand(1, 2, 3, 90, device=device)
    qkv = (randn(1, 2, n, 64, device=device) for n in (130, 90, 90))
    weights = ((64, 64), (64,), (64, 96), (96,))
    return {
        "select": (select, (scores, scores[0, 0, 0] > 0.9)),
        "attention": (attention, (*qkv, attention_lists(device))),
        "mlp": (
            mlp,
            (
                randn(2, 200, 64, device=device),
                *(randn(*shape, device=device) for shape in weights),
                mlp_lists(device),
            ),
        ),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["select", "attention", "mlp"])
def test_compile_fullgraph(device, name, backend):
    function, args = compiled_calls(device)[name]
    expected = function(*args)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_same(compiled(*args), expected)
    assert_same(compiled(*args), expected)


def test_compile_where_torch_was_imported_last():
    """As import sorters have it: the first op registers the operators while it is traced."""
    program = """
import chipmunk_kernels as ck
import torch
q = torch.randn(1, 2, 70, 64)
run = torch.compile(lambda x: ck.dense_attention(x, x, x)[0] + 1, fullgraph=True, backend="eager")
assert torch.equal(run(q), ck.dense_attention(q, q, q)[0] + 1)
assert torch.ops.chipmunk_kernels.dense_attention
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_compile_with_dynamic_shapes(device):
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for queries, keys in ((130, 90), (200, 77), (70, 150)):
        q, k, v = (randn(1, 2, n, 64, device=device) for n in (queries, keys, keys))
        mask = torch.rand(1, 2, -(-queries // 64), keys, device=device) < 0.3
        args = (q, k, v, poisoned_lists(mask, 64))
        assert_same(compiled(*args), attention(*args))


def test_compile_sees_what_an_op_writes(device):
    """A cache that is read before and after it is updated in place."""

    def function(x, w1, w2t, columns, activations, output):
        before = activations.sum()
        cache = ck.MlpCache(activations, output)
        ck.column_sparse_mlp(x, w1, None, w2t, columns, cache, activation="relu")
        return before, activations.sum(), output * 2

    x, w1, w2t = randn(2, 200, 64), randn(64, 64), randn(64, 96)
    columns, results = mlp_lists(device), []
    state = randn(2, 64, 200, device=device), randn(2, 200, 96, device=device)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for run in (function, compiled):
        copies = tuple(t.clone() for t in state)
        out = run(x.to(device), w1.to(device), w2t.to(device), columns, *copies)
        results.append((*out, *copies))
    assert_same(results[1], results[0])
    assert not torch.equal(results[0][3], state[0])


def test_compile_draws_a_fresh_seed_at_every_call(device):
    scores = torch.rand(2, 400, device=device)
    compiled = torch.compile(
        lambda s: ck.select_columns(s, count=40, random_fraction=1.0).indices,
        fullgraph=True,
        backend="aot_eager",
    )
    assert not torch.equal(compiled(scores), compiled(scores))


def test_parameters_and_subclasses_are_tensors(device):
    class Named(torch.Tensor):
        pass

    q, k, v = (randn(1, 1, 70, 64, device=device) for _ in range(3))
    expected = ck.dense_attention(q, k, v)
    with torch.no_grad():
        ours = ck.dense_attention(q.as_subclass(Named), torch.nn.Parameter(k), v)
    assert torch.equal(ours[0].as_subclass(torch.Tensor), expected[0])


def test_tensors_without_the_exchange_table_come_in_as_capsules(device, monkeypatch):
    """As those of torch < 2.10."""
    q, k, v = (randn(1, 1, 70, 64, device=device) for _ in range(3))
    columns = attention_lists(device)
    columns = ck.ColumnLists(columns.indices[:, :1, :2], columns.counts[:, :1, :2], 64)
    k = torch.cat([k, k], 2)
    v = torch.cat([v, v], 2)
    expected = ck.column_sparse_attention(q, k, v, columns)
    monkeypatch.setattr(torch_ops, "_HAS_EXCHANGE_TABLE", False)
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    with torch.no_grad():
        k.requires_grad_()
        ours = ck.column_sparse_attention(q, k, v, columns)
    assert_same(ours, expected)


def test_ops_follow_the_number_of_torch_threads():
    seen = []
    run = torch_ops._on_cpu(OPS_BY_NAME["dense_attention"], lambda *args: seen.append(args))
    for count in (1, 3):
        with threads(count):
            run("q", "k", "v", None, None, "out", "lse")
    assert [args[-1] for args in seen] == [1, 3]


@pytest.mark.gpu
def test_ops_run_on_the_current_stream(gpu):
    """Work that waits on a side stream is seen by an op on that stream."""
    scores = torch.rand(64, 4096, device=gpu)
    expected = ck.select_columns(scores, count=100)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(scores)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(scores)
        ours = ck.select_columns(late, count=100)
    stream.synchronize()
    assert_same(ours, expected)


@pytest.mark.gpu
def test_a_cuda_graph_replays_with_other_lists(gpu):
    scores = torch.rand(2, 3, 500, device=gpu)
    lists = ck.select_columns(scores, mass=0.3, query_group=64)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ck.select_columns(scores, mass=0.3, out=lists)
        mask = lists.to_mask(500)
    for _ in range(2):
        scores.copy_(torch.rand_like(scores))
        graph.replay()
        expected = ck.select_columns(scores, mass=0.3, query_group=64)
        assert_same(lists, expected)
        assert torch.equal(mask, expected.to_mask(500))
