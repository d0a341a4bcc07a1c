"""Aliases: nodes of a file beside its own, which no lookup finds, and by which the kernel asks.

Each keeps the node of its file known. Callers hold the lock of the operations.
"""

from __future__ import annotations

import os

from .identity import identity
from .model import File
from .nodes import NodeTable


def alias(table: NodeTable, node: File, status: os.stat_result) -> File:
    """Another node of a file. That of a committed one is an inode of its own, which may lose its
    name to another."""
    assert node.parent is not None
    alias = File(next(table.ids), node.parent, node.name, identity(status))
    node.parent.children += 1
    table.by_id.add(alias)
    _make_alias(alias, node)
    alias.stands_in = node.version is not None
    return alias


def is_open(table: NodeTable, nodeid: int) -> bool:
    """Whether somebody has opened a file by that very node."""
    opened = table.by_id.get(nodeid)
    return isinstance(opened, File) and bool(opened.handles)


def stand_in(table: NodeTable, nodeid: int, node: File) -> None:
    """The kernel opens ``node`` by the alias of another one, by which it goes on asking."""
    alias = table.by_id.get(nodeid)
    if isinstance(alias, File) and alias is not node:
        left = alias.of
        _make_alias(alias, node)
        alias.stands_in = True
        if left is not None:
            table.forget(left.id, 1)


def _make_alias(alias: File, node: File) -> None:
    node.aliased, alias.of = True, node
    node.lookups += 1
