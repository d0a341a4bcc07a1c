"""``ckptfs salvage`` and ``clean``: what was set aside is seen, fetched and let go of by commands,
with and without a mount, and never the last good version of a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from harness import rot
from mounts import ckptfs
from smalldisk import abort, version

from ckptfs.store import Options, Store

SIZE = 100_000


def prepare(directory: Path) -> None:
    """Two entries of salvage, one of quarantine, two earlier versions of a good file; of another
    file nothing but what lies in quarantine."""
    store = Store.open(str(directory), Options(keep=9))
    for number in (1, 2, 3, 4):
        store.put("a.pt", version(number, SIZE))
    for path in ("a.pt", "lost.pt"):
        store.put(path, version(5, SIZE))
        store.put(path, version(6, SIZE))
        rot(directory / path, 9)
        store.repair(path)
    store.unlink("lost.pt")
    for number in (11, 12):
        abort(store, f"{number}.pt", number, SIZE)
    store.close()


@pytest.fixture(params=["served", "unserved"])
def prepared(request: pytest.FixtureRequest, disk_dir: Path) -> Iterator[Path]:
    prepare(disk_dir)
    if request.param == "unserved":
        yield disk_dir
        return
    with mounts.served(disk_dir, "--keep", "9"):
        yield disk_dir


def rows(directory: Path, *options: str) -> list[dict[str, object]]:
    done = ckptfs("salvage", directory, "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def generations(directory: Path) -> int:
    return ckptfs("log", directory, "a.pt", "--json").stdout.count('"kept"')


def test_salvage_and_quarantine_are_listed(prepared: Path) -> None:
    found = rows(prepared)
    assert [(row["kind"], row["path"], row["size"]) for row in found] == [
        ("salvage", "11.pt", SIZE),
        ("salvage", "12.pt", SIZE),
    ]
    assert all("killed" in str(row["reason"]) for row in found)
    more = rows(prepared, "--quarantine")
    assert [row["path"] for row in more] == ["11.pt", "12.pt", "a.pt", "lost.pt"]
    told = ckptfs("salvage", prepared, "--quarantine").stdout
    assert len(told.splitlines()) == 4
    assert str(more[3]["id"]) in told.splitlines()[3] and "lost.pt" in told.splitlines()[3]


def test_an_entry_is_copied_out_and_nothing_is_overwritten(prepared: Path, tmp_path: Path) -> None:
    entry, target = str(rows(prepared)[1]["id"]), tmp_path / "fetched"
    done = ckptfs("salvage", prepared, entry[:10], "--to", target)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == version(12, SIZE)
    again = ckptfs("salvage", prepared, entry, "--to", target)
    assert again.returncode == 16 and "is there already" in again.stderr
    other = str(rows(prepared, "--quarantine")[3]["id"])
    assert ckptfs("salvage", prepared, f"quarantine/{other}", "--to", f"{target}2").returncode == 0
    assert Path(f"{target}2").read_bytes()[1000:] == version(6, SIZE)[1000:]
    assert len(rows(prepared)) == 2


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("salvage", "D", "0000", "--to", "/tmp/never"), 1, "no such entry"),
        (("salvage", "D", "0000"), 16, "--to FILE"),
        (("clean", "D", "--older-than", "7x", "-n"), 16, "such as 90s, 15m, 12h or 7d"),
        (("clean", "D", "--down-to", "5X", "-n"), 16, "such as 512M, 10G or 1T"),
        (("clean", "D", "0000", "--history"), 16, "one or the other"),
        (("clean", "D", "0000", "--yes"), 1, "no such entry"),
        (("mount", "D", "--salvage-bytes", "10X"), 16, "such as 512M, 10G or 1T"),
    ],
)
def test_wrong_words_are_one_line(
    words: tuple[str, ...], code: int, told: str, disk_dir: Path
) -> None:
    Store.open(str(disk_dir)).close()
    done = ckptfs(*(disk_dir if word == "D" else word for word in words))
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert told in done.stderr


def test_clean_says_what_goes_and_asks(prepared: Path) -> None:
    before = rows(prepared, "--quarantine")
    dry = ckptfs("clean", prepared, "--dry-run")
    assert dry.returncode == 0
    lines = dry.stdout.splitlines()
    assert lines[0].startswith("stays: quarantine/") and "lost.pt has no good version" in lines[0]
    assert lines[1].split()[:3] == ["salvage", "2", "files,"]
    assert lines[2].split()[:3] == ["quarantine", "1", "file,"]
    command = [sys.executable, "-m", "ckptfs", "clean", str(prepared)]
    asked = subprocess.run(command, input="n\n", capture_output=True, text=True, timeout=30)
    assert asked.returncode == 130
    assert rows(prepared, "--quarantine") == before
    agreed = subprocess.run(command, input="y\n", capture_output=True, text=True, timeout=30)
    assert agreed.returncode == 0, agreed.stderr
    assert [row["path"] for row in rows(prepared, "--quarantine")] == ["lost.pt"]
    assert generations(prepared) == 4
    assert ckptfs("verify", prepared).returncode == 0


def test_only_the_classes_that_are_chosen_go(prepared: Path) -> None:
    assert ckptfs("clean", prepared, "--quarantine", "--yes").returncode == 0
    assert [row["path"] for row in rows(prepared, "--quarantine")] == ["11.pt", "12.pt", "lost.pt"]
    assert generations(prepared) == 4
    assert ckptfs("clean", prepared, "--history", "--yes").returncode == 0
    assert generations(prepared) == 0
    assert (prepared / "a.pt").read_bytes() == version(5, SIZE)
    assert len(rows(prepared)) == 2


def test_C8_history_keeps_the_last_good_version(prepared: Path) -> None:
    """The file as it stands has rotted, unseen."""
    below = ckptfs("status", prepared, "--json")
    found = json.loads(below.stdout) if below.returncode == 0 else None
    path = Path(f"/proc/{found['pid']}/fd/{found['root_fd']}") if found else prepared
    rot(path / "a.pt", 77)
    done = ckptfs("clean", prepared, "--history", "--yes")
    assert done.returncode == 0, done.stderr
    assert generations(prepared) == 1
    ckptfs("verify", prepared, "--repair")
    assert (prepared / "a.pt").read_bytes() == version(4, SIZE)


def test_a_named_entry_goes_though_nothing_else_is_left_of_it(prepared: Path) -> None:
    (entry,) = (str(r["id"]) for r in rows(prepared, "--quarantine") if r["path"] == "lost.pt")
    done = ckptfs("clean", prepared, entry, "--yes")
    assert done.returncode == 0, done.stderr
    assert [row["path"] for row in rows(prepared, "--quarantine")] == ["11.pt", "12.pt", "a.pt"]


def test_down_to_a_size_and_older_than_a_time(prepared: Path) -> None:
    assert "nothing to let go of" in ckptfs("clean", prepared, "--older-than", "1h", "-n").stdout
    done = ckptfs("clean", prepared, "--salvage", "--down-to", "120K", "--yes")
    assert done.returncode == 0, done.stderr
    assert [row["path"] for row in rows(prepared)] == ["12.pt"]
    assert ckptfs("clean", prepared, "--older-than", "0s", "--yes").returncode == 0
    assert rows(prepared) == []


def test_a_mount_lets_nobody_but_the_owner_clean(disk_dir: Path) -> None:
    prepare(disk_dir)
    program = """
