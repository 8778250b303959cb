"""SparseMlp over several steps of a generation that drifts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from dit_support import close, different, randn  # noqa: E402
from torch import nn  # noqa: E402

from chipmunk_kernels import dit  # noqa: E402
from chipmunk_kernels import reference as ref  # noqa: E402
from chipmunk_kernels.dit.groups import group_mean  # noqa: E402


def make_mlp(dtype, *, hidden=40, gated=False, bias=True, seed=0):
    torch.manual_seed(seed)
    fc1 = nn.Linear(24, hidden * (1 + gated), bias=bias, dtype=dtype)
    return fc1, nn.Linear(hidden, 24, bias=bias, dtype=dtype)


def mlp_config(*, dense_layers=0, **options):
    options.setdefault("full_steps", dit.Schedule(every=3))
    return dit.ChipmunkConfig(mlp=dit.MlpConfig(**options), dense_layers=dense_layers)


def tokens(step, dtype, *, speed=0.3, count=300, seed=0):
    shape = (2, count, 24)
    return randn(*shape, seed=seed, dtype=dtype) + step * speed * randn(
        *shape, seed=seed + 1, dtype=dtype
    )


def dense_mlp(fc1, fc2, activation, x):
    hidden = ref.hidden_units(x, fc1.weight, fc1.bias, activation).transpose(1, 2)
    return nn.functional.linear(hidden, fc2.weight, fc2.bias)


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "silu", "relu", "swiglu", "geglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_all_units_give_the_dense_mlp(dtype, activation, bias):
    fc1, fc2 = make_mlp(dtype, gated=activation in ("swiglu", "geglu"), bias=bias)
    mlp = dit.SparseMlp(mlp_config(fraction=1.0), fc1, fc2, activation)
    dense_layer = dit.SparseMlp(mlp_config(fraction=0.1, dense_layers=1), fc1, fc2, activation)
    for step in range(5):
        x = tokens(step, dtype)
        close(mlp(x), dense_mlp(fc1, fc2, activation, x))
        close(dense_layer(x), dense_mlp(fc1, fc2, activation, x))
    assert not dense_layer.is_sparse


def test_sparse_mlp_recomputes_the_most_changed_units(dtype):
    fc1, fc2 = make_mlp(dtype)
    mlp = dit.SparseMlp(mlp_config(count=9, full_steps=dit.Schedule(steps=(0,))), fc1, fc2, "silu")
    activations = ref.hidden_units(tokens(0, dtype), fc1.weight, fc1.bias, "silu")  # [B, F, M]
    close(mlp(tokens(0, dtype)), dense_mlp(fc1, fc2, "silu", tokens(0, dtype)))

    def means(x):
        mean = torch.stack([group.mean(1) for group in x.split(128, dim=1)], dim=1)
        return ref.hidden_units(mean, fc1.weight, fc1.bias, "silu").transpose(1, 2)

    last = means(tokens(0, dtype))
    assert mlp.columns() is None
    for step in (1, 2, 3):
        x = tokens(step, dtype)
        out = mlp(x)
        mask = mlp.columns().to_mask(40)  # [B, groups, F]
        change = (means(x) - last).abs()
        best = change.topk(9, dim=-1).indices
        assert torch.equal(mask, torch.zeros_like(mask).scatter(-1, best, True))
        last = torch.where(mask, means(x), last)
        per_token = mask.repeat_interleave(128, dim=1)[:, :300].transpose(1, 2)
        new = ref.hidden_units(x, fc1.weight, fc1.bias, "silu")
        activations = torch.where(per_token, new, activations)
        expected = nn.functional.linear(activations.transpose(1, 2), fc2.weight, fc2.bias)
        close(out, expected)
        assert different(expected, dense_mlp(fc1, fc2, "silu", x))
    torch.testing.assert_close(mlp.columns_kept(), torch.full((2, 3), 9 / 40))


def test_block_means_choose_better_than_chance(dtype):
    fc1, fc2 = make_mlp(dtype)
    common = randn(2, 1, 24, seed=7, dtype=dtype)  # neighbours move together
    error = []
    for share in (0.0, 1.0):
        config = mlp_config(fraction=0.3, random_fraction=share)
        mlp = dit.SparseMlp(config, fc1, fc2, "gelu_tanh")
        x = tokens(0, dtype)
        mlp(x)
        moved = x + 0.3 * common
        error.append((mlp(moved) - dense_mlp(fc1, fc2, "gelu_tanh", moved)).square().mean())
    assert error[0] < 0.6 * error[1]


def test_the_output_is_the_callers(dtype):
    fc1, fc2 = make_mlp(dtype)
    mlp = dit.SparseMlp(mlp_config(fraction=1.0), fc1, fc2, "relu")
    first = mlp(tokens(0, dtype))
    kept = first.clone()
    mlp(tokens(1, dtype)).zero_()
    assert torch.equal(first, kept)
    close(mlp(tokens(2, dtype)), dense_mlp(fc1, fc2, "relu", tokens(2, dtype)))


def test_changed_weights_are_noticed(dtype):
    fc1, fc2 = make_mlp(dtype)
    mlp = dit.SparseMlp(mlp_config(fraction=1.0), fc1, fc2, "relu")
    mlp(tokens(0, dtype))
    fc2.weight.mul_(2)
    mlp.reset()
    for step in range(2):
        close(mlp(tokens(step, dtype)), dense_mlp(fc1, fc2, "relu", tokens(step, dtype)))
    fc2.weight = nn.Parameter(-fc2.weight)
    mlp.reset()
    for step in range(2):
        close(mlp(tokens(step, dtype)), dense_mlp(fc1, fc2, "relu", tokens(step, dtype)))


def test_another_dtype_in_the_middle_of_a_generation():
    fc1, fc2 = make_mlp(torch.float32)
    mlp = dit.SparseMlp(mlp_config(fraction=1.0), fc1, fc2, "relu")
    mlp(tokens(0, torch.float32))
    mlp.bfloat16()
    x = tokens(1, torch.bfloat16)
    expected = nn.functional.linear(
        nn.functional.linear(x, fc1.weight, fc1.bias).relu(), fc2.weight, fc2.bias
    )
    torch.testing.assert_close(mlp(x), expected, rtol=0.02, atol=0.02)


def test_mlp_branches_generations_and_shapes(dtype):
    fc1, fc2 = make_mlp(dtype)
    progress, config = dit.Progress(), mlp_config(fraction=0.3)
    mlp = dit.SparseMlp(config, fc1, fc2, "gelu", progress=progress)
    for _ in range(2):
        alone = [dit.SparseMlp(config, fc1, fc2, "gelu") for _ in range(2)]
        for step in range(5):
            for branch in range(2):
                x = tokens(step, dtype, seed=10 * branch)
                progress.begin(branch)
                assert torch.equal(mlp(x), alone[branch](x))
        progress.reset()
    progress.begin(0)
    mlp(tokens(0, dtype))
    progress.begin(0)
    smaller = tokens(1, dtype, count=130)
    close(mlp(smaller), dense_mlp(fc1, fc2, "gelu", smaller))


def test_mlp_takes_its_parents_place_in_the_state_dict():
    fc1, fc2 = make_mlp(torch.float32)
    mlp = dit.SparseMlp(mlp_config(fraction=0.3), fc1, fc2, "relu")
    assert sorted(mlp.state_dict()) == ["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"]


def test_mlp_messages():
    fc1, fc2 = make_mlp(torch.float32)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        dit.SparseMlp(mlp_config(fraction=0.3), fc1, fc2, "swiglu")
    assert str(error.value) == (
        "SparseMlp: fc1: expected 80 outputs for fc2 with 40 inputs and swiglu, got 40"
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011
        dit.SparseMlp(mlp_config(fraction=0.3), fc1, fc2, "relu")(torch.zeros(5, 24))
    assert str(error.value) == "SparseMlp: x: expected [batch, tokens, channels], got [5, 24]"


def test_group_mean():
    x = randn(2, 3, 10, 4)
    expected = torch.stack([part.mean(-2) for part in x.split(4, dim=-2)], dim=-2)
    torch.testing.assert_close(group_mean(x, 4), expected)
    bf16 = group_mean(x.bfloat16(), 4)
    assert bf16.dtype == torch.bfloat16
    torch.testing.assert_close(bf16, group_mean(x.bfloat16().float(), 4).bfloat16())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision(half):
    """The output drifts from the dense one by no more than a rounding or two per step."""
    fc1, fc2 = make_mlp(half)
    mlp = dit.SparseMlp(
        mlp_config(fraction=1.0, full_steps=dit.Schedule(every=50)), fc1, fc2, "silu"
    )
    exact = nn.Sequential(*make_mlp(torch.float64))
    exact.load_state_dict(nn.Sequential(fc1, fc2).state_dict())
    for step in range(6):
        x = tokens(step, half)
        expected = dense_mlp(*exact, "silu", x.double())
        rounding = (expected.to(half).double() - expected).abs().max()
        assert (mlp(x).double() - expected).abs().max() <= (4 + step) * rounding
