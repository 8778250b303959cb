"""The hook classes of diffusers with the types it does not declare."""

# ruff: noqa: D102 - declarations only

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    class ModelHook:
        """Callbacks around a module's forward."""

        fn_ref: Any

    class StateManager:
        """Told of every `cache_context`, as an attribute of a stateful hook."""

        def __init__(self, state_cls: type[object]) -> None: ...
        def set_context(self, context: object) -> None: ...

    class BaseState:
        """State of one context."""

    class HookRegistry:
        """The hooks of one module."""

        @staticmethod
        def check_if_exists_or_initialize(module: nn.Module) -> HookRegistry: ...
        def register_hook(self, hook: ModelHook, name: str) -> None: ...
        def remove_hook(self, name: str, recurse: bool) -> None: ...
else:
    from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager

__all__ = ["BaseState", "HookRegistry", "ModelHook", "StateManager"]
