"""Checks of pruned_subset against its last version: changed scene shares, and freshness."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Final

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.pruning.checks.verdict import Verdict, named
from rsprune_dagster.pruning.scenes import is_foreign
from rsprune_dagster.utils.csv_files import read_sheet

SAMPLING_ERRORS: Final = 3.0
"""A change counts only beyond this many standard deviations (square root of the expected count)."""
NAMED_SCENES: Final = "scenes"
DAY_S: Final = 86_400.0


def kept_by_scene(layout: Layout) -> dict[str, int]:
    """Kept tiles of each scene."""
    return {line["scene"]: int(line["n_kept"]) for line in read_sheet(layout.file("scenes"))}


def strata_of(layout: Layout) -> str:
    """The kind of strata: `scenes` of the reference, or the hash of the centroids if the pool is foreign.

    Counts of two versions are comparable only if it is equal: cluster numbers have no meaning for other centroids.
    """
    quality = json.loads(layout.file("quality").read_text())
    if not is_foreign(quality["scene_names"], quality["balance_over"]):
        return NAMED_SCENES
    return hashlib.md5(layout.file("centroids").read_bytes(), usedforsecurity=False).hexdigest()


def scene_coverage(now: Mapping[str, int], before: Mapping[str, int], *, max_scene_shift: float) -> Verdict:
    """No scene's share of the kept tiles changed by more than `max_scene_shift`, relatively, and none vanished.

    Args:
        now, before: kept tiles per scene; `before` is empty if no last version has the same strata.
    """
    if not before:
        sentence = f"{_n_scenes(now)} scenes, and no last version with the same scenes or clusters to compare with."
        return Verdict(True, sentence, {"n_scenes": _n_scenes(now)})
    scale = sum(now.values()) / max(sum(before.values()), 1)
    expected = {scene: n * scale for scene, n in before.items()}
    names = sorted({*now, *before})
    change = {scene: now.get(scene, 0) - expected.get(scene, 0.0) for scene in names}
    moved = {scene for scene in names if _is_shift(change[scene], expected.get(scene, 0.0), max_scene_shift)}
    vanished = [scene for scene in names if before.get(scene, 0) and not now.get(scene, 0)]
    gained, lost = ([s for s in names if s in moved and (change[s] > 0) is up] for up in (True, False))
    figures = {
        "n_scenes": _n_scenes(now),
        "n_gained": len(gained),
        "n_lost": len(lost),
        "n_vanished": len(vanished),
        "total_variation": sum(abs(value) for value in change.values()) / (2 * max(sum(now.values()), 1)),
    }
    table = _table(names, now, before, expected)
    if not moved and not vanished:
        return Verdict(True, f"the shares of {_n_scenes(now)} scenes are those of the last version.", figures, table)
    parts = [f"{len(vanished)} scenes have no kept tile any more{named(vanished, len(vanished))}"] if vanished else []
    parts += [f"{len(lost)} lost{named(lost, len(lost))}"] if lost else []
    parts += [f"{len(gained)} gained{named(gained, len(gained))}"] if gained else []
    todo = (
        "If the corpus did not change so, look for a source that is missing or for new tiles of one kind; "
        "`rsprune diff` names the tiles."
    )
    return Verdict(False, f"the scenes of the subset moved: {'; '.join(parts)}. {todo}", figures, table)


def fresh(age_s: float | None, stale: Mapping[str, str], *, max_age_days: float) -> Verdict:
    """The subset was made from the current inputs and is not too old.

    Args:
        age_s: age of the subset; None: unknown.
        stale: the inputs that have another version now, with that version.
    """
    age_days = 0.0 if age_s is None else age_s / DAY_S
    figures = {"age_days": round(age_days, 3), "n_stale_inputs": len(stale)}
    wrong = [f"{name} is another version now ({version[:8]})" for name, version in sorted(stale.items())]
    wrong += [f"it is {age_days:.1f} days old, more than {max_age_days:g}"] if age_days > max_age_days else []
    if not wrong:
        return Verdict(True, "made from what lies there now, and not too long ago.", figures)
    return Verdict(False, f"{'; '.join(wrong)}: run the job prune, or turn automation.enabled on.", figures)


def _is_shift(change: float, expected: float, max_scene_shift: float) -> bool:
    return abs(change) > max(max_scene_shift * expected, SAMPLING_ERRORS * math.sqrt(max(expected, 1.0)))


def _n_scenes(counts: Mapping[str, int]) -> int:
    return sum(n > 0 for n in counts.values())


def _table(
    names: list[str], now: Mapping[str, int], before: Mapping[str, int], expected: Mapping[str, float]
) -> tuple[tuple[object, ...], ...]:
    header = ("scene", "kept before", "kept now", "change of its share")
    lines = []
    for scene in names:
        was = expected.get(scene, 0.0)
        change = f"{now.get(scene, 0) / was - 1:+.0%}" if was else "new"
        lines.append((scene, before.get(scene, 0), now.get(scene, 0), change))
    return (header, *lines)
