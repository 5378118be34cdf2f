"""An interrupt (Ctrl-C) at every point of some code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType, ModuleType
from typing import Any


def everywhere(call: Callable[[], Any], module: ModuleType) -> Iterator[None]:
    """Interrupt `call` at the first instruction that it runs in a module, then at the second, ...

    Yields after each interrupt, and ends when a call comes through. Instructions of other threads
    do not count: Python interrupts the main thread alone.
    """
    for instruction in count():
        if not _is_interrupted(call, module, instruction):
            return
        yield


def _is_interrupted(call: Callable[[], Any], module: ModuleType, instruction: int) -> bool:
    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal instruction
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            instruction -= 1
            if instruction < 0:
                raise KeyboardInterrupt  # after which Python traces no more
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
