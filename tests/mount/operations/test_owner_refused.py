"""What cannot be given to its owner is not there: a quota refuses chown(2) on any filesystem. Here
the call itself is refused, since a quota takes a filesystem and a kernel that have one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import open_descriptors, store_on

from ckptfs.mount.operations.base import New
from ckptfs.mount.operations.whole import Operations
from ckptfs.mount.view.identity import ROOT_ID
from ckptfs.mount.view.model import Caller
from ckptfs.mount.writers import closing

_CALLER = Caller(os.getuid(), os.getgid(), os.getpid())
_NEW = New(_CALLER, 0o755, 0o022)
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_MAKE: dict[str, Callable[[Operations], object]] = {
    "file": lambda ops: ops.create(ROOT_ID, "new", _FLAGS, _NEW),
    "file in place": lambda ops: ops.create(ROOT_ID, "new.log", _FLAGS, _NEW),
    "directory": lambda ops: ops.mkdir(ROOT_ID, "new", _NEW),
    "FIFO": lambda ops: ops.mknod(ROOT_ID, "new", New(_CALLER, stat.S_IFIFO | 0o644, 0), 0),
    "symlink": lambda ops: ops.symlink(ROOT_ID, "new", "target", _CALLER),
}


@pytest.fixture
def operations(quick_dir: Path) -> Iterator[Operations]:
    operations = Operations(store_on(quick_dir), dict)
    yield operations
    closing.stop(operations.versions)
    operations.store.close()


@pytest.mark.parametrize("kind", _MAKE)
def test_nothing_is_left_of_what_its_owner_may_not_have(
    kind: str, operations: Operations, quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "quota")

    before = open_descriptors(quick_dir)
    with monkeypatch.context() as refusing:
        refusing.setattr(os, "chown", refuse)
        with pytest.raises(OSError, match="quota"):
            _MAKE[kind](operations)
    assert os.listdir(quick_dir) == [".ckptfs"]
    assert os.listdir(quick_dir / ".ckptfs" / "stage") == []
    assert open_descriptors(quick_dir) == before
    _MAKE[kind](operations)
    for handle_id in list(operations.handles):
        operations.release(handle_id)
