"""How the page opens: the numbers one remembers, and what to know about them."""

from rsprune_dagster.report.page import pick
from rsprune_dagster.report.page.album import read_tiles
from rsprune_dagster.report.page.blocks import Headline, Segment, Split, Tile
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.tally import DECISIONS, Tally, balance
from rsprune_dagster.report.page.words import NBSP, count, counted, listed, name, share

N_TILES = 24

SENTENCES = {
    "kept": "worth training on, ranked best first",
    "unselected": "usable, but other tiles stand for them",
    "duplicate": "the same picture as another tile",
    "low_information": "blank or nearly so: too little entropy",
    "quarantined": "damaged, unsupported or mostly nodata",
}


def headline(folders: Folders, tally: Tally, source: str) -> Headline:
    """The opening of the page. source: what the corpus is called; empty where nothing tells."""
    return Headline(
        eyebrow=f"Pruning report · {source}" if source else "Pruning report",
        title=f"{counted(tally.n_seen, 'tile')} in, {count(tally.n_kept)} kept",
        sentence=_sentence(tally),
        split=decision_split(tally),
        figures=_figures(tally),
        tiles=_tiles(folders, tally),
        findings=[sentence for sentence in _findings(tally) if sentence],
    )


def decision_split(tally: Tally) -> Split:
    """All tiles by what became of them."""
    segments = [
        Segment(name(decision), n, n / max(tally.n_seen, 1), decision, SENTENCES[decision])  # type: ignore[arg-type]
        for decision in DECISIONS
        if (n := tally.decisions[decision])
    ]
    alt = "; ".join(f"{segment.name} {count(segment.n)} ({share(segment.share)})" for segment in segments)
    return Split(segments, alt)


def _sentence(tally: Tally) -> str:
    went = {
        "unselected": "are represented by others",
        "duplicate": "are duplicates",
        "low_information": "are blank or nearly so",
        "quarantined": "could not be used",
    }
    parts = [f"{count(n)} {words}" for decision, words in went.items() if (n := tally.decisions[decision])]
    kept = f"{share(tally.n_kept, tally.n_readable)} of the readable tiles stay."
    return f"{kept} Of the rest, {listed(parts)}." if parts else kept


def _figures(tally: Tally) -> list[tuple[str, str, str]]:
    before = balance([scene.n_tiles for scene in tally.scenes])
    after = balance([scene.n_kept for scene in tally.scenes])
    asked = f"{100 * tally.summary['keep_fraction']:g}{NBSP}%"
    figures = [(share(tally.n_kept, tally.n_readable), "kept", f"asked for {asked}")]
    if tally.has_scenes:
        figures.append((f"{after:.1f}{NBSP}:{NBSP}1", "largest to smallest scene", f"was {before:.1f}{NBSP}:{NBSP}1"))
        figures.append(
            (count(sum(scene.n_kept > 0 for scene in tally.scenes)), "scenes kept", f"of {len(tally.scenes)}")
        )
    figures.append(
        (
            count(tally.decisions["duplicate"]),
            "duplicates found",
            f"{count(tally.n_exact_copies)} exact, {count(tally.n_near_copies)} near",
        )
    )
    figures.append(
        (
            f"{tally.threshold['threshold_bits']:.2f}{NBSP}bits",
            "entropy threshold",
            f"{counted(tally.decisions['low_information'], 'tile')} below it",
        )
    )
    return figures


def _findings(tally: Tally) -> list[str]:
    return [
        tally.summary["shortfall"],
        _balance_sentence(tally),
        str(tally.quality["note"]).strip(),
        f"{counted(tally.decisions['quarantined'], 'tile')} could not be used; the reasons are below."
        if tally.decisions["quarantined"]
        else "",
    ]


def _balance_sentence(tally: Tally) -> str:
    if not tally.has_scenes:
        return ""
    before = balance([scene.n_tiles for scene in tally.scenes])
    after = balance([scene.n_kept for scene in tally.scenes])
    lost = [scene.scene for scene in tally.scenes if not scene.n_kept]
    sentence = (
        f"The largest scene had {before:.1f} times the tiles of the smallest; among the kept tiles it has {after:.1f} "
        "times as many."
    )
    return f"{sentence} Nothing is kept of {listed(lost[:5])}." if lost else sentence


def _tiles(folders: Folders, tally: Tally) -> list[Tile]:
    rows = pick.best(folders, N_TILES)
    pictures = read_tiles(folders.corpus, [row["tile_id"] for row in rows])
    return [
        Tile(pictures[row["tile_id"]], f"Kept tile of rank {row['rank']}, scene {row['scene']}: {row['tile_id']}")
        for row in rows
        if pictures[row["tile_id"]]
    ]
