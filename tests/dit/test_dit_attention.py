"""SparseAttention over several steps of a generation that drifts."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from dit_support import close, different, randn  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import dit  # noqa: E402
from chipmunk_kernels import reference as ref  # noqa: E402


class Drift:
    """q, k, v that change from step to step, like those of a denoising transformer."""

    def __init__(self, dtype, *, queries=300, keys=300, kv_heads=2, speed=0.2, seed=0):
        self.start = [
            randn(2, heads, tokens, 64, seed=seed + i, dtype=dtype)
            for i, (heads, tokens) in enumerate(
                [(2, queries), (kv_heads, keys), (kv_heads, keys)], start=1
            )
        ]
        self.change = [speed * randn(*x.shape, seed=seed + 50, dtype=dtype) for x in self.start]

    def __call__(self, step):
        return [x + step * dx for x, dx in zip(self.start, self.change, strict=True)]


def attention_config(*, dense_layers=0, **options):
    options.setdefault("full_steps", dit.Schedule(every=3))
    options.setdefault("query_group", 64)
    return dit.ChipmunkConfig(attention=dit.AttentionConfig(**options), dense_layers=dense_layers)


def dense(q, k, v):
    return ref.dense_attention(q, k, v)[0]


@pytest.mark.parametrize("rest", ["merge", "difference", "none"])
@pytest.mark.parametrize("image", [None, (10, 290), (0, 283)])
def test_all_keys_give_dense_attention(dtype, rest, image):
    progress, inputs = dit.Progress(), Drift(dtype)
    attend = dit.SparseAttention(attention_config(fraction=1.0, rest=rest), progress=progress)
    for step in range(7):
        progress.begin(image=image)
        close(attend(*inputs(step)), dense(*inputs(step)))
        assert (attend.columns().counts == 300).all()


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("selection", [{"fraction": 0.2}, {"count": 7}, {"mass": 0.5}])
def test_a_generation_that_stands_still_stays_dense(dtype, kv_heads, selection):
    """Selected keys and the merged rest make the whole whatever was selected."""
    inputs = Drift(dtype, kv_heads=kv_heads, speed=0)(0)
    for rest in ("merge", "difference"):
        attend = dit.SparseAttention(attention_config(rest=rest, **selection))
        for _ in range(3):
            close(attend(*inputs), dense(*inputs))
    attend = dit.SparseAttention(attention_config(rest="none", **selection))
    close(attend(*inputs), dense(*inputs))
    assert different(attend(*inputs), dense(*inputs))


@pytest.mark.parametrize("rest", ["merge", "difference", "none"])
def test_sparse_steps_follow_the_rule(dtype, rest):
    inputs = Drift(dtype)
    attend = dit.SparseAttention(attention_config(fraction=0.25, rest=rest))
    whole = attend(*inputs(0))
    close(whole, dense(*inputs(0)))
    sums = ref.dense_attention_column_sums(*inputs(0), query_group=64)[2]
    indices, counts = ref.select_columns(sums, count=75)
    columns = attend.columns()
    assert torch.equal(torch.as_tensor(columns.counts), counts)
    if dtype == torch.float64:  # in float32 near ties may fall the other way
        assert torch.equal(columns.indices, indices)
    mask = columns.to_mask(300)
    selected = ref.column_sparse_attention(*inputs(0), indices, counts, 64)
    others = ref.column_sparse_attention(*inputs(0), *ref.columns_from_mask(~mask), 64)
    for step in (1, 2):
        now = ref.column_sparse_attention(*inputs(step), *ref.columns_from_mask(mask), 64)
        expected = {
            "merge": ref.merge_attention(now, others)[0],
            "difference": now[0] + (whole - selected[0]),
            "none": now[0],
        }[rest]
        close(attend(*inputs(step)), expected)
        assert different(expected, dense(*inputs(step)))
    close(attend(*inputs(3)), dense(*inputs(3)))  # full again


def test_the_cached_rest_is_closer_to_dense_than_none(dtype):
    inputs = Drift(dtype, speed=0.05)
    error = {}
    for rest in ("merge", "difference", "none"):
        attend = dit.SparseAttention(attention_config(fraction=0.25, rest=rest))
        attend(*inputs(0))
        error[rest] = (attend(*inputs(1)) - dense(*inputs(1))).square().mean().item()
    assert error["merge"] < 0.2 * error["none"]
    assert error["difference"] < 0.2 * error["none"]


@pytest.mark.parametrize("image", [(20, 300), (0, 280), (15, 290)])
def test_text_stays_dense_and_in_every_list(dtype, image):
    progress, inputs = dit.Progress(), Drift(dtype)
    attend = dit.SparseAttention(attention_config(count=10), progress=progress)
    start, stop = image
    text = torch.ones(300, dtype=torch.bool)
    text[start:stop] = False
    for step in range(3):
        progress.begin(image=image)
        out, expected = attend(*inputs(step)), dense(*inputs(step))
        close(out[:, :, text], expected[:, :, text])
        mask = attend.columns().to_mask(300)
        assert mask.shape[2] == math.ceil((stop - start) / 64)
        assert mask[..., text].all()
        assert (mask.sum(-1) == 10 + text.sum()).all()
    assert different(out[:, :, ~text], expected[:, :, ~text])


def test_padded_text_rows_without_keys(dtype):
    """HunyuanVideo crops the padding keys; the padded rows remain as queries."""
    progress, inputs = dit.Progress(), Drift(dtype, queries=300, keys=290)
    attend = dit.SparseAttention(attention_config(fraction=1.0), progress=progress)
    for step in range(3):
        progress.begin(image=(0, 280))
        close(attend(*inputs(step)), dense(*inputs(step)))
    assert (attend.columns().counts == 290).all()


def test_branches_have_their_own_caches(dtype):
    progress = dit.Progress()
    config = attention_config(fraction=0.2)
    attend = dit.SparseAttention(config, progress=progress)
    branches = {"cond": Drift(dtype), "uncond": Drift(dtype, seed=100)}
    alone = {name: dit.SparseAttention(config) for name in branches}
    for step in range(5):
        for name, inputs in branches.items():
            progress.begin(name)
            assert torch.equal(attend(*inputs(step)), alone[name](*inputs(step)))
    assert attend.columns("cond") is not None
    assert attend.columns("other") is None


def test_a_new_generation_starts_anew(dtype):
    progress, inputs = dit.Progress(), Drift(dtype)
    attend = dit.SparseAttention(attention_config(fraction=0.2), progress=progress)
    for step in range(2):
        progress.begin()
        first = attend(*inputs(step))
    progress.reset()
    for step in range(2):
        progress.begin()
        second = attend(*inputs(step))
        if step == 0:
            close(second, dense(*inputs(0)))
    assert torch.equal(first, second)


def test_reset_of_a_module_that_counts_its_own_steps(dtype):
    inputs = Drift(dtype)
    attend = dit.SparseAttention(attention_config(fraction=0.2))
    first = [attend(*inputs(step)) for step in range(2)]
    attend.reset()
    assert attend.columns() is None
    second = [attend(*inputs(step)) for step in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_shape_makes_a_full_step(dtype):
    attend = dit.SparseAttention(attention_config(fraction=0.2))
    attend(*Drift(dtype)(0))
    smaller = Drift(dtype, queries=200, keys=200)
    close(attend(*smaller(1)), dense(*smaller(1)))
    assert different(attend(*smaller(2)), dense(*smaller(2)))


def test_first_layers_are_dense(dtype):
    inputs = Drift(dtype)
    config = attention_config(fraction=0.1, dense_layers=2)
    for layer in range(4):
        attend = dit.SparseAttention(config, layer=layer)
        attend(*inputs(0))
        is_dense = not different(attend(*inputs(1)), dense(*inputs(1)))
        assert is_dense == (layer < 2)
        assert attend.is_sparse == (layer >= 2)
        assert ("dense" in repr(attend)) == is_dense


def test_reference_of_the_column_sums_is_the_last_lse(dtype, monkeypatch):
    references = []
    op = ck.dense_attention_column_sums

    def spy(*args, reference_lse, **options):
        references.append(reference_lse)
        return op(*args, reference_lse=reference_lse, **options)

    monkeypatch.setattr(ck, "dense_attention_column_sums", spy)
    inputs = Drift(dtype, speed=0.05)
    attend = dit.SparseAttention(attention_config(fraction=0.5))
    for step in range(4):
        attend(*inputs(step))
    assert len(references) == 2
    assert references[0] is None
    exact = ref.dense_attention(*inputs(2))[1]
    assert (references[1] - exact).abs().max() < 0.1


@pytest.mark.parametrize("mass", [0.3, 0.9])
def test_mass_is_kept(dtype, mass):
    attend = dit.SparseAttention(attention_config(mass=mass))
    assert attend.mass_kept() is None
    assert attend.columns_kept() is None
    inputs = Drift(dtype)(0)
    attend(*inputs)
    kept = attend.mass_kept()
    assert kept.shape == (2, 2, 5)
    assert (kept >= mass - 1e-5).all()
    mask = attend.columns().to_mask(300)
    sums = ref.dense_attention_column_sums(*inputs, query_group=64)[2]
    rows = torch.tensor([64, 64, 64, 64, 44])
    expected = (sums * mask).sum(-1) / rows
    torch.testing.assert_close(kept.double(), expected.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(attend.columns_kept(), mask.float().mean(-1))


def test_mass_is_limited_by_max_fraction(dtype):
    attend = dit.SparseAttention(attention_config(mass=0.9, max_fraction=0.1))
    attend(*Drift(dtype)(0))
    assert (attend.columns().counts == 30).all()


def test_random_control_keeps_the_same_number_of_keys(dtype):
    config = attention_config(count=30, random_fraction=1.0)
    lists = []
    for layer in range(2):
        attend = dit.SparseAttention(config, layer=layer)
        inputs = Drift(dtype)
        attend(*inputs(0))
        lists.append(attend.columns().to_mask(300))
        assert (lists[-1].sum(-1) == 30).all()
    assert different(lists[0].float(), lists[1].float())


def test_a_shared_progress_must_be_begun():
    attend = dit.SparseAttention(attention_config(count=10), progress=dit.Progress())
    with pytest.raises(RuntimeError, match="begin was not called"):
        attend(*Drift(torch.float32)(0))


def test_image_past_the_tokens():
    progress = dit.Progress()
    attend = dit.SparseAttention(attention_config(count=10), progress=progress)
    progress.begin(image=(0, 301))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        attend(*Drift(torch.float32)(0))
    assert str(error.value) == (
        "SparseAttention: progress.image: expected at most 300 tokens, got (0, 301)"
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("selection", [{"fraction": 1.0}, {"fraction": 0.2}])
def test_half_precision(half, selection):
    """Errors against float64 stay those of rounding, step after step."""
    inputs = Drift(half, speed=0)(0)
    exact = dense(*(x.double() for x in inputs))
    rounding = (exact.to(half).double() - exact).abs().max()
    attend = dit.SparseAttention(attention_config(**selection))
    for _ in range(4):
        error = (attend(*inputs).double() - exact).abs().max()
        assert error <= 4 * rounding


def test_state_is_no_part_of_the_state_dict(dtype):
    attend = dit.SparseAttention(attention_config(count=5))
    attend(*Drift(dtype)(0))
    assert attend.state_dict() == {}
