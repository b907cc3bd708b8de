"""The contract suite over every backend there is, on both loops."""

from __future__ import annotations

from typing import Literal

import uvloop

from aio_vecenv.backends.base import Backend
from aio_vecenv.testing import BackendContract, ScriptedBackend


class TestInline(BackendContract):
    def backend(self) -> Literal["inline"]:
        return "inline"


class TestInlineUvloop(TestInline):
    loop_factory = uvloop.new_event_loop


class TestProcess(BackendContract):
    def backend(self) -> Literal["process"]:
        return "process"


class TestProcessUvloop(TestProcess):
    loop_factory = uvloop.new_event_loop


class TestScripted(BackendContract):
    def backend(self) -> Backend:
        return ScriptedBackend(automatic=True)
