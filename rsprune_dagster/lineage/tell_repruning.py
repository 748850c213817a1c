"""A re-pruning, told in Markdown: for a file beside its pictures, and for a comment, which cannot show them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rsprune_dagster.corpus.shards import written_whole
from rsprune_dagster.lineage.differences import Difference
from rsprune_dagster.lineage.repruning import Metric, Repruning, Review
from rsprune_dagster.lineage.tell import SHORT
from rsprune_dagster.lineage.tell_diff import as_markdown, counts
from rsprune_dagster.pruning.steps.ledger import scene_table
from rsprune_dagster.report import markdown

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
    with written_whole(target) as draft:
        draft.write_text(f"{text}\n{_shown(pictures, folder.name)}", encoding="utf-8")
    with written_whole(comment_of(target)) as draft:
        draft.write_text(_comment(text, bool(pictures), run_url), encoding="utf-8")
    with written_whole(target.with_suffix(".commit.txt")) as draft:
        draft.write_text(commit_message(done, seen), encoding="utf-8")


def comment_of(target: Path) -> Path:
    """The file for a comment, beside that of the summary."""
    return target.with_suffix(".comment.md")


def summary(done: Repruning, seen: Review) -> str:
    """Verdict, what was made and why, tiles by scene, what entered and left and why, metrics."""
    found = seen.difference
    parts = [
        f"## Re-pruning: {_verdict(done)}",
        f"> {done.refusal}" if done.refusal else "",
        _made(done),
        _warnings(done),
        f"### Kept and dropped by scene, {seen.base} and now\n\n{_scenes(found)}" if found else "",
        as_markdown(found) if found else "",
        f"### Metrics, {seen.base} and now\n\n{_metrics(seen.metrics)}" if seen.metrics else "",
        f"Not compared with {seen.base}: {seen.why_not}" if seen.why_not else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def commit_message(done: Repruning, seen: Review) -> str:
    """A sentence on the tiles, and the versions below it."""
    subject = f"Re-prune: {counts(seen.difference)}" if seen.difference else "Re-prune"
    lines = [f"{each.asset}: {each.after} ({each.why})" for each in done.changed]
    return "\n".join([subject, "", *lines])


def _verdict(done: Repruning) -> str:
    if done.refusal:
        return "refused"
    return "done" if done.changed else "nothing changed"


def _made(done: Repruning) -> str:
    if not done.made:
        return "Every asset is as the commit holds it."
    rows = [(each.asset, each.why, _short(each.before), _short(each.after)) for each in done.made]
    return markdown.table(("made anew", "why", "version before", "version now"), rows)


def _warnings(done: Repruning) -> str:
    lines = [f"* {sentence}" for sentence in done.warnings]
    return "\n".join(["Checks that warn, and let it go on:", "", *lines]) if lines else ""


def _scenes(found: Difference) -> str:
    """Kept and dropped tiles of each scene on both sides. Tiles that were in no scene's running are in none.

    Scenes of one name that are other clusters on the other side are left out: only the total is told then.
    """
    before, after = _by_scene(found.a.ledger), _by_scene(found.b.ledger)
    names = [*after, *(name for name in before if name not in after)]
    rows = [(name, *before.get(name, (0, 0)), *after.get(name, (0, 0))) for name in names]
    total = tuple(sum(column) for column in zip(*(row[1:] for row in rows), strict=True)) if rows else ()
    header = ("scene", "kept before", "dropped before", "kept now", "dropped now")
    shown = rows if found.comparison.clusters.scenes_are_same else []
    return markdown.table(header, [*shown, ("all scenes", *total)] if rows else [])


def _by_scene(ledger: Path) -> dict[str, tuple[int, int]]:
    rows = scene_table(ledger).to_pylist()
    return {row["scene"]: (row["n_kept"], row["n_tiles"] - row["n_kept"]) for row in rows}


def _metrics(metrics: Sequence[Metric]) -> str:
    rows = [(each.name, each.before, each.after, _change(each)) for each in metrics]
    return markdown.table(("metric", "before", "now", "change"), rows)


def _change(metric: Metric) -> float | None:
    return None if metric.before is None or metric.after is None else metric.after - metric.before


def _short(version: str) -> str:
    return version[:SHORT] if version else "none"


def _shown(pictures: Mapping[str, Path], folder: str) -> str:
    return "".join(f"\n![{name.rpartition('.')[0]}]({folder}/{name})\n" for name in pictures)


def _comment(text: str, has_pictures: bool, run_url: str) -> str:
    where = f"\nPictures: in the artifacts of [this run]({run_url}).\n" if has_pictures and run_url else ""
    if len(text) > MOST_LETTERS:
        text = text[:MOST_LETTERS].rpartition("\n")[0] + "\n\n… and more: the summary among the artifacts has all.\n"
    return text + where
