"""Tiny random transformers of diffusers; each function gives a model and a maker of inputs."""

from __future__ import annotations

import torch
from diffusers import (
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)

BATCH, TEXT = 2, 20


def flux():
    model = FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 6, 6),
    )
    rows, columns = 10, 13
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)

    def inputs(generator, dtype):
        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        return {
            "hidden_states": randn(BATCH, rows * columns, 8),
            "encoder_hidden_states": randn(BATCH, TEXT, 12),
            "pooled_projections": randn(BATCH, 10),
            "timestep": torch.full((BATCH,), 0.5, dtype=dtype),
            "img_ids": ids.reshape(-1, 3),
            "txt_ids": torch.zeros(TEXT, 3),
        }

    return model, inputs


def hunyuan_video():
    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(4, 6, 6),
    )

    def inputs(generator, dtype):
        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        mask = torch.ones(BATCH, TEXT, dtype=torch.int64)
        mask[:, 13:] = 0
        return {
            "hidden_states": randn(BATCH, 4, 5, 12, 10),
            "timestep": torch.full((BATCH,), 500),
            "encoder_hidden_states": randn(BATCH, TEXT, 12),
            "encoder_attention_mask": mask,
            "pooled_projections": randn(BATCH, 10),
            "guidance": torch.full((BATCH,), 6.0, dtype=dtype),
        }

    return model, inputs


def wan():
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=48,
        num_layers=3,
        rope_max_seq_len=32,
    )

    def inputs(generator, dtype):
        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        return {
            "hidden_states": randn(BATCH, 4, 5, 12, 10),
            "timestep": torch.full((BATCH,), 500),
            "encoder_hidden_states": randn(BATCH, TEXT, 12),
        }

    return model, inputs


def ltx():
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=12,
    )

    def inputs(generator, dtype):
        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        return {
            "hidden_states": randn(BATCH, 5 * 6 * 5, 8),
            "encoder_hidden_states": randn(BATCH, TEXT, 12),
            "timestep": torch.full((BATCH,), 500),
            "encoder_attention_mask": torch.ones(BATCH, TEXT),
            "num_frames": 5,
            "height": 6,
            "width": 5,
        }

    return model, inputs
