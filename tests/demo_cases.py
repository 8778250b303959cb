"""A tiny model of the demo, and runs made by hand."""

from __future__ import annotations

from pathlib import Path

import torch

from chipmunk_kernels.demo.model import DiffusionTransformer, ModelConfig, save_model
from chipmunk_kernels.demo.sample import Run, Settings
from chipmunk_kernels.demo.words import Vocabulary

VOCABULARY = Vocabulary(["apple", "cat", "face", "green", "red"])


def settings(**changes: object) -> Settings:
    defaults = {
        "prompts": ("red apple", "cat"),
        "steps": 4,
        "columns": 0.25,
        "units": 0.25,
        "seed": 3,
        "resolution": 32,
        "guidance": 2.0,
        "full_every": 3,
        "dense_layers": 1,
        "controls": True,
    }
    return Settings(**{**defaults, **changes})  # type: ignore[arg-type]


def tiny_model() -> DiffusionTransformer:
    """Three layers of random weights; none is zero, so that every part counts."""
    config = ModelConfig(vocabulary=len(VOCABULARY), width=64, depth=3, heads=2, word_slots=4)
    generator = torch.Generator().manual_seed(0)
    built = DiffusionTransformer(config).requires_grad_(False).eval()
    for name, parameter in built.named_parameters():
        scale = 0.3 if name.endswith("bias") else parameter.shape[-1] ** -0.5
        center = 1.0 if "norm" in name else 0.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + center)
    return built


def save_tiny(model: DiffusionTransformer, folder: Path) -> Path:
    save_model(folder / "tiny.safetensors", model, VOCABULARY, 16, {"note": "random"})
    return folder / "tiny.safetensors"


def words_of(*prompts: str) -> torch.Tensor:
    return torch.tensor([VOCABULARY.encode_prompt(prompt, 4)[0] for prompt in prompts])


def run_of(key: str, milliseconds: list[float], states: list[torch.Tensor]) -> Run:
    full = [True] + [False] * (len(states) - 1)
    return Run(key, key, len(states), states, milliseconds, full)
