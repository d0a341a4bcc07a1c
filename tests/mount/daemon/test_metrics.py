"""Metrics: what Prometheus reads, over HTTP and as text for the textfile collector."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from harness import rot, store_on
from mounts import Served, ckptfs
from scraping import free_port, read, scraped

from ckptfs.errors import CannotServe
from ckptfs.mount.daemon import metrics
from ckptfs.telling.tally import BOUNDS_S, Tally

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, int]]:
    """A mount with metrics, in which something has happened."""
    if mounts.why_no_mounts():
        pytest.skip(f"cannot mount here: {mounts.why_no_mounts()}")
    directory = tmp_path_factory.mktemp("metrics") / "served"
    directory.mkdir()
    port = free_port()
    with mounts.served(directory, "--metrics", str(port)) as mount:
        for content in ("old", "newer"):
            (directory / "last.bin").write_text(content)
        rot(mount.below / "last.bin")
        assert (directory / "last.bin").read_text() == "old"
        yield mount, port


def test_what_happened_is_scraped(watched: tuple[Served, int]) -> None:
    mount, port = watched
    found = read(scraped(port))
    expected = {
        "ckptfs_up": 1,
        "ckptfs_commits_total": 2,
        "ckptfs_committed_bytes_total": 8,
        "ckptfs_commit_seconds_count": 2,
        "ckptfs_in_flight": 0,
        "ckptfs_rollbacks_total": 1,
        "ckptfs_aborts_total": 0,
        "ckptfs_alarms": 1,
        "ckptfs_salvage_bytes": 0,
        "ckptfs_last_scrub_timestamp_seconds": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["ckptfs_verified_opens_total"] >= 1
    assert found["ckptfs_quarantine_bytes"] > 0 and found["ckptfs_free_bytes"] > 0
    assert f'directory="{mount.path}"' in scraped(port)


def test_the_text_has_the_same_names(watched: tuple[Served, int]) -> None:
    mount, port = watched
    done = ckptfs("status", mount.path, "--prometheus")
    assert done.returncode == 0
    assert read(done.stdout).keys() == read(scraped(port)).keys()


def test_the_dashboard_uses_what_is_exported_and_nothing_else(watched: tuple[Served, int]) -> None:
    _, port = watched
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    rows = {panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"}
    assert {"Saves", "Trouble", "Space"} <= rows
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    used = {name for each in expressions for name in re.findall(r"\bckptfs_\w+", each)}
    assert used <= read(scraped(port)).keys()
    assert all(expression.count("(") == expression.count(")") for expression in expressions)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"])


def test_only_get_of_metrics_is_answered(watched: tuple[Served, int]) -> None:
    _, port = watched
    for path, method, code in (("/", "GET", 404), ("/metrics", "POST", 405)):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", b"x", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        assert refused.value.code == code
    for nonsense in (b"nonsense\r\n\r\n", b"\xff" * 9000 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(nonsense)
            with contextlib.suppress(ConnectionError):
                assert not sock.recv(100).startswith(b"HTTP/1.1 200")
    assert scraped(port)


def test_who_connects_and_says_nothing_holds_nobody_up(watched: tuple[Served, int]) -> None:
    mount, port = watched
    with contextlib.ExitStack() as silent:
        for _ in range(20):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        assert read(scraped(port))["ckptfs_up"] == 1
        for _ in range(60):  # more than are served at once
            silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        (mount.path / "meanwhile.bin").write_text("saved")
        mount.wait_until(lambda: _answers(port))


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(scraped(port))
    return False


@pytest.mark.kernel_only("libfuse cannot hand its session over")
def test_metrics_go_on_after_a_restart(watched: tuple[Served, int]) -> None:
    mount, port = watched
    before = read(scraped(port))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = ckptfs("restart", mount.path, "--metrics", str(taken.getsockname()[1]))
    assert refused.returncode != 0 and "cannot listen there" in refused.stderr
    assert ckptfs("restart", mount.path).returncode == 0
    after = read(scraped(port))
    for name in ("ckptfs_commits_total", "ckptfs_commit_seconds_count", "ckptfs_alarms"):
        assert after[name] == before[name]
    assert ckptfs("restart", mount.path, "--metrics", "off").returncode == 0
    assert not _answers(port)


def test_a_port_in_use_refuses_the_mount_with_one_line(disk_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ckptfs("mount", disk_dir, "--metrics", str(port))
    assert done.returncode == 8
    told = f"ckptfs: --metrics 127.0.0.1:{port}: cannot listen there: Address already in use"
    assert done.stderr.strip().startswith(told) and done.stderr.count("\n") == 1
    assert ckptfs("status", disk_dir, "--check").returncode == 1


def test_a_directory_that_nobody_serves_is_down(tmp_path: Path) -> None:
    store = store_on(tmp_path)
    store.note("rotten", "a.pt", "a test")
    store.close()
    done = ckptfs("status", tmp_path, "--prometheus")
    assert done.returncode == 1
    found = read(done.stdout)
    assert found["ckptfs_up"] == 0 and found["ckptfs_alarms"] == 1


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(CannotServe, match="pip install prometheus_client"):
        metrics.Server("127.0.0.1:1")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("9934", ("127.0.0.1", 9934)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
        ("node7:1", ("node7", 1)),
    ],
)
def test_an_address_is_a_port_or_a_host_and_a_port(given: str, expected: tuple[str, int]) -> None:
    assert metrics.address(given) == expected


@pytest.mark.parametrize("given", ["", "checkpoints", "0", "65536", ":80", "host:", "-1", "²"])
def test_nothing_else_is_an_address(given: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        metrics.address(given)


def test_commits_are_counted_by_how_long_they_took() -> None:
    tally = Tally()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] + 1e-6, BOUNDS_S[-1] + 1):
        tally.committed(10, seconds)
    told = json.loads(json.dumps(tally.told()))
    assert told["commits"][:2] == [2, 1] and told["commits"][-1] == 1 and told["bytes"] == 40
    again = Tally()
    again.resume(told)
    assert again.told() == told
