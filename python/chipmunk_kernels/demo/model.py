"""The demo's diffusion transformer, in plain torch.

A picture is cut into 2x2 patches, one token each; up to `word_slots` caption words follow as
further tokens. All tokens run through the same pre-norm blocks, whose scales, shifts and gates come
from the time and the pooled caption. Two places are made to be replaced: `Attention.attend`, called
as ``attend(q, k, v)`` on ``[B, H, N, D]`` after norm and rotation, and `Block.mlp`, a module with
`fc1`, an activation and `fc2`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from .files import atomic_path
from .words import PAD, Vocabulary

if TYPE_CHECKING:
    from chipmunk_kernels import TokenOrder

_READER: Any = safetensors  # whose own types are partly unknown
_WRITER: Any = safetensors_torch


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model. `width` is split into `heads`; head dimension must be a multiple of 4."""

    vocabulary: int
    width: int = 256
    depth: int = 6
    heads: int = 4
    mlp_ratio: int = 4
    patch: int = 2
    channels: int = 3
    word_slots: int = 12
    condition_width: int = 128

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            raise ValueError(
                f"ModelConfig: width: expected a multiple of 4 * heads={self.heads}, "
                f"got {self.width}"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def patch_angles(height: int, width: int, head_dim: int, device: torch.device | None) -> Tensor:
    """Rotation angles of a height x width grid of patches: ``[height * width, head_dim / 2]``.

    Positions run over (-1, 1) whatever the grid, so a model trained on a coarse grid sees the same
    places on a fine one. The first half of the pairs rotates with the row, the rest with the
    column, at frequencies from pi/2 (half a turn over the picture) to 16 pi.
    """
    frequencies = torch.logspace(
        math.log10(math.pi / 2), math.log10(16 * math.pi), head_dim // 4, device=device
    )
    rows = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    columns = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    by_row = (rows[:, None] * frequencies)[:, None, :].expand(height, width, -1)
    by_column = (columns[:, None] * frequencies)[None, :, :].expand(height, width, -1)
    return torch.cat([by_row, by_column], dim=-1).reshape(height * width, head_dim // 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pair (i, i + D/2) of x ``[B, H, N, D]`` by the angle whose cos and sin are
    ``[N, D/2]``."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class DenseAttention(nn.Module):
    """Softmax attention over all tokens. q, k, v and the result are ``[B, H, N, D]``."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Projections, QK-RMSNorm and rotation around `attend`, the replaceable attention itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=1e-6)
        self.proj = nn.Linear(config.width, config.width)
        self.attend: nn.Module = DenseAttention()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x ``[B, N, width]``; cos, sin ``[N, head_dim / 2]``."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q = rotate(self.q_norm(q), cos, sin).to(v.dtype)
        k = rotate(self.k_norm(k), cos, sin).to(v.dtype)
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """fc1, tanh-GELU, fc2 on x ``[B, N, width]``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the condition."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.width
        self.attention = Attention(config)
        self.mlp: nn.Module = Mlp(config.width, config.mlp_ratio * config.width)

    def forward(self, x: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x ``[B, N, width]``; modulation ``[B, 6, width]``: scale, shift, gate of both halves."""
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = modulation[:, :, None].unbind(1)
        y = F.layer_norm(x, (self.width,), eps=1e-6)
        x = x + gate_a * self.attention(y * (1 + scale_a) + shift_a, cos, sin)
        y = F.layer_norm(x, (self.width,), eps=1e-6)
        return x + gate_m * self.mlp(y * (1 + scale_m) + shift_m)


class DiffusionTransformer(nn.Module):
    """Predicts the rectified-flow velocity (noise - picture) of a noisy picture."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, patch_values = config.width, config.channels * config.patch**2
        self.patch_in = nn.Linear(patch_values, width)
        self.words = nn.Embedding(config.vocabulary, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.caption = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(width, config.condition_width)
        self.modulation = nn.Linear(config.condition_width, (6 * config.depth + 2) * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.patch_out = nn.Linear(width, patch_values)
        self.order: TokenOrder | None = None  # of the tokens inside the blocks
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.words.weight, std=0.5)
        for layer in (self.modulation, self.patch_out):  # every block starts as the identity
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """x ``[B, 3, H, W]`` in about [-1, 1], t ``[B]`` in [0, 1] (1 is noise), words ``[B, L]``
        integer ids (PAD where empty), L at most `word_slots`. Returns ``[B, 3, H, W]``."""
        config = self.config
        batch, channels, height, width = x.shape
        p = config.patch
        if channels != config.channels or height % p or width % p:
            raise ValueError(
                f"DiffusionTransformer: x: expected shape [batch, {config.channels}, "
                f"multiple of {p}, multiple of {p}], got {list(x.shape)}"
            )
        rows, columns = height // p, width // p
        patches = x.view(batch, channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        picture = self.patch_in(patches.reshape(batch, rows * columns, -1))
        caption = self.words(words)
        present = (words != PAD).unsqueeze(-1)
        pooled = (caption * present).sum(1) / present.sum(1).clamp(min=1).to(caption.dtype).sqrt()
        condition = F.silu(self.time(self._time_features(t)) + self.caption(pooled))
        condition = F.silu(self.condition(condition))
        modulation = self.modulation(condition).view(batch, -1, config.width)

        angles = patch_angles(rows, columns, config.head_dim, x.device)
        angles = F.pad(angles, (0, 0, 0, words.shape[1]))  # words have no place: angle 0
        cos, sin = angles.cos(), angles.sin()
        tokens = torch.cat([picture, caption.to(picture.dtype)], dim=1)
        if self.order is not None:
            tokens = self.order.apply(tokens, 1)
            cos, sin = self.order.apply(cos, 0), self.order.apply(sin, 0)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, modulation[:, 6 * i : 6 * i + 6], cos, sin)
        if self.order is not None:
            tokens = self.order.restore(tokens, 1)
        scale, shift = modulation[:, -2:, None].unbind(1)
        tokens = F.layer_norm(tokens[:, : rows * columns], (config.width,), eps=1e-6)
        out = self.patch_out(tokens * (1 + scale) + shift)
        out = out.view(batch, rows, columns, channels, p, p).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(batch, channels, height, width)

    def _time_features(self, t: Tensor) -> Tensor:
        half = self.config.width // 2
        frequencies = torch.logspace(0, 3, half, device=t.device)
        angles = t[:, None].float() * frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return features.to(self.patch_in.weight.dtype)


def save_model(
    target: str | os.PathLike[str],
    model: DiffusionTransformer,
    vocabulary: Vocabulary,
    resolution: int,
    notes: dict[str, str],
) -> None:
    """Writes bfloat16 weights and, as metadata, sizes, words, the resolution of the last training
    stage and free notes. The file appears whole or not at all."""
    tensors = {name: w.detach().bfloat16().cpu() for name, w in model.state_dict().items()}
    metadata = {
        "config": json.dumps(dataclasses.asdict(model.config)),
        "vocabulary": " ".join(vocabulary.words),
        "resolution": str(resolution),
        **notes,
    }
    with atomic_path(target) as path:
        _WRITER.save_file(tensors, path, metadata)


def load_model(
    source: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[DiffusionTransformer, Vocabulary, int]:
    """Model, vocabulary and trained resolution from a file of `save_model`; None means the file
    shipped with the package."""
    path = Path(source) if source is not None else Path(__file__).with_name("weights.safetensors")
    with _READER.safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in [*file.keys()]}
    model = DiffusionTransformer(ModelConfig(**json.loads(metadata["config"])))
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    model.requires_grad_(False).eval().to(device=device, dtype=dtype)
    return model, Vocabulary(metadata["vocabulary"].split(" ")), int(metadata["resolution"])
