"""Safe printing: tile names come from untrusted data and may hold control characters that a terminal obeys."""

import re
import sys
from typing import TextIO

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters, line separators, bidirectional marks, surrogates, and what XML does not allow."""


def printable(line: str) -> str:
    """A line with unprintable characters escaped: `\\x1b` for the character ESC."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def say(text: str) -> None:
    """Print lines to standard output."""
    _print(text, sys.stdout)


def note(text: str) -> None:
    """Print lines to standard error, where they do not mix with results."""
    _print(text, sys.stderr)


def warn(sentence: str) -> None:
    """Print a sentence to standard error as one line, prefixed with `rsprune:`; nothing if it is empty."""
    if sentence:
        note(printable(f"rsprune: {sentence}"))


def _print(text: str, stream: TextIO) -> None:
    lines = "\n".join(printable(line) for line in text.split("\n"))
    encoding = stream.encoding or "utf-8"
    print(lines.encode(encoding, "backslashreplace").decode(encoding), file=stream)
