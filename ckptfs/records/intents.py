"""Intents: work that is under way, by kind, found in stage after a crash.

    <txid>-<generation>.grows   a link to the committed file that is being added to (``extend.py``)
    <id>.group                  what is being published as one: carried out to the end

An intent is durable before the first change that it speaks of, and gone after the last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.errors import RecordDamaged
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout, put_whole


def stood(status: Status) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns]


class Planned(NamedTuple):
    """A version, ``txid`` in stage, takes the path; without one the path goes. ``stood`` is what
    stands there until then: inode, size, mtime; None where nothing does."""

    path: str
    txid: str
    stood: Sequence[int] | None


def new_group() -> str:
    """A name in stage."""
    return f"{fmt.new_txid()}{fmt.GROUP}"


def write_group(layout: Layout, name: str, planned: Sequence[Planned]) -> None:
    """Durable once stage is. What fails can leave it there."""
    body = json.dumps([tuple(each) for each in planned])
    put_whole(layout.fs, layout.stage, name, fmt.checked(body), layout.stage)


def read_group(layout: Layout, name: str) -> list[Planned]:
    """Raises RecordDamaged."""
    with osfs.opened(layout.fs, layout.stage, name, osfs.O_RDONLY) as fd:
        content = layout.fs.read(fd, layout.fs.stat(fd).st_size, 0)
    try:
        body = fmt.body_of(content)
    except RecordDamaged:
        raise RecordDamaged(f"{name}: what was to be published together is damaged") from None
    return [Planned(*each) for each in json.loads(body)]
