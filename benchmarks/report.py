"""The report's page on a large corpus: how long it takes to write, how large it is, how fast a browser opens it.

    python -m benchmarks.report [--tiles 10000 1000000]

The tables are drawn (`report_assets.py`), the page is the real one, seeds and pictures included. Each page is written
by a process of its own, whose largest resident set the kernel tells. Then chromium opens it at three widths in turn:
the time is the browser's own, from the start of the navigation to the end of the load event, the median of three fresh
contexts each.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import heading
from benchmarks.memory import usage
from benchmarks.report_assets import write_assets

WIDTHS_PX = (390, 820, 1440)
N_OPENINGS = 3
WRITE = """
import sys
from pathlib import Path
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import load, project_root
from rsprune_dagster.stages.pruning_report import write_report
params = load(project_root() / "params.yaml")
layout = Layout(Path(sys.argv[1]), Path(sys.argv[2]), {"pruning_report": Path(sys.argv[2])})
write_report(layout, [], params.report, clustering=params.clustering, seed=0)
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[10_000, 1_000_000])
    options = parser.parse_args()
    print(heading("benchmarks.report"), end="\n\n")
    print("Opening: chromium, headless, median of three.\n")
    opened = " | ".join(f"opened at {width} px, ms" for width in WIDTHS_PX)
    print(f"| tiles | written in, s | peak memory, MB | page, MB | {opened} | aim |")
    print(f"|---:|---:|---:|---:|{'---:|' * len(WIDTHS_PX)}---|")
    for n_tiles in options.tiles:
        print(f"| {n_tiles:,} | {' | '.join(measured(n_tiles))} | 60 s, 4 MB, 2,000 ms |", flush=True)


def measured(n_tiles: int) -> list[str]:
    """The cells of a row."""
    with tempfile.TemporaryDirectory() as folder:
        assets = write_assets(Path(folder) / "assets", n_tiles)
        wall_s, peak_mb = usage([sys.executable, "-c", WRITE, str(assets), folder], dict(os.environ))
        page = Path(folder) / "report.html"
        size_mb = page.stat().st_size / 1e6
        return [f"{wall_s:.1f}", f"{peak_mb:.0f}", f"{size_mb:.2f}", *(f"{ms:.0f}" for ms in opening_ms(page))]


def opening_ms(page: Path) -> list[float]:
    """Milliseconds until the page is loaded, for each width."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        times = [statistics.median(_open(browser, page, width) for _ in range(N_OPENINGS)) for width in WIDTHS_PX]
        browser.close()
    return times


def _open(browser: Any, page: Path, width_px: int) -> float:
    context = browser.new_context(viewport={"width": width_px, "height": 900})
    opened = context.new_page()
    opened.goto(page.as_uri())
    loaded_ms = float(opened.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
    context.close()
    return loaded_ms


if __name__ == "__main__":
    main()
