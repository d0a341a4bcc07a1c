"""The readers themselves say whether a structure verdict was right.

Files as the libraries write them are damaged at random. ``BROKEN`` must mean that the reader
refuses the file or reads other values from it: a false alarm costs a user a save. ``CKPTFS_FUZZ``
is the number of damaged files of each kind (``CKPTFS_FUZZ=20000`` takes minutes).
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import select
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save as save_safetensors

from ckptfs.structure import Structure, Verdict, check
from ckptfs.structure.base import METADATA_LIMIT_BYTES

ROUNDS = int(os.environ.get("CKPTFS_FUZZ", "1500"))
SEED = int(os.environ.get("CKPTFS_FUZZ_SEED", "1"))
READER_LIMIT_S, CHECK_LIMIT_S = 20.0, 1.0
READS_LIMIT = 1000  # for files of a few KiB

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Case:
    """A whole file: its name, how it is read, and where its parts are."""

    name: str
    kind: str
    data: bytes
    places: list[tuple[int, int]] = field(default_factory=list)


# --- the files


def saved(obj: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, **options)
    return buffer.getvalue()


def state() -> dict[str, object]:
    shared = torch.arange(60, dtype=torch.float32)
    return {
        "shared": shared,
        "view": shared[5:20],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5),
        "flags": torch.ones(700, dtype=torch.bool),
        "half": torch.arange(3, dtype=torch.bfloat16),
        "complex": torch.ones(3, dtype=torch.complex128),
        "nested": [(i, None, -i, 2**40 + i, i / 3, "x" * i) for i in range(9)],
    }


TENSORS = {
    "w": torch.arange(15.0).reshape(3, 5),
    "b": torch.arange(3, dtype=torch.bfloat16),
    "e": torch.zeros(0, 2),
    "flag": torch.tensor(True),
}
ARRAYS: dict[str, np.ndarray] = {
    "matrix": np.arange(15, dtype=np.float32).reshape(3, 5),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "scalar": np.float64(1.5),  # type: ignore[dict-item]
    "none": np.ones((0, 3)),
    "text": np.array(["ab", "cde"]),
    "record": np.zeros(3, [("a", "<f4", (2,)), ("b", "<i8")]),
}


def numpy_bytes(save: Callable[..., None], *arrays: object, **named: object) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def dcp_files(directory: Path) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    nested = {"w": torch.arange(16.0).reshape(4, 4), "o": {"x": torch.arange(200)}}
    dcp.save(nested, checkpoint_id=directory, no_dist=True)
    metadata = (directory / ".metadata").read_bytes()
    places = [(p.offset, p.length) for p in pickle.loads(metadata).storage_data.values()]
    return metadata, (directory / "__0_0.distcp").read_bytes(), sorted(places)


CASES = [
    *("torch", "torch state", "torch protocol 4", "torch protocol 5", "torch bin"),
    *("safetensors", "safetensors metadata", "npz", "npz compressed"),
    *("npy", "npy record", "npy several", "metadata", "distcp"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata, shard, places = dcp_files(tmp_path_factory.mktemp("dcp"))
    several = b"".join(numpy_bytes(np.save, ARRAYS[name]) for name in ("matrix", "text"))
    compressed = numpy_bytes(np.savez_compressed, **ARRAYS)
    return {
        "torch": Case("model.pt", "torch", saved({"a": torch.arange(3.0), "b": torch.ones(9)})),
        "torch state": Case("last.ckpt", "torch", saved(state())),
        "torch protocol 4": Case("model.pth", "torch objects", saved(state(), pickle_protocol=4)),
        "torch protocol 5": Case("model.pth", "torch objects", saved(TENSORS, pickle_protocol=5)),
        "torch bin": Case("pytorch_model.bin", "torch", saved(TENSORS)),
        "safetensors": Case("model.safetensors", "safetensors", save_safetensors(TENSORS)),
        "safetensors metadata": Case(
            "model.safetensors",
            "safetensors",
            save_safetensors(TENSORS, metadata={"format": "pt"}),
        ),
        "npz": Case("state.npz", "npz", numpy_bytes(np.savez, **ARRAYS)),
        "npz compressed": Case("state.npz", "npz", compressed),
        "npy": Case("a.npy", "npy", numpy_bytes(np.save, ARRAYS["matrix"])),
        "npy record": Case("a.npy", "npy", numpy_bytes(np.save, ARRAYS["record"])),
        "npy several": Case("a.npy", "npy", several, [(0, 0), (0, 0)]),
        "metadata": Case(".metadata", "metadata", metadata),
        "distcp": Case("__0_0.distcp", "distcp", shard, places),
    }


# --- damage


def _place(dice: random.Random, size: int) -> int:
    """Headers, directories and their ends more often than data."""
    if dice.random() < 0.5:
        near = dice.randrange(min(600, size))
        return near if dice.random() < 0.5 else size - 1 - near
    return dice.randrange(size)


def _range(dice: random.Random, size: int) -> tuple[int, int]:
    at = _place(dice, size)
    return at, min(size, at + dice.choice([1, 2, 4, 8, 30, 46, 64, 200, 512, 4096]))


def flip(dice: random.Random, data: bytearray) -> None:
    data[_place(dice, len(data))] ^= 1 << dice.randrange(8)


def set_byte(dice: random.Random, data: bytearray) -> None:
    data[_place(dice, len(data))] = dice.choice([0, 1, 0x20, 0x28, 0x2E, 0x7F, 0x80, 0xFF])


def insert(dice: random.Random, data: bytearray) -> None:
    at = dice.choice([_place(dice, len(data)), len(data)])
    count = dice.choice([1, 2, 8, 64, 512])
    data[at:at] = dice.choice([bytes(count), dice.randbytes(count)])


def delete(dice: random.Random, data: bytearray) -> None:
    at, end = _range(dice, len(data))
    del data[at:end]


def zero(dice: random.Random, data: bytearray) -> None:
    at, end = _range(dice, len(data))
    data[at:end] = bytes(end - at)


def scramble(dice: random.Random, data: bytearray) -> None:
    at, end = _range(dice, len(data))
    data[at:end] = dice.randbytes(end - at)


def swap(dice: random.Random, data: bytearray) -> None:
    size = dice.choice([1, 2, 4, 8, 64, 512])
    if len(data) >= 2 * size:
        a, b = (dice.randrange(len(data) - size + 1) for _ in range(2))
        if abs(a - b) >= size:
            data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def repeat(dice: random.Random, data: bytearray) -> None:
    at, end = _range(dice, len(data))
    data[at:at] = data[at:end]


def truncate(dice: random.Random, data: bytearray) -> None:
    del data[_place(dice, len(data)) :]


def zero_tail(dice: random.Random, data: bytearray) -> None:
    at = _place(dice, len(data))
    data[at:] = bytes(len(data) - at)


DAMAGES = [flip, set_byte, insert, delete, zero, scramble, swap, repeat, truncate, zero_tail]


IN_PLACE = [flip, set_byte, zero, scramble, swap, truncate, zero_tail]


def damaged(dice: random.Random, case: Case) -> tuple[str, bytes]:
    """One kind of damage, in one place most of the time. Where a piece of a shard of DCP begins
    only the metadata knows: if bytes came or went within it, no check can find its directory."""
    data, damages = case.data, IN_PLACE if case.kind == "distcp" else DAMAGES
    content, names = bytearray(data), []
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        if content:
            damage = dice.choice(damages)
            damage(dice, content)
            names.append(damage.__name__)
    return "+".join(names), bytes(content)


# --- the two who judge


def judge(name: str, data: bytes) -> Structure:
    """Property 1: it answers, soon, and reads little."""
    reads: list[int] = []

    def read(at: int, length: int) -> bytes:
        assert at >= 0 and at + length <= len(data)
        reads.append(length)
        return data[at : at + length]

    start = time.perf_counter()
    found = check(name, len(data), read)
    assert time.perf_counter() - start < CHECK_LIMIT_S
    assert len(reads) <= READS_LIMIT
    assert sum(reads) <= METADATA_LIMIT_BYTES
    assert bool(found.reason) == (found.verdict is Verdict.BROKEN)
    return found


class Reader:
    """The readers' process. One that hangs or crashes has refused, and is replaced."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.lost = 0

    def values(self, case: Case, data: bytes) -> bytes | None:
        if self._process is None:
            script = Path(__file__).parents[1] / "support" / "structure_reader.py"
            self._process = subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            limit_s = READER_LIMIT_S + 60
        else:
            limit_s = READER_LIMIT_S
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(pickle.dumps((case.kind, data, case.places)))
            stdin.flush()
        ready = select.select([stdout], [], [], limit_s)[0]
        answer = stdout.read(32) if ready else b""
        if len(answer) < 32:
            self.end()
            self.lost += 1
            return None
        return answer if any(answer) else None

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.end()


