"""Nobody reaches another user's file by what he holds of one that had its name.

The kernel looks at the rights over the node that it has, so the deed must be done on the inode that
the node stands for. Each operation, after each way to make the name another file's.
"""

from __future__ import annotations

import json
from pathlib import Path

import mounts
import pytest
import stale_nodes
from images import Mounted

_PROGRAM = Path(stale_nodes.__file__)


def _wrong(directory: Path, *options: str) -> list[str]:
    code = f"import runpy; runpy.run_path({str(_PROGRAM)!r}, run_name='__main__')"
    wrong: list[str] = json.loads(mounts.python(code, directory, *options))
    return wrong


@pytest.mark.kernel_only(mounts.ONE_INODE)
@pytest.mark.parametrize("option", ["--verify=open", "--no-passthrough"])
def test_what_is_held_by_a_lost_name_is_nobody_elses(loop_fs: Mounted, option: str) -> None:
    served_at = loop_fs.path / "served"
    served_at.mkdir()
    with mounts.served(served_at, option) as served:
        assert _wrong(served.path) == []


def test_a_plain_directory_is_so(tmp_path: Path) -> None:
    assert _wrong(tmp_path) == []


def test_control_what_is_done_by_name_is_seen(tmp_path: Path) -> None:
    wrong = _wrong(tmp_path, "by name")
    done = {case.partition(",")[0] for case in wrong}
    assert done == set(stale_nodes.OPERATIONS) - {"verify", "rollback", "adopt"}
