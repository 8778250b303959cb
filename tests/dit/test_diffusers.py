"""Tiny random transformers of diffusers, sparse and plain, over several steps with guidance."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from tiny_transformers import BATCH, flux, hunyuan_video, ltx, wan  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import dit  # noqa: E402

MODELS = [flux, hunyuan_video, wan, ltx]


def tolerance(make, dtype):
    """Some models round to float32 inside, whatever their dtype."""
    return 1e-12 if dtype == torch.float64 and make not in (wan, ltx, hunyuan_video) else 5e-5


def build(make, dtype):
    torch.manual_seed(0)
    model, inputs = make()
    return model.to(dtype).eval(), inputs


def generate(model, inputs, dtype, *, steps=4, speed=0.2, branches=("cond", "uncond"), seed=0):
    """Outputs [branch][step] of a generation whose input drifts, with interleaved guidance."""
    fixed, change = (
        {
            branch: inputs(torch.Generator().manual_seed(seed + number + offset), dtype)
            for number, branch in enumerate(branches)
        }
        for offset in (0, 100)
    )
    outs = {branch: [] for branch in branches}
    for step in range(steps):
        for branch in branches:
            now = dict(fixed[branch])
            drift = change[branch]["hidden_states"]
            now["hidden_states"] = now["hidden_states"] + speed * step * drift
            with model.cache_context(branch):
                outs[branch].append(model(**now, return_dict=False)[0])
    model._reset_stateful_cache()
    return outs


def largest_difference(a, b):
    return max(
        float((x - y).abs().max())
        for branch in a
        for x, y in zip(a[branch], b[branch], strict=True)
    )


def sparse_config(*, fraction=1.0, mlp_fraction=1.0, **options):
    every = dit.Schedule(every=3)
    options.setdefault("dense_layers", 1)
    options.setdefault("token_order", "voxels")
    return dit.ChipmunkConfig(
        attention=dit.AttentionConfig(fraction=fraction, full_steps=every, query_group=64),
        mlp=dit.MlpConfig(fraction=mlp_fraction, full_steps=every),
        **options,
    )


def apply(model, config):
    from chipmunk_kernels.dit.diffusers import apply_chipmunk

    apply_chipmunk(model, config)


def remove(model):
    from chipmunk_kernels.dit.diffusers import remove_chipmunk

    remove_chipmunk(model)


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (flux, "patches"),
        (flux, "voxels"),
        (hunyuan_video, "voxels"),
        (wan, "voxels"),
        (wan, None),
        (ltx, "patches"),
    ],
)
def test_all_columns_equal_the_plain_model_and_removal_restores_it(make, order, dtype):
    model, inputs = build(make, dtype)
    plain = generate(model, inputs, dtype)
    apply(model, sparse_config(token_order=order))
    for _ in range(2):  # the second generation from freshly reset caches
        assert largest_difference(generate(model, inputs, dtype), plain) < tolerance(make, dtype)
    remove(model)
    assert largest_difference(generate(model, inputs, dtype), plain) == 0


@pytest.mark.parametrize("make", MODELS)
def test_few_columns_of_a_generation_that_stands_still(make, dtype):
    """Nothing changes, so cached rests and activations are right whatever is selected."""
    model, inputs = build(make, dtype)
    plain = generate(model, inputs, dtype, speed=0)
    apply(model, sparse_config(fraction=0.1, mlp_fraction=0.1))
    sparse = generate(model, inputs, dtype, speed=0)
    assert largest_difference(sparse, plain) < tolerance(make, dtype)


@pytest.mark.parametrize("make", MODELS)
def test_few_columns_of_a_generation_that_drifts(make, reference_only):
    model, inputs = build(make, torch.float64)
    plain = generate(model, inputs, torch.float64)
    apply(model, sparse_config(fraction=0.3, mlp_fraction=0.3))
    sparse = generate(model, inputs, torch.float64)
    full = {branch: outs[::3] for branch, outs in sparse.items()}
    assert largest_difference(full, {b: outs[::3] for b, outs in plain.items()}) < 5e-5
    for branch in sparse:
        for step in (1, 2):
            error = (sparse[branch][step] - plain[branch][step]).square().mean()
            stale = (plain[branch][0] - plain[branch][step]).square().mean()
            assert 0 < error < 0.7 * stale  # better than reusing the first step
    again = generate(model, inputs, torch.float64)
    assert largest_difference(again, sparse) == 0


@pytest.mark.parametrize("make", MODELS)
def test_branches_do_not_mix(make, reference_only):
    model, inputs = build(make, torch.float64)
    apply(model, sparse_config(fraction=0.3, mlp_fraction=0.3))
    both = generate(model, inputs, torch.float64)
    alone = generate(model, inputs, torch.float64, branches=("cond",))
    assert largest_difference(alone, {"cond": both["cond"]}) == 0


@pytest.mark.parametrize("make", MODELS)
def test_skipped_steps_do_not_run_the_blocks(make, reference_only):
    model, inputs = build(make, torch.float64)
    plain = generate(model, inputs, torch.float64, speed=0)
    ran = []
    for name, module in model.named_modules():
        if name.endswith(("blocks.1.attn", "blocks.1.attn1")) and "refiner" not in name:
            module.register_forward_pre_hook(lambda *_: ran.append(1))
            break
    apply(model, sparse_config(step_cache=dit.StepCacheConfig(skip_steps=(1, 2))))
    sparse = generate(model, inputs, torch.float64, speed=0)
    assert len(ran) == 2 * 2  # two branches, steps 0 and 3
    assert largest_difference(sparse, plain) < tolerance(make, torch.float64)
    moved = generate(model, inputs, torch.float64, speed=0.2)
    moved_plain = generate(model, inputs, torch.float64, speed=0.2)
    assert largest_difference(moved, moved_plain) == 0


def test_sparse_layers_only(reference_only):
    model, inputs = build(flux, torch.float64)
    plain = generate(model, inputs, torch.float64)
    few = {"fraction": 0.05, "mlp_fraction": 0.05}
    apply(model, sparse_config(dense_layers=4, **few))
    assert largest_difference(generate(model, inputs, torch.float64), plain) < 1e-12
    remove(model)
    apply(model, sparse_config(dense_layers=3, **few))
    assert largest_difference(generate(model, inputs, torch.float64), plain) > 1e-3


def test_reference_pictures_keep_the_models_order(reference_only):
    """FLUX Kontext appends the ids of a second picture: no single grid."""
    model, inputs = build(flux, torch.float64)

    def two_pictures(generator, dtype):
        now = inputs(generator, dtype)
        second = now["img_ids"].clone()
        second[:, 0] = 1
        now["img_ids"] = torch.cat([now["img_ids"], second])
        now["hidden_states"] = now["hidden_states"].repeat(1, 2, 1)
        return now

    plain = generate(model, two_pictures, torch.float64)
    apply(model, sparse_config())
    assert largest_difference(generate(model, two_pictures, torch.float64), plain) < 1e-12


def test_controlnet_residuals_follow_the_order(reference_only):
    model, inputs = build(flux, torch.float64)

    def controlled(generator, dtype):
        now = inputs(generator, dtype)
        tokens = now["hidden_states"].shape[1]
        samples = torch.randn(4, BATCH, tokens, 32, generator=generator, dtype=dtype)
        now["controlnet_block_samples"] = list(samples[:2])
        now["controlnet_single_block_samples"] = list(samples[2:])
        return now

    plain = generate(model, controlled, torch.float64)
    apply(model, sparse_config())
    assert largest_difference(generate(model, controlled, torch.float64), plain) < 1e-12
    remove(model)
    apply(model, sparse_config(step_cache=dit.StepCacheConfig(skip_steps=(1,))))
    with pytest.raises(ck.UnsupportedError, match="step_cache: a ControlNet changes"):
        generate(model, controlled, torch.float64)


def test_weights_may_move_after_apply(reference_only):
    model, inputs = build(flux, torch.float64)
    apply(model, sparse_config())
    generate(model, inputs, torch.float64)
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.25
    sparse = generate(model, inputs, torch.float64)
    remove(model)
    assert largest_difference(generate(model, inputs, torch.float64), sparse) < 1e-11


def test_state_dict_is_unchanged():
    model, _ = build(flux, torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply(model, sparse_config())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_caches_are_freed_by_reset_and_removal(reference_only):
    model, inputs = build(wan, torch.float64)
    apply(model, sparse_config())
    session = model._chipmunk_session
    sparse = [module for module in session.modules if isinstance(module, dit.SparseAttention)]
    assert [module.layer for module in sparse] == [1, 2]
    with model.cache_context("cond"):
        model(**inputs(torch.Generator(), torch.float64))
    assert sparse[0].columns("cond") is not None
    model._reset_stateful_cache()
    assert sparse[0].columns("cond") is None
    remove(model)
    assert not hasattr(model, "_chipmunk_session")
    assert not any(
        hook.hooks for module in model.modules() if (hook := getattr(module, "_diffusers_hook", 0))
    )


def test_the_pipelines_step_number_is_used(reference_only):
    model, inputs = build(wan, torch.float64)
    apply(model, sparse_config())
    with model.cache_context("cond", step_index=7):
        model(**inputs(torch.Generator(), torch.float64))
    assert model._chipmunk_session.progress.step == 7
    assert model._chipmunk_session.progress.branch == "cond"


# ---- refusals


def test_unsupported_class():
    with pytest.raises(ck.UnsupportedError) as error:
        apply(torch.nn.Linear(2, 2), sparse_config())
    assert str(error.value) == (
        "apply_chipmunk: transformer: expected one of FluxTransformer2DModel, "
        "HunyuanVideoTransformer3DModel, WanTransformer3DModel, LTXVideoTransformer3DModel, "
        "got Linear"
    )


def test_twice_and_not_at_all():
    model, _ = build(wan, torch.float32)
    with pytest.raises(ValueError, match="expected one made sparse by apply_chipmunk"):
        remove(model)
    apply(model, sparse_config())
    with pytest.raises(ValueError, match="already sparse; call remove_chipmunk first"):
        apply(model, sparse_config())


def test_replaced_layers_change_nothing():
    model, inputs = build(flux, torch.float32)
    plain = generate(model, inputs, torch.float32)

    class Lora(torch.nn.Linear):
        pass

    block = model.transformer_blocks[1]
    own = block.ff.net[2]
    block.ff.net[2] = Lora(1, 1)
    with pytest.raises(ck.UnsupportedError) as error:
        apply(model, sparse_config())
    assert str(error.value) == (
        "apply_chipmunk: transformer_blocks.1.ff.net.2: expected torch.nn.Linear, got Lora; "
        "fuse LoRA and do not quantise the sparse layers"
    )
    block.ff.net[2] = own
    processor = model.single_transformer_blocks[0].attn.processor
    model.single_transformer_blocks[0].attn.processor = object()
    with pytest.raises(ck.UnsupportedError) as error:
        apply(model, sparse_config())
    assert str(error.value) == (
        "apply_chipmunk: single_transformer_blocks.0.attn.processor: expected FluxAttnProcessor, "
        "got object"
    )
    model.single_transformer_blocks[0].attn.processor = processor
    assert largest_difference(generate(model, inputs, torch.float32), plain) == 0


def test_unequal_padding(reference_only):
    model, inputs = build(hunyuan_video, torch.float64)
    apply(model, sparse_config())
    now = inputs(torch.Generator(), torch.float64)
    now["encoder_attention_mask"][0, 10:] = 0
    with pytest.raises(ck.UnsupportedError, match="padding at the end, the same for the whole"):
        model(**now)


def test_token_replace():
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(4, 6, 6),
        image_condition_type="token_replace",
    )
    with pytest.raises(ck.UnsupportedError, match="token_replace"):
        apply(model, sparse_config())


def test_one_timestep_per_token(reference_only):
    model, inputs = build(wan, torch.float64)
    apply(model, sparse_config())
    now = inputs(torch.Generator(), torch.float64)
    now["timestep"] = torch.full((BATCH, 150), 500)
    with pytest.raises(ck.UnsupportedError, match="one timestep per token"):
        model(**now)
