"""A difference between two subsets, as lines of a terminal or as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rsprune_dagster.pruning.compare import REASONS_ENTERED, REASONS_LEFT
from rsprune_dagster.tracking.differences import Difference, Side
from rsprune_dagster.tracking.format import format_table, format_value
from rsprune_dagster.viz import markdown

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]
"""Formats a header and rows."""

_SCENES = ("scene", "kept in A", "kept in B", "entered", "left", "moved")


def as_text(difference: Difference) -> str:
    """For a terminal."""
    sides = f"A  {_format_side(difference.a)}\nB  {_format_side(difference.b)}"
    return "\n\n".join([sides, *_parts(difference, format_table, examples=True)])


def as_markdown(difference: Difference) -> str:
    """For a pull request."""
    sides = f"A: {_format_side(difference.a)}  \nB: {_format_side(difference.b)}"
    return "\n\n".join([f"### {counts(difference)}", sides, *_parts(difference, markdown.table, examples=False)])


def counts(difference: Difference) -> str:
    """How many tiles stayed, entered and left, in a sentence."""
    found = difference.comparison
    if found.is_empty:
        return f"The same tiles are kept: {found.n_stayed:,}"
    return f"{found.n_stayed:,} tiles stayed, {found.n_entered:,} entered, {found.n_left:,} left"


def _parts(difference: Difference, table: Table, *, examples: bool) -> list[str]:
    found = difference.comparison
    totals = [("tiles seen", found.n_tiles_a, found.n_tiles_b), ("kept", found.n_kept_a, found.n_kept_b)]
    left, entered = (difference.left, difference.entered) if examples else ((), ())
    parts = [
        _format_made_with(difference, table),
        table(("", "A", "B"), totals),
        counts(difference) if examples else "",
        _other_clusters(difference),
        _format_scenes(difference, table),
        _format_reasons("why tiles left", found.reasons_left, REASONS_LEFT, left, "b", table),
        _format_reasons("why tiles entered", found.reasons_entered, REASONS_ENTERED, entered, "a", table),
    ]
    return [part for part in parts if part]


def _format_side(side: Side) -> str:
    return f"{side.data_version} ({side.name}{'' if side.is_known else ', of which nothing but the content is known'})"


def _format_made_with(difference: Difference, table: Table) -> str:
    if not difference.made_with:
        known = difference.a.is_known and difference.b.is_known
        return "Made alike: no parameter, upstream version or code version differs" if known else ""
    values = [(name, _value(a), _value(b)) for name, (a, b) in difference.made_with.items()]
    return table(("made with", "A", "B"), values)


def _value(value: object) -> str:
    return "unknown" if value is None else format_value(value)


def _other_clusters(difference: Difference) -> str:
    """A sentence where the numbers of clusters cannot be compared."""
    clusters = difference.comparison.clusters
    if clusters.are_same:
        return ""
    what = "clusters" if clusters.scenes_are_same else "clusters, which are the scenes here,"
    return f"The centroids were trained anew: a number means another cluster in A than in B, so {what} are not compared"


def _format_scenes(difference: Difference, table: Table) -> str:
    """The table by scene. `moved`, tiles that both keep but in different scenes, is shown where there are any."""
    found = difference.comparison
    has_moved = any(scene.n_moved for scene in found.scenes)
    if not found.clusters.scenes_are_same or (found.is_empty and not has_moved):
        return ""
    rows = [(s.scene, s.n_kept_a, s.n_kept_b, s.n_entered, s.n_left, s.n_moved) for s in found.scenes]
    n_columns = len(_SCENES) if has_moved else len(_SCENES) - 1
    return table(_SCENES[:n_columns], [row[:n_columns] for row in rows])


def _format_reasons(
    title: str,
    n_tiles: Mapping[str, int],
    words: Mapping[str, str],
    examples: Sequence[Mapping[str, Any]],
    side: str,
    table: Table,
) -> str:
    """Reasons with their numbers of tiles, and what `side` says of each example."""
    if not n_tiles:
        return ""
    lines = [f"  {row['tile_id']}: {row[f'reason_{side}'] or words[row['kind']]}" for row in examples]
    return "\n".join([table((title, "tiles"), [(words[kind], n) for kind, n in n_tiles.items()]), *lines])
