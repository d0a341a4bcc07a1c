"""`ckptfs run` without root, where others own the files: as on the plain directory.

A project's directory belongs to a user and a group that do not exist in the user namespace of the
mount. The bug this closes: the kernel refused every access to it, though the caller was in the
group; and what the commit may not do was told at the close.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import rot
from users import ALICE, BOB, Lab

OWNER, GROUP = 12345, 777
FILES = {"rw": 0o660, "more": 0o660, "ro": 0o640, "none": 0o600, "rw.log": 0o660, "ro.log": 0o640}
SCRIPTS = {"script": 0o770, "for-others": 0o741}
FOLDERS = {"sub": 0o2770, "closed": 0o2750, "locked": 0o700, "sticky": 0o3770}


class Project:
    """A directory of a group, in a lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.path = Path(tempfile.mkdtemp(dir=lab.base / "disk"))
        for name, mode in FILES.items():
            self._made(self.path / name, mode, f"{name}\n")
        for name, mode in SCRIPTS.items():
            self._made(self.path / name, mode, "#!/bin/sh\necho ran\n")
        for name, mode in FOLDERS.items():
            (self.path / name).mkdir()
            self._made(self.path / name / "theirs", 0o660, "theirs\n")
            self._made(self.path / name, mode)
        self._made(self.path, 0o2770)

    def _made(self, path: Path, mode: int, text: str = "") -> None:
        if text:
            path.write_text(text)
        os.chown(path, OWNER, GROUP)
        path.chmod(mode)

    def run(self, *command: object, uid: int = ALICE) -> subprocess.CompletedProcess[str]:
        log = self.lab.home(uid) / f"{self.path.name}.log"
        words = ("ckptfs", "run", self.path, "--log", log, "--", *command)
        done = self.lab.run(uid, *words, cwd="/", groups=(GROUP,))
        assert not log.exists() or "Traceback" not in log.read_text(), log.read_text()
        return done

    def python(self, program: str) -> str:
        """Run it, in the directory, as on the plain one."""
        program = f"import os; os.chdir({str(self.path)!r})\n{program}"
        done = self.run(self.lab.python, "-c", program)
        assert done.returncode == 0, done
        return done.stdout

    def plain(self, program: str) -> str:
        how = {"cwd": self.path, "groups": (GROUP,)}
        done = self.lab.run(ALICE, "python", "-c", program, **how)
        assert done.returncode == 0, done
        return str(done.stdout)

    def tree(self) -> dict[str, tuple[int, int, bytes]]:
        """Mode, group and content, as they are on the disk."""
        found = {}
        for path in sorted(self.path.rglob("*")):
            if ".ckptfs" not in path.parts:
                status = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                found[str(path.relative_to(self.path))] = status.st_mode, status.st_gid, content
        return found


@pytest.fixture
def project(lab: Lab) -> Iterator[Project]:
    project = Project(lab)
    if project.run("true").returncode == 8:
        pytest.skip(f"no user namespaces here: {project.run('true').stderr}")
    yield project
    shutil.rmtree(project.path)


EVERY_KIND = """
import errno, os, subprocess
def told(code):
    try:
        result = eval(code)
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(code, result, flush=True)
def write(path, how='w'):
    with open(path, how) as file: return file.write('written')
def read(path):
    with open(path) as file: return file.read()
def mode(path): return oct(os.stat(path).st_mode)
os.umask(0o027)
for name in %(names)r: told(f'read({name!r})')
for name in %(names)r:
    for bit in (os.R_OK, os.W_OK, os.X_OK, os.W_OK | os.R_OK): told(f'os.access({name!r}, {bit})')
for name in ('rw', 'ro', 'none', 'rw.log', 'ro.log'):
    for how in ('a', 'r+', 'w'): told(f'write({name!r}, {how!r})')
for code in '''
os.chmod('more', 0o600)
os.chown('more', %(uid)d, -1)
os.utime('more')
os.utime('more', (1, 1))
os.utime('ro')
os.truncate('more', 2)
os.truncate('ro', 2)
os.truncate('none', 0)
os.setxattr('more', 'user.x', b'1')
os.getxattr('more', 'user.x')
os.setxattr('ro', 'user.x', b'1')
os.getxattr('none', 'user.x')
os.link('more', 'linked')
write('new')
mode('new')
os.chmod('new', 0o660)
mode('new')
write('new.log', 'a')
os.mkdir('folder')
mode('folder')
write('folder/x')
os.rename('folder/x', 'more')
os.symlink('rw', 'link')
read('link')
os.mkfifo('fifo')
os.unlink('none')
os.listdir('sub')
write('sub/new')
os.unlink('sub/theirs')
sorted(os.listdir('closed'))
read('closed/theirs')
write('closed/new')
os.mkdir('closed/new')
os.symlink('x', 'closed/new')
os.mkfifo('closed/new')
os.link('rw', 'closed/new')
os.unlink('closed/theirs')
os.rmdir('closed')
os.rename('closed/theirs', 'moved')
os.rename('new', 'closed/theirs')
os.listdir('locked')
os.stat('locked/theirs')
read('locked/theirs')
write('locked/new')
os.chdir('locked')
os.access('locked/theirs', os.F_OK)
write('sticky/mine')
os.unlink('sticky/theirs')
os.rename('sticky/theirs', 'sticky/else')
os.rename('sticky/mine', 'sticky/theirs')
os.unlink('sticky/mine')
os.makedirs('deep/er')
write('deep/er/file')
os.chmod('deep', 0)
read('deep/er/file')
write('deep/er/file')
os.listdir('deep')
os.chmod('deep', 0o711)
read('deep/er/file')
os.listdir('deep')
os.chmod('deep', 0o700)
subprocess.run(['./script'], capture_output=True).stdout
subprocess.run(['./for-others'], capture_output=True).stdout
subprocess.run(['./ro'], capture_output=True).stdout
'''.strip().split(chr(10)): told(code)
"""


