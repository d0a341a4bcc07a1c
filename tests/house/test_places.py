"""Where tests lie: below a folder as what they test does, and what they share in ``support``."""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from code_of import PROJECT, imported, modules

TESTS = PROJECT / "tests"
OF_NO_FLOOR = {"house", "frameworks"}  # of the code itself; of the mount, seen from far away
HELPERS = {"support", "golden", *OF_NO_FLOOR}
LEFT = {"test_growth.py": {"test_commit_faults", "test_commit_powercut"}}


def lying() -> list[PurePosixPath]:
    """The files of the tests, by their paths below the folder."""
    found = (path for path in TESTS.rglob("*") if path.is_file())
    paths = [PurePosixPath(path.relative_to(TESTS).as_posix()) for path in found]
    return sorted(path for path in paths if "__pycache__" not in path.parts)


def is_at_home(path: PurePosixPath) -> bool:
    folder = ".".join(path.parts[:-1])
    if not folder or path.name == "conftest.py":
        return path == PurePosixPath("conftest.py")
    if path.name.startswith("test_"):
        return folder in OF_NO_FLOOR or f"ckptfs.{folder}" in modules()
    return path.parts[0] in HELPERS


def twice(paths: Iterable[PurePosixPath]) -> set[str]:
    """Names of modules that more than one file has: they are imported by the name alone."""
    found = Counter(path.name for path in paths if path.suffix == ".py")
    return {name for name, count in found.items() if count > 1}


def of_tests(text: str) -> set[str]:
    tops = {name.partition(".")[0] for name in imported("", text)}
    return {top for top in tops if top.startswith("test_") or top == "conftest"}


def test_every_file_lies_where_it_belongs() -> None:
    assert [str(path) for path in lying() if not is_at_home(path)] == []


def test_every_module_of_the_tests_has_a_name_of_its_own() -> None:
    assert twice(lying()) == set()


def test_what_tests_share_is_in_no_test() -> None:
    sources = [path for path in lying() if path.suffix == ".py"]
    found = {path.name: of_tests((TESTS / path).read_text()) for path in sources}
    assert {name: tests for name, tests in found.items() if tests} == LEFT


def test_no_helper_is_left_that_nobody_uses() -> None:
    texts = {path: (TESTS / path).read_text() for path in lying() if path.suffix == ".py"}
    helpers = [path for path in texts if path.parts[0] == "support"]
    unused = [path for path in helpers if not _is_named(path, texts)]
    assert unused == []


def _is_named(helper: PurePosixPath, texts: dict[PurePosixPath, str]) -> bool:
    others = [text for path, text in texts.items() if path != helper]
    scripts = any(helper.name in _strings(text) for text in others)
    return scripts or any(helper.stem in _tops(text) for text in others)


@functools.cache
def _strings(text: str) -> set[str]:
    found = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return {value for value in found if isinstance(value, str)}


@functools.cache
def _tops(text: str) -> set[str]:
    return {name.partition(".")[0] for name in imported("", text)}


def test_control_what_lies_elsewhere_is_seen() -> None:
    elsewhere = (
        "test_a.py",
        "a.py",
        "new/test_a.py",
        "mount/elsewhere/test_a.py",
        "support/test_a.py",
        "golden/test_a.py",
        "disk/helper.py",
        "mount/view/conftest.py",
        "data/a.txt",
    )
    assert [name for name in elsewhere if is_at_home(PurePosixPath(name))] == []
    home = "conftest.py", "disk/test_a.py", "mount/view/test_a.py", "tools/test_a.py"
    data = "house/a.py", "support/a.py", "support/fixtures/a.txt", "golden/a.txt"
    assert all(is_at_home(PurePosixPath(name)) for name in (*home, *data))
    assert twice(map(PurePosixPath, ("disk/test_a.py", "store/test_a.py", "b.py"))) == {"test_a.py"}
    assert of_tests("def f():\n    from test_a import x") == {"test_a"}
    assert of_tests("import conftest, mounts") == {"conftest"}
    texts = {PurePosixPath(name): text for name, text in {"a.py": "import b", "c.py": ""}.items()}
    assert _is_named(PurePosixPath("b.py"), texts)
    assert not _is_named(PurePosixPath("c.py"), texts)
    assert _is_named(PurePosixPath("d.py"), {PurePosixPath("a.py"): "run('d.py')"})


def test_control_files_are_found() -> None:
    names = {path.name for path in lying()}
    assert {Path(__file__).name, "conftest.py", "mounts.py"} <= names
