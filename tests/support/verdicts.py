"""What ``ckptfs verify`` says of a directory, in JSON that its schema allows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "verify.schema.json").read_text())


def ckptfs(*arguments: object, code: int | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ckptfs", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if code is not None:
        assert done.returncode == code, done
    return done.stdout + done.stderr


def rows_of(directory: Path, *arguments: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What --json prints, each line checked against the schema."""
    lines = ckptfs("verify", "--json", directory, *arguments).splitlines()
    *rows, summary = map(json.loads, lines)
    for row in (*rows, summary):
        jsonschema.validate(row, SCHEMA)
    return rows, summary


def conditions(directory: Path, *arguments: object) -> dict[str, str]:
    rows, _ = rows_of(directory, *arguments)
    return {
        row["path"]: row["condition"] for row in rows if row["condition"] not in ("ok", "unread")
    }
