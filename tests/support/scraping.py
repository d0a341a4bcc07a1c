"""Metrics as Prometheus reads them."""

from __future__ import annotations

import socket
import urllib.request

import pytest

parser = pytest.importorskip("prometheus_client.parser")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def read(text: str) -> dict[str, float]:
    """The sum of each sample, by its name."""
    found: dict[str, float] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return str(answer.read().decode())
