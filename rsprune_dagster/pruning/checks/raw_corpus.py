"""Checks of raw_corpus, reference_scenes and entropy_scores: ids, readability, size, entropy."""

import json
from pathlib import Path
from typing import Final

from rsprune_dagster.config.layout import MANIFEST_FILE, QUARANTINE_FILE, Layout
from rsprune_dagster.corpus import sidecars
from rsprune_dagster.corpus.options import ignored_files, read_options
from rsprune_dagster.corpus.sources import HOUSEKEEPING, IMAGE_SUFFIXES
from rsprune_dagster.pruning.checks.verdict import N_EXAMPLES, Verdict, named, row, rows, within_bounds

MAX_ENTROPY_BITS: Final = 8
"""log2 of 256 grey levels."""
SAMPLING_ERRORS: Final = 2.0
"""A scene's loss is reported only if it exceeds its limit by this many standard errors."""

BESIDE_IMAGES: Final = frozenset(
    {HOUSEKEEPING, "(hidden)", "(no suffix)", ".parquet without image bytes"}
    | {".txt", ".md", ".rst", ".html", ".pdf", ".log", ".json", ".jsonl", ".geojson", ".xml", ".yaml", ".yml"}
    | {".csv", ".tsv", ".cls", ".md5", ".sha256", ".crc", ".jgw", ".pgw", ".prj", ".aux", ".ovr", ".py"}
    | {f".{ending.rpartition('.')[2]}" for ending in sidecars.ENDINGS}
)
"""Suffixes of files that hold no tiles: notes, labels, tables, checksums, world files and overviews."""
N_KINDS: Final = 6
"""Number of suffixes named in a sentence."""


def unique_ids(folder: Path) -> Verdict:
    """Every tile id of a scan (raw_corpus, reference_scenes) is unique among usable and quarantined tiles."""
    found = row(
        f"""
        WITH ids AS (SELECT tile_id FROM manifest UNION ALL SELECT tile_id FROM quarantine),
             twice AS (SELECT tile_id FROM ids GROUP BY 1 HAVING count(*) > 1)
        SELECT (SELECT count(*) FROM ids) AS n, (SELECT count(*) FROM twice) AS n_twice,
               (SELECT list(tile_id) FROM (SELECT tile_id FROM twice ORDER BY 1 LIMIT {N_EXAMPLES})) AS examples
        """,
        {"manifest": folder / MANIFEST_FILE, "quarantine": folder / QUARANTINE_FILE},
    )
    figures = {"n_ids": found["n"], "n_repeated": found["n_twice"]}
    if not found["n_twice"]:
        return Verdict(True, f"{found['n']:,} tile ids, each once.", figures)
    return Verdict(
        False,
        f"{found['n_twice']:,} tile ids occur more than once{named(found['examples'], found['n_twice'])}; rename the "
        "files, or prune each source by itself.",
        figures,
    )


def readable(layout: Layout, *, max_quarantined_fraction: float) -> Verdict:
    """At most `max_quarantined_fraction` of the tiles is quarantined; a larger share indicates a broken source."""
    found = row(
        """SELECT (SELECT count(*) FROM manifest) AS n_usable, (SELECT count(*) FROM quarantine) AS n_quarantined,
           (SELECT mode(reason ORDER BY reason) FROM quarantine) AS reason""",
        layout.tables("manifest", "quarantine"),
    )
    n_seen = found["n_usable"] + found["n_quarantined"]
    share = found["n_quarantined"] / n_seen if n_seen else 0.0
    figures = {"n_seen": n_seen, "n_quarantined": found["n_quarantined"], "quarantined_fraction": share}
    sentence = f"{found['n_quarantined']:,} of {n_seen:,} tiles ({share:.1%}) cannot be used"
    if share <= max_quarantined_fraction:
        return Verdict(True, f"{sentence}.", figures)
    return Verdict(
        False,
        f"{sentence}, more than {max_quarantined_fraction:.1%}; the commonest reason: {found['reason']}. Look at "
        "quarantine.parquet and at the source, then run again; if it is as it should be, raise "
        "checks.max_quarantined_fraction.",
        figures,
    )