# --- the properties


def _is_beside(whole: Case, data: bytes) -> bool:
    """What follows a whole file and looks as the beginning of another archive: a cut between
    archives that lie end to end. Or anything, where the reader stops at what it came for."""
    rest = data[len(whole.data) :]
    looks = b"PK\x03\x04".startswith(rest[:4]) or whole.kind == "npy"
    return data.startswith(whole.data) and looks


@pytest.mark.parametrize("case", CASES)
def test_broken_is_said_of_nothing_that_reads_as_before(
    case: str, cases: dict[str, Case], reader: Reader
) -> None:
    whole = cases[case]
    expected = reader.values(whole, whole.data)
    assert expected is not None
    assert judge(whole.name, whole.data).verdict is Verdict.SOUND
    alarms, verdicts = false_alarms(whole, expected, reader, f"{SEED} {case}", ROUNDS, judge)
    print(f"\n{case}: {dict(verdicts)}, {len(alarms)} false; readers lost {reader.lost}")
    # Damage in several places at once can hit both copies of a fact that we read one of.
    assert len(alarms) <= ROUNDS // 20_000, "\n".join(alarms[:20])


def false_alarms(
    whole: Case,
    expected: bytes,
    reader: Reader,
    seed: str,
    rounds: int,
    judge: Callable[[str, bytes], Structure],
) -> tuple[list[str], Counter[str]]:
    """Damage the file so often; where it reads as before though it is called broken, and what
    was said how often."""
    dice = random.Random(seed)
    verdicts: Counter[str] = Counter()
    alarms = []
    for number in range(rounds):
        what, data = damaged(dice, whole)
        found = judge(whole.name, data)
        truth = ""
        if found.verdict is Verdict.BROKEN:
            values = reader.values(whole, data)
            truth = " refused" if values is None else " differs"
            if values == expected and not _is_beside(whole, data):
                alarms.append(f"{number} {what}: {found.reason}")
        verdicts[f"{found.verdict.value}{truth}"] += 1
    return alarms, verdicts


