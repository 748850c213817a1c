"""Scores with their measurement protocol. Scores with different protocols are not compared.

Feature network, resize, reference and counts affect a fidelity score (Parmar, Zhang and Zhu 2022, "On Aliased
Resizing"), the count most: a Fréchet distance decreases as samples are added (Binkowski et al. 2018).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from rsprune_dagster.utils.errors import RunError

Value = str | int | float

UNSET: Final = "none"


@dataclass(frozen=True)
class Protocol:
    """Everything that a score depends on besides the generated images."""

    network: str
    sha256: str  # of the network's weights; empty without weights
    resize: str  # in words
    reference: str  # hash of the reference images, independent of their order
    n_reference: int
    n_generated: int
    parameters: tuple[tuple[str, Value], ...] = ()  # of the measure, such as ("n_neighbours", 5)

    def differences(self, other: "Protocol") -> list[str]:
        """Differences from `other`, as phrases; empty: the scores are comparable."""
        one, two = asdict(self), asdict(other)
        named = [field.name for field in fields(self) if field.name != "parameters"]
        return _differing({key: one[key] for key in named}, {key: two[key] for key in named}) + _differing(
            dict(self.parameters), dict(other.parameters)
        )

    def as_json(self) -> dict[str, Any]:
        """For protocols.json."""
        return {**asdict(self), "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Protocol":
        """What `as_json` gave."""
        return cls(**{**raw, "parameters": tuple(raw["parameters"].items())})


@dataclass(frozen=True)
class Score:
    """A measured value with its interval (see `intervals.py`); `caution` is a warning sentence."""

    name: str
    value: float
    low: float
    high: float
    level: float  # 0 to 1
    n_resamples: int  # 0: the interval is in closed form
    protocol: Protocol
    larger_is_better: bool
    caution: str = ""

    def as_json(self) -> dict[str, Any]:
        """For protocols.json."""
        return {**asdict(self), "protocol": self.protocol.as_json()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Score":
        """What `as_json` gave."""
        return cls(**{**raw, "protocol": Protocol.from_json(raw["protocol"])})


@dataclass(frozen=True)
class Difference:
    """a - b, in the units of the scores."""

    value: float
    low: float
    high: float
    level: float


def difference(a: Score, b: Score) -> Difference:
    """a - b with an interval, assuming independent errors. RunError: their protocols differ.

    The two intervals' arms are added in quadrature (MOVER: Zou and Donner 2008, doi:10.1002/sim.3095).
    """
    _check_comparable(a, b)
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Difference(value, low, high, a.level)


def better(a: Score, b: Score, margin: float) -> bool:
    """Whether the whole interval of the improvement of a over b exceeds `margin` (0 or more, units of the score).

    Raises RunError if their protocols differ or the margin is negative.
    """
    if not margin >= 0:
        raise RunError(f"margin is {margin}, expected 0 or more: how much better a score has to be")
    gap = difference(a, b)
    return gap.low > margin if a.larger_is_better else gap.high < -margin


def _check_comparable(a: Score, b: Score) -> None:
    differing = _differing({"name": a.name, "level": a.level}, {"name": b.name, "level": b.level})
    differing += a.protocol.differences(b.protocol)
    if differing:
        raise RunError(
            f"{a.name} of {a.value:.4g} and {b.name} of {b.value:.4g} cannot be compared, their protocols differ: "
            f"{'; '.join(differing)}. Measure both again with one protocol"
        )


def _differing(one: Mapping[str, Value], two: Mapping[str, Value]) -> list[str]:
    return [
        f"{key} {_shown(one.get(key, UNSET))} against {_shown(two.get(key, UNSET))}"
        for key in dict.fromkeys([*one, *two])
        if one.get(key, UNSET) != two.get(key, UNSET)
    ]


def _shown(value: Value) -> str:
    """A value for a message; hashes are shortened."""
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value) or UNSET
    return text[:12] if len(text) >= 32 and " " not in text else text