def read_as_asked(layout: Layout) -> Verdict:
    """`corpus.bands` and `corpus.value_range`, if given, applied to some tile."""
    given = read_options(layout.folder("raw_corpus")).values()
    found = row(
        r"""SELECT count(*) FILTER (dtype <> 'uint8') AS n_deep,
                   count(*) FILTER (dtype <> 'uint8' OR kind = 'window' OR crs IS NOT NULL
                                    OR regexp_matches(lower(tile_id), '\.tiff?$')) AS n_with_bands
            FROM manifest""",
        layout.tables("manifest"),
    )
    needs = {
        "bands": (found["n_with_bands"], "GeoTIFF or 16-bit"),
        "value_range": (found["n_deep"], "16-bit or float"),
    }
    idle = {name: what for name, (n, what) in needs.items() if given[name] and not n}
    if not idle:
        return Verdict(True, "the values given for reading tiles were used.", found)
    told = "; ".join(f"corpus.{name} has no effect, as no tile is {what}" for name, what in idle.items())
    return Verdict(False, f"{told}. Leave it out, or name the sources that it was meant for.", found)


def all_read(layout: Layout) -> Verdict:
    """No ignored file may hold tiles: only files that commonly accompany images were ignored."""
    ignored = ignored_files(layout.folder("raw_corpus"))
    unread = {kind: n for kind, n in ignored.items() if kind not in BESIDE_IMAGES}
    figures = {"n_ignored": sum(ignored.values()), "n_unread": sum(unread.values())}
    if not unread:
        return Verdict(True, "no ignored file may hold tiles.", figures)
    commonest = sorted(unread.items(), key=lambda item: (-item[1], item[0]))[:N_KINDS]
    kinds = ", ".join(f"{n:,} x {kind}" for kind, n in commonest) + (", ..." if len(unread) > N_KINDS else "")
    return Verdict(
        False,
        f"{sum(unread.values()):,} files or columns may hold tiles and are not read: {kinds}; read are "
        f"{', '.join(sorted(IMAGE_SUFFIXES))}, .tar and .parquet: convert or unpack what belongs to the corpus.",
        figures,
    )


def not_shrunken(layout: Layout, n_before: int | None, *, max_shrink_fraction: float) -> Verdict:
    """The corpus has not lost more than `max_shrink_fraction` of its `n_before` tiles. None: no earlier version."""
    n_now = int(row("SELECT count(*) AS n FROM manifest", layout.tables("manifest"))["n"])
    if not n_before:
        return Verdict(
            True, f"{n_now:,} tiles; no earlier subset of these sources to compare with.", {"n_tiles": n_now}
        )
    lost = max(0.0, 1 - n_now / n_before)
    figures = {"n_tiles": n_now, "n_tiles_before": n_before, "lost_fraction": lost}
    if lost <= max_shrink_fraction:
        return Verdict(True, f"{n_now:,} tiles, {n_before:,} when the last subset was made.", figures)
    return Verdict(
        False,
        f"{n_now:,} tiles where the last subset was made from {n_before:,}: {lost:.0%} are gone, more than "
        f"{max_shrink_fraction:.0%}. Is a source not mounted? If they were meant to go, materialize once "
        "with --set checks.max_shrink_fraction=1.",
        figures,
    )


