"""Names that steer a terminal, or pretend to be lines of what ckptfs says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import mounts
import pytest
from mounts import Served

from ckptfs.shown import shown

_NAMES = (b"evil\x1b[2J\x1b]0;owned\x07\nDAMAGED ok 0 files\n.bin", b"nonutf\xff\xfe.bin")
_C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
_KILLED = """
import os, signal, sys
for name in map(os.fsencode, sys.argv[1:]):
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os.write(os.open(name, os.O_WRONLY | os.O_CREAT), b"x" * 100)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    with open(name, "wb") as file:
        file.write(b"\\0whole")
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("step 1/größe.pt", "step 1/größe.pt"),
        ("a\nb\tc\x1b[2J\x7f", r"a\nb\tc\x1b[2J\x7f"),
        (os.fsdecode(b"\xff\xfe"), r"\xff\xfe"),
        ("a\u202eb\u2028", r"a\u202eb\u2028"),
    ],
)
def test_a_name_is_one_line_of_printable_characters(name: str, line: str) -> None:
    assert shown(name) == line


def _ckptfs(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [mounts.PYTHON, "-m", "ckptfs", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, timeout=mounts.CHILD_LIMIT_S, env=env)


def _is_plain(text: bytes) -> bool:
    lines = text.decode("ascii").splitlines()  # raises for what is no ASCII
    return all(line.isprintable() for line in lines)


def test_what_is_printed_is_data(mount: Served) -> None:
    names = [bytes(mount.path) + b"/" + name for name in _NAMES]
    mounts.python(_KILLED, *map(os.fsdecode, names))
    mount.wait_until(lambda: len(mount.events("aborted")) == 4)
    for environment in ({}, _C_LOCALE):
        for command in ("log", "status", "verify"):
            done = _ckptfs(command, mount.path, **environment)
            assert done.returncode == 0 and not done.stderr, done.stderr
            assert _is_plain(done.stdout), done.stdout
    path = mount.path / os.fsdecode(_NAMES[0])
    done = _ckptfs("log", mount.path, path)
    assert done.returncode == 0 and _is_plain(done.stdout)
    done = _ckptfs("log", mount.path, f"{path}x")
    assert done.returncode != 0 and _is_plain(done.stderr) and done.stderr.count(b"\n") == 1
    assert _is_plain(Path(mount.status()["log"]).read_bytes())


def test_sums_name_the_files_as_they_are(mount: Served) -> None:
    """As ``sha256sum`` writes them, for its ``--check``."""
    for name in _NAMES:
        (mount.path / os.fsdecode(name)).write_bytes(name)
    sums = _ckptfs("export-sums", mount.path, "--checksum=sha256").stdout
    check = ["sha256sum", "--check", "--quiet", "--strict"]
    limit_s = mounts.CHILD_LIMIT_S
    subprocess.run(check, cwd=mount.path, input=sums, timeout=limit_s, check=True)
