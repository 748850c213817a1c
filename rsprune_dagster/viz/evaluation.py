"""How good the samples of a model are: scores with intervals and protocols, and whether samples are copies."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from rsprune_dagster.config.layout import (
    COPIES,
    HELD_OUT,
    MANIFEST_FILE,
    METRICS,
    PROTOCOLS,
    RECOGNISED,
    SAMPLES,
    SCENE_SCORES,
)
from rsprune_dagster.utils.csv_files import read_sheet
from rsprune_dagster.viz.blocks import (
    Bar,
    Block,
    Cell,
    Code,
    Column,
    Figure,
    Gallery,
    Heat,
    Interval,
    Table,
    Text,
    Tile,
    TileRow,
)
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.formatting import count, name, number, quantity, share
from rsprune_dagster.viz.plot import Axis, Plot, line
from rsprune_dagster.viz.thumbnails import Rows, decoded, fetch, read_tiles

MEANINGS = {
    "fid": "FID",
    "kid": "KID",
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision: samples that look like held-out tiles",
    "recall": "recall: held-out tiles that samples look like",
    "density": "density: how many held-out tiles a sample is like",
    "coverage": "coverage: held-out tiles with a sample near",
    "recognised": "samples recognised as the scene that was asked for",
    "closer": "samples nearer to a training tile than hardly any held-out tile is",
    "singled_out": "samples near one training tile alone: copies",
}
"""By the start of a score's name; the rest of it is the network."""
MAX_SCORES = 40
MAX_SCENES = 40
MAX_SHOWN_SCENES = 12
N_SAMPLES = 8
N_PAIRS = 24


def blocks(corpus: Path, folder: Path) -> list[Block]:
    """All that the folder of evaluation_metrics tells: protocols.json with each score, else metrics.json."""
    found = [scores(folder), *figures(corpus, folder).values()]
    left = measures_left_out(folder)
    return [*found, *(Text(sentence) for sentence in leaks(folder)), *([left] if left else [])]


def figures(corpus: Path, folder: Path) -> dict[str, Table | Figure | Gallery]:
    """Samples beside held-out tiles and beside training tiles, curves and tables by scene: those that are there.

    Args:
        corpus: of raw_corpus, where the training tiles lie.
        folder: of evaluation_metrics.
    """
    found = {
        "samples": samples(folder),
        "samples and their nearest training tiles": nearest(corpus, folder),
        "scenes": scenes(folder),
        "recognised scenes": confusion(folder),
        "copies": copies(folder),
    }
    return {title: one for title, one in found.items() if one}


def scores(folder: Path) -> Block:
    """A row for each score over all scenes; under it the protocols in words."""
    found = _content(folder).get("scores", {})
    shown = {title: one for title, one in found.items() if "/" not in title or title.endswith("/mean_of_scenes")}
    if not shown:
        return _plain_metrics(folder)
    rows = [
        (
            _meaning(title),
            one["protocol"]["network"],
            number(one["value"]),
            f"{number(one['low'])} to {number(one['high'])}",
            "higher" if one["larger_is_better"] else "lower",
        )
        for title, one in shown.items()
    ]
    columns = [
        Column("Score"),
        Column("Measured with", minor=True),
        Column("Value", numeric=True),
        Column(f"{100 * next(iter(shown.values())).get('level', 0.95):g} % interval", numeric=True),
        Column("Better", minor=True),
    ]
    caption = (
        "Samples of the model against images that neither pruning nor training saw. Numbers of unequal protocols "
        f"(network, resizing, counts) must not be compared. {' '.join(_protocols(shown))}"
    )
    return Table("Evaluation of the samples", caption, columns, rows)


def measures_left_out(folder: Path) -> Table | None:
    """What was not measured, a row per reason."""
    by_reason: dict[str, list[str]] = {}
    for title, reason in _content(folder).get("left_out", {}).items():
        by_reason.setdefault(reason, []).append(name(title))
    rows = [(", ".join(titles), reason) for reason, titles in by_reason.items()]
    columns = [Column("Score"), Column("Why not")]
    return Table("Not measured", "Nothing takes their place.", columns, rows) if rows else None


def leaks(folder: Path) -> list[str]:
    """What was found of held-out tiles among the training tiles, a sentence each."""
    return [str(sentence) for sentence in _content(folder).get("leaks", [])]


