"""Sparse attention and MLP for the transformers of diffusers: FLUX, HunyuanVideo, WAN, LTX-Video.

    from chipmunk_kernels.dit import ChipmunkConfig
    from chipmunk_kernels.dit.diffusers import apply_chipmunk, remove_chipmunk

    apply_chipmunk(pipe.transformer, ChipmunkConfig.flux_dev())
    image = pipe(prompt).images[0]
    remove_chipmunk(pipe.transformer)

Pipelines name their guidance branches by `cache_context` and reset stateful hooks after every call;
both reach the modules here. In a hand-written loop do the same: run each forward pass in
`transformer.cache_context(name)`, and call `transformer._reset_stateful_cache()` at the end. A
pipeline that was interrupted has not done so: call it before the next picture, or that one begins
with the caches of the last.

Needs diffusers 0.41 or newer.
"""

from __future__ import annotations

from torch import nn

import chipmunk_kernels as ck
from chipmunk_kernels.dit.config import ChipmunkConfig
from chipmunk_kernels.dit.diffusers.families import FAMILIES, Family
from chipmunk_kernels.dit.diffusers.install import install, uninstall
from chipmunk_kernels.dit.diffusers.session import Session

__all__ = ["apply_chipmunk", "remove_chipmunk"]

_SESSION = "_chipmunk_session"


def apply_chipmunk(transformer: nn.Module, config: ChipmunkConfig) -> None:
    """Makes a transformer of diffusers sparse, in place, until `remove_chipmunk`.

    Self-attention, the image stream's MLP and the MLP of single-stream blocks go through the sparse
    modules; text attention and the text stream's MLP stay dense. With `config.token_order` the
    image tokens are permuted before the first block and restored after the last. Weights are not
    changed; each sparse MLP keeps a transposed copy of its second weight.

    Args:
        transformer: a `FluxTransformer2DModel`, `HunyuanVideoTransformer3DModel`,
            `WanTransformer3DModel` or `LTXVideoTransformer3DModel`.
        config: what is sparse.

    Raises:
        UnsupportedError: another class of transformer, or one whose attention processors or linear
            layers were replaced (IP-Adapter, unfused LoRA, quantisation).
        ValueError: the transformer is already sparse.
    """
    if hasattr(transformer, _SESSION):
        raise ValueError("apply_chipmunk: transformer: already sparse; call remove_chipmunk first")
    family = _family_of(transformer)
    family.check(transformer)
    session = Session(config, family)
    install(session, transformer)
    object.__setattr__(transformer, _SESSION, session)


def remove_chipmunk(transformer: nn.Module) -> None:
    """Undoes `apply_chipmunk` and frees its caches.

    Raises:
        ValueError: `apply_chipmunk` was not called on this transformer.
    """
    session = getattr(transformer, _SESSION, None)
    if not isinstance(session, Session):
        raise ValueError("remove_chipmunk: transformer: expected one made sparse by apply_chipmunk")
    uninstall(session, transformer)
    object.__delattr__(transformer, _SESSION)


def _family_of(transformer: nn.Module) -> Family:
    for base in type(transformer).__mro__:
        if base.__name__ in FAMILIES and base.__module__.startswith("diffusers."):
            return FAMILIES[base.__name__]
    raise ck.UnsupportedError(
        f"apply_chipmunk: transformer: expected one of {', '.join(FAMILIES)}, "
        f"got {type(transformer).__name__}"
    )
