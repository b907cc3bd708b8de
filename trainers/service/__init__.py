"""The page on which one watches and steers a run (extra `service`): an ASGI application, and a server for it."""
# the door: re-exports, each loaded on first use, so that `trainers` needs no web framework

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.service.app import make_app
    from trainers.service.server import Page, serving

__all__ = ["Page", "make_app", "serving"]

_MODULES = {"make_app": "app", "Page": "server", "serving": "server"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"trainers.service.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
