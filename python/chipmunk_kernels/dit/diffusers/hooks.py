"""The hooks that put sparse modules into a transformer of diffusers.

root        names branch and step, lays out the tokens
rope        permutes cos and sin
block       the first permutes the image tokens; all of them may be skipped
norm_out    restores the order of the image tokens
MLP         a SparseMlp in its place
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any, cast

from torch import Tensor, nn

import chipmunk_kernels as ck
from chipmunk_kernels.dit.diffusers.hook_types import BaseState, ModelHook, StateManager
from chipmunk_kernels.dit.diffusers.session import Session
from chipmunk_kernels.dit.mlp import SparseMlp

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Branch(StateManager):
    """Receives what `cache_context` announces; keeps no state of its own."""

    def __init__(self) -> None:
        super().__init__(BaseState)
        self.name: Hashable = None
        self.step: int | None = None

    def set_context(self, context: object) -> None:
        """Takes name and, where the pipeline tells it, number of the step."""
        super().set_context(context)
        self.name = getattr(context, "name", context)
        self.step = getattr(context, "step_index", None)


class RootHook(ModelHook):
    """On the transformer."""

    _is_stateful = True

    def __init__(self, session: Session) -> None:
        """Of one session."""
        super().__init__()
        self.session = session
        self.branch = _Branch()
        self.signature = inspect.Signature()

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        """Notes the signature of the forward that the hook will wrap."""
        self.signature = inspect.signature(module.forward)
        return module

    def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> _Call:
        """Announces the forward pass; permutes what enters beside the image tokens."""
        bound = self.signature.bind(*args, **kwargs)
        session, inputs = self.session, bound.arguments
        session.begin(self.branch.name, self.branch.step, session.family.layout(module, inputs))
        control = [name for name in inputs if name.startswith("controlnet_") and inputs[name]]
        if control and session.config.step_cache is not None:
            raise ck.UnsupportedError(
                "apply_chipmunk: config.step_cache: a ControlNet changes the blocks' outputs from "
                "outside; set it to None"
            )
        order = session.image_order
        if order is not None:
            timestep = inputs.get("timestep")
            if isinstance(timestep, Tensor) and timestep.ndim > 1 and timestep.shape[1] > 1:
                raise ck.UnsupportedError(
                    "apply_chipmunk: config.token_order: this model takes one timestep per token; "
                    "set it to None"
                )
            for name in control:
                if isinstance(inputs[name], list | tuple):
                    inputs[name] = [order.apply(cast(Tensor, x), 1) for x in inputs[name]]
        return bound.args, bound.kwargs

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Ends the generation; pipelines call this after theirs."""
        self.session.reset()
        return module


class RopeHook(ModelHook):
    """On the rotary embedding."""

    def __init__(self, session: Session) -> None:
        """Of one session."""
        super().__init__()
        self.session = session

    def post_forward(self, module: nn.Module, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Permutes cos and sin like the tokens."""
        order = self.session.joint_order
        if order is None:
            return output
        return tuple(order.apply(x, self.session.family.rope_dim) for x in output)


class BlockHook(ModelHook):
    """On every block."""

    def __init__(self, session: Session, is_first: bool, is_last: bool) -> None:
        """Of one session."""
        super().__init__()
        self.session = session
        self.is_first = is_first
        self.is_last = is_last
        self.signature = inspect.Signature()

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        """Notes the signature of the forward that the hook will wrap."""
        self.signature = inspect.signature(module.forward)
        return module

    def new_forward(
        self, module: nn.Module, *args: object, **kwargs: object
    ) -> Tensor | tuple[Tensor, ...]:
        """Runs the block, or passes its input on; see the session's step cache."""
        session, index = self.session, self.session.family.hidden_index
        bound = self.signature.bind(*args, **kwargs)
        hidden: Tensor = bound.arguments["hidden_states"]
        if self.is_first:
            if session.image_order is not None:
                hidden = session.image_order.apply(hidden, 1)
                bound.arguments["hidden_states"] = hidden
            session.skipping = session.step_cache.skips(hidden)
            session.blocks_input = None if session.skipping else hidden
        if session.skipping:
            if self.is_last:
                hidden = session.step_cache.skipped(hidden)
            if index is None:
                return hidden
            text = bound.arguments["encoder_hidden_states"]
            return (hidden, text) if index == 0 else (text, hidden)
        output: Any = self.fn_ref.original_forward(*bound.args, **bound.kwargs)
        if self.is_last and session.blocks_input is not None:
            out = output if index is None else output[index]
            session.step_cache.store(session.blocks_input, out)
            session.blocks_input = None
        return output


class ExitHook(ModelHook):
    """On the final norm."""

    def __init__(self, session: Session) -> None:
        """Of one session."""
        super().__init__()
        self.session = session

    def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> _Call:
        """Restores the model's order of the image tokens."""
        order = self.session.image_order
        if order is not None:
            args = (order.restore(cast(Tensor, args[0]), 1), *args[1:])
        return args, kwargs


class SingleBlockMlp:
    """The MLP of a single-stream block: proj_out(cat([attention, act(proj_mlp(x))])).

    The product with proj_out is split into attention's columns of the weight and the MLP's.
    proj_mlp is made to give no channels, so that the block hands proj_out attention alone; proj_out
    adds the sparse MLP of proj_mlp's input.
    """

    def __init__(self, session: Session, block: nn.Module, layer: int) -> None:
        """Of one block, number `layer`."""
        self.proj_out = cast(nn.Linear, block.proj_out)
        proj_mlp = cast(nn.Linear, block.proj_mlp)
        hidden, channels = proj_mlp.out_features, self.proj_out.out_features
        self.attention_channels = self.proj_out.in_features - hidden
        self.fc2 = nn.Linear(hidden, channels, bias=False, device="meta")
        self._no_weight = self.fc2.weight
        self.mlp = SparseMlp(
            session.config, proj_mlp, self.fc2, "gelu_tanh", layer=layer, progress=session.progress
        )
        self.x: Tensor | None = None

    def reset(self) -> None:
        """Ends a generation: lets go of the input and of the model's weight."""
        self.x = None
        self.fc2.weight = self._no_weight

    def take_input(self, x: Tensor) -> Tensor:
        """In proj_mlp's place."""
        self.x = x
        return x[..., :0]

    def project(self, attention: Tensor) -> Tensor:
        """In proj_out's place."""
        assert self.x is not None
        x, self.x = self.x, None
        weight = self.proj_out.weight.detach()
        part = weight[:, self.attention_channels :]
        if self.fc2.weight.data_ptr() != part.data_ptr() or self.fc2.weight.dtype != part.dtype:
            self.fc2.weight = nn.Parameter(part, requires_grad=False)
        out = nn.functional.linear(
            attention, weight[:, : self.attention_channels], self.proj_out.bias
        )
        return out + self.mlp(x)


class ReplaceHook(ModelHook):
    """Calls a function of one tensor instead of the module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """`function` stands for the module's forward."""
        super().__init__()
        self.function = function

    def new_forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """The function of x."""
        return self.function(x)
