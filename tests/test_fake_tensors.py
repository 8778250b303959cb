"""Fake and meta tensors: shapes as of real ones, and what is wrong is refused as there."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from test_torch_library import compiled_calls, leaves, out_variant_calls  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402

OPS = torch.ops.chipmunk_kernels


def test_meta_and_fake_tensors_give_shapes():
    def shapes(result):
        return [tuple(leaf.shape) for leaf in leaves(result)]

    for function, args in compiled_calls("cpu").values():
        expected = shapes(function(*args))
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:
            fake = tuple(
                mode.from_tensor(a)
                if isinstance(a, torch.Tensor)
                else ck.ColumnLists(
                    mode.from_tensor(a.indices), mode.from_tensor(a.counts), a.query_group
                )
                for a in args
            )
            assert shapes(function(*fake)) == expected
    q = torch.empty(1, 2, 10, 64, device="meta")
    out, lse = ck.dense_attention(q, q, q)
    assert out.device.type == lse.device.type == "meta"
    assert (out.shape, lse.shape) == (q.shape, q.shape[:-1])


def refusal(op, args):
    """The message and the type, None where the operator takes the arguments."""
    try:
        getattr(OPS, op).default(*args)
    except (ValueError, ck.UnsupportedError) as error:
        return type(error), str(error)
    return None


def changed(args, number, how):
    """The same arguments, one tensor of another shape, dtype or layout."""
    tensor = args[number]
    other = {
        "longer": lambda: torch.cat([tensor, tensor], dim=-1),
        "one dimension more": lambda: tensor[None],
        "one dimension less": lambda: tensor.flatten(0, 1) if tensor.ndim > 1 else tensor.sum(0),
        "double": tensor.double,
        "half": tensor.half,
        "int32": tensor.int,
        "last dimension strided": lambda: torch.stack([tensor, tensor], dim=-1)[..., 0],
        "expanded": lambda: tensor[:1].expand_as(tensor),
    }[how]()
    return [*args[:number], other, *args[number + 1 :]]


HOWS = ["longer", "one dimension more", "one dimension less", "double", "half", "int32"]
HOWS += ["last dimension strided", "expanded"]
OP_CALLS = out_variant_calls("cpu")
for call in OP_CALLS.values():
    for arg in call:
        if isinstance(arg, torch.Tensor) and arg.dtype == torch.int32:
            arg.zero_()  # empty lists: no change of their layout leads out of bounds


@pytest.mark.parametrize("op", OP_CALLS)
@pytest.mark.parametrize("how", HOWS)
def test_fakes_are_refused_as_real_tensors_are(op, how):
    refused = 0
    for number, arg in enumerate(OP_CALLS[op]):
        if not isinstance(arg, torch.Tensor):
            continue
        args = [a.clone() if isinstance(a, torch.Tensor) else a for a in OP_CALLS[op]]
        args = changed(args, number, how)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
            ours = refusal(op, fakes)
        expected = refusal(op, args)
        assert ours == expected
        refused += expected is not None
    assert refused or how in ("last dimension strided", "expanded", "half", "int32")


def test_fakes_draw_no_seed():
    scores = torch.rand(2, 50, device="meta")
    random.seed(3)
    ck.select_columns(scores, count=5, random_fraction=0.5)
    after = random.random()
    random.seed(3)
    assert after == random.random()


def test_sizes_that_depend_on_data_are_left_to_the_op():
    def function(mask):
        rows = torch.rand(mask.nonzero().shape[0], 3, 50)
        return ck.select_columns(rows, count=5).counts

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert compiled(torch.tensor([1, 0, 1])).shape == (2, 3)


def test_a_wrong_shape_is_refused_while_compiling():
    q, k = torch.randn(1, 2, 10, 64), torch.randn(1, 2, 10, 32)
    compiled = torch.compile(
        lambda q, k: ck.dense_attention(q, k, k), backend="eager", dynamic=True
    )
    with pytest.raises(Exception, match=r"k: expected shape \[batch=1, kv_heads=2, keys=10"):
        compiled(q, k)
