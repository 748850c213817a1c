"""The page tells what the ledger holds, needs nothing beside it, stays small, and takes whatever a corpus holds."""

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import browser_page
from PIL import Image
from prune_runs import PROJECT, Outcome, prune, settings
from typer.testing import CliRunner

from benchmarks.report_assets import write_assets
from rsprune_dagster.cli.commands import app
from rsprune_dagster.config.layout import LATER, REPORT_HTML, REPORT_JSON, Layout
from rsprune_dagster.config.params import load
from rsprune_dagster.evaluation.writer import SAMPLES_SCHEMA
from rsprune_dagster.pruning.ledger import n_to_keep
from rsprune_dagster.pruning.sensitivity import kept_at_fractions
from rsprune_dagster.stages.pruning_report import Report, make_report
from rsprune_dagster.tracking.report_origins import origins_of
from rsprune_dagster.viz.checks import counts_agree, self_contained
from rsprune_dagster.viz.formatting import count, counted, share, shortened, size
from rsprune_dagster.viz.origins import Origin, stale

PARAMS = load(PROJECT / "params.yaml")
MAX_PAGE_BYTES = 4_000_000
HOSTILE = "\"'><script>alert(1)</script>&`{{ 7 * 7 }}`{% x %}"


@pytest.fixture(scope="module")
def recorded(commanded: Path) -> Outcome:
    """A prune with the records of its run."""
    return Outcome(commanded / ".rsprune")


@pytest.fixture(scope="module")
def report(recorded: Outcome) -> Report:
    return page_on(recorded.assets, origins_of(recorded.layout))


def page_on(assets: Path, origins: list[Origin] | None = None, **changes: object) -> Report:
    params = PARAMS.report.model_copy(update=changes)
    return make_report(Layout(assets, assets.parent), origins or [], params, clustering=PARAMS.clustering, seed=0)


