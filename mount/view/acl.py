"""What a new file takes from the default ACL of its directory. Pure, and the xattr's bytes.

A version is made in the shadow tree, so the kernel's own inheritance (``posix_acl_create``) does
not reach it; what is made under its own name inherits by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

ACCESS, DEFAULT = KEYS = "system.posix_acl_access", "system.posix_acl_default"
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20


def inherit(default: bytes, mode: int) -> bytes:
    """The access ACL of a file that is created with ``mode`` below ``default``: no umask, but
    owner, mask (without one, group) and others have no more than ``mode`` gives them."""
    entries = list(_ENTRY.iter_unpack(default[_HEADER.size :]))
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    shift = {_USER_OBJ: 6, group: 3, _OTHER: 0}
    limited = (
        _ENTRY.pack(tag, permissions & (mode >> shift[tag] if tag in shift else 7), who)
        for tag, permissions, who in entries
    )
    return default[: _HEADER.size] + b"".join(limited)


def limited(value: bytes, allowed: Callable[[int], int]) -> bytes:
    """An ACL of which each entry has what ``allowed`` leaves of its permissions."""
    entries = _ENTRY.iter_unpack(value[_HEADER.size :])
    changed = (_ENTRY.pack(tag, allowed(permissions), who) for tag, permissions, who in entries)
    return value[: _HEADER.size] + b"".join(changed)
