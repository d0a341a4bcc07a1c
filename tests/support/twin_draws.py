"""What the operations of test_same_as_plain.py are made of: few values, so that they meet."""

from __future__ import annotations

import os

from hypothesis import strategies as st

_NAMES = ["f", "g", "h", "k.log", "d", "e", "d/f", "d/g", "d/s", "d/s/f", "e/f", "l"]
_NAMES += ["m.txt", "w.pt"]
_ODD = [
    "",
    ".",
    "..",
    "f/",
    "d/",
    "l/",
    "d/.",
    "d/../f",
    "./g",
    "f/x",
    "none/f",
    "d//f",
    "*255",
    "*256",
    "*4096",
]
paths = st.sampled_from(_NAMES * 5 + _ODD)
names = st.sampled_from(_NAMES)
logs = st.sampled_from([*_NAMES, "new", "e/new.txt", "d/s/new"])
workers = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 3, 3])
picks = st.integers(0, 999)
modes = st.sampled_from(
    [0o644, 0o600, 0o666, 0o777, 0o755, 0o4755, 0o2755, 0o2770, 0o1777, 0o444, 0o000, 0o222]
)
lines = st.sampled_from([b"a line\n", b"step 1\n", b"another\n"])
data = st.binary(min_size=1, max_size=40) | lines
sizes = st.sampled_from([0, 1, 7, 100, 4095, 4096, 5000, 70_000])
offsets = st.sampled_from([0, 0, 1, 3, 100, 4096, 8192, 70_000])
_ACCESS = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]
_EXTRA = [
    0,
    0,
    0,
    os.O_CREAT,
    os.O_CREAT,
    os.O_CREAT | os.O_EXCL,
    os.O_TRUNC,
    os.O_CREAT | os.O_TRUNC,
]
_RARE = [0] * 10 + [
    os.O_APPEND,
    os.O_APPEND,
    os.O_DIRECTORY,
    os.O_NOFOLLOW,
    os.O_PATH,
    os.O_SYNC,
    os.O_DSYNC,
    os.O_DIRECT,
    os.O_TMPFILE,
    os.O_CREAT | os.O_DIRECTORY,
    os.O_NOATIME,
]
flags = st.builds(
    lambda a, b, c: a | b | c,
    st.sampled_from(_ACCESS),
    st.sampled_from(_EXTRA),
    st.sampled_from(_RARE),
)
OPENS_AGAIN = st.sampled_from(
    [
        *(os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY),
        *(os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_APPEND),
    ]
)
TRUNCATES = st.sampled_from([os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC])
REOPENS = st.sampled_from(
    [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC]
)
owners = st.sampled_from([-1, 0, 1, 65534])
xattrs = st.sampled_from(["user.a", "user.b", "user.*250", "nonsense", "trusted.t"])
times = st.sampled_from([-1, -2, 1_500_000_000, 2_400_000_000])
fallocate_modes = st.sampled_from([0, 1, 3, 2, 0x10, 0x11, 8, 0x20, 0x40, 0x80])
EXCHANGE = 2
REFUSED_BY_FUSE = 8 | 0x20 | 0x40  # collapse, insert, unshare
