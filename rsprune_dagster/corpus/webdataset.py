"""Labels in a WebDataset: a tar in which the files of a sample share a key, the path up to the first dot of the name.

github.com/webdataset/webdataset: the class of `forest/0001.jpg` is in `forest/0001.cls`, as a number or a name, or
in `forest/0001.json`, under `label`, `scene`, `class` or `category`. `.cls` overrides `.json`.
"""

import json
from collections.abc import Collection, Sequence
from typing import IO

from rsprune_dagster.corpus.parquets import LABEL_NAMES
from rsprune_dagster.corpus.storage import escaped_name, open_binary
from rsprune_dagster.corpus.tars import Member

MOST_LABEL_BYTES = 1 << 20
"""A longer file is not a label and is not read."""


def labels(uri: str, members: Sequence[Member], images: Collection[str]) -> dict[str, str]:
    """The escaped labels of those `images` (member names) that have a label file."""
    keys = {key_of(image) for image in images}
    found: dict[str, str] = {}
    with open_binary(uri) as tar:
        for kind in ("json", "cls"):  # the later one overrides
            for member in members:
                if member.name.endswith(f".{kind}") and (key := key_of(member.name)) in keys:
                    label = _label(_content(tar, member), kind)
                    found.update({key: label} if label else {})
    return {image: found[key_of(image)] for image in images if key_of(image) in found}


def key_of(name: str) -> str:
    """The key: `forest/0001` for `forest/0001.seg.png`."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _content(tar: IO[bytes], member: Member) -> bytes:
    if member.offset is None or member.length is None or member.length > MOST_LABEL_BYTES:
        return b""
    tar.seek(member.offset)
    return tar.read(member.length)


def _label(content: bytes, kind: str) -> str:
    """The label; empty if there is none."""
    text = content.decode("utf-8", "surrogateescape").strip()
    if kind == "cls":
        return escaped_name(text)
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    values = [facts.get(name) for name in LABEL_NAMES] if isinstance(facts, dict) else []
    given = (str(value) for value in values if isinstance(value, str | int) and not isinstance(value, bool))
    return escaped_name(next(given, "").strip())
