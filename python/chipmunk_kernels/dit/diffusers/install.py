"""Puts sparse modules into a transformer of diffusers, and takes them out."""

from __future__ import annotations

import copy
from types import FunctionType
from typing import Any, cast

from torch import Tensor, nn

import chipmunk_kernels as ck
from chipmunk_kernels.dit.attention import SparseAttention
from chipmunk_kernels.dit.diffusers.families import Family
from chipmunk_kernels.dit.diffusers.hook_types import HookRegistry, ModelHook
from chipmunk_kernels.dit.diffusers.hooks import (
    BlockHook,
    ExitHook,
    ReplaceHook,
    RootHook,
    RopeHook,
    SingleBlockMlp,
)
from chipmunk_kernels.dit.diffusers.session import Session
from chipmunk_kernels.dit.mlp import Activation, SparseMlp

_HOOK = "chipmunk"  # name of all hooks here


def install(session: Session, transformer: nn.Module) -> None:
    """Hooks the transformer; checks everything before it changes anything.

    Raises:
        UnsupportedError: a module is not what the sparse modules can stand for.
    """
    family = session.family
    blocks = _blocks_of(family, transformer)
    hooks: list[tuple[nn.Module, ModelHook]] = [
        (transformer, RootHook(session)),
        (cast(nn.Module, getattr(transformer, family.rope)), RopeHook(session)),
        (cast(nn.Module, transformer.norm_out), ExitHook(session)),
    ]
    processors: list[tuple[Any, object]] = []
    for layer, (name, block) in enumerate(blocks):
        hooks.append((block, BlockHook(session, layer == 0, layer == len(blocks) - 1)))
        if session.config.attention is not None and layer >= session.config.dense_layers:
            attention = SparseAttention(session.config, layer=layer, progress=session.progress)
            session.modules.append(attention)
            module: Any = getattr(block, family.attention)
            processors.append(
                (module, _sparse_processor(session, attention, module.processor, name))
            )
        if session.config.mlp is not None and layer >= session.config.dense_layers:
            hooks.extend(_mlp_hooks(session, block, name, layer))
    for module, hook in hooks:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, _HOOK)
    for module, processor in processors:
        session.processors.append((module, module.processor))
        module.processor = processor


def uninstall(session: Session, transformer: nn.Module) -> None:
    """Takes all hooks out again and frees the caches."""
    HookRegistry.check_if_exists_or_initialize(transformer).remove_hook(_HOOK, recurse=True)
    for module, processor in session.processors:
        module.processor = processor
    session.reset()


def _blocks_of(family: Family, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
    """All blocks in order, with their names."""
    lists = [(name, cast(nn.ModuleList, getattr(transformer, name))) for name in family.block_lists]
    return [(f"{name}.{i}", block) for name, blocks in lists for i, block in enumerate(blocks)]


def _mlp_hooks(
    session: Session, block: nn.Module, name: str, layer: int
) -> list[tuple[nn.Module, ModelHook]]:
    feed_forward = getattr(block, session.family.feed_forward, None)
    if feed_forward is None:
        _check_linear(name, "proj_mlp", block.proj_mlp)
        _check_linear(name, "proj_out", block.proj_out)
        single = SingleBlockMlp(session, block, layer)
        session.modules.append(single.mlp)
        session.single_blocks.append(single)
        return [
            (cast(nn.Module, block.proj_mlp), ReplaceHook(single.take_input)),
            (cast(nn.Module, block.proj_out), ReplaceHook(single.project)),
        ]
    first, second = feed_forward.net[0], feed_forward.net[2]
    _check_linear(name, f"{session.family.feed_forward}.net.0.proj", first.proj)
    _check_linear(name, f"{session.family.feed_forward}.net.2", second)
    mlp = SparseMlp(
        session.config,
        first.proj,
        second,
        _activation_of(first, f"{name}.{session.family.feed_forward}.net.0"),
        layer=layer,
        progress=session.progress,
    )
    session.modules.append(mlp)
    return [(feed_forward, ReplaceHook(mlp))]


def _check_linear(block: str, name: str, module: object) -> None:
    if type(module) is not nn.Linear:
        raise ck.UnsupportedError(
            f"apply_chipmunk: {block}.{name}: expected torch.nn.Linear, got "
            f"{type(module).__name__}; fuse LoRA and do not quantise the sparse layers"
        )


def _activation_of(part: object, name: str) -> Activation:
    """The activation of a feed-forward's first part."""
    kind = type(part).__name__
    if kind == "GELU":
        return "gelu_tanh" if getattr(part, "approximate", None) == "tanh" else "gelu"
    known: dict[str, Activation] = {"GEGLU": "geglu", "SwiGLU": "swiglu"}
    if kind not in known:
        raise ck.UnsupportedError(
            f"apply_chipmunk: {name}: expected GELU, GEGLU or SwiGLU, got {kind}"
        )
    return known[kind]


def _sparse_processor(
    session: Session, attention: SparseAttention, processor: object, name: str
) -> object:
    """A twin of an attention processor that calls `attention` where the other called diffusers.

    The processor's `__call__` finds `dispatch_attention_fn` among the globals of its module. The
    twin has the same code with that one name bound to another function: projections, norms and
    rotation stay those of diffusers, and no other model in the process notices.
    """
    base: type[object] = type(processor)
    if base.__name__ != session.family.processor:
        raise ck.UnsupportedError(
            f"apply_chipmunk: {name}.{session.family.attention}.processor: expected "
            f"{session.family.processor}, got {base.__name__}"
        )

    def dispatch(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **options: object,
    ) -> Tensor:
        """q, k, v and the result are `[B, N, H, D]`."""
        if dropout_p or is_causal or options.get("parallel_config") is not None:
            raise ck.UnsupportedError(
                "apply_chipmunk: attention: dropout, causal masks and context parallelism are not "
                "supported"
            )
        if attn_mask is not None:
            if attn_mask.ndim != 4 or tuple(attn_mask.shape[1:3]) != (1, 1):
                raise ck.UnsupportedError(
                    f"apply_chipmunk: attention_mask: expected shape [batch, 1, 1, keys], "
                    f"got {[*attn_mask.shape]}"
                )
            keys = session.key_count(attn_mask)
            key, value = key[:, :keys], value[:, :keys]
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return attention(q, k, v, softmax_scale=scale).transpose(1, 2)

    call = cast(FunctionType, base.__call__)
    rebound = FunctionType(
        call.__code__,
        {**call.__globals__, "dispatch_attention_fn": dispatch},
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    rebound.__kwdefaults__ = call.__kwdefaults__
    twin = copy.copy(processor)
    twin.__class__ = type(f"Sparse{base.__name__}", (base,), {"__call__": rebound})
    return twin
