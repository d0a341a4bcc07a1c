"""What a store is opened with, and what is written in place, outside any transaction."""

from __future__ import annotations

from dataclasses import dataclass

from ckptfs.modes import Mode, Outside

IN_PLACE = (
    "*.lock",
    "events.out.tfevents.*",
    *("*.log", "*.out", "*.err", "*.csv", "*.jsonl"),
    *("wandb/**", ".git/**"),
    *("*.db", "*.sqlite*", "*.mdb", "*-journal", "*-wal", "*-shm"),
    *("*.duckdb", "*.wal", "MANIFEST-[0-9]*"),  # DuckDB; LevelDB and RocksDB
)


@dataclass(frozen=True)
class Options:
    mode: Mode = Mode.ATOMIC_DIRSYNC
    checksum: str = "blake3"
    keep: int = 1  # earlier generations retained per path
    verify_opens: bool = True
    validate: bool = True
    outside: Outside = Outside.JUDGE  # of files that were changed behind ckptfs
    in_place: tuple[str, ...] = ()
    salvage_bytes: int = 16 << 30  # of salvage and quarantine together
    salvage_entries: int = 10_000
    profile: str = "none"  # which directories are sets: "auto", or the name of one, or a file
    settle_after_s: float = 30.0  # what a living writer has not touched for so long is whole
    share: bool = True  # the daemon lets near-identical generations share their blocks


def keeping_all(checksum: str = "blake3") -> Options:
    """For commands, which do not know how much the mount keeps: they let nothing go."""
    return Options(checksum=checksum, keep=1 << 30, salvage_bytes=1 << 62, salvage_entries=1 << 62)