def test_each_access_is_as_on_the_plain_directory(project: Project) -> None:
    names = [*FILES, *FOLDERS, ".", "sub/theirs", "locked/theirs", "script", "for-others"]
    program = EVERY_KIND % {"names": names, "uid": ALICE}
    plain = Project(project.lab)
    before, wanted = project.path.stat(), plain.plain(program).splitlines()
    assert project.python(program).splitlines() == wanted
    assert project.tree() == plain.tree()
    shutil.rmtree(plain.path)
    after = project.path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (OWNER, GROUP, before.st_mode)
    checked = project.lab.run(ALICE, "ckptfs", "verify", project.path, "sub", groups=(GROUP,))
    assert checked.returncode == 0, checked


def test_what_could_not_be_committed_is_refused_when_it_is_opened(project: Project) -> None:
    """A new version takes the place of the old one in its directory: the file may be written, the
    directory not."""
    for path in ("closed/theirs", "sticky/theirs"):
        program = f"try: open({path!r}, 'w')\nexcept OSError as error: print(error.strerror)"
        assert project.python(program) in ("Permission denied\n", "Operation not permitted\n")
        assert (project.path / path).read_text() == "theirs\n"
    assert not any((project.path / ".ckptfs/salvage").iterdir())


def test_ids_that_do_not_exist_inside_show_as_the_callers(project: Project) -> None:
    ids = "status = os.stat('ro'); print(status.st_uid, status.st_gid)"
    assert project.python(ids) == f"{ALICE} {ALICE}\n"


def test_c5_rot_is_rolled_back_to_what_another_user_wrote(project: Project) -> None:
    adopted = project.lab.run(ALICE, "ckptfs", "adopt", project.path, "rw", groups=(GROUP,))
    assert "1 adopted" in adopted.stdout, adopted
    project.python("with open('rw', 'w') as file: file.write('mine')")
    assert (project.path / "rw").stat().st_uid == ALICE
    rot(project.path / "rw")
    assert project.python("print(open('rw').read())") == "rw\n\n"


def test_a_directory_that_cannot_be_served_is_one_line(project: Project) -> None:
    os.chmod(project.path, 0o2750)
    shutil.rmtree(project.path / ".ckptfs")
    os.chmod(project.path, 0o2750)
    done = project.run("true")
    assert done.returncode == 8 and done.stderr.count("\n") == 1, done
    assert "needs a writable directory" in done.stderr


def test_another_user_serves_it_already(project: Project) -> None:
    done = project.run("true", uid=BOB)
    assert done.returncode == 8 and done.stderr.count("\n") == 1, done
    assert f"belongs to user {ALICE}" in done.stderr


def test_groups_that_newgidmap_grants_exist_inside(project: Project) -> None:
    if shutil.which("newgidmap") is None:
        pytest.skip("newgidmap is not installed")
    lab = project.lab
    subgid = lab.base / "subgid"
    subgid.write_text(f"bob:100000:65536\nalice:{GROUP}:1\n")
    if not Path("/etc/subgid").exists():
        pytest.skip("no /etc/subgid to lay another over")
    lab.run(0, "mount", "--bind", subgid, "/etc/subgid")
    try:
        program = "status = os.stat('ro'); print(status.st_uid, status.st_gid, os.getgroups())"
        assert project.python(program) == f"{ALICE} {GROUP} [{GROUP}]\n"
        assert "chown" in project.python(
            f"open('f', 'w'); os.chown('f', -1, {GROUP}); print('chown')"
        )
    finally:
        lab.run(0, "umount", "/etc/subgid")
