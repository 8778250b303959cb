"""Sparse attention and MLP modules for diffusion transformers, on the public ops. Needs torch."""

from chipmunk_kernels.dit.attention import SparseAttention
from chipmunk_kernels.dit.config import (
    AttentionConfig,
    ChipmunkConfig,
    MlpConfig,
    StepCacheConfig,
)
from chipmunk_kernels.dit.mlp import SparseMlp
from chipmunk_kernels.dit.schedule import Progress, Schedule
from chipmunk_kernels.dit.state import StepCache

__all__ = [
    "AttentionConfig",
    "ChipmunkConfig",
    "MlpConfig",
    "Progress",
    "Schedule",
    "SparseAttention",
    "SparseMlp",
    "StepCache",
    "StepCacheConfig",
]
