"""nanoGPT: the tokens of a data set become one file through numpy.memmap; training maps it."""

from __future__ import annotations

import os
from typing import Any

import numpy
from zygote import tell

DOCUMENTS, BATCHES = 64, 8


def _tokens(document: int) -> Any:
    return numpy.random.default_rng(document).integers(0, 50_257, 2_000 + document * 37, "uint16")


def _layout() -> tuple[int, list[int]]:
    """How many tokens there are, and where each document begins."""
    lengths = [len(_tokens(document)) for document in range(DOCUMENTS)]
    return sum(lengths), [sum(lengths[:n]) for n in range(DOCUMENTS)]


def _tell(directory: str) -> None:
    path = os.path.join(directory, "train.bin")
    data = numpy.memmap(path, dtype="uint16", mode="r")
    tell("mapped", tokens=len(data), state=data)
    with open(path, "rb") as file:
        tell("read", state=file.read())
    batches = []
    for seed in range(4):  # a map a batch, as train.py does
        data = numpy.memmap(path, dtype="uint16", mode="r")
        at = numpy.random.default_rng(seed).integers(0, len(data) - 64, 4)
        batches.append([data[n : n + 64].astype("int64").sum().item() for n in at])
    tell("trained", batches=batches)


def batches(directory: str) -> None:
    """data/openwebtext/prepare.py: w+, stored batch by batch, flushed once, left to the exit."""
    length, _ = _layout()
    path = os.path.join(directory, "train.bin")
    out = numpy.memmap(path, dtype="uint16", mode="w+", shape=(length,))
    at = 0
    for batch in range(BATCHES):
        documents = range(batch, DOCUMENTS, BATCHES)
        tokens = numpy.concatenate([_tokens(document) for document in documents])
        out[at : at + len(tokens)] = tokens
        at += len(tokens)
    out.flush()
    _tell(directory)


def documents(directory: str) -> None:
    """The older form: a map r+ per document, the one before not always gone."""
    length, starts = _layout()
    path = os.path.join(directory, "train.bin")
    numpy.memmap(path, dtype="uint16", mode="w+", shape=(length,))
    for document, start in enumerate(starts):
        out = numpy.memmap(path, dtype="uint16", mode="r+", shape=(length,))
        tokens = _tokens(document)
        out[start : start + len(tokens)] = tokens
        if document % 2:
            out.flush()
    _tell(directory)


def workers(directory: str) -> None:
    """Two processes share the documents, each with a map r+ per document."""
    length, starts = _layout()
    path = os.path.join(directory, "train.bin")
    numpy.memmap(path, dtype="uint16", mode="w+", shape=(length,))
    pids = []
    for worker in range(2):
        pid = os.fork()
        if pid == 0:
            for document in range(worker, DOCUMENTS, 2):
                out = numpy.memmap(path, dtype="uint16", mode="r+", shape=(length,))
                tokens = _tokens(document)
                out[starts[document] : starts[document] + len(tokens)] = tokens
                out.flush()
            os._exit(0)
        pids.append(pid)
    tell("workers", status=[os.waitpid(pid, 0)[1] for pid in pids])
    _tell(directory)


def appended(directory: str) -> None:
    """The character-level data sets: ``tofile``; then more behind it, mapped beside a reader."""
    path = os.path.join(directory, "train.bin")
    _tokens(0).tofile(path)
    held = numpy.memmap(path, dtype="uint16", mode="r")
    with open(path, "ab") as file:
        for document in range(1, DOCUMENTS):
            _tokens(document).tofile(file)
    tell("held", state=held)
    _tell(directory)