def headline(folder: Path) -> str:
    """The few figures that a person wants first, a line each."""
    metrics, told = read_json(folder / METRICS), _content(folder)
    names = [title for title in told["scores"] if "/" not in title]
    lines = [
        f"{metrics[title]:>12.4g}  {title} ({metrics[f'{title}_low']:.4g} to {metrics[f'{title}_high']:.4g})"
        for title in names
    ]
    return "\n".join(lines or [f"nothing was measured: {next(iter(told['left_out'].values()), '')}"])


def score_label(score: str) -> str:
    """`frechet_squeezenet1_0` as a person says it; a network keeps its name."""
    measure, _, network = score.partition("_")
    return f"{MEANINGS.get(measure, measure).partition(':')[0]}{f', {network}' if network else ''}"


def samples(folder: Path) -> Gallery | None:
    """A row per scene: its first samples, then held-out tiles of the scene, framed."""
    real = _held_out(folder / HELD_OUT)
    rows = [
        TileRow(
            name(scene) or "samples",
            [Tile(decoded(row["image"]), f"Sample {row['sample']}: {scene}") for row in list(some)[:N_SAMPLES]]
            + real.get(scene, []),
        )
        for scene, some in groupby(_kept_samples(folder, "scene, sample"), key=lambda row: str(row["scene"]))
    ]
    caption = "Samples by the scene that was asked for, not picked."
    framed = "held-out tiles of the scene" if real else ""
    return Gallery("What the model draws", caption, rows[:MAX_SHOWN_SCENES], framed=framed) if rows else None


def nearest(corpus: Path, folder: Path) -> Gallery | None:
    """The samples most singled out near one training tile, each beside that tile."""
    from rsprune_dagster.evaluation.image_set import oriented  # imports torch

    near = [row for row in _kept_samples(folder, "relative, distance") if row.get("nearest_tile_id")][:N_PAIRS]
    pixels = read_tiles(corpus, [row["nearest_tile_id"] for row in near])
    tiles = []
    for row in near:
        turned = oriented(decoded(row["image"])[None], row["turn"])[0]
        tiles.append(Tile(turned, f"Sample {row['sample']}, turned as it lies nearest", f"{row['relative']:.2f}"))
        tiles.append(Tile(pixels[row["nearest_tile_id"]], f"Nearest training tile: {row['nearest_tile_id']}"))
    caption = (
        "In each pair a sample, turned as it lies nearest, and the training tile nearest to it; the nearest first. 0: "
        "a copy, 1: no nearer than to others."
    )
    title = "Samples and their nearest training tiles"
    return Gallery(title, caption, [TileRow("", tiles)], paired=True) if tiles else None


def scenes(folder: Path) -> Table | None:
    """The distance of each scene with its interval, and how many of its samples are recognised; the worst first."""
    rows = sorted(_sheet(folder / SCENE_SCORES), key=lambda row: -float(row["kernel_distance"]))
    if not rows:
        return None
    ends = [float(row[key]) for row in rows for key in ("low", "high", "kernel_distance")]
    axis = Axis(min(*ends, 0.0), max(*ends, 1e-9))
    cells = [(name(row["scene"]), *_scene(row, axis)) for row in rows[:MAX_SCENES]]
    network = next(iter(_content(folder)["scores"].values()))["protocol"]["network"]
    columns = [
        Column("Scene"),
        Column("Distance"),
        Column("Value", numeric=True),
        Column("Interval", numeric=True, minor=True),
        Column("Recognised as it", minor=True),
    ]
    caption = (
        f"Kernel distance on {network} with its interval; the line is 0, as far as held-out tiles are. Recognised: "
        "the share of its samples."
    )
    return Table("How far samples are from their scene", caption, columns, cells)


def confusion(folder: Path) -> Table | None:
    """Which scene was seen in samples of which."""
    counts: dict[str, dict[str, int]] = {}
    for row in _sheet(folder / RECOGNISED):
        counts.setdefault(row["asked_for"], {})[row["recognised"]] = int(row["n_samples"])
    names = list(counts)[:MAX_SCENES]
    rows: list[list[str | Cell]] = []
    for asked in names:
        n_all = max(sum(counts[asked].values()), 1)
        found = [counts[asked].get(seen, 0) for seen in names]
        rows.append([name(asked), *(Heat(f"{n:,}" if n else "", n / n_all) for n in found)])
    columns = [Column("Asked for"), *(Column(name(seen), numeric=True, upright=True) for seen in names)]
    caption = "Samples by the scene that was asked for, in rows, and the scene they are recognised as, in columns."
    return Table("What the samples show", caption, columns, rows) if rows else None


