"""The contract suite over every backend there is, on either loop."""

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
    limit_s = 100.0  # a busy machine is no defect

    def backend(self) -> Literal["process"]:
        return "process"


class TestScripted(BackendContract):
    def backend(self) -> Backend:
        return ScriptedBackend(automatic=True)
