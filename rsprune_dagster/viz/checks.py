"""Checks of the page: its counts are those of the subset that lies there, and it needs nothing beside it."""

import json
from html.parser import HTMLParser

import pyarrow.parquet as pq

from rsprune_dagster.config.layout import REPORT_HTML, REPORT_JSON, Layout
from rsprune_dagster.pruning.checks.verdict import Verdict

LOADING_TAGS = frozenset({"script", "link", "iframe", "object", "embed", "base"})
LOADING_ATTRIBUTES = frozenset({"src", "srcset", "poster"})
"""What runs or is loaded when a page is opened; a link that a reader may follow is none."""


def counts_agree(layout: Layout) -> Verdict:
    """The page's counts are those of the ledger and the subset that lie there."""
    numbers = json.loads((layout.folder("pruning_report") / REPORT_JSON).read_text())
    told = {"n_seen": int(numbers["n_seen"]), "n_kept": int(numbers["n_kept"])}
    tables = {"n_seen": layout.file("decisions"), "n_kept": layout.file("subset")}
    there = {name: int(pq.read_metadata(table).num_rows) for name, table in tables.items()}
    figures = {f"{name} on the page": n for name, n in told.items()} | there
    if told == there:
        return Verdict(True, f"the page tells of the {there['n_kept']:,} tiles kept of {there['n_seen']:,}.", figures)
    return Verdict(
        False,
        f"the page tells of {told['n_kept']:,} tiles kept of {told['n_seen']:,}, but pruned_subset has "
        f"{there['n_kept']:,} of {there['n_seen']:,}: materialize pruning_report again.",
        figures,
    )


def self_contained(layout: Layout) -> Verdict:
    """Nothing is loaded when the page is opened, so that it can be sent to somebody and works offline."""
    html = (layout.folder("pruning_report") / REPORT_HTML).read_text(encoding="utf-8")
    loaded = sorted(_Loads(html).found)
    figures: dict[str, int | float | str] = {"page_bytes": len(html.encode()), "n_loaded": len(loaded)}
    if not loaded:
        return Verdict(True, "the page needs nothing beside it.", figures)
    what = ", ".join(loaded)
    return Verdict(False, f"the page loads {what} when it is opened: that is a fault of the page.", figures)


class _Loads(HTMLParser):
    """Collects what a page loads from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in LOADING_TAGS:
            self.found.add(f"<{tag}>")
        named = [value or "" for name, value in attrs if name in LOADING_ATTRIBUTES]
        self.found.update(value[:60] for value in named if not value.startswith("data:"))
