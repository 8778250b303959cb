"""There is no backward pass, and no op lets a gradient get lost: backward, forward, functorch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from test_torch_library import out_variant_calls, randn  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402

# torch's own, where forward-mode AD or inductor is first used
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OPS = torch.ops.chipmunk_kernels


def qkv(device="cpu"):
    return tuple(randn(1, 1, 70, 64, device=device) for _ in range(3))


def test_gradients_are_refused_and_no_grad_is_enough(device):
    q, k, v = qkv(device)
    k.requires_grad_()
    with pytest.raises(
        ck.UnsupportedError, match=r"^dense_attention: k: requires grad, and there is no backward"
    ):
        ck.dense_attention(q, k, v)
    with torch.no_grad():
        out, _ = ck.dense_attention(q, k, v)
    assert not out.requires_grad
    with torch.inference_mode():
        again, _ = ck.dense_attention(q, k, v)
    assert torch.equal(out, again)


FLOATING = [
    (op, number)
    for op, args in sorted(out_variant_calls("cpu").items())
    for number, arg in enumerate(args)
    if isinstance(arg, torch.Tensor) and arg.is_floating_point()
]


@pytest.mark.parametrize(("op", "number"), FLOATING)
def test_raw_operators_refuse_what_requires_grad(op, number):
    args = list(out_variant_calls("cpu")[op])
    args[number] = args[number].requires_grad_()
    with pytest.raises(ck.UnsupportedError, match=rf"^{op}: .*: requires grad"):
        getattr(OPS, op)(*args)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            getattr(OPS, op)(*args)


@pytest.mark.parametrize(("op", "number"), FLOATING)
def test_tangents_are_refused(op, number):
    args = list(out_variant_calls("cpu")[op])
    with forward_ad.dual_level():
        args[number] = forward_ad.make_dual(args[number], torch.ones_like(args[number]))
        for context in (torch.enable_grad, torch.no_grad):
            with (
                context(),
                pytest.raises(ck.UnsupportedError, match=rf"^{op}: .*: carries a forward-mode"),
            ):
                getattr(OPS, op)(*args)
    getattr(OPS, op)(*(a.detach() if isinstance(a, torch.Tensor) else a for a in args))


def first_output(q):
    k, v = torch.ones_like(q), torch.ones_like(q)
    return ck.dense_attention(q, k, v)[0]


def first_output_of_the_operator(q):
    """The same below the function that looks at its arguments."""
    k, out = torch.ones_like(q), torch.empty(1, 1, 70, 64, dtype=q.dtype)
    OPS.dense_attention(q, k, k, None, None, out, torch.empty(1, 1, 70))
    return out


@pytest.mark.parametrize("function", [first_output, first_output_of_the_operator])
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda f, q: torch.func.jvp(f, (q,), (q,)), "forward-mode tangent"),
        (lambda f, q: torch.func.vjp(f, q), "requires grad"),
        (lambda f, q: torch.func.grad(lambda x: f(x).sum())(q), "requires grad"),
        (lambda f, q: torch.func.jacrev(f)(q), "requires grad"),
        (lambda f, q: torch.vmap(f)(q[None]), "no batching rule for torch.vmap"),
        (lambda f, q: torch.autograd.functional.jvp(f, q, q), "requires grad"),
    ],
)
def test_transforms_of_functions_are_refused(transform, message, function):
    with pytest.raises(ck.UnsupportedError, match=message):
        transform(function, qkv()[0])


def test_transforms_let_constants_pass():
    """An op beside what is differentiated."""
    q = qkv()[0]
    expected = first_output(q)
    scale = torch.tensor(2.0)
    for function in (first_output, first_output_of_the_operator):
        value, tangent = torch.func.jvp(lambda s, f=function: s * f(q), (scale,), (scale,))
        assert torch.equal(value, 2 * expected)
        assert torch.equal(tangent, 2 * expected)
        gradient = torch.func.grad(lambda s, f=function: (s * f(q)).float().sum())(scale)
        torch.testing.assert_close(gradient, expected.float().sum())
        nested = torch.func.grad(torch.func.grad(lambda s, f=function: (s**2 * f(q)).sum()))(scale)
        torch.testing.assert_close(nested, 2 * expected.sum().float(), rtol=0.02, atol=0.1)


def test_a_dual_tensor_is_refused_by_the_function():
    q, k, v = qkv()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(ck.UnsupportedError, match="dense_attention: q: carries a forward-mode"):
            ck.dense_attention(dual, k, v)
        out, _ = ck.dense_attention(q, k, v)  # a level alone is no reason
    assert torch.equal(out, ck.dense_attention(q, k, v)[0])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_with_parameters_under_no_grad(backend):
    """Gradients flow beside the op, which gets a parameter and runs without them."""
    k = torch.nn.Parameter(torch.randn(1, 1, 70, 64))

    def function(q):
        with torch.no_grad():
            weight = ck.dense_attention(q, k, k)[0]
        return (weight * k).sum()

    q = torch.randn(1, 1, 70, 64)
    expected = torch.autograd.grad(function(q), k)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    ours = torch.autograd.grad(compiled(q), k)
    torch.testing.assert_close(ours, expected)


def test_compiled_code_does_not_lose_gradients():
    q = torch.randn(1, 1, 70, 64, requires_grad=True)
    out, lse = torch.empty(1, 1, 70, 64), torch.empty(1, 1, 70)
    for function in (
        lambda q: ck.dense_attention(q, q, q)[0] * 2,
        lambda q: OPS.dense_attention(q, q, q, None, None, out, lse),
    ):
        compiled = torch.compile(function, backend="aot_eager")
        with pytest.raises(Exception, match="requires grad, and there is no backward pass"):
            compiled(q)
