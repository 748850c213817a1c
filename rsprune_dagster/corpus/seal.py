"""Finished work that is kept for later runs carries a checksum of its whole file: damaged work is done again.

The checksum stands in the file itself, as metadata of Parquet and safetensors and as a value of JSON, so that a file
and its checksum take their place together. It is computed with zeros in its own place.
"""

import hashlib
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_MARK = b"rsprune-sha256:"
_ZEROS = b"0" * 64

KEY = "seal"
UNSEALED = (_MARK + _ZEROS).decode()
"""The value of KEY in a file that is to be sealed."""

_log = logging.getLogger(__name__)


def sealed(data: bytes) -> bytes:
    """A file's content with its checksum in the place that UNSEALED marks."""
    start = data.rindex(_MARK + _ZEROS) + len(_MARK)
    return data[:start] + _checksum(data, start) + data[start + len(_ZEROS) :]


def is_sealed(data: bytes) -> bool:
    """Whether a file's content is, bit for bit, what was sealed."""
    start = data.rfind(_MARK) + len(_MARK)
    return start >= len(_MARK) and data[start : start + len(_ZEROS)] == _checksum(data, start)


def is_whole(path: Path) -> bool:
    """Whether finished work lies at `path` as it was written. Damaged work is removed, with one line of warning."""
    return read_whole(path) is not None


def read_whole(path: Path) -> bytes | None:
    """The finished work at `path`; None where there is none, or it was damaged: see `is_whole`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if is_sealed(data):
        return data
    _log.warning("%s is damaged: its work is done again", path)
    path.unlink(missing_ok=True)
    return None


def sealed_table(table: pa.Table) -> bytes:
    """A table as a sealed Parquet file."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: UNSEALED})
    return sealed(buffer.getvalue().to_pybytes())


def _checksum(data: bytes, start: int) -> bytes:
    digest = hashlib.sha256(memoryview(data)[:start])
    digest.update(_ZEROS)
    digest.update(memoryview(data)[start + len(_ZEROS) :])
    return digest.hexdigest().encode()
