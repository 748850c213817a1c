"""A difference between two subsets, told: lines of a terminal, or Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rsprune_dagster.lineage.differences import Difference, Side
from rsprune_dagster.lineage.tell import SHORT
from rsprune_dagster.lineage.text import shown, table
from rsprune_dagster.pruning.steps.compare import REASONS_ENTERED, REASONS_LEFT
from rsprune_dagster.report import markdown

_SCENES = ("scene", "kept in A", "kept in B", "entered", "left", "moved")


def as_text(difference: Difference) -> str:
    """For a terminal."""
    found = difference.comparison
    parts = [
        f"A  {_named(difference.a)}\nB  {_named(difference.b)}",
        _made(difference),
        table(
            ("", "A", "B"), [("tiles seen", found.n_tiles_a, found.n_tiles_b), ("kept", found.n_kept_a, found.n_kept_b)]
        ),
        counts(difference),
        _other_clusters(difference),
        table(*_scene_rows(difference)) if _scenes_changed(difference) else "",
        _reasons("Why tiles left", found.reasons_left, REASONS_LEFT, difference.left, "b"),
        _reasons("Why tiles entered", found.reasons_entered, REASONS_ENTERED, difference.entered, "a"),
    ]
    return "\n\n".join(part for part in parts if part)


def as_markdown(difference: Difference) -> str:
    """For a pull request."""
    found = difference.comparison
    changes = [(name, _value(a), _value(b)) for name, a, b in _changes(difference)]
    parts = [
        f"### {counts(difference)}\n\nA: {_named(difference.a)}  \nB: {_named(difference.b)}",
        markdown.table(("made with", "A", "B"), changes) if changes else "",
        _other_clusters(difference),
        markdown.table(*_scene_rows(difference)) if _scenes_changed(difference) else "",
        _reason_table("why tiles left", found.reasons_left, REASONS_LEFT),
        _reason_table("why tiles entered", found.reasons_entered, REASONS_ENTERED),
    ]
    return "\n\n".join(part for part in parts if part)


def _named(side: Side) -> str:
    told = "" if side.chain[0].is_told else ", of which nothing but the content is known"
    return f"{side.data_version} ({side.name}{told})"


def _made(difference: Difference) -> str:
    changes = [(name, _value(a), _value(b)) for name, a, b in _changes(difference)]
    if not changes:
        known = difference.a.chain[0].is_told and difference.b.chain[0].is_told
        return "Made alike: no parameter, upstream version or code version differs" if known else ""
    return table(("made with", "A", "B"), changes)


def _changes(difference: Difference) -> list[tuple[str, Any, Any]]:
    upstream = [(f"{asset}, version", _short(a), _short(b)) for asset, a, b in difference.upstream]
    code = [(f"{asset}, code version", a, b) for asset, a, b in difference.code]
    return [*difference.params, *upstream, *code]


def _short(data_version: str | None) -> str | None:
    return data_version[:SHORT] if data_version else None


def _value(value: object) -> str:
    return "unknown" if value is None else shown(value)


def counts(difference: Difference) -> str:
    found = difference.comparison
    if found.is_empty:
        return f"The same tiles are kept: {found.n_stayed:,}"
    return f"{found.n_stayed:,} tiles stayed, {found.n_entered:,} entered, {found.n_left:,} left"


def _other_clusters(difference: Difference) -> str:
    """A sentence where the numbers of clusters cannot be compared."""
    found = difference.comparison
    if found.clusters.are_same:
        return ""
    what = "clusters" if found.clusters.scenes_are_same else "clusters, which are the scenes here,"
    return f"The centroids were trained anew: a number means another cluster in A than in B, so {what} are not compared"


def _scenes_changed(difference: Difference) -> bool:
    found = difference.comparison
    return found.clusters.scenes_are_same and (not found.is_empty or any(scene.n_moved for scene in found.scenes))


def _scene_rows(difference: Difference) -> tuple[Sequence[str], list[Sequence[object]]]:
    """The table by scene. `moved`, tiles that both keep but in different scenes, is shown where there are any."""
    scenes = difference.comparison.scenes
    rows = [(s.scene, s.n_kept_a, s.n_kept_b, s.n_entered, s.n_left, s.n_moved) for s in scenes]
    n_columns = len(_SCENES) if any(scene.n_moved for scene in scenes) else len(_SCENES) - 1
    return _SCENES[:n_columns], [row[:n_columns] for row in rows]


def _reasons(
    title: str, counts: Mapping[str, int], words: Mapping[str, str], examples: Sequence[Mapping[str, Any]], side: str
) -> str:
    if not counts:
        return ""
    width = max(len(f"{n:,}") for n in counts.values())
    lines = [title, *(f"  {n:>{width},}  {words[kind]}" for kind, n in counts.items())]
    lines += [f"  {row['tile_id']}: {row[f'reason_{side}'] or words[row['kind']]}" for row in examples]
    return "\n".join(lines)


def _reason_table(title: str, counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    return markdown.table((title, "tiles"), [(words[kind], n) for kind, n in counts.items()]) if counts else ""
