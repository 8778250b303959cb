"""Self-attention that is dense on full steps and column-sparse in between."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import chipmunk_kernels as ck
from chipmunk_kernels.arguments import integer
from chipmunk_kernels.dit.config import AttentionConfig, ChipmunkConfig
from chipmunk_kernels.dit.groups import group_mean
from chipmunk_kernels.dit.schedule import Progress
from chipmunk_kernels.dit.state import BranchStates


@dataclass
class AttentionState:
    """What one layer keeps from step to step for one branch. Rows are the image rows."""

    shape: tuple[object, ...] | None = None
    """Of the call that filled the state; another one makes a full step."""
    columns: ck.ColumnLists | None = None
    """Selected keys: indices `[B, H, groups, capacity]`, counts `[B, H, groups]`."""
    lse: Tensor | None = None
    """`[B, H, rows]`: the best known lse over all keys, reference of the next column sums."""
    rest: tuple[Tensor, Tensor] | None = None
    """Rule "merge": attention over the other keys, out `[B, H, rows, D]` and lse `[B, H, rows]`."""
    difference: Tensor | None = None
    """Rule "difference": `[B, H, rows, D]`, dense minus selected output of the last full step."""
    mass_kept: Tensor | None = None
    """`[B, H, groups]`: mean share of the softmax weight that the selected keys held then."""


class SparseAttention(nn.Module):
    """Attention of a layer over a whole generation: `attend(q, k, v)`.

    A full step runs dense attention with column sums, chooses each query group's keys by them, runs
    the selected keys alone and keeps the rest. A sparse step runs the selected keys and merges the
    stale rest. Text (tokens outside `progress.image`) stays dense: its rows see all keys, its keys
    are in every list.

    Inference only. State is no part of the module's `state_dict`.
    """

    def __init__(
        self, config: ChipmunkConfig, *, layer: int = 0, progress: Progress | None = None
    ) -> None:
        """A layer's attention.

        Args:
            config: `config.attention` says what is sparse; None, or a layer below
                `config.dense_layers`, is always dense.
            layer: number of the layer, from 0.
            progress: shared by all modules of a model. None: every call is the next step of one
                branch, until `reset`.
        """
        super().__init__()
        self.config = config
        self.layer = integer("SparseAttention", "layer", layer)
        self.progress = Progress() if progress is None else progress
        self._counts_steps = progress is None
        self._states = BranchStates(AttentionState)

    def extra_repr(self) -> str:
        """The layer and whether it is dense."""
        return f"layer={self.layer}{'' if self.is_sparse else ', dense'}"

    @property
    def is_sparse(self) -> bool:
        """Whether this layer is ever sparse."""
        return self.config.attention is not None and self.layer >= self.config.dense_layers

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None
    ) -> Tensor:
        """Attention out `[B, Hq, Nq, D]` of this step.

        Args:
            q: queries `[B, Hq, Nq, D]`, after norm and rotation.
            k: keys `[B, Hkv, Nk, D]`; Nk may differ from Nq by text tokens at the end.
            v: values `[B, Hkv, Nk, D]`.
            softmax_scale: factor of the scores; 1 / sqrt(D) if None.

        Raises:
            ValueError: `progress.image` reaches past the tokens.
        """
        if self._counts_steps:
            self.progress.begin(image=self.progress.image)
        config = self.config.attention
        if config is None or not self.is_sparse:
            return ck.dense_attention(q, k, v, softmax_scale=softmax_scale)[0]
        start, stop = self.progress.image or (0, min(q.shape[2], k.shape[2]))
        if stop > min(q.shape[2], k.shape[2]):
            raise ValueError(
                f"SparseAttention: progress.image: expected at most {min(q.shape[2], k.shape[2])} "
                f"tokens, got {(start, stop)}"
            )
        rows = q[:, :, start:stop]
        state = self._states.current(self.progress)
        shape = (q.shape, k.shape, start, stop, q.dtype, q.device)
        if state.columns is None or state.shape != shape:
            state = self._restart(state, shape)
        if state.columns is None or config.full_steps.is_full(self.progress.step):
            out = self._full_step(config, state, rows, k, v, softmax_scale)
        else:
            out = self._sparse_step(config, state, rows, k, v, softmax_scale)
        parts = [out]
        if start > 0:
            text = q[:, :, :start]
            parts.insert(0, ck.dense_attention(text, k, v, softmax_scale=softmax_scale)[0])
        if stop < q.shape[2]:
            text = q[:, :, stop:]
            parts.append(ck.dense_attention(text, k, v, softmax_scale=softmax_scale)[0])
        return torch.cat(parts, dim=2) if len(parts) > 1 else out

    def reset(self) -> None:
        """Forgets all caches now, and the steps if this module counts them itself."""
        self._states.clear()
        if self._counts_steps:
            self.progress.reset()

    def columns(self, branch: Hashable = None) -> ck.ColumnLists | None:
        """The branch's lists, or None before its first full step."""
        state = self._states.of(branch)
        return None if state is None else state.columns

    def mass_kept(self, branch: Hashable = None) -> Tensor | None:
        """Share of the softmax weight that the selected keys held at the last full step.

        Returns:
            `[B, Hq, groups]` float32, each the mean over the group's rows of
            exp(lse_selected - lse_whole); None before the branch's first full step.
        """
        state = self._states.of(branch)
        return None if state is None else state.mass_kept

    def columns_kept(self, branch: Hashable = None) -> Tensor | None:
        """`[B, Hq, groups]` float32: share of all keys in the lists; None before the first."""
        state = self._states.of(branch)
        if state is None or state.columns is None or state.shape is None:
            return None
        key_shape = state.shape[1]
        assert isinstance(key_shape, torch.Size)
        counts: Tensor = state.columns.counts
        return counts.float() / key_shape[2]

    def _restart(self, state: AttentionState, shape: tuple[object, ...]) -> AttentionState:
        state.shape, state.columns, state.lse = shape, None, None
        return state

    def _full_step(
        self,
        config: AttentionConfig,
        state: AttentionState,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None,
    ) -> Tensor:
        groups = -(-q.shape[2] // config.query_group)
        sums = q.new_empty(
            (*q.shape[:2], groups, k.shape[2]),
            dtype=torch.bfloat16 if q.dtype.itemsize < 4 else torch.float32,
        )
        out, lse, sums = ck.dense_attention_column_sums(
            q,
            k,
            v,
            reference_lse=state.lse,
            query_group=config.query_group,
            softmax_scale=softmax_scale,
            out=(None, None, sums),
        )
        state.columns = self._select(config, sums, q.shape[2])
        del sums  # the largest tensor of the step
        selected = ck.column_sparse_attention(q, k, v, state.columns, softmax_scale=softmax_scale)
        share = torch.exp(selected[1] - lse).clamp(max=1)
        state.mass_kept = group_mean(share[..., None], config.query_group)[..., 0]
        state.lse, state.rest, state.difference = lse, None, None
        if config.rest == "merge":
            state.rest = ck.rest_of_attention((out, lse), selected)
        elif config.rest == "difference":
            state.difference = out - selected[0]
        return out

    def _select(self, config: AttentionConfig, sums: Tensor, rows: int) -> ck.ColumnLists:
        """The keys of each group by their column sums `[B, H, groups, Nk]`."""
        keys = sums.shape[-1]
        text_keys = keys - rows
        always = None
        if text_keys > 0:
            start, stop = self.progress.image or (0, rows)
            always = torch.ones(keys, dtype=torch.bool, device=sums.device)
            always[start:stop] = False
        kept = config.kept_keys(rows) + text_keys
        return ck.select_columns(
            sums,
            count=None if config.mass is not None else kept,
            mass=config.mass,
            max_count=kept,
            always=always,
            random_fraction=config.random_fraction,
            seed=random_seed(config.seed, self.layer, self.progress.step),
            query_group=config.query_group,
        )

    def _sparse_step(
        self,
        config: AttentionConfig,
        state: AttentionState,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None,
    ) -> Tensor:
        assert state.columns is not None
        out, lse = ck.column_sparse_attention(
            q, k, v, state.columns, rest=state.rest, softmax_scale=softmax_scale
        )
        if config.rest == "merge":
            state.lse = lse
        elif state.difference is not None:
            out = out + state.difference
        return out


def random_seed(seed: int, layer: int, step: int) -> int:
    """A seed of its own for every layer and step, below 2^63."""
    return (seed * 1_000_003 + layer * 10_007 + step) % 2**63
