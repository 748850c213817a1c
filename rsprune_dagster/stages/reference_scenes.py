"""reference_scenes: the labelled scene set, read like the corpus."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rsprune_dagster.config.layout import MANIFEST_FILE, QUARANTINE_FILE
from rsprune_dagster.corpus.options import ReadOptions, write_options
from rsprune_dagster.corpus.tables import write_batches
from rsprune_dagster.stages.raw_corpus import MANIFEST, QUARANTINE, Scanner, ScanReport, scan


def scan_reference(sources: Sequence[str], folder: Path, scanner: Scanner) -> ScanReport:
    """Write what `scan` writes, with a label for each tile. Without sources the tables are empty.

    Raises:
        UsageError: the sources are empty, or have no labels.
        RunError: no tile can be used.
    """
    if sources:
        return scan(sources, folder, scanner, labelled=True, label="reference_scenes")
    write_batches([], folder / MANIFEST_FILE, MANIFEST)
    write_batches([], folder / QUARANTINE_FILE, QUARANTINE)
    write_options(ReadOptions(), Counter(), folder)
    return ScanReport(0, 0, 0, 0, 0, 0)
