"""Tars and Parquet files, damaged in every way: what the readers make of them is rows, reasons or one clear line.

`python tests/fuzz_containers.py --n 20000` does so many of each kind, and tells how they ended; `--kind tar --only 17`
does one of them again. The same seed makes the same files.
"""

import argparse
import io
import random
import resource
import signal
import struct
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.sources import list_corpus, members
from rsprune_dagster.utils.errors import TileError, UserError

LONGEST_S = 60
"""An input that takes longer hangs; most take a few milliseconds."""
MOST_READ = 64
"""Rows of an input that are read."""
MOST_GROWTH_MB = 512
"""How much the process may grow over all inputs, which have a few kilobytes each."""
BLOCK = tarfile.BLOCKSIZE
Random = random.Random


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(out, "JPEG")
    return out.getvalue()


JPEGS = [jpeg(number) for number in range(4)]


def outcomes(path: Path, *, labelled: bool) -> Iterator[str]:
    """How the listing of a container and the reading of its first rows end."""
    options = ReadOptions()
    try:
        containers = list_corpus([str(path)], labelled=labelled).containers
        tables = (table for each in containers for table in members(each, options=options, labelled=labelled))
        rows = [row for table in tables for row in table.to_pylist()]
        assert len({row["tile_id"] for row in rows}) == len(rows), "ids must be unique"
        with TileReader(options) as reader:
            for row in islice(rows, MOST_READ):
                yield _read(reader, row)
    except UserError as error:
        assert "\n" not in str(error)
        yield type(error).__name__


def _read(reader: TileReader, row: dict[str, Any]) -> str:
    try:
        reader.read_grey(row)
        return "tile"
    except TileError as error:
        assert "\n" not in str(error)
        return "reason: " + str(error).partition(":")[0][:60]


# ---- tars


def header(name: str, data: bytes = b"", **values: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % BLOCK)


