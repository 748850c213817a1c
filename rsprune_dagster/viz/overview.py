"""How the page opens: the numbers one remembers, and what to know about them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.viz import queries
from rsprune_dagster.viz.blocks import Tile
from rsprune_dagster.viz.counts import DECISIONS, Counts
from rsprune_dagster.viz.formatting import NBSP, count, counted, listed, name, share
from rsprune_dagster.viz.thumbnails import read_tiles

N_TILES = 24

SENTENCES = {
    "kept": "worth training on, ranked best first",
    "unselected": "usable, but other tiles stand for them",
    "duplicate": "the same picture as another tile",
    "low_information": "blank or nearly so: too little entropy",
    "quarantined": "damaged, unsupported or mostly nodata",
}


@dataclass(frozen=True)
class Part:
    """The tiles that met a decision: `share` of all, 0 to 1."""

    decision: str
    n: int
    share: float

    @property
    def name(self) -> str:
        return name(self.decision)

    @property
    def sentence(self) -> str:
        return SENTENCES[self.decision]


@dataclass(frozen=True)
class Opening:
    """What the page opens with."""

    eyebrow: str
    title: str
    sentence: str
    parts: Sequence[Part]
    """All tiles by what became of them."""
    figures: Sequence[tuple[str, str, str]]
    """Value, name, remark."""
    tiles: Sequence[Tile]
    findings: Sequence[str]
    """What to know, a sentence each."""

    @property
    def alt(self) -> str:
        return "; ".join(f"{part.name} {count(part.n)} ({share(part.share)})" for part in self.parts)


def opening(layout: Layout, counts: Counts, source: str) -> Opening:
    """The opening of the page. source: what the corpus is called; empty where nothing tells."""
    met = [(decision, n) for decision in DECISIONS if (n := counts.decisions[decision])]
    return Opening(
        eyebrow=f"Pruning report · {source}" if source else "Pruning report",
        title=f"{counted(counts.n_seen, 'tile')} in, {count(counts.n_kept)} kept",
        sentence=_sentence(counts),
        parts=[Part(decision, n, n / counts.n_seen) for decision, n in met],
        figures=_figures(counts),
        tiles=_tiles(layout),
        findings=[sentence for sentence in _findings(counts) if sentence],
    )


def _sentence(counts: Counts) -> str:
    went = {
        "unselected": "are represented by others",
        "duplicate": "are duplicates",
        "low_information": "are blank or nearly so",
        "quarantined": "could not be used",
    }
    parts = [f"{count(n)} {words}" for decision, words in went.items() if (n := counts.decisions[decision])]
    kept = f"{share(counts.n_kept, counts.n_readable)} of the readable tiles stay."
    return f"{kept} Of the rest, {listed(parts)}." if parts else kept


def _figures(counts: Counts) -> list[tuple[str, str, str]]:
    before, after = counts.balance()
    asked = f"{100 * counts.summary['keep_fraction']:g}{NBSP}%"
    figures = [(share(counts.n_kept, counts.n_readable), "kept", f"asked for {asked}")]
    if counts.has_scenes:
        figures.append((f"{after:.1f}{NBSP}:{NBSP}1", "largest to smallest scene", f"was {before:.1f}{NBSP}:{NBSP}1"))
        figures.append(
            (count(sum(scene.n_kept > 0 for scene in counts.scenes)), "scenes kept", f"of {len(counts.scenes)}")
        )
    figures.append(
        (
            count(counts.decisions["duplicate"]),
            "duplicates found",
            f"{count(counts.n_exact_copies)} exact, {count(counts.n_near_copies)} near",
        )
    )
    figures.append(
        (
            f"{counts.threshold['threshold_bits']:.2f}{NBSP}bits",
            "entropy threshold",
            f"{counted(counts.decisions['low_information'], 'tile')} below it",
        )
    )
    return figures


def _findings(counts: Counts) -> list[str]:
    return [
        counts.summary["shortfall"],
        _balance_sentence(counts),
        str(counts.quality["note"]).strip(),
        f"{counted(counts.decisions['quarantined'], 'tile')} could not be used; the reasons are below."
        if counts.decisions["quarantined"]
        else "",
    ]


def _balance_sentence(counts: Counts) -> str:
    if not counts.has_scenes:
        return ""
    before, after = counts.balance()
    lost = [scene.scene for scene in counts.scenes if not scene.n_kept]
    sentence = (
        f"The largest scene had {before:.1f} times the tiles of the smallest; among the kept tiles it has {after:.1f} "
        "times as many."
    )
    return f"{sentence} Nothing is kept of {listed(lost[:5])}." if lost else sentence


def _tiles(layout: Layout) -> list[Tile]:
    rows = queries.best(layout, N_TILES)
    pixels = read_tiles(layout.folder("raw_corpus"), [row["tile_id"] for row in rows])
    return [
        Tile(pixels[row["tile_id"]], f"Kept tile of rank {row['rank']}, scene {row['scene']}: {row['tile_id']}")
        for row in rows
        if pixels[row["tile_id"]] is not None
    ]
