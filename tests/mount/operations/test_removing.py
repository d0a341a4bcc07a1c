"""Directories are removed through the mount by whoever likes to; not while an intent speaks of a
path in one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import store_on

from ckptfs.mount.operations import names
from ckptfs.mount.operations.context import Mount
from ckptfs.mount.view.identity import ROOT_ID
from ckptfs.mount.writers.closing import stop


@pytest.fixture
def mount(quick_dir: Path) -> Iterator[Mount]:
    mount = Mount(store_on(quick_dir), dict)
    yield mount
    stop(mount.versions)
    mount.store.close()


def test_no_directory_is_removed_while_an_intent_speaks_of_paths(
    mount: Mount, quick_dir: Path
) -> None:
    (quick_dir / "sub").mkdir()
    removing = names.rmdir(mount, ROOT_ID, "sub")
    assert (quick_dir / "sub").is_dir()  # it may wait, so it is left to who may
    thread = threading.Thread(target=removing.run)
    with mount.store.order.steady_directories():
        thread.start()
        thread.join(0.3)
        assert (quick_dir / "sub").is_dir()
    thread.join()
    assert not (quick_dir / "sub").exists()
