"""dvc.lock, written as `dvc commit` would: what each stage was made from, and the hash of what it made."""

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rsprune_dagster.config.layout import ASSETS
from rsprune_dagster.tracking.content import Tree, tree_of
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.file_lock import held

Stage = dict[str, Any]
"""A stage's entry in dvc.lock: cmd, deps, params, outs."""

PATIENCE_S = 600


@dataclass(frozen=True)
class DvcProject:
    """A folder with dvc.yaml and `.dvc`, whose stages are named like the assets."""

    root: Path

    def exists(self) -> bool:
        return (self.root / "dvc.yaml").is_file() and (self.root / ".dvc").is_dir()

    def stages(self) -> dict[str, Stage]:
        """What dvc.yaml says of each asset that it has a stage of: what partitions fill over hours has none."""
        return dict(yaml.load((self.root / "dvc.yaml").read_bytes(), yaml.CSafeLoader)["stages"])

    def lock(self) -> dict[str, Stage]:
        """What dvc.lock says of each asset; empty where there is none yet.

        Raises:
            RunError: it is damaged, or holds the marks of a merge.
        """
        try:
            return _stages((self.root / "dvc.lock").read_bytes(), str(self.root / "dvc.lock"))
        except FileNotFoundError:
            return {}

    def lock_at(self, revision: str) -> dict[str, Stage]:
        """dvc.lock as a git commit holds it; empty where it holds none.

        Raises:
            RunError: git does not know the revision, or what it holds is no dvc.lock.
        """
        shown = subprocess.run(
            ["git", "-C", str(self.root), "show", f"{revision}:./dvc.lock"], capture_output=True, text=True, check=False
        )
        if shown.returncode and "does not exist" not in shown.stderr and "exists on disk" not in shown.stderr:
            raise RunError(f"git cannot show dvc.lock at {revision}: {shown.stderr.strip()}")
        return _stages(shown.stdout.encode(), f"dvc.lock at {revision}") if shown.returncode == 0 else {}

    def lock_md5(self) -> str:
        """The md5 of dvc.lock; empty where there is none yet."""
        try:
            return hashlib.md5((self.root / "dvc.lock").read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    def version(self, asset: str) -> str:
        """The hash that dvc.lock holds for an asset; empty where it holds none."""
        return version_in(self.lock(), asset)

    def stage_entry(self, asset: str, inputs: Mapping[str, Tree]) -> Stage:
        """The entry without `outs`. Call it before the asset is made, as code and parameters may change meanwhile.

        Args:
            inputs: by upstream asset.

        Raises:
            UsageError: code that dvc.yaml names is gone.
        """
        return self.expected_stage_entry(asset, {name: outs(name, tree)[0] for name, tree in inputs.items()})

    def expected_stage_entry(self, asset: str, inputs: Mapping[str, Stage]) -> Stage:
        """Like `stage_entry`, with the outs that dvc.lock has for each upstream asset.

        Raises:
            UsageError: code that dvc.yaml names is gone.
        """
        stage = self.stages()[asset]
        entry: Stage = {"cmd": stage["cmd"]}
        if paths := sorted(stage.get("deps", [])):
            known = {out["path"]: out for out in inputs.values()}
            entry["deps"] = [known.get(path) or self._dependency(path) for path in paths]
        if names := sorted(stage.get("params", [])):
            values = yaml.load((self.root / "params.yaml").read_bytes(), yaml.CSafeLoader)
            entry["params"] = {"params.yaml": {name: _value(values, name) for name in names}}
        return entry

    def record(self, entries: Mapping[str, Stage], say: Callable[[str], object]) -> None:
        """Write entries into dvc.lock, under DVC's own lock.

        Raises:
            RunError: another process held DVC's lock for ten minutes, or dvc.lock cannot be written.
        """
        with self.locked(say):
            stages = {**self.lock(), **entries}
            text = yaml.dump(
                {"schema": "2.0", "stages": stages}, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True
            )
            with atomic_write(self.root / "dvc.lock") as draft:
                draft.write_text(text)

    @contextmanager
    def locked(self, say: Callable[[str], object], *, patience_s: float = PATIENCE_S) -> Iterator[None]:
        """Hold DVC's repository lock, a flock on `.dvc/tmp/lock`; what holds it is waited for, with a message.

        Raises:
            RunError: it was held for longer than `patience_s`.
        """
        path = self.root / ".dvc" / "tmp" / "lock"
        with held(path, f"DVC's lock {path}", say, patience_s=patience_s):
            yield

    def _dependency(self, path: str) -> Stage:
        """A file or a folder of code."""
        if (self.root / path).is_dir():
            return _folder(path, tree_of(self.root / path))
        try:
            content = (self.root / path).read_bytes()
        except FileNotFoundError:
            raise UsageError(
                f"dvc.yaml names {path}, which is not there: bring it back, or take it out of the deps of its stages"
            ) from None
        return {"path": path, "hash": "md5", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}


def outs(asset: str, tree: Tree) -> list[Stage]:
    """What a stage's entry says was made."""
    return [_folder(f"{ASSETS}/{asset}", tree)]


def version_in(stages: Mapping[str, Stage], asset: str) -> str:
    """The hash that dvc.lock's stages hold for an asset's folder; empty where they hold none."""
    outs = stages.get(asset, {}).get("outs", [])
    return next((out["md5"] for out in outs if out["path"] == f"{ASSETS}/{asset}"), "")


def _folder(path: str, tree: Tree) -> Stage:
    return {"path": path, "hash": "md5", "md5": tree.digest, "size": tree.size_bytes, "nfiles": tree.n_files}


def _value(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _stages(text: bytes, source: str) -> dict[str, Stage]:
    try:
        return dict((yaml.load(text, yaml.CSafeLoader) or {}).get("stages") or {})
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        if b"<<<<<<<" in text:
            wrong = "holds the marks of a merge (<<<<<<<): resolve it, or take one side with `git checkout --ours`"
        else:
            wrong = "is damaged: bring it back with `git checkout`"
        raise RunError(f"{source} {wrong}, then run again") from error
