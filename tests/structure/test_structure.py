"""Structure verdicts: whole files are never called broken, cut or gutted ones are.

The whole files are written by the libraries themselves. Damage is done to their bytes in memory.
A false BROKEN costs a user a save, so the foreign files below matter as much as the broken ones.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import SerializationFormat

from ckptfs import structure
from ckptfs.structure import Structure, Verdict, check

SOUND, BROKEN, UNKNOWN = Verdict.SOUND, Verdict.BROKEN, Verdict.UNKNOWN
ZIP_CENTRAL, ZIP_END = b"PK\x01\x02", b"PK\x05\x06"

pytestmark = pytest.mark.filterwarnings("ignore")


def judge(name: str, data: bytes) -> Structure:
    return check(name, len(data), lambda at, length: data[at : at + length])


def judge_file(path: Path) -> Structure:
    with path.open("rb", buffering=0) as file:
        return check(path.name, path.stat().st_size, lambda at, n: os.pread(file.fileno(), n, at))


# --- whole files


def saved(obj: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, **options)
    return buffer.getvalue()


def state() -> dict[str, object]:
    """Every way in which a storage's size is written down."""
    shared = torch.arange(100, dtype=torch.float32)
    fraction = torch.empty(0).set_(torch.UntypedStorage(10), 0, (2,))  # 2 1/2 items
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(7), 0.1, 0, torch.qint32)
    return {
        "shared": shared,
        "view": shared[5:20],
        "fraction": fraction,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5),
        "long": torch.zeros(70_000, dtype=torch.bool),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "float8": torch.ones(5).to(torch.float8_e4m3fn),
        "unsigned": torch.ones(4, dtype=torch.uint16),
        "complex": torch.ones(3, dtype=torch.complex128),
        "quantized": quantized,
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "storage": torch.ones(3).untyped_storage(),
        "class": torch.FloatStorage,
        "0": "cpu",  # strings and a type that storage ids find in the memo
        "nested": [(i, None, -i, 2**40 + i, i / 3, b"\x94(h" * i, "x" * i) for i in range(300)],
    }


def many() -> dict[int, torch.Tensor]:
    """More memo entries than fit in one byte."""
    kinds = [torch.float32, torch.int64, torch.bool, torch.float16, torch.uint8]
    return {i: torch.zeros(i % 7, dtype=kinds[i % 5]) for i in range(300)}


def optimizer() -> dict[str, object]:
    model = torch.nn.TransformerEncoderLayer(8, 2, dim_feedforward=8)
    adam = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3, 8)).sum().backward()
    adam.step()
    return {"model": model, "state": model.state_dict(), "optimizer": adam.state_dict()}


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 4)), buffer)
    return buffer.getvalue()


def twice() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    torch.save({"b": torch.ones(30)}, buffer)
    return buffer.getvalue()


def saved_tensors(tensors: dict[str, torch.Tensor], **options: object) -> bytes:
    from safetensors.torch import save

    return save(tensors, **options)