def written(tar_format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for name in ("a/0.jpg", "b/1.jpg", "b/" + "long" * 30 + "/2.jpg", "b/é.jpg", "1.cls", "1.json"):
            info = tarfile.TarInfo(name)
            data = {"cls": b"3", "json": b'{"label": "sea"}'}.get(name.rpartition(".")[2], JPEGS[0])
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "a/0.jpg"
            archive.addfile(info)
    return out.getvalue()


def record(key: bytes, value: bytes) -> bytes:
    """A pax record, which begins with its own length."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def sparse(version: int) -> bytes:
    """A sparse member, as the four ways of GNU tar write it; 3 is the oldest."""
    if version == 3:
        block = bytearray(header("s.jpg", JPEGS[0], type=tarfile.GNUTYPE_SPARSE)[:BLOCK])
        block[386:410] = b"%011o\0%011o\0" % (0, len(JPEGS[0]))
        block[482] = 1
        block[483:495] = b"%011o\0" % 4096
        return (
            checked(block)
            + b"%011o\0%011o\0" % (2048, 0)
            + bytes(BLOCK - 24)
            + JPEGS[0]
            + bytes(-len(JPEGS[0]) % BLOCK)
        )
    records = {
        0: [(b"size", b"4096"), (b"numblocks", b"1"), (b"offset", b"0"), (b"numbytes", b"512")],
        1: [(b"size", b"4096"), (b"numblocks", b"1"), (b"map", b"0,512")],
        2: [(b"major", b"1"), (b"minor", b"0"), (b"name", b"s.jpg"), (b"realsize", b"4096")],
    }[version]
    data = b"1\n0\n512\n".ljust(BLOCK, b"\0") + JPEGS[0] if version == 2 else JPEGS[0]
    pax = b"".join(record(b"GNU.sparse." + key, value) for key, value in records)
    return header("pax", pax, type=tarfile.XHDTYPE) + header("s.jpg", data)


def checked(block: bytes | bytearray) -> bytes:
    """A header with the right checksum."""
    summed = bytes(block[:148]) + b" " * 8 + bytes(block[156:BLOCK])
    return summed[:148] + b"%06o\0 " % sum(summed) + summed[156:]


TARS = [
    *(written(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
    *(
        header("a.jpg", JPEGS[1]) + sparse(version) + header("b.jpg", JPEGS[2]) + bytes(2 * BLOCK)
        for version in range(4)
    ),
]
FIELDS = {"name": (0, 100), "mode": (100, 108), "size": (124, 136), "mtime": (136, 148), "type": (156, 157)}
FIELDS |= {"linkname": (157, 257), "magic": (257, 265), "prefix": (345, 500), "sparse": (386, 495)}
KEYS = (
    b"path",
    b"linkpath",
    b"size",
    b"mtime",
    b"uid",
    b"hdrcharset",
    b"comment",
    b"GNU.sparse.map",
    b"GNU.sparse.size",
)
KEYS += (b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"GNU.sparse.realsize", b"GNU.sparse.offset")
NUMBERS = (0, 1, 8, 511, 512, 2**31, 2**33, 2**62, 2**63, 2**64, 10**30)


def number(rng: Random) -> int:
    return rng.choice(NUMBERS) * rng.choice((1, 1, -1)) + rng.randint(-1, 1)


def text(rng: Random) -> bytes:
    odd = (
        b"",
        b"\0",
        b"\n",
        b"..",
        b"./",
        b"/",
        b"\xff\xfe",
        b"~2",
        b"\\x41",
        b"9" * 300,
        b"a" * 256,
        b".jpg",
        b"b/1.jpg",
    )
    return b"".join(rng.choices(odd, k=rng.randint(0, 3)))


def field_value(rng: Random, length: int) -> bytes:
    """A value of a header's field: digits, a binary number of either sign, a text, or anything."""
    value = number(rng)
    size = max(length - 1, 1)
    ways: Sequence[Callable[[], bytes]] = (
        lambda: b"%o\0" % abs(value),
        lambda: b"-%o\0" % abs(value),
        lambda: b"\x80" + (abs(value) % 256**size).to_bytes(size, "big"),
        lambda: b"\xff" + (value % 256**size).to_bytes(size, "big"),
        lambda: text(rng),
        lambda: rng.choice(b"01234567LKxgSVX \0").to_bytes(1, "big"),
        lambda: rng.randbytes(length),
    )
    return rng.choice(ways)()[:length].ljust(length, b"\0")


def header_field(rng: Random, data: bytearray) -> bytearray:
    at = rng.randrange(max(len(data) // BLOCK, 1)) * BLOCK
    starts = [start for start in range(0, len(data) - BLOCK + 1, BLOCK) if data[start + 257 : start + 262] == b"ustar"]
    at = rng.choice(starts) if starts and rng.random() < 0.9 else at
    block = data[at : at + BLOCK]
    start, end = FIELDS[rng.choice(list(FIELDS))]
    block[start:end] = field_value(rng, end - start)
    data[at : at + BLOCK] = checked(block.ljust(BLOCK, b"\0"))
    return data


def extended_header(rng: Random, data: bytearray) -> bytearray:
    """An extended header, or a chain of them, put between two blocks."""
    kinds = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"X")
    values = [rng.choice((text(rng), b"%d" % number(rng), b"0,512,1", rng.randbytes(4))) for _ in range(3)]
    records = b"".join(record(rng.choice(KEYS), value) for value in values)
    content = rng.choice((records, records, text(rng), rng.randbytes(20), records[: rng.randrange(len(records))]))
    more = header("x", content, type=rng.choice(kinds))
    if rng.random() < 0.2:
        more = checked(bytearray(more[:124]) + field_value(rng, 12) + more[136:BLOCK]) + more[BLOCK:]
    at = rng.randrange(len(data) // BLOCK + 1) * BLOCK
    data[at:at] = more * rng.choice((1, 1, 1, 2, 1500 if rng.random() < 0.02 else 3))
    return data


def blocks(rng: Random, data: bytearray) -> bytearray:
    """Blocks lost, repeated, or taken from another tar."""
    at, n_blocks = rng.randrange(len(data) // BLOCK + 1) * BLOCK, rng.randint(1, 4)
    other = rng.choice(TARS)
    source = rng.randrange(len(other) // BLOCK) * BLOCK
    data[at : at + rng.choice((0, n_blocks * BLOCK))] = rng.choice((b"", other[source : source + n_blocks * BLOCK]))
    return data


# ---- Parquet


def parquet(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def parquet_seeds() -> list[bytes]:
    names, labels = [f"{n}.jpg" for n in range(4)], ["sea", "city", "sea", None]
    plain = pa.table({"jpg": JPEGS, "filename": names, "label": labels})
    structs = pa.table({"image": [{"bytes": each, "path": name} for each, name in zip(JPEGS, names, strict=True)]})
    hugging_face = structs.append_column("label", pa.array([0, 1, 0, 1])).replace_schema_metadata(
        {b"huggingface": b'{"info": {"features": {"label": {"names": ["sea", "city"]}}}}'}
    )
    holes = pa.table(
        {
            "image": pa.array([JPEGS[0], None] * 40, pa.large_binary()),
            "class": pa.array(["a", "b"] * 40).dictionary_encode(),
        }
    )
    return [
        parquet(plain, row_group_size=2, compression="none", use_dictionary=False),
        parquet(plain, compression="zstd", data_page_version="2.0"),
        parquet(
            plain,
            column_encoding={"filename": "DELTA_BYTE_ARRAY", "jpg": "DELTA_LENGTH_BYTE_ARRAY"},
            use_dictionary=False,
        ),
        parquet(hugging_face, compression="snappy"),
        parquet(holes, row_group_size=40, data_page_size=1024, write_page_index=True),
    ]


PARQUETS = parquet_seeds()


def footer_start(data: bytes | bytearray) -> int:
    (length,) = struct.unpack("<I", data[-8:-4])
    return max(len(data) - 8 - length, 0)


def footer_bytes(rng: Random, data: bytearray) -> bytearray:
    """The footer with bytes changed, put in or taken out; its length is right again."""
    start = footer_start(data)
    footer = data[start:-8]
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(footer) + 1)
        varint = rng.choice(
            (b"\0", b"\1", b"\x7f", b"\xff\xff\xff\xff\x0f", b"\xfe" + b"\xff" * 8 + b"\1", b"\xff" * 11)
        )
        put = rng.choice((varint, rng.randbytes(1), rng.randbytes(4), b"", footer[at : at + 40]))
        footer[at : at + rng.choice((0, 1, 1, len(put), rng.randint(0, 40)))] = put
    return data[:start] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def footer_length(rng: Random, data: bytearray) -> bytearray:
    data[-8:-4] = struct.pack("<I", abs(number(rng)) % 2**32 if rng.random() < 0.5 else rng.randrange(len(data)))
    return data


def footer_of_another(rng: Random, data: bytearray) -> bytearray:
    """A footer that is right in itself, over pages that are not its own."""
    other = rng.choice(PARQUETS)
    return data[: footer_start(data)] + other[footer_start(other) :]


def page_starts(data: bytes) -> list[int]:
    metadata = pq.read_metadata(io.BytesIO(data))
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    chunks = [group.column(column) for group in groups for column in range(group.num_columns)]
    return sorted({start for each in chunks for start in (each.data_page_offset, each.dictionary_page_offset) if start})


PAGE_STARTS = sorted({start for data in PARQUETS for start in page_starts(data)})
"""Of the seeds: to ask damaged files for theirs aborts the process (pyarrow's `RowGroupMetaData.column`)."""


def page_header(rng: Random, data: bytearray) -> bytearray:
    """Bytes at the head of a page: its sizes, its number of values, its encodings."""
    at = rng.choice(PAGE_STARTS) + rng.randint(0, 24)
    put = rng.choice((b"\0", b"\xff" * 4 + b"\x0f", b"\xfe\xff\xff\xff\x0f", rng.randbytes(1), rng.randbytes(3)))
    data[at : at + rng.choice((len(put), 0, 1))] = put
    return data


# ---- both


def flipped(rng: Random, data: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def cut(rng: Random, data: bytearray) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


Mutation = Callable[[Random, bytearray], bytearray]
KINDS: dict[str, tuple[Sequence[bytes], Sequence[Mutation]]] = {
    "tar": (TARS, (header_field, header_field, header_field, extended_header, extended_header, blocks, flipped, cut)),
    "parquet": (
        PARQUETS,
        (footer_bytes, footer_bytes, footer_length, footer_of_another, page_header, page_header, flipped, cut),
    ),
}


def mutated(kind: str, seed: int, index: int) -> bytes:
    """Input `index` of a kind: one of its seeds after one to three mutations."""
    rng = Random(f"{kind}-{seed}-{index}")
    seeds, mutations = KINDS[kind]
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if len(data) >= 8:
            data = rng.choice(mutations)(rng, data)
    return bytes(data)


class HangError(BaseException):
    """An input took too long. Not an Exception: the readers turn those of libraries into reasons."""


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(kind: str, indices: Sequence[int], folder: Path, *, seed: int = 0) -> Counter[str]:
    """Read the inputs `indices` of a kind in `folder`; counts how rows and listings ended.

    Raises:
        AssertionError: inputs ended otherwise; their numbers are named.
    """
    found: Counter[str] = Counter()
    wrong: list[str] = []
    path = folder / f"fuzzed.{kind}"
    for index in indices:
        path.write_bytes(mutated(kind, seed, index))
        try:
            with no_longer_than(LONGEST_S):
                found.update(outcomes(path, labelled=index % 2 == 0))
        except (Exception, HangError) as error:
            wrong.append(f"{kind} input {index} of seed {seed}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} inputs ended otherwise", *wrong[:20]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000, help="inputs of each kind")
    parser.add_argument("--kind", choices=list(KINDS), help="one kind alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one input alone")
    options = parser.parse_args()
    for kind in [options.kind] if options.kind else KINDS:
        with tempfile.TemporaryDirectory() as folder:
            before_mb, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.monotonic()
            indices = range(options.n) if options.only is None else [options.only]
            found = fuzz(kind, indices, Path(folder), seed=options.seed)
            grown_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mb
        print(f"{kind}: {len(indices):,} inputs in {time.monotonic() - started:.0f} s, {grown_mb:.0f} MB more memory")
        print("\n".join(f"{n:>10,}  {how}" for how, n in found.most_common()))
        assert grown_mb < MOST_GROWTH_MB, "memory out of proportion to the inputs"


if __name__ == "__main__":
    main()
