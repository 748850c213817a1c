"""Which code ran: the commit of the checkout, and whether it was changed since."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Commit:
    """A commit's full hash, empty outside a git checkout, and whether tracked files differ from it."""

    sha: str
    dirty: bool


def head(folder: Path) -> Commit:
    """The commit that `folder` is checked out at. dvc.lock does not count as a change: runs write it."""
    sha = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    return Commit(sha, bool(sha and changed))


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
