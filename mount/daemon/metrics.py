"""Metrics for Prometheus: of a status, as text, and over HTTP.

Everything comes from the status; nothing is counted here. The server is one thread with a loop of
its own: it answers GET /metrics, has a bound to its connections and to their time, and neither
holds up nor ends the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ckptfs.disk.worker import started
from ckptfs.errors import CannotServe

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("ckptfs.metrics")

Status = dict[str, Any]  # see ``Daemon.status``
LOOPBACK, PORT = "127.0.0.1", 9934
_CONNECTIONS = 32
_TIMEOUT_S = 5.0  # for a request and its answer
_REQUEST_BYTES = 8192

# By name: what it is, and the key of the status that it is.
_GAUGES = {
    "ckptfs_in_flight": ("Versions that are being written or committed", "in_flight"),
    "ckptfs_salvage_bytes": ("Bytes in salvage", "salvage_bytes"),
    "ckptfs_quarantine_bytes": ("Bytes in quarantine", "quarantine_bytes"),
    "ckptfs_free_bytes": ("Bytes free on the filesystem of the directory", "free_bytes"),
    "ckptfs_low_space": ("Whether the last save would not fit again", "low_space"),
    "ckptfs_start_time_seconds": ("When the directory came to be served", "started"),
    "ckptfs_passthrough": ("Whether the kernel carries the data", "passthrough"),
    "ckptfs_memory_peak_bytes": ("The most memory that the daemon had", "memory_peak_bytes"),
}
_COUNTERS = {  # of ``counts``
    "ckptfs_commits": ("Versions committed", "committed"),
    "ckptfs_aborts": ("Versions that were not committed, those of killed writers too", "aborted"),
    "ckptfs_rollbacks": ("Rollbacks to an earlier version, asked for or not", "rolled back"),
    "ckptfs_rotten": ("Opens refused, or files found by a scrub, with no good version", "rotten"),
    "ckptfs_unreadable": ("Files that the disk did not give", "unreadable"),
    "ckptfs_set_aside": ("Earlier versions that had rotted", "set aside"),
}


def address(text: str) -> tuple[str, int]:
    """Of HOST:PORT or PORT; the loopback, unless a host is told. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() else 0
    host = host.removeprefix("[").removesuffix("]")
    if not 0 < number < 1 << 16 or (colon and not host):
        raise ValueError(f"{text}: not an address, such as {PORT} or {LOOPBACK}:{PORT}")
    return host or LOOPBACK, number


def require_client() -> None:
    """Raises CannotServe, saying what to install."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise CannotServe(
            "metrics need prometheus_client, which is not installed: pip install prometheus_client"
        ) from None


# --- of a status ---------------------------------------------------------------------------------


def text(status: Callable[[], Status]) -> bytes:
    """In the format that Prometheus reads."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class OfStatus(Collector):
        def collect(self) -> Iterable[Metric]:
            return _of(status())

    registry = CollectorRegistry()
    registry.register(OfStatus())
    return generate_latest(registry)


def _of(status: Status) -> Iterator[Metric]:
    """Whatever the status has: that of a directory that nobody serves has little."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    of = status["directory"]

    def gauge(name: str, what: str, value: float) -> Metric:
        found = GaugeMetricFamily(name, what, labels=["directory"])
        found.add_metric([of], float(value))
        return found

    yield gauge("ckptfs_up", "Whether the directory is served", status["served"])
    yield _alarms(of, status.get("alarms", []))
    if not status["served"]:
        return
    known = {key: str(status[key]) for key in ("version", "mountpoint", "mode", "checksum")}
    info = InfoMetricFamily("ckptfs", "What serves the directory", labels=["directory"])
    info.add_metric([of], known)
    yield info
    yield gauge("ckptfs_degraded", "Things that are wrong by now", len(status["degraded"]))
    for name, (what, key) in _GAUGES.items():
        if status.get(key) is not None:
            yield gauge(name, what, status[key])
    last = status["scrub"]["last"].get("ended_ns", 0)
    yield gauge("ckptfs_last_scrub_timestamp_seconds", "When the last scrub ended", last / 1e9)
    tally = status["tally"]
    counted = {
        name: (what, status["counts"].get(key, 0)) for name, (what, key) in _COUNTERS.items()
    }
    counted["ckptfs_committed_bytes"] = "Lengths of the versions committed", tally["bytes"]
    counted["ckptfs_verified_opens"] = "Opens of what is known to be good", tally["verified_opens"]
    for name, (what, value) in counted.items():
        counter = CounterMetricFamily(name, what, labels=["directory"])
        counter.add_metric([of], value)
        yield counter
    yield _commit_seconds(of, tally)


def _alarms(of: str, alarms: list[dict[str, Any]]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    what = "What nobody has looked at yet (ckptfs ack), by what happened"
    found = GaugeMetricFamily("ckptfs_alarms", what, labels=["directory", "event"])
    events = [alarm["event"] for alarm in alarms]
    for event in sorted({"aborted", "rolled back", "rotten", "set aside", "unreadable", *events}):
        found.add_metric([of, event.replace(" ", "_")], events.count(event))
    return found


def _commit_seconds(of: str, tally: dict[str, Any]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    what = "From the beginning of a commit until it was durable as the mode says"
    found = HistogramMetricFamily("ckptfs_commit_seconds", what, labels=["directory"])
    bounds = [*map(str, tally["bounds_s"]), "+Inf"]
    sums, so_far = [], 0
    for commits in tally["commits"]:
        so_far += commits
        sums.append(so_far)
    found.add_metric([of], list(zip(bounds, sums, strict=True)), tally["seconds"])
    return found


# --- over HTTP -----------------------------------------------------------------------------------


class Server:
    """Listens from the beginning, answers once it is started."""

    def __init__(self, where: str) -> None:
        """Raises CannotServe for an address that cannot be had."""
        require_client()
        host, port = address(where)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            why = error.strerror or error
            raise CannotServe(f"--metrics {where}: cannot listen there: {why}") from None
        self._status: Callable[[], Status] = dict
        self._open = 0

    def start(self, status: Callable[[], Status]) -> None:
        self._status = status
        started(self._run, "metrics")

    def close(self) -> None:
        self._socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("metrics are not served any more")

    async def _serve(self) -> None:
        server = await asyncio.start_server(
            self._connected, sock=self._socket, limit=_REQUEST_BYTES
        )
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _CONNECTIONS:
                with contextlib.suppress(OSError, EOFError, ValueError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._talk(reader, writer), _TIMEOUT_S)
        finally:
            self._open -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return
        writer.write(self._answer(request.split(b"\r\n", 1)[0].split(b" ")))
        await writer.drain()

    def _answer(self, request: list[bytes]) -> bytes:
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        if len(request) != 3 or not request[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", b"")
        if request[0] != b"GET":
            return _response("405 Method Not Allowed", b"", "Allow: GET")
        if request[1].split(b"?")[0] != b"/metrics":
            return _response("404 Not Found", b"see /metrics\n")
        try:
            body = text(self._status)
        except Exception:
            log.exception("metrics could not be collected")
            return _response("500 Internal Server Error", b"")
        return _response("200 OK", body, f"Content-Type: {CONTENT_TYPE_LATEST}")


def _response(what: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {what}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
