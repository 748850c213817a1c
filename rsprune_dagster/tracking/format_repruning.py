"""A re-pruning as Markdown: for a file beside its pictures, and for a comment, which cannot show them."""

from collections.abc import Mapping
from pathlib import Path

from rsprune_dagster.pruning.ledger import scene_table
from rsprune_dagster.tracking.differences import Difference
from rsprune_dagster.tracking.format import SHORT
from rsprune_dagster.tracking.format_diff import as_markdown, counts
from rsprune_dagster.tracking.repruning import Repruning, Review
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.viz import markdown

MOST_LETTERS = 60_000
"""GitHub takes comments of up to 65,536."""


def write_summary(target: Path, done: Repruning, seen: Review, pictures: Mapping[str, Path], *, run_url: str) -> None:
    """Write `summary.md`, its pictures into `summary/` beside it, and `summary.comment.md` for a pull request.

    `summary.commit.txt` is the message for a commit of dvc.lock.

    Args:
        target: `summary.md`.
        pictures: files by the name they get.
        run_url: where the pictures are to be had by a reader of the comment; empty: nowhere.

    Raises:
        OSError: the disk is full or not writable.
    """
    text = summary(done, seen)
    folder = target.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in pictures.items():
        (folder / name).write_bytes(path.read_bytes())
    images = "".join(f"\n![{name.rpartition('.')[0]}]({folder.name}/{name})\n" for name in pictures)
    where = f"\nPictures: in the artifacts of [this run]({run_url}).\n" if pictures and run_url else ""
    texts = {
        target: f"{text}\n{images}",
        comment_of(target): _cut(text) + where,
        target.with_suffix(".commit.txt"): commit_message(done, seen),
    }
    for path, content in texts.items():
        with atomic_write(path) as draft:
            draft.write_text(content, encoding="utf-8")


def comment_of(target: Path) -> Path:
    """The file for a comment, beside that of the summary."""
    return target.with_suffix(".comment.md")


def summary(done: Repruning, seen: Review) -> str:
    """Verdict, what was made and why, tiles by scene, what entered and left and why, metrics."""
    found = seen.difference
    verdict = "refused" if done.refusal else "done" if done.changed else "nothing changed"
    warnings = "\n".join(f"* {sentence}" for sentence in done.warnings)
    metrics = markdown.table(("metric", "before", "now", "change"), seen.metrics) if seen.metrics else ""
    parts = [
        f"## Re-pruning: {verdict}",
        f"> {done.refusal}" if done.refusal else "",
        _made(done),
        f"Checks that warn, and let it go on:\n\n{warnings}" if warnings else "",
        f"### Kept and dropped by scene, {seen.base} and now\n\n{_scenes(found)}" if found else "",
        as_markdown(found) if found else "",
        f"### Metrics, {seen.base} and now\n\n{metrics}" if metrics else "",
        f"Not compared with {seen.base}: {seen.why_not}" if seen.why_not else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def commit_message(done: Repruning, seen: Review) -> str:
    """A sentence on the tiles, and the versions below it."""
    subject = f"Re-prune: {counts(seen.difference)}" if seen.difference else "Re-prune"
    lines = [f"{each.asset}: {each.after} ({each.why})" for each in done.changed]
    return "\n".join([subject, "", *lines])


def _made(done: Repruning) -> str:
    if not done.made:
        return "Every asset is as the commit holds it."
    rows = [(each.asset, each.why, each.before[:SHORT] or "none", each.after[:SHORT]) for each in done.made]
    return markdown.table(("made anew", "why", "version before", "version now"), rows)


def _scenes(found: Difference) -> str:
    """Kept and dropped tiles of each scene on both sides. Tiles that were in no scene's running are in none.

    Scenes of one name that are other clusters on the other side are left out: only the total is told then.
    """
    before, after = _by_scene(found.a.ledger), _by_scene(found.b.ledger)
    rows = [(name, *before.get(name, (0, 0)), *after.get(name, (0, 0))) for name in {**after, **before}]
    total = [("all scenes", *map(sum, list(zip(*rows, strict=True))[1:]))] if rows else []
    header = ("scene", "kept before", "dropped before", "kept now", "dropped now")
    return markdown.table(header, [*(rows if found.comparison.clusters.scenes_are_same else []), *total])


def _by_scene(ledger: Path) -> dict[str, tuple[int, int]]:
    rows = scene_table(ledger).to_pylist()
    return {row["scene"]: (row["n_kept"], row["n_tiles"] - row["n_kept"]) for row in rows}


def _cut(text: str) -> str:
    if len(text) <= MOST_LETTERS:
        return text
    return text[:MOST_LETTERS].rpartition("\n")[0] + "\n\n… and more: the summary among the artifacts has all.\n"