import os, sys
fd = os.open(sys.argv[1] + "/.ckptfs", os.O_RDONLY)
if sys.argv[3] != "0":
    os.setuid(int(sys.argv[3]))
try:
    os.setxattr(fd, "user.ckptfs.clean", sys.argv[2].encode())
    print("done")
except OSError as error:
    print(type(error).__name__)
"""
    with mounts.served(disk_dir, "--keep", "9"):
        entry = f"salvage/{rows(disk_dir)[0]['id']}"
        assert mounts.python(program, disk_dir, entry, 65534).strip() == "PermissionError"
        assert len(rows(disk_dir)) == 2
        for wrong in ("salvage/../quarantine/x", "history/../../a.pt", "salvage/", "what", "x/y"):
            assert mounts.python(program, disk_dir, wrong, 0).strip() != "done", wrong
        assert mounts.python(program, disk_dir, entry, 0).strip() == "done"
        assert len(rows(disk_dir)) == 1


def test_who_has_an_earlier_version_open_keeps_it(disk_dir: Path) -> None:
    prepare(disk_dir)
    with mounts.served(disk_dir, "--keep", "9") as served:
        folder = disk_dir / ".ckptfs/history/a.pt"
        oldest = min(os.listdir(folder), key=int)
        with open(folder / oldest, "rb") as file:
            assert ckptfs("clean", disk_dir, "--history", "--yes").returncode == 0
            assert file.read() == version(1, SIZE)
        assert os.listdir(folder) == [] if folder.exists() else True
        assert "is let go: asked for" in served.log_text()
