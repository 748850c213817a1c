"""Whether two commits give the same results, byte for byte: `python tests/golden.py --against COMMIT`.

Both run on this machine, in this environment: the answer does not depend on the processor. Compared are the sha256 of
the kept tiles, of the ledger and of the weights of a short training, and its losses: on synthetic and on real tiles,
where those lie beside the checkout. Only the command line is used, so a commit may be older than this file.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
EUROSAT = CHECKOUT.parent / "shared" / "data" / "eurosat"
N_REAL_TILES = 1500
TRAINING = {"n_images": 160, "batch_size": 16, "micro_batch_size": 16, "image_size_px": 32, "save_every_images": 160}
ASSETS = (
    "raw_corpus",
    "reference_scenes",
    "entropy_scores",
    "embeddings",
    "scene_clusters",
    "pruned_subset",
    "diffusion_checkpoint",
)
RSPRUNE = ["-c", "from rsprune_dagster.cli import main; main()"]


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="rsprune_golden_") as folder, _checkout(options.against) as base:
        real = _real_tiles(Path(folder) / "real") if EUROSAT.is_dir() else None
        before, now = (_results(tree, Path(folder) / "run", real) for tree in (base, CHECKOUT))
    differing = [name for name in before if before[name] != now.get(name)]
    for name in before:
        print(f"{'DIFFERS' if name in differing else 'same   '}  {name}  {before[name]}  {now.get(name)}")
    print(f"{len(before) - len(differing)} of {len(before)} results are the same as those of {options.against}")
    if real is None:
        print(f"real tiles were not compared: they are not at {EUROSAT}")
    return 1 if differing else 0


def _results(tree: Path, folder: Path, real: Path | None) -> dict[str, str]:
    """What each result of the checkout at `tree` is, by name. `folder` is empty again afterwards: tables name paths."""
    project = _project(tree, folder / "project")
    training = [word for name, value in TRAINING.items() for word in ("--set", f"training.{name}={value}")]
    _rsprune(tree, folder, ["materialize", *ASSETS, *training], RSPRUNE_PROJECT=str(project))
    assets = project / "assets"
    results = _hashes("synthetic", assets / "pruned_subset", "*.parquet")
    results |= _hashes("training", assets / "diffusion_checkpoint", "**/*.safetensors")
    report = json.loads((assets / "diffusion_checkpoint" / "training.json").read_text())
    results |= {f"training: {name}": str(report[name]) for name in ("first_loss", "final_loss")}
    if real:
        pool, reference = str(real), str(EUROSAT / "reference")
        for name, arguments in {"real": ["--reference", reference], "real, no reference": []}.items():
            out = folder / name.replace(", ", "_").replace(" ", "_")
            _rsprune(tree, folder, ["prune", pool, *arguments, "--out", str(out)], RSPRUNE_PROJECT=str(project))
            results |= _hashes(name, out, "*.parquet")
    shutil.rmtree(folder)
    return results


def _rsprune(tree: Path, folder: Path, arguments: list[str], **environment: str) -> None:
    """Run the command of a checkout, on one thread: sums do not depend on the load of the machine."""
    settings = {"PYTHONPATH": str(tree), "MLFLOW_TRACKING_URI": "none", "OMP_NUM_THREADS": "1", **environment}
    subprocess.run(
        [sys.executable, *RSPRUNE, *arguments],
        cwd=folder,
        env={**os.environ, **settings},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _project(tree: Path, project: Path) -> Path:
    """A project of its own with the parameters of the checkout."""
    project.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        (project / name).write_bytes((tree / name).read_bytes())
    return project


def _hashes(title: str, folder: Path, pattern: str) -> dict[str, str]:
    found = sorted(folder.glob(pattern))
    assert found, f"no {pattern} in {folder}"
    return {f"{title}: {p.relative_to(folder)}": hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in found}


def _real_tiles(folder: Path) -> Path:
    """The first tiles of EuroSAT's pool, in a folder."""
    folder.mkdir()
    with tarfile.open(EUROSAT / "pool.tar") as pool:
        for _, member in zip(range(N_REAL_TILES), pool, strict=False):
            content = pool.extractfile(member)
            assert content, f"{member.name} is no file"
            (folder / Path(member.name).name).write_bytes(content.read())
    return folder


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="rsprune_base_") as folder:
        archive = subprocess.run(
            ["git", "archive", "--format=tar", commit], cwd=CHECKOUT, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the results of this checkout with those of a commit.")
    parser.add_argument("--against", required=True, metavar="COMMIT")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
