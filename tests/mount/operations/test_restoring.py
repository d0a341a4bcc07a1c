"""A backup that was made below the mount, records and all, restored through it.

The tools carry extended attributes along. The record of a backup is that of another time: the
commits of the restore write their own, and the tool is not told of an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import mounts
import pytest
from trees import Tree

COMMITTED = "kept.pt", "model.pt", "run/optim.pt"
BACK_UP = "rsync -aX {below}/ {backup}/"
TOOLS = {
    "rsync": "rsync -aX {backup}/ {path}/",
    "rsync, again": "rsync -aX --ignore-times {backup}/ {path}/; rsync -aX {backup}/ {path}/",
    "rsync in place": "rsync -aX --inplace --ignore-times {backup}/ {path}/",
    "cp": "cp -a --preserve=all {backup}/. {path}/",
    "tar": "tar -C {backup} --xattrs -cf - . | tar -C {path} --xattrs-include='*' -xf -",
}
BY_DESCRIPTOR = pytest.mark.kernel_only(mounts.ONE_INODE)


@pytest.mark.parametrize(
    ("tool", "over"),
    [
        ("rsync", "what was written since"),
        ("rsync", "nothing"),
        ("rsync, again", "what was written since"),
        pytest.param("rsync in place", "what was written since", marks=BY_DESCRIPTOR),
        ("cp", "what was written since"),
        pytest.param("tar", "nothing", marks=BY_DESCRIPTOR),
    ],
)
def test_a_backup_with_records_is_restored(
    tool: str, over: str, tree: Tree, tmp_path: Path
) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    names = (*COMMITTED, "run/train.log")
    for name in names:
        (tree.path / name).parent.mkdir(exist_ok=True)
        tree.seed(name, "older", f"backed up: {name}")
    os.setxattr(tree.path / "model.pt", "user.note", b"mine")
    tree.settle()
    backup = tmp_path / "backup"
    backup.mkdir()
    _shell(BACK_UP, tree, backup)
    assert b"ckptfs/1" in os.getxattr(backup / "model.pt", "user.ckptfs")
    if over == "nothing":
        for name in names:
            (tree.path / name).unlink()
    else:
        for name in names[1:]:
            tree.seed(name, f"written since: {name}")
    before = {name: tree.record(name) for name in COMMITTED}
    _shell(TOOLS[tool], tree, backup)
    for name in names:
        assert tree.text(name) == f"backed up: {name}"
        assert (tree.path / name).stat().st_mtime_ns == (backup / name).stat().st_mtime_ns
    assert os.getxattr(tree.path / "model.pt", "user.note") == b"mine"
    tree.settle()
    found = tree.conditions()
    assert {found[name] for name in COMMITTED} == {"ok"}, found
    records = {name: tree.record(name) for name in COMMITTED}
    assert len({record.lineage for record in records.values() if record}) == len(COMMITTED)
    for name, was in before.items():
        record = records[name]
        if was is not None:
            assert record is not None and record.lineage == was.lineage, "its history is its own"
            assert record.generation >= was.generation


def _shell(command: str, tree: Tree, backup: Path) -> None:
    script = command.format(below=tree.below, path=tree.path, backup=backup)
    done = subprocess.run(
        ["bash", "-c", f"set -e -o pipefail; {script}"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, ""), done
