"""Processes of their own that a test directs step by step, so that nothing depends on timing.

An actor runs one piece of Python after another and answers each before the next is sent. Actors
are siblings: none sees what another one stages as a child of its writer would.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LIMIT_S = 30.0

_LOOP = """
import json, os, sys
names = {"os": os, "sys": sys}
orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
print(os.getpid(), file=answers, flush=True)
for line in orders:
    kind, code = json.loads(line)
    answer = {}
    try:
        if kind == "eval":
            answer["value"] = eval(code, names)
        else:
            exec(code, names)
    except OSError as error:
        answer = {"errno": error.errno, "error": repr(error)}
    except BaseException as error:
        answer = {"errno": 0, "error": repr(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Failed(Exception):
    """What was run raised: ``name`` is the errno's, or empty for another exception."""

    def __init__(self, number: int | None, text: str) -> None:
        super().__init__(text)
        self.name = errno.errorcode.get(number or 0, "")


class Actor:
    """One process; ``cwd`` is its working directory, ``python`` what runs the interpreter."""

    def __init__(self, cwd: Path | None, python: Sequence[str] = (sys.executable,)) -> None:
        self._process = subprocess.Popen(
            [*python, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=cwd,
            text=True,
        )
        self.pid = int(self._read())

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _read(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT_S)
        assert ready, "the actor does not answer"
        return self._process.stdout.readline()

    def _ask(self, kind: str, code: str) -> Any:
        self.send(code, kind)
        return self.answer()

    def send(self, code: str, kind: str = "exec") -> None:
        """Order without waiting: several actors then work at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kind, code]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        line = self._read()
        assert line, "the actor ended"
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["errno"], answer["error"])
        return answer.get("value")

    def do(self, code: str) -> None:
        """Run statements; raises Failed."""
        self._ask("exec", code)

    def value(self, expression: str) -> Any:
        """Evaluate; the value comes as JSON."""
        return self._ask("eval", expression)

    def errno_of(self, code: str) -> str:
        """The errno's name with which the statements fail; empty if they do not."""
        try:
            self.do(code)
        except Failed as failed:
            return failed.name or str(failed)
        return ""

    def write(self, path: str, text: str) -> None:
        """A whole version."""
        self.do(f"f = open({path!r}, 'w'); f.write({text!r}); f.close()")

    def content(self, path: str) -> str | None:
        """What this process reads under ``path``; None where nothing is."""
        return self.value(f"open({path!r}).read() if os.path.lexists({path!r}) else None")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Returns once it is gone, and with it every RELEASE of its descriptors is queued."""
        self._process.send_signal(number)
        self._process.wait(LIMIT_S)

    def exit(self, code: str = "os._exit(0)") -> int:
        """End by running ``code``; its exit status."""
        self.send(code)
        return self._process.wait(LIMIT_S)

    def end(self) -> None:
        """Whatever state it is in."""
        self._process.kill()
        self._process.wait(LIMIT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


@contextlib.contextmanager
def actors(cwd: Path, count: int) -> Iterator[list[Actor]]:
    """``count`` processes that end with the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Actor(cwd)) for _ in range(count)]
