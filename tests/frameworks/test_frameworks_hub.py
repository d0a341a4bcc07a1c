"""The cache of the Hugging Face hub in a mount: blobs, links to them, a lock a blob. Its server is
one of our own on the loopback, which hands the model over in pieces (make test-frameworks)."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import CHILD_LIMIT_S, PYTHON, Served, ckptfs

pytestmark = pytest.mark.frameworks

COMMIT, PIECE = "c" * 40, 1 << 20
FILES = {"config.json": b'{"a": 1}', "model.safetensors": b"weights " * (24 * PIECE // 8)}
_DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
snapshot_download("me/tiny", cache_dir=sys.argv[1])
"""


class _Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held = threading.Event()  # cleared: the model stops half way

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        body = self._answer()
        with contextlib.suppress(OSError):  # it was killed
            for start in range(0, len(body), PIECE):
                if start >= len(body) // 2 > PIECE:
                    self.held.wait(CHILD_LIMIT_S)
                self.wfile.write(body[start : start + PIECE])

    def _answer(self) -> bytes:
        body = self._body()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body

    def _body(self) -> bytes:
        if "/tree/" in self.path:
            rows = [
                {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
                for name, body in FILES.items()
            ]
            return json.dumps(rows).encode()
        if self.path.startswith("/api/"):
            names = [{"rfilename": name} for name in FILES]
            return json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": names}).encode()
        return FILES[self.path.rpartition("/")[2]]

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[dict[str, str]]:
    """The environment of who downloads from it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    _Hub.held.set()
    server.shutdown()
    server.server_close()


def _download(cache: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([PYTHON, "-c", _DOWNLOAD, cache], env=environment)


def test_a_download_that_was_killed_is_made_again(mount: Served, hub: dict[str, str]) -> None:
    """Killed with a part of the model there; then two at once download under its lock."""
    pytest.importorskip("huggingface_hub")
    cache = mount.path / "hub"
    _Hub.held.clear()
    killed = _download(cache, hub)
    blobs = cache / "models--me--tiny" / "blobs"
    mount.wait_until(  # it writes 10 MB at once
        lambda: any(path.stat().st_size for path in blobs.glob("*.incomplete")), CHILD_LIMIT_S
    )
    killed.kill()
    killed.wait(CHILD_LIMIT_S)
    mount.wait_until(lambda: mount.events("aborted"))
    _Hub.held.set()
    both = [_download(cache, hub) for _ in range(2)]
    assert [process.wait(CHILD_LIMIT_S) for process in both] == [0, 0]
    snapshot = cache / "models--me--tiny" / "snapshots" / COMMIT
    for name, body in FILES.items():
        assert (snapshot / name).is_symlink()
        assert (snapshot / name).read_bytes() == body
    assert ckptfs("verify", mount.path).returncode == 0
