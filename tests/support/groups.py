"""Versions that are sealed apart from their publish, and groups of them, over a ``CrashFs``."""

from __future__ import annotations

from typing import Any

from harness import NEW, NEWER, OLD, look_on

from ckptfs.disk import osfs
from ckptfs.errors import Rotten
from ckptfs.modes import Mode
from ckptfs.store import Options, Place, Store
from ckptfs.tools.harness.crashfs import CrashFs
from ckptfs.tools.harness.faults import Before, Call
from ckptfs.versions import commit
from ckptfs.versions.life import Step
from ckptfs.versions.publish import Delete, Install, publish
from ckptfs.versions.seal import seal
from ckptfs.versions.staged import Staged
from ckptfs.versions.tickets import Ticket, give_ticket

MEMBERS = {"a.pt": NEW, "sub/b.pt": NEWER}
BEFORE = {"a.pt": OLD, "sub/b.pt": None, "c.pt": OLD}
AFTER = {**MEMBERS, "c.pt": None}
EDITED = b"edited " * 600


def opened(fs: Any, mode: Mode = Mode.ATOMIC_DIRSYNC, **options: Any) -> Store:
    return Store(fs, fs.root, "store", Options(mode, **{"keep": 5, **options}))


def staged(store: Store, path: str, content: bytes) -> tuple[Staged, Place]:
    version = commit.stage(store.core, path)
    store.fs.write(version.fd, content, 0)
    return version, placed(store, path)


def placed(store: Store, path: str) -> Place:
    """Its directory stays open."""
    with osfs.place(store.fs, store.root, path) as (at, name):
        return Place(store.fs.open(at, ".", osfs.DIRECTORY), name, path)


def sealed(store: Store, path: str, content: bytes) -> Install:
    version, place = staged(store, path, content)
    ticket = give_ticket(store.core, place)
    seal(store.core, version, ticket)
    return Install(version, ticket, place)


def publish_all(store: Store, *changes: Install | Delete) -> None:
    with store.order.path_locks(*{each.place for each in changes}):
        publish(store.core, changes)


def publish_one(store: Store, version: Staged, ticket: Ticket, place: Place) -> None:
    publish_all(store, Install(version, ticket, place))


def group(store: Store) -> list[Install | Delete]:
    installs = [sealed(store, path, content) for path, content in MEMBERS.items()]
    return [*installs, Delete(Place(store.root, "c.pt", "c.pt"))]


def publish_group(store: Store) -> None:
    publish_all(store, *group(store))


def before_group(fs: Any, mode: Mode = Mode.ATOMIC_DIRSYNC) -> Store:
    store = opened(fs, mode)
    for path in ("a.pt", "c.pt"):
        store.put(path, OLD)
    store.fs.mkdir(store.root, "sub", 0o755)
    store.order.note_changed_dir(store.root)
    store.put("sub/other.pt", OLD)
    return store


def content_of(store: Store, path: str) -> bytes | None:
    try:
        return store.get(path)
    except FileNotFoundError:
        return None
    except Rotten:
        return b"rotten"


def shown(store: Store) -> dict[str, bytes | None]:
    return {path: content_of(store, path) for path in BEFORE}


def salvaged(store: Store) -> list[bytes]:
    found = []
    for story in store.layout.aside.entries(store.layout.salvage):
        with osfs.opened(store.fs, store.layout.salvage, str(story["id"]), osfs.O_RDONLY) as fd:
            found.append(store.fs.read(fd, 1 << 20, 0))
    return found


def cut_within_the_group(at: Step) -> CrashFs:
    """The store as a kill of the daemon leaves it just after that step; the page cache stays."""
    fs, left = CrashFs(), list[CrashFs]()
    store = before_group(fs)

    def behind(call: Call) -> None:
        if left or (call.method == "step" and call.arguments[0] is at):
            left.append(fs.snapshot())

    look_on(store, Before(fs, behind))
    publish_group(store)
    return left[1]


def two_closed(store: Store) -> list[tuple[Staged, Ticket, Place]]:
    """Two versions of one path, closed one after the other, of which none is on the disk yet."""
    first, place = staged(store, "a.pt", NEW)
    ticket = give_ticket(store.core, place)
    second, other = staged(store, "a.pt", NEWER)
    return [(first, ticket, place), (second, give_ticket(store.core, other, ticket), other)]
