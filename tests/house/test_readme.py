"""README is true, and short enough: a reader's walk through it, line by line, as printed.

The walk installs packages from the registry, torch among them, so `make walk` does it and
`make test` does not. Times, digests and sizes may differ from what is printed.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mounts
import pytest
from fresh_machine import USER, Machine

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SCREENS, LINES, COLUMNS = 2, 50, 120
DETAILS = "## Commands"
AS_ROOT = "As root:"  # ahead of a block that only root walks
_BLOCK = re.compile(r"([^\n]*)\n+```(\w+)\n(.*?)```", re.DOTALL)


class Step(NamedTuple):
    command: str
    printed: list[str]
    for_root: bool


def walked() -> str:
    """Install and quick start."""
    return README[README.index("## Install") : README.index("## What it promises")]


def programs() -> Iterator[tuple[str, str]]:
    """Files that a reader writes, by the name in their first line."""
    for _, language, text in _BLOCK.findall(walked()):
        if language == "python":
            yield re.findall(r"# (\S+\.py)", text)[0], text


def steps() -> Iterator[Step]:
    for before, language, text in _BLOCK.findall(walked()):
        if language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *printed = part.rstrip("\n").split("\n")
                yield Step(command, printed, before == AS_ROOT)


def test_two_screens_come_before_the_details() -> None:
    ahead = README[: README.index(DETAILS)].splitlines()
    assert sum(max(1, math.ceil(len(line) / COLUMNS)) for line in ahead) <= SCREENS * LINES


def test_what_is_walked_is_found() -> None:
    commands = [step.command for step in steps()]
    assert any(command.startswith("pip install") for command in commands)
    assert any("ckptfs mount" in command for command in commands)
    assert [step for step in steps() if step.for_root] and not all(s.for_root for s in steps())
    assert "train.py" in dict(programs())


def test_only_times_digests_and_sizes_may_differ() -> None:
    shown = next(line for step in steps() for line in step.printed if "generation 3" in line)
    now = (
        shown.replace("2026-", "2027-").replace("4001556", "4001600").replace("df2f79e3…", "0" * 64)
    )
    assert now != shown and alike([now]) == alike([shown])
    assert alike([now.replace("sound", "broken")]) != alike([shown])
    assert alike([]) != alike([shown])


# --- the walk ------------------------------------------------------------------------------------


def alike(printed: list[str]) -> list[str]:
    """Without what is another each time."""
    text = "\n".join(printed)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"\b(blake3:)?[0-9a-f]{8,}…?", "DIGEST", text)
    text = re.sub(r"\d+(\.\d+)? [KMG]iB|\d{4,}", "SIZE", text)
    return text.rstrip("\n").split("\n") if text else []


def lay_out(home: Path) -> None:
    """A fresh clone, of what is here."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    done = subprocess.run(listed, cwd=PROJECT, capture_output=True, check=True)
    for name in filter(None, done.stdout.decode().split("\0")):
        if (PROJECT / name).is_file():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, home / name)
    for name, text in programs():
        (home / name).write_text(text)


@pytest.mark.walk
@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
def test_a_reader_gets_what_is_printed(uid: int, tmp_path: Path) -> None:
    if mounts.why_no_mounts():
        pytest.skip(f"cannot make a machine here: {mounts.why_no_mounts()}")
    machine = Machine(tmp_path, uid)
    lay_out(machine.home)
    machine.start()
    try:
        assert machine.types("command -v fusermount3 ckptfs")[0] == 1, "not a fresh machine"
        for step in steps():
            if uid and step.for_root:
                continue
            code, printed = machine.types(step.command)
            told = "\n".join([f"$ {step.command}", *printed])
            assert code == (4 if "ckptfs verify" in step.command and "damaged" in told else 0), told
            if not step.command.startswith("pip "):
                assert alike(printed) == alike(step.printed), told
    finally:
        machine.end()
