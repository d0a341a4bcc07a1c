"""mount(8) and fstab lines, by the helper that they call."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from users import Lab

from ckptfs.errors import UsageError
from ckptfs.mount.daemon.helper import command_line

OPTIONS = {"mode": False, "keep": False, "in-place": False, "no-passthrough": True}


def test_options_are_those_of_the_command() -> None:
    given = ["/d", "/m", "-s", "-o", "rw,noatime,x-systemd.automount,keep=2,no_passthrough", "-v"]
    expected = ["--keep", "2", "--no-passthrough", "--", "/d", "/m"]
    assert command_line([*given, "-t", "fuse.ckptfs"], OPTIONS) == expected
    assert command_line(["-f", "/d", "/m"], OPTIONS) is None
    assert command_line(["/d", "/m"], OPTIONS) == ["--", "/d", "/m"]


@pytest.mark.parametrize(
    "given",
    [
        "/d",
        "/d /m /x",
        "-x /m",
        *(f"/d /m -o {o}" for o in ("ro", "noexec", "keep", "ke=1", "no-passthrough=1")),
    ],
)
def test_what_cannot_be_obeyed_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        command_line(given.split(), OPTIONS)


@pytest.fixture(params=["mount.fuse", "a link in sbin", "ckptfs#"])
def how(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    """What mount(8) finds in /usr/sbin, as the lab shows it: it trusts no PATH of its caller."""
    if shutil.which("mount.fuse", path="/usr/sbin") is None:
        pytest.skip("no mount.fuse3 here")
    linked = request.param == "a link in sbin"
    name, function = ("mount.fuse.ckptfs", "mount_helper") if linked else ("ckptfs", "main")
    code = f"import sys; from ckptfs.cli import {function}; sys.exit({function}())"
    (lab.base / "command").write_text(
        f"#!/bin/sh\nexport PYTHONPATH={lab.base}/src:{lab.base}/site\n"
        f"exec {lab.python} -c '{code}' \"$@\"\n"
    )
    at = lab.base / "lab"  # a tmpfs in the lab: overlayfs writes to no other overlay
    lab.shell(
        0,
        f"mkdir -p up work; install -m 755 {lab.base}/command up/{name}; mount -t overlay -o "
        "lowerdir=/usr/sbin,upperdir=up,workdir=work overlay /usr/sbin",
        at,
    )
    yield str(request.param)
    lab.shell(0, "umount -l /usr/sbin; rm -rf up work", at)


def test_mount_8_and_fstab(lab: Lab, how: str) -> None:
    directory = Path(tempfile.mkdtemp(dir=lab.home(0)))
    hash_form = how == "ckptfs#"
    source, kind = (f"ckptfs#{directory}", "fuse") if hash_form else (directory, "fuse.ckptfs")
    options = f"noauto,keep=3,log={directory}.log"
    table = lab.base / "fstab"
    table.write_text(f"{source} {directory} {kind} {options} 0 0\n")
    try:
        for command in (
            ("mount", "-t", kind, source, directory, "-o", options),
            ("mount", "-T", table, directory),
        ):
            done = lab.run(0, *command)
            assert done.returncode == 0, done
            assert "3 earlier kept" in lab.run(0, "ckptfs", "status", directory).stdout
            lab.shell(0, "echo x > a", directory)
            again = lab.run(0, *command)
            assert again.returncode != 0 and "served already" in again.stderr, again
            assert lab.run(0, "ckptfs", "umount", directory).returncode == 0
        assert (directory / "a").read_text() == "x\n"
        wrong = lab.run(0, "mount", "-t", kind, source, directory, "-o", "ro")
        assert wrong.returncode != 0 and "-o ro" in wrong.stderr
    finally:
        lab.run(0, "umount", "-l", directory)