class Page(HTMLParser):
    """The page's tags with their attributes, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_the_counts_on_the_page_are_those_of_the_ledger(recorded: Outcome, report: Report) -> None:
    decisions = [row["decision"] for row in recorded.rows("decisions")]
    shown = dict(re.findall(r"<b>([\d,]+)</b> <span class=\"what\">([\w ]+)</span>", report.html))
    found = {name.replace(" ", "_"): int(n.replace(",", "")) for n, name in shown.items()}
    assert found == {name: decisions.count(name) for name in set(decisions)}
    assert f"<h1>{len(decisions):,} tiles in, {decisions.count('kept'):,} kept</h1>" in report.html
    assert report.numbers["decisions"] == {**report.numbers["decisions"], **found}


def test_the_scenes_on_the_page_are_those_of_the_ledger(recorded: Outcome, report: Report) -> None:
    rows = [row for row in recorded.rows("decisions") if row["scene"] is not None]
    for scene in report.numbers["scenes"]:
        own = [row["decision"] for row in rows if row["scene"] == scene["scene"]]
        assert (scene["n_tiles"], scene["n_kept"]) == (len(own), own.count("kept"))
        assert re.search(
            rf">{scene['scene']}</th><td[^>]*>.*?<td class=\"number \">{scene['n_kept']}</td>", report.html
        )
    assert sum(scene["n_tiles"] for scene in report.numbers["scenes"]) == len(rows)


def test_the_page_needs_nothing_beside_it(report: Report) -> None:
    page = Page(report.html)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", report.html))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= targets


def test_the_checks_of_the_page_pass_and_fail_on_another_subset_or_a_page_that_loads_something(
    recorded: Outcome, report: Report, tmp_path: Path
) -> None:
    layout = recorded.layout.with_draft("pruning_report", tmp_path)
    (tmp_path / REPORT_HTML).write_text(report.html)
    (tmp_path / REPORT_JSON).write_text(json.dumps(report.numbers))
    assert counts_agree(layout).passed and self_contained(layout).passed
    (tmp_path / REPORT_JSON).write_text(json.dumps({**report.numbers, "n_kept": 1}))
    assert "tells of 1 tiles kept" in counts_agree(layout).sentence
    for added in ('<img src="https://elsewhere/a.png">', "<script>1</script>"):
        (tmp_path / REPORT_HTML).write_text(report.html + added)
        assert not self_contained(layout).passed


def test_the_page_says_in_words_what_it_shows_in_pictures(report: Report) -> None:
    page = Page(report.html)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) > 100 and all(attributes["alt"] for attributes in pictures)
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    plots = [attributes for attributes in drawn if "plane" in attributes.get("class", "").split()]
    assert plots and all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    strips = [attributes for attributes in drawn if attributes.get("class") == "strip"]
    assert all("aria-hidden" in strip or strip["aria-label"] for strip in strips)  # a bar's share stands beside it
    tables = [tag for tag, _ in page.tags if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(headings))


def test_the_same_assets_give_the_same_page(recorded: Outcome, report: Report) -> None:
    again = page_on(recorded.assets, origins_of(recorded.layout))
    assert again.html == report.html and again.numbers == report.numbers


def test_the_page_names_the_versions_and_parameters_it_was_made_from(report: Report) -> None:
    text = Page(report.html).text()
    for version in report.numbers["versions"].values():
        assert version in text
    assert "selection.keep_fraction" in text and "compute.seed" in text


def test_reasons_are_shown_by_tiles_that_met_them(recorded: Outcome, report: Report) -> None:
    ledger = recorded.decisions()
    shown = [attributes["alt"] for tag, attributes in Page(report.html).tags if tag == "img"]
    for start, decision in (("Low information", "low_information"), ("Duplicate that went", "duplicate")):
        names = [alt.rpartition(": ")[2] for alt in shown if alt.startswith(start)]
        assert names and {ledger[name]["decision"] for name in names} == {decision}
    twins = [alt.rpartition(": ")[2] for alt in shown if alt.startswith("Its twin, kept")]
    assert twins and {ledger[name]["decision"] for name in twins} == {"kept"}


def test_a_pool_a_hundred_times_as_large_gives_a_page_of_bounded_size(tmp_path: Path) -> None:
    small, large = (page_on(write_assets(tmp_path / str(n), n), n_other_seeds=1) for n in (600, 60_000))
    assert large.numbers["n_seen"] == 100 * small.numbers["n_seen"]
    assert small.size_bytes < MAX_PAGE_BYTES and large.size_bytes < MAX_PAGE_BYTES
    pictures = [html.count("<img ") for html in (small.html, large.html)]
    assert max(pictures) < 700 and pictures[1] <= 1.5 * pictures[0]


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    html = page_on(write_assets(tmp_path / "assets", 600, hostile=HOSTILE), n_other_seeds=0).html
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags} and "<script" not in html
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert any(HOSTILE in attributes.get("alt", "") for _, attributes in page.tags)


def test_what_is_not_there_is_said_and_does_not_hinder(report: Report) -> None:
    text = Page(report.html).text()
    assert all(f"({asset})" in text for asset in LATER)


def test_what_came_later_is_shown_where_it_is_there(pruned: Outcome, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    shutil.copytree(pruned.assets, assets)
    _write_later(assets)
    report = page_on(assets, n_other_seeds=0)
    text = Page(report.html).text()
    assert not any(f"({asset})" in text for asset in LATER if asset != "semantic_synthesis_study")
    assert "after 1,234 of 5,000 images" in text and "0.123" in text and "too few images" in text
    assert "Sample of city after 64 images" in report.html and "Sample 7: city" in report.html
    assert "x4, realistic degradation" in text and "23.2 (22.2 to 24.2)" in text and "fid needs more images" in text
    assert "Example 1: truth" in report.html and "Example 1: mask" in report.html
    assert "PSNR of the mean ↑" in text and "in the same way on 6,400 images" in text
    assert "no summary yet (semantic_synthesis_study)" in text
    assert "classes water, city" in text and "0.0375 (0.0125 to 0.0625)" in text and "17.5" in text
    assert "Segmenters 3 of each kind" in " ".join(text.split())
    training = assets / "semantic_synthesis_checkpoint" / "training.json"
    told = json.loads(training.read_text())
    del told["n_segmenters"]  # as an earlier version wrote it
    training.write_text(json.dumps(told))
    assert "of each kind" not in Page(page_on(assets, n_other_seeds=0).html).text()


def test_a_later_asset_that_tells_less_is_no_error(pruned: Outcome, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    shutil.copytree(pruned.assets, assets)
    (assets / "evaluation_metrics").mkdir()
    (assets / "evaluation_metrics" / "metrics.json").write_text(json.dumps({"fid": 41.5, "note": "x"}))
    (assets / "pruning_study").mkdir()
    text = Page(page_on(assets, n_other_seeds=0).html).text()
    assert "fid" in text and "41.5" in text and "no summary yet" in text


def test_without_a_reference_clusters_have_the_quotas(synthetic: Path, tmp_path: Path) -> None:
    outcome = prune(settings(synthetic / "corpus", None), tmp_path)
    text = Page(page_on(outcome.assets, n_other_seeds=1).html).text()
    assert "Quotas by cluster" in text and "Quotas by scene" not in text


def test_the_map_has_every_tile_with_coordinates(tmp_path: Path) -> None:
    assets = write_assets(tmp_path / "assets", 600)
    html = page_on(assets, n_other_seeds=0).html
    placed = pq.read_table(assets / "raw_corpus" / "manifest.parquet", columns=["lon"]).num_rows
    figure = html.split("Where the tiles lie")[1].split("</figure>")[0]
    assert sum(path.count("h0") for path in re.findall(r'class="dots \w+" d="([^"]+)"', figure)) == placed


def test_a_keep_fraction_is_a_prefix(pruned: Outcome) -> None:
    fractions = (0.05, 0.1, 0.15, 0.5, 1.0)
    n_readable = len(pruned.rows("manifest", "raw_corpus"))
    kept = kept_at_fractions(pruned.layout, n_readable, fractions)
    for n_kept in kept.n_kept:
        assert list(n_kept) == sorted(n_kept)
    n_candidates = sum(kept.n_candidates)
    sums = [sum(n_kept[i] for n_kept in kept.n_kept) for i in range(len(fractions))]
    assert sums == [min(n_to_keep(n_readable, fraction), n_candidates) for fraction in fractions]
    assert sums[2] == len(pruned.rows("pruned_subset"))


def test_the_seed_of_the_prune_is_compared_with_the_next_ones(report: Report) -> None:
    seeds = report.numbers["seeds"]
    assert [overlap["seed"] for overlap in seeds["overlaps"]] == [1, 2]
    assert all(seeds["n_kept"] / seeds["n_sampled"] < overlap["shared"] <= 1 for overlap in seeds["overlaps"])


def test_an_asset_made_from_another_version_is_named() -> None:
    subset = Origin("pruned_subset", "new", 1, 1)
    assert stale([subset, Origin("diffusion_checkpoint", "c", 1, 1, inputs={"pruned_subset": "new"})]) == []
    [sentence] = stale([subset, Origin("diffusion_checkpoint", "c", 1, 1, inputs={"pruned_subset": "old"})])
    assert "diffusion_checkpoint" in sentence and "pruned_subset" in sentence


def test_the_command_writes_the_page_of_a_prune(commanded: Path, tmp_path: Path) -> None:
    out, target = shutil.copytree(commanded, tmp_path / "out"), tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", "--out", str(out), "--html", str(target)])
    assert done.exit_code == 0 and str(target) in done.output
    assert target.read_text().startswith("<!doctype html>")


def test_the_command_without_a_prune_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", "--out", str(tmp_path)])
    assert done.exit_code and "rsprune prune" in str(done.exception)


def test_numbers_are_written_as_a_person_reads_them() -> None:
    assert (count(1234567), counted(1, "tile"), counted(2, "CRS", "CRS")) == ("1,234,567", "1 tile", "2 CRS")
    written = [share(part, 100_000).replace("\N{NO-BREAK SPACE}", " ") for part in (0, 1, 15_000, 99_999, 100_000)]
    assert written == ["0 %", "under 0.1 %", "15.0 %", "99.9 %", "100 %"] and share(1, 0) == ""
    sizes = [size(n).replace("\N{NO-BREAK SPACE}", " ") for n in (0, 999, 1000, 123_456_789, 5e15)]
    assert sizes == ["0 bytes", "999 bytes", "1.0 kB", "123 MB", "5000 TB"]
    assert len(shortened("a" * 100)) == 34 and shortened("short") == "short"


@pytest.mark.slow
def test_a_browser_shows_the_page_at_three_widths_and_on_paper(pruned: Outcome, tmp_path: Path) -> None:
    """No word beside the screen, no error on the console, nothing asked of a network, light and dark."""
    assets = tmp_path / "assets"
    shutil.copytree(pruned.assets, assets)
    _write_later(assets)
    target = tmp_path / "report.html"
    target.write_text(page_on(assets).html, encoding="utf-8")
    with browser_page() as page:
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: _note_foreign(request.url, troubles))
        for width_px in (390, 820, 1440):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width_px, "height": 900})
                page.goto(target.as_uri())
                assert page.evaluate(_OVERFLOW) <= 0, width_px
                assert page.evaluate(_BROKEN) == 0
        assert troubles == []
        paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF")


_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"


def _note_foreign(url: str, troubles: list[str]) -> None:
    if not url.startswith(("file:", "data:")):
        troubles.append(url)


def _write_later(assets: Path) -> None:
    """What a training, an evaluation and a study leave, in the little that the page reads of it."""
    checkpoint, metrics, restored, drawn, study, enlarging, drawing = (assets / asset for asset in LATER)
    for folder in (
        checkpoint / "samples",
        metrics,
        restored / "examples",
        drawn / "examples",
        study,
        enlarging,
        drawing,
    ):
        folder.mkdir(parents=True)
    names = ["n_tiles", "n_scenes", "n_images", "n_epochs", "n_weights", "first_loss", "final_loss"]
    (checkpoint / "training.json").write_text(
        json.dumps(dict(zip(names, [45, 2, 640, 14.2, 1000, 1.0, 0.2], strict=True)))
    )
    (checkpoint / "scenes.json").write_text(json.dumps(["city", "water"]))
    (checkpoint / "loss.csv").write_text("n_images,loss\n64,1.0\n320,0.4\n640,0.2\n")
    Image.fromarray(np.full((16, 32, 3), 90, np.uint8)).save(checkpoint / "samples" / "000000000064.png")
    (metrics / "metrics.json").write_text(json.dumps({"kernel_descriptor": 0.123}))
    protocol = {"network": "descriptor", "n_generated": 320, "n_reference": 400, "resize": "none", "sha256": ""}
    protocol |= {"parameters": {"samples": "drawn"}, "reference": "c0ffee"}
    score = {"value": 0.123, "low": 0.1, "high": 0.15, "larger_is_better": False, "protocol": protocol}
    told = {
        "scores": {"kernel_descriptor": score},
        "left_out": {"fid": "too few images"},
        "leaks": ["No leak was found."],
    }
    (metrics / "protocols.json").write_text(json.dumps(told))
    png = (checkpoint / "samples" / "000000000064.png").read_bytes()
    row = {"sample": 7, "scene": "city", "nearest_tile_id": None, "turn": None, "distance": None, "relative": None}
    pq.write_table(pa.Table.from_pylist([{**row, "image": png}], SAMPLES_SCHEMA), metrics / "samples.parquet")
    (study / "summary.json").write_text(json.dumps(_study()))
    (enlarging / "summary.json").write_text(json.dumps([{**_study(), "score": "psnr_mean", "n_images": 6400}]))
    told = {"scale": 4, "degradation": "realistic", "n_images": 640, "n_tiles": 45, "n_test_images": 12}
    told |= {"first_loss": 1.0, "final_loss": 0.2, "not_measured": "fid needs more images."}
    (restored / "training.json").write_text(json.dumps(told))
    (restored / "restoration.csv").write_text(
        "output,measure,value,low,high,gain,gain_low,gain_high\nbicubic,psnr,24.5,23.5,25.5,0,0,0\n"
        "sample,psnr,23.25,22.25,24.25,-1.25,-2,-0.5\n"
    )
    told = {"classes": ["water", "city"], "n_images": 640, "n_pairs": 24, "n_test_images": 12, "n_segmenters": 3}
    told |= {"first_loss": 1.0, "final_loss": 0.2, "not_measured": ""}
    (drawn / "training.json").write_text(json.dumps(told))
    (drawn / "metrics.json").write_text(json.dumps({"frechet_descriptor_drawn": 17.5}))
    (drawn / "segmentation.csv").write_text(
        "learned_from,measured_on,measure,value,low,high,gain,gain_low,gain_high\n"
        + "".join(
            f"real,{on},{name},0.625,0.5,0.75,,,\nreal and drawn,{on},{name},0.65,0.5,0.75,0.0375,0.0125,0.0625\n"
            for on in ('"real, other places"',)
            for name in ("miou", "accuracy", "mean_accuracy")
        )
    )
    for folder in (restored, drawn):
        Image.fromarray(np.full((16, 80, 3), 90, np.uint8)).save(folder / "examples" / "00.png")


def _study() -> dict[str, Any]:
    def estimate(value: float, spread: float | None) -> dict[str, Any]:
        low, high = (None, None) if spread is None else (value - spread, value + spread)
        return {"value": value, "low": low, "high": high, "n_seeds": 3}

    def arm(name: str, spread: float | None) -> dict[str, Any]:
        curve = [[n, estimate(5000 / n, spread)] for n in (1000, 2500, 5000)]
        gap = None if name == "full" else estimate(-0.4, 0.1)
        gaps = {"to_full": gap, "to_random": gap, "to_none": None}
        return {"arm": name, "n_tiles": 300, "seeds": [0, 1, 2], "curve": curve, **gaps}

    verdict = "rsprune-0.15 (45 tiles): it reaches the full corpus' final score after 1,234 of 5,000 images."
    arms = [arm("full", 0.2), arm("rsprune-0.15", None)]
    return {"score": "kernel_descriptor", "level": 0.95, "n_images": 5000, "arms": arms, "verdicts": [verdict]}
