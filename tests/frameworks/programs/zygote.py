"""A process that has a framework loaded and forks a trainer per order. Run as a program by tests.

Usage: ``zygote.py MODULE``. An order is a JSON object a line on stdin: a function of the module
and its arguments. On stdout: what the trainer tells, then how it ended. Each trainer leads a
session of its own, so that its ranks and helpers can be killed with it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import sys
import traceback
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_answers = 1


def tell(event: str, step: int = 0, state: Any = None, **more: Any) -> None:
    """One line to the test; ``state`` is told by its digest."""
    line = {"event": event, "step": step, "digest": digest(state), **more}
    os.write(_answers, json.dumps(line).encode() + b"\n")


def digest(state: Any) -> str:
    hasher = hashlib.sha256()
    _feed(hasher, state)
    return hasher.hexdigest()[:16]


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            hasher.update(str(key).encode())
            _feed(hasher, value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _feed(hasher, item)
    elif hasattr(value, "detach"):
        _feed(hasher, value.detach().cpu().numpy())
    elif hasattr(value, "__array__"):
        import numpy

        hasher.update(numpy.ascontiguousarray(value).tobytes())
    else:
        hasher.update(repr(value).encode())


def _trainer(module: Any, order: dict[str, Any]) -> None:
    os.setsid()
    tell("started", pid=os.getpid())
    try:
        getattr(module, order.pop("do"))(**order)
    except BaseException:
        tell("failed", error=traceback.format_exc())
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)


def _wait(trainer: int) -> int:
    """Until its whole session has ended, whoever is left of it without a parent included."""
    ended = 0
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return ended
        if pid == trainer:
            ended = status


def main() -> None:
    global _answers
    _answers = os.dup(1)
    os.dup2(2, 1)  # whatever a framework prints
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.modules["zygote"] = sys.modules["__main__"]
    module = importlib.import_module(sys.argv[1])
    tell("ready")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _trainer(module, json.loads(line))
        tell("ended", status=_wait(pid))


if __name__ == "__main__":
    main()