def npy(*arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(save: Callable[..., None] = np.savez, /, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


STRUCTURED = np.dtype(
    [(f"a_long_field_name_{i}", "<f4", (2, 3)) for i in range(10)]
    + [("text", "<U5"), ("when", "<M8[ns]"), ("inner", [("x", "|b1"), ("y", "<i8")])],
    align=True,
)
ARRAYS = {
    "matrix": np.ones((3, 5), np.float32),
    "fortran": np.asfortranarray(np.ones((30, 50))),
    "scalar": np.float64(1),
    "none": np.ones((0, 3)),
    "text": np.array(["ab", "cde"]),
    "times": np.zeros(4, "<m8[s]"),
    "structured": np.zeros(3, STRUCTURED),
    "objects": np.array([{"a": 1}, None, "x" * 100], dtype=object),
}
TENSORS = {
    "w": torch.ones(3, 5),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "f": torch.ones(7).to(torch.float8_e5m2),
    "e": torch.zeros(0, 2),
    "data_offsets": torch.tensor(True),
}

WHOLE: dict[str, tuple[str, Callable[[], bytes], Verdict]] = {
    "torch": ("model.pt", lambda: saved({"a": torch.ones(3), "b": torch.zeros(9)}), SOUND),
    "torch bin": ("pytorch_model.bin", lambda: saved(TENSORS), SOUND),
    "torch state": ("last.ckpt", lambda: saved(state()), SOUND),
    "torch many": ("model_best.pth.tar", lambda: saved(many()), SOUND),
    "torch protocol 4": ("model.pth", lambda: saved(state(), pickle_protocol=4), SOUND),
    "torch protocol 5": ("model.pth", lambda: saved(many(), pickle_protocol=5), SOUND),
    "torch protocol 0": ("args.bin", lambda: saved({"a": 1}, pickle_protocol=0), SOUND),
    "torch no suffix": ("checkpoint", lambda: saved(many()), SOUND),
    "torch optimizer": ("optimizer.pt", lambda: saved(optimizer()), SOUND),
    "torch twice": ("two.pt", twice, SOUND),
    "torchscript": ("script.pt", scripted, SOUND),
    "torch legacy": (
        "old.pt",
        lambda: saved(state(), _use_new_zipfile_serialization=False),
        UNKNOWN,
    ),
    "torch behind a prefix": ("prefixed.pt", lambda: b"header" + saved(many()), UNKNOWN),
    "torch and padding": ("padded.pt", lambda: saved(many()) + bytes(512), UNKNOWN),
    "safetensors": ("model.safetensors", lambda: saved_tensors(TENSORS), SOUND),
    "safetensors metadata": (
        "model.safetensors",
        lambda: saved_tensors(TENSORS, metadata={"format": "pt", "data_offsets": "[]"}),
        SOUND,
    ),
    "safetensors empty": ("model.safetensors", lambda: saved_tensors({}), SOUND),
    "safetensors temporary": (".tmpAbCdEf", lambda: saved_tensors(TENSORS), SOUND),
    "npz": ("state.npz", lambda: npz(**ARRAYS), SOUND),
    "npz compressed": ("state.npz", lambda: npz(np.savez_compressed, **ARRAYS), SOUND),
    "npz empty": ("state.npz", lambda: npz(), SOUND),
    "npy several": ("several.npy", lambda: npy(*ARRAYS.values()), SOUND),
    "pickle": ("scheduler.pkl", lambda: pickle.dumps(list(range(99))), UNKNOWN),
    **{
        f"npy {kind}": (f"{kind}.npy", lambda array=array: npy(array), SOUND)
        for kind, array in ARRAYS.items()
    },
}


@pytest.fixture(scope="module")
def whole() -> dict[str, tuple[str, bytes]]:
    return {case: (name, make()) for case, (name, make, _) in WHOLE.items()}


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_file_is_not_broken(case: str, whole: dict[str, tuple[str, bytes]]) -> None:
    assert judge(*whole[case]) == Structure(WHOLE[case][2])


@pytest.fixture(scope="module")
def dcp_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dcp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = {"w": torch.ones(4, 4), "step": 3, "o": {"x": torch.ones(2)}}
        dcp.save(nested, checkpoint_id=path / "torch", no_dist=True)
        writer = dcp.FileSystemWriter(
            path / "safe", serialization_format=SerializationFormat.SAFETENSORS
        )
        dcp.save({"w": torch.ones(4, 4)}, storage_writer=writer, no_dist=True)
    return path


def test_a_whole_dcp_checkpoint_is_sound(dcp_directory: Path) -> None:
    files = [path for path in dcp_directory.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [".metadata"] * 2 + ["__0_0.distcp"] * 2
    for path in files:
        assert judge_file(path) == Structure(SOUND), path
    metadata = (dcp_directory / "torch/.metadata").read_bytes()
    for name in (".metadata.tmp", "__3.metadata", "/a/path/.metadata"):
        assert judge(name, metadata).verdict is SOUND
        assert judge(name, metadata[:-1]).verdict is BROKEN


def test_files_on_disk_are_judged_like_bytes(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "модель.pt")
    save_file(TENSORS, tmp_path / "model.safetensors")
    np.savez(tmp_path / "arrays.npz", **ARRAYS)
    np.save(tmp_path / "array.npy", ARRAYS["structured"])
    for path in tmp_path.iterdir():
        assert judge_file(path).verdict is SOUND, path


# --- cut short


def cuts(size: int) -> Iterator[int]:
    """All lengths of a small file; of a larger one those near its ends and some between."""
    near = 400
    yield from (at for at in range(size) if at < near or at >= size - near or at % 199 == 0)


CUT = ["torch", "torch state", "torch many", "torch protocol 4", "torchscript"]
CUT += ["safetensors", "safetensors metadata", "npz", "npz compressed"]


@pytest.mark.parametrize("case", CUT)
def test_a_cut_file_is_broken(case: str, whole: dict[str, tuple[str, bytes]]) -> None:
    name, data = whole[case]
    # No bytes, or less than the four of a zip's magic number under a name that is used for other
    # formats too: too little to tell. npz and safetensors have their name to themselves.
    telling = 1 if name.endswith((".npz", ".safetensors")) else 4
    for length in cuts(len(data)):
        verdict = judge(name, data[:length]).verdict
        assert verdict is (BROKEN if length >= telling else UNKNOWN), length


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_cut_npy_is_broken(kind: str) -> None:
    data = npy(ARRAYS[kind])
    header = data.index(b"\n") + 1
    for length in range(1, len(data)):
        verdict = judge("a.npy", data[:length]).verdict
        # open_memmap leaves just the header between its first close and its second open.
        bare = length == header and kind != "objects"
        assert verdict is (UNKNOWN if bare else BROKEN), length


def test_the_steps_of_open_memmap_are_not_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (100, 3))
    assert judge_file(path).verdict is SOUND
    del array
    os.truncate(path, 128)
    assert judge_file(path).verdict is UNKNOWN


def test_archives_end_to_end_may_only_be_cut_between_them(dcp_directory: Path) -> None:
    shard = (dcp_directory / "torch/__0_0.distcp").read_bytes()
    ends = [at + 22 for at in range(len(shard)) if shard.startswith(ZIP_END, at)]
    assert len(ends) == 3  # step, w, o.x
    for name, data in (("two.pt", twice()), ("__0_0.distcp", shard)):
        ends = [at + 22 for at in range(len(data)) if data.startswith(ZIP_END, at)]
        for length in range(4, len(data)):
            verdict = judge(name, data[:length]).verdict
            assert verdict is (SOUND if length in ends else BROKEN), length


def test_a_cut_dcp_metadata_is_broken(dcp_directory: Path) -> None:
    data = (dcp_directory / "torch/.metadata").read_bytes()
    for length in range(1, len(data)):
        assert judge(".metadata", data[:length]).verdict is BROKEN, length
        assert judge(".metadata", data[:length] + bytes(len(data) - length)).verdict is BROKEN
    assert judge(".metadata", data + b"more").verdict is UNKNOWN  # loads all the same


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_cut_is_seen_whatever_the_state_dict(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=6))
    tensors = {f"layer.{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}
    if data.draw(st.booleans()):
        name, whole = "a.pt", saved(tensors, pickle_protocol=data.draw(st.sampled_from([2, 4])))
    else:
        name, whole = "a.safetensors", saved_tensors(tensors)
    assert judge(name, whole).verdict is SOUND
    length = data.draw(st.integers(4, len(whole) - 1))
    assert judge(name, whole[:length]).verdict is BROKEN


# --- zeros and other damage


@pytest.mark.parametrize("case", CUT)
def test_a_zeroed_tail_is_broken(case: str, whole: dict[str, tuple[str, bytes]]) -> None:
    name, data = whole[case]
    end = int.from_bytes(data[:8], "little") + 8 if name.endswith(".safetensors") else len(data)
    # The last 22 bytes of a zip hold little that is not also in its zip64 record; a safetensors
    # file's tensor data is not structure: the digest guards it.
    for at in range(4, end - 22) if end < 2000 else (*range(4, 200), *range(end - 600, end - 22)):
        zeroed = data[:at] + bytes(end - at) + data[end:]
        assert judge(name, zeroed).verdict is BROKEN, at


def test_a_hole_in_the_central_directory_is_broken() -> None:
    for name, data in (("a.pt", saved(many())), ("a.npz", npz(**ARRAYS))):
        directory = data.index(b"PK\x01\x02")
        for at in range(directory, data.index(ZIP_END) - 64, 64):
            hole = data[:at] + bytes(64) + data[at + 64 :]
            verdict = judge(name, hole).verdict
            if name == "a.pt" and ZIP_CENTRAL not in data[at : at + 64 + 3]:
                assert verdict is not SOUND, at  # torch can do without some of the names
            else:
                assert verdict is BROKEN, at


def test_a_zeroed_local_header_is_broken() -> None:
    data = saved(many())
    for entry in zipfile.ZipFile(io.BytesIO(data)).infolist()[1:]:
        at = entry.header_offset
        verdict = judge("a.pt", data[:at] + bytes(30) + data[at + 30 :]).verdict
        # torch.load reads nothing where nothing is, nor these three.
        unread = entry.file_size == 0 or entry.filename.endswith(
            (".format_version", ".storage_alignment", ".data/serialization_id")
        )
        assert verdict is (UNKNOWN if unread else BROKEN), entry.filename


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pth.tar", "a.npz", "a.safetensors"])
@pytest.mark.parametrize("size_bytes", [1, 7, 100, 70_000])
def test_zeros_are_broken_under_names_that_rule_them_out(name: str, size_bytes: int) -> None:
    assert judge(name, bytes(size_bytes)).verdict is BROKEN
    assert judge(name, bytes(4096) + b"x" * size_bytes).verdict is BROKEN


@pytest.mark.parametrize("name", ["a.npy", "a.bin", "a.ckpt", "a.distcp", "a.dat"])
def test_zeros_are_not_broken_where_raw_arrays_are_kept(name: str, tmp_path: Path) -> None:
    np.memmap(tmp_path / name, np.float32, "w+", shape=(1000,)).flush()
    assert judge_file(tmp_path / name).verdict is UNKNOWN


def rewritten(data: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """The archive as Python's zipfile writes it, with entries changed or (None) left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.namelist():
            content = change(entry, old.read(entry))
            if content is not None:
                new.writestr(entry, content)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("key", [0, 1, 255, 299])
def test_a_missing_storage_is_broken(protocol: int, key: int) -> None:
    data = saved(many(), pickle_protocol=protocol)
    assert judge("a.pt", rewritten(data, lambda _, content: content)).verdict is SOUND
    lost = f"archive/data/{key}"
    broken = rewritten(data, lambda name, content: None if name == lost else content)
    for name in ("a.pt", "any name"):
        assert judge(name, broken) == Structure(
            BROKEN, f"storage '{key}' is missing from the torch archive"
        )


@pytest.mark.parametrize(
    "tensor",
    "shared view fraction empty scalar long half float8 unsigned complex quantized".split(),  # noqa: SIM905
)
def test_a_storage_of_the_wrong_size_is_broken(tensor: str) -> None:
    value = state()[tensor]
    assert isinstance(value, torch.Tensor)
    data = saved({"before": torch.ones(1, dtype=torch.uint8), "value": value})
    item_bytes = value.itemsize if value.numel() else 0

    def shorter(name: str, content: bytes) -> bytes:
        return content[:-item_bytes] if name == "archive/data/1" else content

    def longer(name: str, content: bytes) -> bytes:
        return content + bytes(16) if name == "archive/data/1" else content

    if item_bytes:
        assert judge("a.pt", rewritten(data, shorter)).verdict is BROKEN
    assert judge("a.pt", rewritten(data, longer)).verdict is BROKEN


def test_a_save_that_failed_half_way_is_broken(tmp_path: Path) -> None:
    class Unpicklable:
        def __reduce__(self) -> str:
            raise ValueError

    with pytest.raises(ValueError):
        torch.save({"a": torch.ones(3), "b": Unpicklable()}, tmp_path / "a.pt")
    assert zipfile.is_zipfile(tmp_path / "a.pt")  # which is why this needs a check of its own
    assert judge_file(tmp_path / "a.pt").verdict is BROKEN


def test_a_damaged_pickle_in_an_archive_is_broken() -> None:
    def damaged(name: str, content: bytes) -> bytes:
        half = len(content) // 2
        return content[:half] + bytes(half) if name == "archive/data.pkl" else content

    assert judge("a.pt", rewritten(saved(many()), damaged)).verdict is BROKEN


def test_an_npz_member_cut_by_an_exception_is_broken() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # what ZipFile.__exit__ leaves
        archive.writestr("a.npy", npy(ARRAYS["matrix"]))
        archive.writestr("b.npy", npy(ARRAYS["fortran"])[:-8])
    assert judge("a.npz", buffer.getvalue()).verdict is BROKEN
    assert judge("a.zip", buffer.getvalue()).verdict is SOUND


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("content", [b"", bytes(200)])
def test_an_npz_member_without_a_header_is_broken(method: int, content: bytes) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.npy", content)
    assert judge("a.npz", buffer.getvalue()).verdict is BROKEN


def test_a_damaged_compressed_member_is_broken() -> None:
    data = bytearray(npz(np.savez_compressed, a=np.arange(1000)))
    at = data.index(b"a.npy") + 5 + data[28]  # behind name and extra field
    data[at] = 0xFF  # no such block type
    assert judge("a.npz", bytes(data)).verdict is BROKEN


@pytest.mark.parametrize("fields", [(20, 24), (20,), (24,)])
def test_an_entry_of_the_wrong_size_is_broken(fields: tuple[int, ...]) -> None:
    """Both sizes: it reaches into the next entry. One: stored and true size differ. NumPy reads
    what the npy header says, if there is as much."""

    def changed(data: bytes, by: int) -> bytes:
        content = bytearray(data)
        at = content.index(ZIP_CENTRAL)
        for field in fields:
            size_bytes = struct.unpack_from("<L", content, at + field)[0]
            struct.pack_into("<L", content, at + field, size_bytes + by)
        return bytes(content)

    assert judge("a.pt", changed(saved(many()), 512)).verdict is BROKEN
    assert judge("a.npz", changed(npz(**ARRAYS), 512)).verdict is UNKNOWN
    assert judge("a.npz", changed(npz(**ARRAYS), -1)).verdict is BROKEN


def test_a_hole_in_an_npy_header_is_broken() -> None:
    data = npy(ARRAYS["matrix"])
    assert judge("a.npy", data[:40] + bytes(20) + data[60:]).verdict is BROKEN


def safetensors(header: object, data_bytes: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def tensor(begin: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data_bytes"),
    [
        ({"a": tensor(0, 8), "b": tensor(12, 16)}, 16),  # a hole
        ({"a": tensor(4, 8)}, 8),
        ({"a": tensor(0, 8), "b": tensor(4, 8)}, 8),  # overlap
        ({"a": tensor(0, 8)}, 12),  # bytes that no tensor has
        ({"a": tensor(0, 8)}, 4),
        ({"a": tensor(0, 8, shape=[3])}, 8),
        ({"a": tensor(0, 8, "F64")}, 8),
        ({"a": tensor(8, 0)}, 0),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4),
        ({"a": {"data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, 4),
        ({"a": 1}, 0),
        ([], 0),
        (b"", 0),
        (b"{", 0),
        (b'{"a": \xff}', 0),
        (b"not JSON at all", 5),
    ],
)
def test_a_safetensors_header_that_does_not_fit_is_broken(header: object, data_bytes: int) -> None:
    data = safetensors(header, data_bytes)
    assert judge("model.safetensors", data).verdict is BROKEN
    assert judge("model.bin", data).verdict is UNKNOWN  # nothing says that it ought to be one


def test_safetensors_allows_what_the_format_allows() -> None:
    for header, data_bytes in (
        ({"b": tensor(4, 8), "a": tensor(0, 4), "none": tensor(4, 4)}, 8),  # in any order
        ({"a": tensor(0, 5, "F9_NEW", [10])}, 5),  # a type of a later version
        ({"a": tensor(0, 2, "F4", [4]), "b": tensor(2, 5, "F6_E2M3", [2, 2])}, 5),
        ({"a": tensor(0, 4), "__metadata__": {"a": "b"}}, 4),
        (b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}      ', 1),  # padding
    ):
        assert judge("model.safetensors", safetensors(header, data_bytes)).verdict is SOUND, header


# --- foreign files: never BROKEN


def jar() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"a comment"
        archive.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n" * 100)
        archive.writestr("version", "1")
        archive.mkdir("empty") if hasattr(archive, "mkdir") else None
    return buffer.getvalue()


def odd_npz() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", "numpy.load gives these bytes as they are")
    return buffer.getvalue()


def encrypted_npz() -> bytes:
    data = bytearray(npz(a=np.ones(3)))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[150:200] = bytes(50)
    return bytes(data)


def npy_header(header: str, data_bytes: int = 64) -> bytes:
    return (
        b"\x93NUMPY\x02\x00" + struct.pack("<L", len(header)) + header.encode() + bytes(data_bytes)
    )


def described(descr: str) -> bytes:
    return npy_header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (99,), }}")


def gzipped(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ANNEX = b"/annex/objects/SHA256E-s31390--f50d7ac4\n"
FOREIGN: dict[str, tuple[list[str], Callable[[], bytes]]] = {
    "empty": (["a.pt", "a.safetensors", "a.npz", "a.npy", ".metadata"], lambda: b""),
    "text": (["a.pt", "a.ckpt", "a.bin", "a.npy", ".metadata", "easy.pth"], lambda: b"hello\n"),
    "tensorflow": (
        ["checkpoint", "model.ckpt", "model.ckpt.index"],
        lambda: b'model_checkpoint_path: "model.ckpt-1000"\n',
    ),
    "json": (["a.bin", "a.ckpt", "model.safetensors.index.json"], lambda: b'{"weight_map": {}}'),
    "gzip": (["a.pt", "a.npz", "a.pt.gz", "a.pkl", "a.safetensors"], lambda: gzipped(saved(1))),
    "jar": (["a.jar", "a.docx", "a.zip", "a.bin"], jar),
    "cut jar": (["a.jar", "a.docx", "a"], lambda: jar()[:-1]),
    "jar with a tail": (["a.jar", "a.zip", "a.bin"], lambda: jar() + b"signature"),
    "git-lfs": (["a.pt", "a.safetensors", "a.npz", "a.npy", ".metadata", "a.bin"], lambda: LFS),
    "git-annex": (["a.pt", "a.safetensors", "a.npz", "a.npy"], lambda: ANNEX),
    "macOS attributes": (["._a.safetensors", "._a.pt", "._a.npz"], lambda: bytes(4096)),
    "npy in npz": (["a.npz"], lambda: npy(ARRAYS["matrix"])),
    "npy in other": (["a.bin", "a.pt"], lambda: npy(ARRAYS["matrix"])[:-1]),
    "npy of version 9": (["a.npy"], lambda: b"\x93NUMPY\x09\0" + bytes(200)),
    "npy with a tail": (["a.npy"], lambda: npy(ARRAYS["matrix"]) + b"more"),
    "npy of an unknown type": (["a.npy"], lambda: described("<Z9")),
    "npy with a long header": (["a.npy"], lambda: described("<f8" + " " * 10_000)),
    "npz with other members": (["a.npz"], odd_npz),
    "npz encrypted": (["a.npz"], encrypted_npz),
    "raw array": (["a.npy", "a.bin"], lambda: np.arange(1000).tobytes()),
    "pickle": (["a.pt", "a.npz", "a.npy", "a.pkl"], lambda: pickle.dumps([1, 2])[:-1]),
    "pickles": ([".metadata"], lambda: pickle.dumps([1, 2]) * 2),
    "cut legacy": (
        ["a.pt", "a.bin"],
        lambda: saved(many(), _use_new_zipfile_serialization=False)[:-99],
    ),
    "hdf5": (["a.h5", "a.ckpt", "a.bin"], lambda: b"\x89HDF\r\n\x1a\n" + bytes(999)),
    "compressed shard": (["__0_0.distcp"], lambda: b"\x28\xb5\x2f\xfd" + bytes(99)),
    "split zip": (["a.zip"], lambda: b"PK\x03\x04" + bytes(99) + ZIP_END + b"\2\0\2\0" + bytes(14)),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_never_broken(case: str) -> None:
    names, make = FOREIGN[case]
    for name in names:
        assert judge(name, make()).verdict is not BROKEN, name


def test_an_archive_may_lie_about_its_entries_unless_its_name_rules_it_out() -> None:
    """Archives over 4 GiB made by macOS have wrapped offsets, and self-extractors the like."""
    data = bytearray(jar())
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, at + 42, 7)
    for name in ("a.zip", "a.jar"):
        assert judge(name, bytes(data)).verdict is not BROKEN
    assert judge("a.pt", bytes(data)).verdict is BROKEN


# --- never raises, always quick


FUZZED = [*CUT, "torch twice", "npy several", "npy structured", "npy objects", "npz empty"]


def timed(name: str, data: bytes) -> Structure:
    start = time.perf_counter()
    found = judge(name, data)
    assert time.perf_counter() - start < 1
    assert isinstance(found.verdict, Verdict)
    assert bool(found.reason) == (found.verdict is BROKEN)
    return found


@pytest.mark.parametrize("case", FUZZED)
def test_flipped_bytes_never_raise(case: str, whole: dict[str, tuple[str, bytes]]) -> None:
    name, data = whole[case]
    dice = random.Random(case)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.choice([1, 1, 2, 8])):
            damaged[dice.randrange(len(data))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, 0x28, 0x2E])
        if dice.random() < 0.2:
            damaged[dice.randrange(len(data)) :] = dice.randbytes(dice.randrange(99))
        timed(name, bytes(damaged))


NAMES = st.sampled_from(
    ["a.pt", "a.npz", "a.npy", "a.safetensors", ".metadata", "a.distcp", "a", "._a", "", "a.zip"]
)
HEADS = [b"", b"PK\x03\x04", ZIP_END, b"\x93NUMPY\x01\x00v\x00", b"\x93NUMPY\x02\x00", b"\x80\x04"]
HEADS += [struct.pack("<Q", 20) + b"{", b"\x80\x02((h\x03X"]
TAILS = [b"", b"}", b".", ZIP_END + bytes(18), ZIP_END + b"\xff" * 16 + b"\0\0"]


OBJECTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner, inner, inner) | st.sets(st.integers())
    | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(OBJECTS, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_the_end_of_any_pickle_is_found(obj: object, protocol: int) -> None:
    data = pickle.dumps([obj, Path("x"), 1 << 3000, "y" * 300, b"z" * 70_000], protocol)
    assert timed(".metadata", data).verdict is SOUND
    assert timed(".metadata", data[:-1]).verdict is BROKEN


@settings(max_examples=300, deadline=None)
@given(NAMES, st.sampled_from(HEADS), st.binary(max_size=300), st.sampled_from(TAILS))
def test_random_bytes_never_raise(name: str, head: bytes, middle: bytes, tail: bytes) -> None:
    timed(name, head + middle + tail)


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | (
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner)
)))  # fmt: skip
def test_any_json_header_never_raises(header: object) -> None:
    timed("a.safetensors", safetensors(header))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999,), }",
        "{'descr': [('a', '<f4'), ('b',)], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }",
        "{'shape': 7}",
        "(" * 500,
        "[" * 60_000,
        "[" * 9_000,
        "-" * 9_000 + "1",
        "__import__('os')",
        "",
    ],
)
def test_odd_npy_headers_never_raise(header: str) -> None:
    timed("a.npy", npy_header(header))


def test_pathological_input_is_still_quick() -> None:
    deep = b"[" * 1_000_000
    timed("a.safetensors", struct.pack("<Q", len(deep)) + deep)
    timed("a.safetensors", struct.pack("<Q", 2**63) + b"{" * 100)
    timed(".metadata", b"\x80\x04" + b"(" * 4_000_000)
    timed(".metadata", b"\x80\x04" + b"(h\x00" * 300_000)
    timed("a.pt", b"PK\x03\x04" + ZIP_END * 20_000)
    timed("a.npy", npy(np.zeros(0)) * 20_000)


# --- bounds


def test_a_multi_gigabyte_archive_is_judged_by_a_few_small_reads(tmp_path: Path) -> None:
    path = tmp_path / "big.pt"
    with torch.serialization.skip_data():  # leaves holes for 5 GiB of storages: real zip64 fields
        torch.save({"a": torch.empty(5 << 28), "b": torch.empty(9)}, path)
    size_bytes = path.stat().st_size
    assert size_bytes > 5 << 30
    reads: list[int] = []

    def read(at: int, length: int) -> bytes:
        reads.append(length)
        return os.pread(file.fileno(), length, at)

    with path.open("rb", buffering=0) as file:
        assert check("big.pt", size_bytes, read).verdict is SOUND
        assert sum(reads) < 1 << 16
        assert check("big.pt", size_bytes - 1, read).verdict is BROKEN


def test_two_thousand_tensors_take_one_read_each_at_most() -> None:
    data = saved({f"layers.{i}.weight": torch.empty(2048) for i in range(2000)})
    reads: list[int] = []

    def read(at: int, length: int) -> bytes:
        reads.append(length)
        return data[at : at + length]

    start = time.perf_counter()
    assert check("a.pt", len(data), read).verdict is SOUND
    assert time.perf_counter() - start < 1
    assert len(reads) < 2100


def test_what_is_over_the_bounds_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"a.pt": saved(many()), "a.safetensors": saved_tensors(TENSORS), "a.npz": npz(**ARRAYS)}
    for reader in (structure.arrays, structure.pickles, structure.tensors, structure.zips):
        monkeypatch.setattr(reader, "METADATA_LIMIT_BYTES", 50)
    for name, data in whole.items():
        assert judge(name, data).verdict is UNKNOWN
    assert judge("a.npy", npy(ARRAYS["objects"])).verdict is UNKNOWN
    metadata = pickle.dumps(["x"] * 99)
    assert judge(".metadata", metadata).verdict is UNKNOWN
    assert judge(".metadata", metadata[:-1]).verdict is BROKEN
    monkeypatch.undo()
    monkeypatch.setattr(structure.base, "_STEPS_LIMIT", 60)
    for name, data in whole.items():
        assert judge(name, data).verdict is SOUND


def test_an_error_of_read_is_passed_on() -> None:
    def read(at: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        check("a.pt", 100, read)


def test_a_file_that_shrinks_meanwhile_is_unknown() -> None:
    data = saved(many())
    assert check("a.pt", len(data), lambda at, n: data[at : at + n][: n // 2]).verdict is UNKNOWN


def test_the_verdicts_are_those_of_the_record() -> None:
    assert {verdict.value for verdict in Verdict} == {"sound", "broken", "unknown"}


def test_the_package_is_pure() -> None:
    sources = [ast.parse(path.read_text()) for path in Path(structure.__file__).parent.glob("*.py")]
    assert len(sources) > 1
    imported = {
        name
        for tree in sources
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not {name.split(".")[0] for name in imported} & {
        *("os", "pickle", "torch", "numpy", "safetensors", "zipfile")
    }
    ours = {name for name in imported if name.startswith("ckptfs")}
    assert all(name.startswith("ckptfs.structure.") for name in ours)
