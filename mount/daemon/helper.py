"""The helpers of mount(8): ``mount -t fuse.ckptfs DIR MOUNTPOINT -o …`` and lines of fstab.

mount(8) runs ``/sbin/mount.fuse.ckptfs`` where there is one (a link to this command), else
``/sbin/mount.fuse``, which runs ``ckptfs DIR MOUNTPOINT -o …`` (seen with fuse3 3.14, util-linux
2.38). Options are those of ``ckptfs mount``, ``keep=2`` for ``--keep 2``; what is for mount(8) or
systemd is passed over; what we would have to obey and cannot is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckptfs.errors import UsageError

# We mount nosuid and nodev always; times are those of the files below.
_FOR_OTHERS = {
    *("rw", "defaults", "auto", "noauto", "user", "nouser", "users", "nofail", "_netdev", "owner"),
    *("dev", "nodev", "suid", "nosuid", "exec", "async", "default_permissions", "silent", "loud"),
    *("atime", "noatime", "relatime", "norelatime", "strictatime", "diratime", "nodiratime"),
}
_IGNORED_PREFIXES = ("x-", "comment=", "fsname=", "subtype=")
_FLAGS = {"-n", "-s", "-v"}  # no mtab, sloppy, verbose


def command_line(arguments: Sequence[str], is_flag: Mapping[str, bool]) -> list[str] | None:
    """``ckptfs mount``'s arguments for those of a helper; None if nothing is to be done (-f).

    ``is_flag`` has the options of ``ckptfs mount``, without dashes. Raises UsageError.
    """
    places, options, fake = [], [], False
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o":
            options += next(rest, "").split(",")
        elif argument == "-t":
            next(rest, None)
        elif argument == "-f":
            fake = True
        elif argument not in _FLAGS:
            places.append(argument)
    if len(places) != 2 or any(place.startswith("-") for place in places):
        raise UsageError("a mount helper is given DIR MOUNTPOINT [-o OPTIONS]; see mount(8)")
    translated = [word for option in options for word in _translated(option, is_flag)]
    return None if fake else [*translated, "--", *places]


def _translated(option: str, is_flag: Mapping[str, bool]) -> list[str]:
    if not option or option in _FOR_OTHERS or option.startswith(_IGNORED_PREFIXES):
        return []
    name, given, value = option.partition("=")
    name = name.replace("_", "-")
    if name not in is_flag or is_flag[name] == bool(given):
        raise UsageError(f"-o {option}: not an option of ckptfs, or without its value")
    return [f"--{name}"] if is_flag[name] else [f"--{name}", value]
