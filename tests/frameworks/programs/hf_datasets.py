"""Hugging Face datasets: what is made of files in the directory is cached and saved there."""

from __future__ import annotations

import json
import os
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from zygote import digest, tell

ROWS = 600
datasets.disable_progress_bars()


def _source(directory: str, kind: str) -> str:
    path = os.path.join(directory, f"rows.{kind}")
    if os.path.exists(path):
        return path
    rows = [{"n": n, "text": f"row {n} " * (n % 7 + 1)} for n in range(ROWS)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    else:
        with open(path, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def _tokens(row: dict[str, Any]) -> dict[str, Any]:
    return {"ids": [len(word) for word in row["text"].split()]}


def _is_even(row: dict[str, Any]) -> bool:
    return bool(row["n"] % 2 == 0)


def _cached(directory: str) -> dict[str, tuple[int, int]]:
    """Which cache files there are, and which versions of them."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            if name.endswith(".arrow"):
                status = os.stat(os.path.join(folder, name))
                found[name] = status.st_size, status.st_mtime_ns
    return found


def _tell(what: str, made: datasets.Dataset) -> None:
    tell("found", what=what, rows=len(made), state=made[:])


def _load(directory: str, kind: str) -> datasets.Dataset:
    cache = os.path.join(directory, "cache")
    source = _source(directory, kind)
    return datasets.load_dataset(kind, data_files=source, cache_dir=cache, split="train")


def prepared(directory: str, kind: str) -> None:
    """A script that is run again finds all that it made in the cache."""
    before = _cached(directory)
    loaded = _load(directory, kind)
    _tell("loaded", loaded)
    mapped = loaded.map(_tokens, num_proc=2)
    _tell("mapped", mapped)
    _tell("mapped by one", loaded.map(_tokens, batched=False))
    _tell("filtered", mapped.filter(_is_even, num_proc=2))
    parts = mapped.shuffle(seed=1).train_test_split(0.1, seed=1)
    _tell("test part", parts["test"])
    _tell("flattened", parts["train"].flatten_indices(num_proc=2))
    now = _cached(directory)
    tell("cached", files=len(now), made=sum(now[name] != before.get(name) for name in now))


def saved(directory: str, kind: str) -> None:
    """Saved by two processes, loaded, mapped on with a cache beside it, saved once more."""
    first, second = os.path.join(directory, "first"), os.path.join(directory, "second")
    _load(directory, kind).map(_tokens, num_proc=2).save_to_disk(first, num_proc=2)
    loaded = datasets.load_from_disk(first)
    _tell("loaded", loaded)
    loaded.filter(_is_even, num_proc=2).save_to_disk(second, max_shard_size="4KB")
    _tell("filtered", datasets.load_from_disk(second))
    datasets.load_from_disk(second).select(range(10)).save_to_disk(first)  # over what is mapped
    _tell("saved over", datasets.load_from_disk(first))
    tell("mapped still", of=digest(loaded["n"]) if len(loaded) else "")


def exported(directory: str, kind: str) -> None:
    made = _load(directory, kind)
    made.to_parquet(os.path.join(directory, "out.parquet"))
    made.to_json(os.path.join(directory, "out.json"), num_proc=2)
    made.to_csv(os.path.join(directory, "out.csv"))
    for name in ("out.parquet", "out.json", "out.csv"):
        with open(os.path.join(directory, name), "rb") as file:
            tell("exported", name=name, state=file.read())


def generated(directory: str, kind: str) -> None:
    cache = os.path.join(directory, "cache")
    made = datasets.Dataset.from_generator(
        _rows, cache_dir=cache, num_proc=2, gen_kwargs={"parts": [0, 1]}
    )
    _tell("generated", made)


def _rows(parts: list[int]) -> Any:
    for part in parts:
        for n in range(ROWS):
            yield {"n": n, "part": part}