def copies(folder: Path) -> Figure | None:
    """How near samples are to one training tile, against held-out tiles, as shares that are so near or nearer."""
    rows = _sheet(folder / COPIES)
    if not rows:
        return None
    shares, drawn, real = (np.array([float(row[key]) for row in rows]) for key in ("share", "samples", "held_out"))
    x, y = Axis(0, float(max(drawn.max(), real.max(), 1e-9))), Axis(0, 1, vertical=True)
    plot = Plot(
        alt="Shares of samples and of held-out tiles by their distance to the nearest training tile",
        shapes=[line(x.places(tiles), y.places(shares), tone) for tiles, tone in ((real, "dropped"), (drawn, "kept"))],
        x_ticks=x.ticks(),
        y_ticks=y.ticks(4),
        x_label="Distance to the nearest training tile (0: a copy)",
        y_label="Share that is so near, or nearer",
        aspect=2.6,
    )
    legend = [("kept", "samples"), ("dropped", "held-out tiles: what is normal")]
    caption = (
        "Distances are relative to the next nearest tiles. Samples are copies where their curve leaves the grey one on "
        "the left."
    )
    return Figure("Copies", caption, [plot], legend)


def _content(folder: Path) -> Mapping[str, Any]:
    path = folder / PROTOCOLS
    return dict(read_json(path)) if path.is_file() else {}


def _plain_metrics(folder: Path) -> Block:
    """The numbers of metrics.json, of an evaluation without protocols."""
    path = folder / METRICS
    metrics = read_json(path) if path.is_file() else {}
    rows = [(Code(str(key)), number(value)) for key, value in metrics.items() if isinstance(value, int | float)]
    if not rows:
        return Text("The evaluation left no numbers.", absent=True)
    columns = [Column("Score"), Column("Value", numeric=True)]
    return Table("Evaluation of the samples", "As in metrics.json.", columns, rows[:MAX_SCORES], narrow=True)


def _kept_samples(folder: Path, order: str) -> Rows:
    """Samples whose pixels were kept."""
    path = folder / SAMPLES
    sql = f"SELECT * FROM samples WHERE image IS NOT NULL ORDER BY {order}"
    return fetch(sql, {"samples": path}) if path.is_file() else []


def _held_out(folder: Path) -> dict[str, list[Tile]]:
    """The first held-out tiles of each scene, in content order; empty where there are none."""
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        return {}
    sql = f"""SELECT tile_id, label FROM manifest
              QUALIFY row_number() OVER (PARTITION BY label ORDER BY content_md5, tile_id) <= {N_SAMPLES}
              ORDER BY label, content_md5, tile_id"""
    rows = fetch(sql, {"manifest": manifest})
    pixels = read_tiles(folder, [row["tile_id"] for row in rows])
    return {
        label: [Tile(pixels[row["tile_id"]], f"Held-out tile: {row['tile_id']}", kept=True) for row in some]
        for label, some in groupby(rows, key=lambda row: str(row["label"]))
    }


def _scene(row: Mapping[str, str], axis: Axis) -> Sequence[str | Cell]:
    low, value, high = (float(row[key]) for key in ("low", "kernel_distance", "high"))
    words = f"{quantity(low)} to {quantity(high)}"
    interval = Interval(f"{quantity(value)}, {words}", axis.at(low), axis.at(value), axis.at(high), line=axis.at(0.0))
    known = row["recognised"] not in ("", "nan")
    recognised = float(row["recognised"]) if known else 0.0
    return interval, quantity(value), words, Bar(share(recognised) if known else "", recognised, 1.0 if known else 0.0)


def _sheet(path: Path) -> list[dict[str, str]]:
    return read_sheet(path) if path.is_file() else []


def _meaning(title: str) -> str:
    start = next((start for start in MEANINGS if title == start or title.startswith(f"{start}_")), "")
    return MEANINGS.get(start, name(title)) + (", mean of the scenes" if title.endswith("/mean_of_scenes") else "")


def _protocols(shown: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each protocol, and each caution once."""
    sentences = [_protocol(one["protocol"]) for one in shown.values()]
    return list(dict.fromkeys([*sentences, *(one["caution"] for one in shown.values() if one.get("caution"))]))


def _protocol(protocol: Mapping[str, Any]) -> str:
    drawn = protocol["parameters"].get("samples", "")
    weights = f", weights sha256 {protocol['sha256'][:12]}" if protocol["sha256"] else ""
    against = "training tiles" if "held_out" in protocol["parameters"] else "held-out tiles"
    return (
        f"On {protocol['network']}: {protocol['resize']}{weights}; {protocol['n_generated']:,} samples ({drawn}) "
        f"against {count(protocol['n_reference'])} {against} (content {protocol['reference'][:12]})."
    )
