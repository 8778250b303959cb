"""MLP that is dense on full steps and recomputes the most changed hidden units in between."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import chipmunk_kernels as ck
from chipmunk_kernels.arguments import integer
from chipmunk_kernels.dit.attention import random_seed
from chipmunk_kernels.dit.config import ChipmunkConfig, MlpConfig
from chipmunk_kernels.dit.groups import group_mean
from chipmunk_kernels.dit.schedule import Progress
from chipmunk_kernels.dit.state import BranchStates

Activation = Literal["gelu_tanh", "gelu", "silu", "relu", "swiglu", "geglu"]

_GROUP = 128  # tokens that share one list of hidden units


def activate(z: Tensor, activation: Activation) -> Tensor:
    """The activation of pre-activations `[.., F]`, `[.., 2F]` (value, gate) for the gated ones."""
    if activation == "gelu_tanh":
        return functional.gelu(z, approximate="tanh")
    if activation == "gelu":
        return functional.gelu(z)
    if activation == "silu":
        return functional.silu(z)
    if activation == "relu":
        return functional.relu(z)
    value, gate = z.chunk(2, dim=-1)
    return value * (functional.silu(gate) if activation == "swiglu" else functional.gelu(gate))


@dataclass
class MlpState:
    """What one layer keeps from step to step for one branch."""

    shape: tuple[object, ...] | None = None
    """Of the call that filled the state; another one makes a full step."""
    cache: ck.MlpCache | None = None
    """Activations `[B, F, M]` and output `[B, M, N]`, updated in place."""
    means: Tensor | None = None
    """`[B, groups, F]`: each unit's activation on its group's mean token when last computed."""
    columns: ck.ColumnLists | None = None
    """Units of the last sparse step: indices `[B, groups, capacity]`, counts `[B, groups]`."""


class SparseMlp(nn.Module):
    """fc2(activation(fc1(x))) of a layer over a whole generation.

    A full step is dense and fills the cache. A sparse step estimates which units changed: fc1 and
    activation of the mean token of each group of 128 cost 1/128 of the layer; their difference from
    the cached values ranks the units. The most changed are recomputed for the group's tokens, the
    others keep their cached activation.

    fc1 and fc2 stay where they are in a model's `state_dict` if this module takes their parent's
    place. Inference only; state is no part of the `state_dict`. The sparse kernel reads fc2's
    weight transposed; a transposed copy is kept until `reset`, renewed when the weight changes and
    once a generation.
    """

    def __init__(
        self,
        config: ChipmunkConfig,
        fc1: nn.Linear,
        fc2: nn.Linear,
        activation: Activation,
        *,
        layer: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """A layer's MLP.

        Args:
            config: `config.mlp` says what is sparse; None, or a layer below `config.dense_layers`,
                is always dense.
            fc1: `[K] -> [F]`, or `[K] -> [2F]` (value, gate) for the gated activations.
            fc2: `[F] -> [N]`.
            activation: "gelu_tanh", "gelu", "silu", "relu", "swiglu" or "geglu".
            layer: number of the layer, from 0.
            progress: shared by all modules of a model. None: every call is the next step of one
                branch, until `reset`.

        Raises:
            ValueError: fc1, fc2 and activation do not fit together.
        """
        super().__init__()
        gated = activation in ("swiglu", "geglu")
        if fc1.out_features != fc2.in_features * (1 + gated):
            raise ValueError(
                f"SparseMlp: fc1: expected {fc2.in_features * (1 + gated)} outputs for fc2 with "
                f"{fc2.in_features} inputs and {activation}, got {fc1.out_features}"
            )
        self.config = config
        self.fc1 = fc1
        self.fc2 = fc2
        self.activation: Activation = activation
        self.layer = integer("SparseMlp", "layer", layer)
        self.progress = Progress() if progress is None else progress
        self._counts_steps = progress is None
        self._states = BranchStates(MlpState)
        self._w2t: tuple[Tensor, int, Tensor] | None = None  # weight, its version, its transpose

    def extra_repr(self) -> str:
        """The activation, the layer and whether it is dense."""
        return f"{self.activation}, layer={self.layer}{'' if self.is_sparse else ', dense'}"

    @property
    def is_sparse(self) -> bool:
        """Whether this layer is ever sparse."""
        return self.config.mlp is not None and self.layer >= self.config.dense_layers

    def forward(self, x: Tensor) -> Tensor:
        """The MLP's output `[B, M, N]` for tokens x `[B, M, K]`; the caller's to change.

        Raises:
            ValueError: x has another rank.
        """
        if self._counts_steps:
            self.progress.begin()
        config = self.config.mlp
        if config is None or not self.is_sparse:
            hidden = activate(_linear(x, self.fc1), self.activation)
            return _linear(hidden, self.fc2)
        if x.dim() != 3:
            raise ValueError(f"SparseMlp: x: expected [batch, tokens, channels], got {[*x.shape]}")
        state = self._states.current(self.progress)
        shape = (x.shape, x.dtype, x.device)
        if (
            state.cache is None
            or state.shape != shape
            or config.full_steps.is_full(self.progress.step)
        ):
            state.shape = shape
            out = self._full_step(state, x)
        else:
            out = self._sparse_step(config, state, state.cache, x)
        return out.clone()  # the cache is updated in place; the caller's tensor must not be

    def reset(self) -> None:
        """Forgets all caches now, and the steps if this module counts them itself."""
        self._states.clear()
        self._w2t = None
        if self._counts_steps:
            self.progress.reset()

    def columns(self, branch: Hashable = None) -> ck.ColumnLists | None:
        """The branch's lists of the last sparse step, or None before the first."""
        state = self._states.of(branch)
        return None if state is None else state.columns

    def columns_kept(self, branch: Hashable = None) -> Tensor | None:
        """`[B, groups]` float32: share of the units in the last lists; None before the first."""
        columns = self.columns(branch)
        if columns is None:
            return None
        counts: Tensor = columns.counts
        return counts.float() / self.fc2.in_features

    def _full_step(self, state: MlpState, x: Tensor) -> Tensor:
        if state.cache is None:  # a new generation: weights may have been changed through .data
            self._w2t = None
        state.cache = ck.MlpCache.from_dense(
            x, self.fc1.weight, self.fc1.bias, self._transposed(), self.fc2.bias, self.activation
        )
        state.means = self._mean_activations(x)
        state.columns = None
        return state.cache.output

    def _sparse_step(
        self, config: MlpConfig, state: MlpState, cache: ck.MlpCache, x: Tensor
    ) -> Tensor:
        assert state.means is not None
        means = self._mean_activations(x)
        hidden = means.shape[-1]
        columns = ck.select_columns(
            (means - state.means).abs(),
            count=config.kept_units(hidden),
            random_fraction=config.random_fraction,
            seed=random_seed(config.seed, self.layer, self.progress.step),
            query_group=_GROUP,
        )
        state.columns = columns
        selected: Tensor = columns.to_mask(hidden)
        state.means = torch.where(selected, means, state.means)
        return ck.column_sparse_mlp(
            x,
            self.fc1.weight,
            self.fc1.bias,
            self._transposed(),
            columns,
            cache,
            activation=self.activation,
        )

    def _mean_activations(self, x: Tensor) -> Tensor:
        """`[B, groups, F]`: the activations of each group's mean token."""
        return activate(_linear(group_mean(x, _GROUP), self.fc1), self.activation)

    def _transposed(self) -> Tensor:
        """fc2's weight as `[F, N]`, contiguous."""
        weight = self.fc2.weight
        version = 0 if weight.is_inference() else weight._version
        if (
            self._w2t is None
            or self._w2t[0] is not weight
            or self._w2t[1] != version
            or self._w2t[2].device != weight.device
            or self._w2t[2].dtype != weight.dtype
        ):
            self._w2t = weight, version, weight.detach().t().contiguous()
        return self._w2t[2]


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """layer(x) from the parameters, whatever hooks the module carries; the kernels do the same."""
    return functional.linear(x, layer.weight, layer.bias)