@pytest.mark.parametrize("case", CASES)
def test_most_cuts_and_zeroed_tails_are_seen(case: str, cases: dict[str, Case]) -> None:
    """Of the lengths at which a crash could end a file, and of those from which on it could be
    zeros, how many are called BROKEN. A cut between the parts of one file cannot be seen, nor
    can zeros in the data, which is the digest's to guard."""
    whole = cases[case]
    lengths = range(4, len(whole.data), max(1, len(whole.data) // (4 * ROUNDS)))
    seen: Counter[str] = Counter()
    for length in lengths:
        cut = whole.data[:length]
        zeroed = cut + bytes(len(whole.data) - length)
        seen["cut"] += judge(whole.name, cut).verdict is Verdict.BROKEN
        seen["zeroed"] += judge(whole.name, zeroed).verdict is Verdict.BROKEN
    shares = {what: count / len(lengths) for what, count in seen.items()}
    print(f"\n{case}: " + ", ".join(f"{what} {share:.1%}" for what, share in shares.items()))
    assert shares["cut"] > 0.95
    floor = 0.0 if whole.kind in ("npy", "safetensors") else 0.9
    assert shares["zeroed"] >= floor


def always_broken(name: str, data: bytes) -> Structure:
    return Structure(Verdict.BROKEN, "for the test")


def test_control_false_alarms_are_seen(cases: dict[str, Case], reader: Reader) -> None:
    """A check that calls everything broken is found out."""
    for case in ("torch", "npz", "distcp"):
        whole = cases[case]
        expected = reader.values(whole, whole.data)
        assert expected is not None
        alarms, _ = false_alarms(whole, expected, reader, case, 100, always_broken)
        assert alarms


def test_control_the_reader_tells_values_apart(cases: dict[str, Case], reader: Reader) -> None:
    whole = cases["torch"]
    same = reader.values(whole, whole.data)
    assert same is not None
    assert reader.values(whole, whole.data) == same
    changed = saved({"a": torch.arange(3.0), "b": torch.full((9,), 2.0)})
    assert reader.values(whole, changed) not in (None, same)
    assert reader.values(whole, whole.data[:-1]) is None
