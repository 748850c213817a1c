"""Hashes of plain values, as keys of caches."""

import hashlib
import json


def digest(*parts: object) -> str:
    """sha256 of the values as JSON: equal for equal values on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
