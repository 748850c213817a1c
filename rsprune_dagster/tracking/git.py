"""A git checkout: its commits, its branch, what was changed, one file committed and pushed."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.utils.errors import RunError, UsageError

LOCK = "dvc.lock"
_NOT_LOCK = (".", f":(exclude){LOCK}")
"""Paths of a checkout without dvc.lock, which runs write."""


@dataclass(frozen=True)
class Commit:
    """A commit's full hash, empty outside a git checkout, and whether tracked files differ from it."""

    sha: str
    dirty: bool


def head(folder: Path) -> Commit:
    """The commit that `folder` is checked out at. dvc.lock does not count as a change: runs write it."""
    sha = output_of(folder, "rev-parse", "HEAD").decode().strip()
    changed = output_of(folder, "status", "--porcelain", "--untracked-files=no", "--", *_NOT_LOCK).strip()
    return Commit(sha, bool(sha and changed))


def output_of(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """What a git command prints; empty where it fails or git is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], input=stdin, capture_output=True, check=False)
    except FileNotFoundError:
        return b""
    return done.stdout if done.returncode == 0 else b""


@dataclass(frozen=True)
class Checkout:
    """The git checkout of a project that a command commits to. Every method raises UsageError where git is missing."""

    root: Path

    def commit_of(self, revision: str) -> str:
        """The full hash of a revision.

        Raises:
            UsageError: git knows no such revision.
        """
        done = self._try("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        if done.returncode:
            raise UsageError(f"git knows no revision {revision}: give a branch, a tag or a commit, or `git fetch` it")
        return done.stdout.strip()

    def branch(self) -> str:
        """The name of the branch that is checked out.

        Raises:
            UsageError: none is.
        """
        name = self._try("symbolic-ref", "--quiet", "--short", "HEAD").stdout.strip()
        if not name:
            raise UsageError("HEAD is detached, so there is no branch to push to: `git checkout BRANCH` first")
        return name

    def changed(self) -> list[str]:
        """Tracked files that differ from the commit, but for dvc.lock."""
        return self._git("diff", "--name-only", "HEAD", "--", *_NOT_LOCK).splitlines()

    def pointers(self) -> list[str]:
        """The tracked `.dvc` files: data that DVC versions beside the assets, such as the corpus."""
        return self._git("ls-files", "--", "*.dvc").splitlines()

    def lock_differs(self) -> bool:
        """Whether dvc.lock is not as the commit holds it."""
        return bool(self._git("status", "--porcelain", "--untracked-files=all", "--", LOCK).strip())

    def commit_lock(self, message: str) -> None:
        """Commit dvc.lock alone.

        Raises:
            RunError: git does not commit, for want of a name for instance.
        """
        self._git("add", "--", LOCK)
        self._git("commit", "--quiet", "--only", "--message", message, "--", LOCK)

    def undo_commit(self) -> None:
        """Undo the last commit; the files stay as they are."""
        self._git("reset", "--quiet", "--soft", "HEAD~1")
        self._git("reset", "--quiet", "--", LOCK)

    def moved_to(self) -> str:
        """The commit that the branch has on the remote, where this checkout does not contain it; else empty.

        Raises:
            RunError: the remote does not answer.
        """
        there = self._there()
        contained = not there or self._try("merge-base", "--is-ancestor", there, "HEAD").returncode == 0
        return "" if contained else there

    def is_pushed(self) -> bool:
        """Whether the remote's branch is at the commit that is checked out."""
        return self._there() == self.commit_of("HEAD")

    def push(self) -> None:
        """Push the branch, without force.

        Raises:
            RunError: the remote does not take it.
        """
        remote, ref = self._upstream()
        self._git("push", "--quiet", remote, f"HEAD:{ref}")

    def where(self) -> str:
        """The branch on the remote, for a sentence."""
        remote, ref = self._upstream()
        return f"{remote}/{ref.removeprefix('refs/heads/')}"

    def _there(self) -> str:
        return self._git("ls-remote", *self._upstream()).partition("\t")[0].strip()

    def _upstream(self) -> tuple[str, str]:
        """Remote and ref that the branch is pushed to: what it tracks, else its own name at origin."""
        branch = self.branch()
        remote = self._try("config", f"branch.{branch}.remote").stdout.strip() or "origin"
        return remote, self._try("config", f"branch.{branch}.merge").stdout.strip() or f"refs/heads/{branch}"

    def _git(self, *arguments: str) -> str:
        done = self._try(*arguments)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            reason = next((line for line in said if line.startswith(("fatal:", "error:", " !"))), said[0])
            raise RunError(f"git {arguments[0]} failed: {' '.join(reason.split())}")
        return done.stdout

    def _try(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                ["git", "-C", str(self.root), *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise UsageError("no git on PATH: a re-pruning compares commits and makes one") from None
