"""Read options: the part of params.yaml that defines tiles and the scaling of their values."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsprune_dagster.config.params import CorpusParams


@dataclass(frozen=True)
class ReadOptions:
    """Parameters of reading, from `corpus:` in params.yaml; each can change a result.

    Two are not in params.yaml. Tiles with more than `max_tile_pixels` are rejected before decoding, as a mistake or a
    decompression bomb. `base` is the folder that relative uris of a manifest are resolved against.
    """

    tile_size_px: int = 256
    overlap_px: int = 0
    min_valid_fraction: float = 0.5
    bands: tuple[int, ...] = ()
    value_range: tuple[float, ...] = ()
    image_columns: tuple[str, ...] = ()
    max_tile_pixels: int = 64_000_000
    base: str = field(default="", compare=False)

    @property
    def max_decoded_bytes(self) -> int:
        """Memory limit of a raster before scaling: 8 bytes per pixel, such as 4 bands of 16 bits."""
        return 8 * self.max_tile_pixels

    def values(self) -> dict[str, Any]:
        """The parameters by name."""
        return {name: value for name, value in asdict(self).items() if name != "base"}


def options_of(params: CorpusParams) -> ReadOptions:
    """The read options in params.yaml."""
    return ReadOptions(**params.model_dump(include=set(ReadOptions.__dataclass_fields__)))


PROJECT_FILE = "dvc.yaml"
"""The file that marks a project's folder."""

_ABOUT = "corpus.json"


def write_options(options: ReadOptions, ignored: Counter[str], folder: Path) -> None:
    """Store the read options with the manifest, so that later readers get the same pixels."""
    content = {"read_options": options.values(), "ignored_files": dict(sorted(ignored.items()))}
    (folder / _ABOUT).write_text(json.dumps(content, indent=1) + "\n")


def read_options(folder: Path) -> ReadOptions:
    """The read options of a manifest; relative uris are resolved against the project that contains the folder."""
    raw = json.loads((folder / _ABOUT).read_text())["read_options"]
    values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    return ReadOptions(**values, base=_project_of(folder))


def ignored_files(folder: Path) -> dict[str, int]:
    """The number of files beside the tiles of a manifest, by suffix."""
    ignored: dict[str, int] = json.loads((folder / _ABOUT).read_text())["ignored_files"]
    return ignored


def _project_of(folder: Path) -> str:
    """The nearest parent folder with a dvc.yaml; empty outside a project, where every uri is absolute."""
    return next((str(above) for above in folder.absolute().parents if (above / PROJECT_FILE).is_file()), "")
