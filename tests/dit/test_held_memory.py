"""What is held after a generation: nothing. Bytes are counted over every tensor that is alive."""

from __future__ import annotations

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

from dit_support import randn  # noqa: E402
from torch import nn  # noqa: E402

from chipmunk_kernels import dit  # noqa: E402


def bytes_alive():
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if type(value) in (torch.Tensor, nn.Parameter) and value.device.type == "cpu":
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def config(**options):
    return dit.ChipmunkConfig(
        attention=dit.AttentionConfig(fraction=0.3, query_group=64),
        mlp=dit.MlpConfig(fraction=0.3),
        step_cache=dit.StepCacheConfig(threshold=1e-9),
        dense_layers=0,
        **options,
    )


def test_modules_hold_nothing_after_reset():
    fc1, fc2 = nn.Linear(64, 256), nn.Linear(256, 64)
    mlp = dit.SparseMlp(config(), fc1, fc2, "gelu")
    attention = dit.SparseAttention(config())
    before = bytes_alive()
    for _ in range(2):
        for step in range(3):
            mlp(randn(1, 300, 64, seed=step, dtype=torch.float32))
            q = randn(1, 2, 300, 64, seed=step, dtype=torch.float32)
            attention(q, q, q)
        del q
        assert bytes_alive() > before + fc2.weight.nbytes
        mlp.reset()
        attention.reset()
        assert bytes_alive() == before


@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "wan", "ltx"])
def test_a_transformer_holds_nothing_after_reset_and_removal(name):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    import tiny_transformers

    from chipmunk_kernels.dit.diffusers import apply_chipmunk, remove_chipmunk

    model, inputs = getattr(tiny_transformers, name)()

    def generate():
        for step in range(3):
            with model.cache_context("cond"):
                model(**inputs(torch.Generator().manual_seed(step), torch.float32))

    generate()
    model._reset_stateful_cache()
    before = bytes_alive()
    apply_chipmunk(model, config(token_order="voxels"))
    session = weakref.ref(model._chipmunk_session)
    generate()
    assert bytes_alive() > before
    model._reset_stateful_cache()
    assert bytes_alive() == before
    generate()
    remove_chipmunk(model)
    assert bytes_alive() == before
    gc.collect()
    assert session() is None
