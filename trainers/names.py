"""What MODULE:FACTORY names: the user's env, network, logger or callback; every mistake is one `ConfigError`."""
# resource: imports the user's module, into this process

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trainers.config import ConfigError, did_you_mean

__all__ = ["imported", "named", "raised_by"]


def named(
    kind: str, name: str, others: Iterable[str] = (), *, known: Iterable[str] = ()
) -> Callable[..., Any]:
    """What MODULE:FACTORY names. Raises `ConfigError` that says what `kind` of thing it is for; `others`: names that
    could have been meant, too; `known`: what can be named instead."""
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        instead = "".join(f", or {other}" for other in known)
        raise ConfigError(f"{kind} {name}: expected MODULE:FACTORY{instead}")
    found: Any = imported(kind, module_name, attribute)
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, [*dir(found), *others])
            raise ConfigError(f"{kind} {name}: {module_name} has no {part!r}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{kind} {name}: not callable but {type(found).__name__}")
    factory: Callable[..., Any] = found
    return factory


def imported(kind: str, module_name: str, attribute: str) -> Any:
    """The module. Raises `ConfigError` that says what `kind` of thing it is for."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"{kind} {module_name}:{attribute}: no module named {error.name!r}") from None
        raise _import_failed(kind, module_name, attribute, error) from error
    except Exception as error:
        raise _import_failed(kind, module_name, attribute, error) from error


def _import_failed(kind: str, module_name: str, attribute: str, error: Exception) -> ConfigError:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return ConfigError(
        f"{kind} {module_name}:{attribute}: importing it failed: {type(error).__name__}: {error}{at}"
    )


def raised_by(who: str, error: BaseException) -> str:
    """What somebody's own code raised, in words: who, what and where."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{who}: {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