def scenes_large_enough(layout: Layout) -> Verdict:
    """Every scene of the reference has enough tiles to serve as a target of the selection."""
    from rsprune_dagster.pruning.pipeline import MIN_TARGET_TILES

    counts = {
        found["label"]: int(found["n"])
        for found in rows(
            "SELECT label, count(*) AS n FROM reference WHERE label IS NOT NULL GROUP BY 1", layout.tables("reference")
        )
    }
    if not counts:
        return Verdict(True, "there is no reference: the corpus is one stratum.", {"n_scenes": 0})
    small = sorted(name for name, n in counts.items() if n < MIN_TARGET_TILES)
    figures = {"n_scenes": len(counts), "n_small_scenes": len(small), "n_tiles_of_smallest": min(counts.values())}
    if not small:
        return Verdict(True, f"{len(counts)} scenes of {min(counts.values()):,} tiles or more.", figures)
    return Verdict(
        False,
        f"{len(small)} of {len(counts)} scenes have fewer than {MIN_TARGET_TILES} tiles{named(small, len(small))}; "
        "they are no target for the selection: add tiles to them, or merge them with others.",
        figures,
    )


def entropy_in_range(layout: Layout) -> Verdict:
    """Every tile of the manifest has an entropy and a patch entropy of 0 to 8 bits."""
    found = row(
        f"""
        SELECT count(*) AS n, count(*) FILTER (scores.tile_id IS NULL) AS without_score,
               count(*) FILTER (manifest.tile_id IS NULL) AS strange,
               count(*) FILTER (NOT {_is_entropy("scores.entropy_bits")}) AS whole,
               count(*) FILTER (NOT {_is_entropy("scores.patch_entropy_bits")}) AS patches
        FROM manifest FULL JOIN scores USING (tile_id, content_md5)
        """,
        layout.tables("manifest", "scores"),
    )
    faults = {
        "tiles have no score": found["without_score"],
        "scores are of no tile in the manifest": found["strange"],
        f"have an entropy that is not 0 to {MAX_ENTROPY_BITS} bits": found["whole"],
        f"have a patch entropy that is not 0 to {MAX_ENTROPY_BITS} bits": found["patches"],
    }
    todo = "materialize raw_corpus and entropy_scores again; if it stays, this is a fault of ours"
    return within_bounds(faults, found["n"], what="entropy scores", todo=todo)


def no_scene_erased(layout: Layout) -> Verdict:
    """The threshold drops at most MAX_SCENE_LOSS of the tiles of any reference scene. One that is not calibrated on the
    reference may erase water and forest.
    """
    from rsprune_dagster.pruning.entropy import MAX_SCENE_LOSS

    threshold_bits = float(json.loads(layout.file("threshold").read_text())["threshold_bits"])
    lost = {
        found["label"]: (int(found["n_lost"]), int(found["n"]))
        for found in rows(
            f"""SELECT label, count(*) AS n, count(*) FILTER (entropy_bits < {threshold_bits!r}::FLOAT) AS n_lost
                FROM reference WHERE label IS NOT NULL GROUP BY 1 ORDER BY 1""",
            layout.tables("reference"),
        )
    }
    shares = {scene: n_lost / n for scene, (n_lost, n) in lost.items()}
    slack = {
        scene: SAMPLING_ERRORS * (MAX_SCENE_LOSS * (1 - MAX_SCENE_LOSS) / n) ** 0.5 for scene, (_, n) in lost.items()
    }
    erased = [scene for scene, share in shares.items() if share > MAX_SCENE_LOSS + slack[scene]]
    figures = {"threshold_bits": threshold_bits, "largest_scene_loss": max(shares.values(), default=0.0)}
    if not shares:
        return Verdict(True, "there is no reference that could tell which scenes the threshold erases.", figures)
    worst = max(shares, key=lambda scene: shares[scene])
    found_most = f"at {threshold_bits:.2f} bits {worst} loses most, {shares[worst]:.1%} of its reference tiles"
    if not erased:
        return Verdict(True, f"{found_most}.", figures)
    return Verdict(
        False,
        f"{found_most}, and {len(erased)} scenes more than {MAX_SCENE_LOSS:.1%}{named(erased, len(erased))}; set "
        "entropy.threshold_from to reference, or lower the threshold.",
        figures,
    )


def _is_entropy(column: str) -> str:
    """SQL condition; null passes, since missing rows are counted separately."""
    return f"coalesce({column} BETWEEN 0 AND {MAX_ENTROPY_BITS} AND NOT isnan({column}), true)"
