"""Results of a study: one JSON file per arm and seed, written atomically."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.errors import RunError

SHOWN_COLUMNS: Final = 10
"""Suffix of the picture of samples."""


@dataclass(frozen=True)
class Point:
    """Scores of the samples at one checkpoint."""

    n_images: int
    loss: float
    """The mean loss over the last steps so far: a tenth of them, or a twentieth of a fine-tuning's."""
    scores: dict[str, float]


@dataclass(frozen=True)
class ArmResult:
    """The (partial) result of one arm with one seed."""

    arm: str
    strategy: str
    keep_fraction: float
    seed: int
    n_tiles: int
    tiles: str
    """Fingerprint of the training tiles."""
    study: str
    """The key of the study; results of other studies are ignored."""
    points: tuple[Point, ...] = field(default=())

    @property
    def n_images(self) -> int:
        """Training images of the last evaluated checkpoint."""
        return self.points[-1].n_images if self.points else 0

    def values(self, score: str) -> dict[int, float]:
        """The score by training images."""
        return {point.n_images: point.scores[score] for point in self.points if score in point.scores}


def result_path(folder: Path, arm: str, seed: int) -> Path:
    """The path of the result of an arm and a seed in the folder of a study."""
    return folder / arm / f"{seed}.json"


def write_result(folder: Path, result: ArmResult) -> Path:
    """Write it. RunError: the disk is full."""
    target = result_path(folder, result.arm, result.seed)
    with atomic_write(target) as draft:
        draft.write_text(json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")
    return target


def read_result(path: Path) -> ArmResult | None:
    """The result in a file; None where there is none. RunError: it is damaged."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        points = tuple(Point(**point) for point in raw.pop("points"))
        return ArmResult(**raw, points=points)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"the study's result {path} cannot be read ({error}): remove it, and it is made anew") from error


def read_results(folder: Path) -> tuple[ArmResult, ...]:
    """All results below the folder of a study, by arm and seed."""
    found: Iterable[ArmResult | None] = (read_result(path) for path in sorted(folder.glob("*/[0-9]*.json")))
    return tuple(sorted((one for one in found if one), key=lambda one: (one.arm, one.seed)))
