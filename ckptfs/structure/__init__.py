"""Is this a whole .pt, safetensors, npz, npy or DCP file?

``BROKEN`` is said only of a file that its readers must refuse or read wrongly: a false alarm costs
somebody a save, while the digest guards whatever slips through. What is not certain is
``UNKNOWN``. ``SOUND`` means that every check within the bounds passed.

The work is bounded whatever is in the file: so many reads, headers, directories and pickles of up
to ``METADATA_LIMIT_BYTES``, so many entries; no call keeps other threads waiting for long. Tensor
data is not read, nothing is ever unpickled. Any thread may call; where much is to be parsed, one
goes on at a time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ckptfs.structure.arrays import NPY_MAGIC, check_npy
from ckptfs.structure.base import U64, Broken, File, Read, Unjudged, broken_only_if
from ckptfs.structure.checksums import Proof, Proven, prove
from ckptfs.structure.pickles import PROTO, check_dcp_metadata
from ckptfs.structure.tensors import check_safetensors
from ckptfs.structure.zips import ZIP_END, ZIP_LOCAL, check_zip

__all__ = ["ARCHIVE", "ARRAY", "Proof", "Proven", "Read", "Structure", "Verdict", "check", "prove"]

ARCHIVE, ARRAY = (ZIP_LOCAL, ZIP_END), NPY_MAGIC  # what files of these begin with

# No format of these names begins with zeros. Not so .npy, .bin, .ckpt and .distcp: np.memmap and
# ndarray.tofile put raw arrays under such names.
_NEVER_ZERO_SUFFIXES = (".pt", ".pth", ".pth.tar", ".npz", ".metadata", ".metadata.tmp")
_DCP_METADATA_SUFFIXES = (".metadata", ".metadata.tmp")
# Stand-ins for a file (git-lfs, git-annex), and plainly other formats.
_NOT_SAFETENSORS = (b"version https://", b"/annex/objects/", b"\x1f\x8b")


class Verdict(enum.Enum):
    """The value goes into a version's record."""

    SOUND = "sound"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Structure:
    """A verdict and, for ``BROKEN``, one short clause that tells the user why."""

    verdict: Verdict
    reason: str = ""


def check(name: str, size_bytes: int, read: Read) -> Structure:
    """Judge a file of ``size_bytes`` by its name (or path) and its content.

    ``read(offset_bytes, length_bytes)`` returns at most that many bytes, fewer only at the end of
    the file. Raises nothing of its own; an OSError of ``read`` is passed on. A file that shrinks
    meanwhile is ``UNKNOWN``.
    """
    file = File(size_bytes, read)
    try:
        _judge(name.rsplit("/", 1)[-1].lower(), file)
    except Broken as broken:
        return Structure(Verdict.BROKEN, str(broken))
    except OSError:
        raise
    except Exception:  # Unjudged, or malformed in a way that nobody foresaw: no guess
        return Structure(Verdict.UNKNOWN)
    finally:
        file.close()
    return Structure(Verdict.SOUND)


def _judge(name: str, file: File) -> None:
    """Return if sound, else raise Broken or Unjudged."""
    if file.size == 0 or name.startswith("._"):  # "._x" holds macOS attributes of x
        raise Unjudged
    head = file.bytes(0, min(file.size, 64))
    if head[:4] in (ZIP_LOCAL, ZIP_END):
        check_zip(file, name)
    elif name.endswith(".safetensors"):
        if head.startswith(_NOT_SAFETENSORS):
            raise Unjudged
        check_safetensors(file)
    elif head.startswith(NPY_MAGIC):
        with broken_only_if(name.endswith((".npy", ".npz"))):
            check_npy(file)
    elif head[0] == PROTO and name.endswith(_DCP_METADATA_SUFFIXES):
        check_dcp_metadata(file)
    elif not any(head) and name.endswith(_NEVER_ZERO_SUFFIXES):
        raise Broken("it begins with zeros in place of a header")
    elif (name.endswith(".npy") and NPY_MAGIC.startswith(head)) or (
        name.endswith(".npz") and ZIP_LOCAL.startswith(head)
    ):
        raise Broken("cut short within its first bytes")
    elif head[8:9] == b"{" and U64.unpack_from(head)[0] < file.size:
        with broken_only_if(False):  # "{" is no magic number: only a full match counts
            check_safetensors(file)
    else:
        raise Unjudged
