"""DVC's own command line, for what only it can do: talk to remotes."""

import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.utils.errors import RunError

_BESIDE = Path(".venv-dvc") / "bin" / "dvc"
"""DVC has an environment of its own beside Dagster's."""


@dataclass(frozen=True)
class DvcCommand:
    """The `dvc` executable, run in a project."""

    executable: Path
    project: Path

    @classmethod
    def find(cls, project: Path) -> "DvcCommand":
        """The project's own, else that of this checkout, else the one on PATH.

        Raises:
            RunError: there is none.
        """
        on_path = shutil.which("dvc")
        places = [
            project / _BESIDE,
            Path(__file__).resolve().parents[2] / _BESIDE,
            *([Path(on_path)] if on_path else []),
        ]
        for place in places:
            if os.access(place, os.X_OK):
                return cls(place, project)
        raise RunError(f"no dvc in {project / _BESIDE} nor on PATH: run `make setup`, or put DVC 3 on PATH")

    def run(self, *arguments: str, folder: Path | None = None) -> str:
        """Run a command in the project, or in `folder`; returns what it printed.

        Raises:
            RunError: it failed; with what it said last.
        """
        done = subprocess.run(
            [self.executable, *arguments],
            cwd=folder or self.project,
            env={**os.environ, "DVC_NO_ANALYTICS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise RunError(f"dvc {arguments[0]} failed: {(said or ['it said nothing'])[0].removeprefix('ERROR: ')}")
        return done.stdout

    def fetch(self, digests: Sequence[str]) -> None:
        """Bring versions from the remote into the project's cache, by their hashes alone.

        DVC fetches what files in a working tree name, and `--all-commits` everything that git ever named. A project of
        its own, with the same remote and cache and one `.dvc` file a hash, asks for exactly what is wanted, also for
        versions that no commit knows.

        Raises:
            RunError: no remote is set up, or it does not answer. What it lacks is no error: look into the cache.
        """
        with self._asking_for(digests) as folder:
            self.run("fetch", folder=folder)

    @contextmanager
    def _asking_for(self, digests: Sequence[str]) -> Iterator[Path]:
        inside = self.project / ".dvc" / "tmp"
        inside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="rsprune-fetch-", dir=inside) as name:
            folder = Path(name)
            (folder / ".dvc").mkdir()
            (folder / ".dvc" / "config").write_text(self._settings())
            for index, digest in enumerate(digests):
                out = f"outs:\n- md5: {digest}\n  hash: md5\n  path: version-{index}\n"
                (folder / f"version-{index}.dvc").write_text(out)
            yield folder

    def _settings(self) -> str:
        """The project's settings with absolute paths, as a config file: `dvc config --list` resolves them."""
        # a key that .dvc/config.local sets too is listed twice, and the last holds
        sections: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for line in self.run("config", "--list").splitlines():
            name, _, value = line.partition("=")
            section, _, key = name.rpartition(".")
            kind, _, title = section.partition(".")
            if name not in ("cache.dir", "core.no_scm"):
                sections[f"['{kind} \"{title}\"']" if title else f"[{kind}]"][key] = value
        if not any(title.startswith("['remote ") for title in sections):
            raise RunError("no DVC remote is set up: `dvc remote add --default NAME URL` names one")
        sections["[core]"]["no_scm"] = "true"
        sections["[cache]"]["dir"] = str(DvcCache.of(self.project).root.parents[1])
        blocks = [[title, *(f"{key} = {value}" for key, value in keys.items())] for title, keys in sections.items()]
        return "\n".join("\n".join(lines) for lines in blocks) + "\n"
