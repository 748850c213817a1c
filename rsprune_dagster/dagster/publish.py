"""Data to and from DVC's remote, then commits to git's: a lock never goes out before the data that it names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.dvc_command import DvcCommand
from rsprune_dagster.tracking.git import Checkout
from rsprune_dagster.tracking.restore import Say
from rsprune_dagster.utils.errors import RunError, UsageError

_IN_REMOTE = "deleted"
"""What `dvc status --cloud` calls a file that the remote has and the cache has not."""


@dataclass(frozen=True)
class Publisher:
    """Where a re-pruning comes from and goes to."""

    checkout: Checkout
    command: DvcCommand
    cache: DvcCache

    def check(self, *, commits: bool) -> None:
        """Find out before hours of work whether its result could be published.

        Args:
            commits: whether dvc.lock is to be committed and the branch pushed, and not the data alone.

        Raises:
            UsageError: there is no branch, no DVC remote, or tracked files differ from the commit.
            RunError: the branch has moved on at git's remote, or that does not answer.
        """
        branch = self.checkout.branch() if commits else ""
        if changed := self.checkout.changed():
            raise UsageError(
                f"{_listed(changed)} differ from the commit, and dvc.lock must name what a commit can make again: "
                "commit first, or leave --push out"
            )
        if "core.remote=" not in self.command.run("config", "--list"):
            raise UsageError("no default DVC remote to push to: `dvc remote add --default NAME URL`, and commit it")
        if commits:
            self._check_not_moved(branch)

    def pull_dvc_files(self, say: Say) -> None:
        """Pull the data of the checkout's `.dvc` files, such as the corpus, where it is missing or differs.

        Raises:
            RunError: no remote is set up, or it lacks the data.
        """
        pointers = self.checkout.pointers()
        state = json.loads(self.command.run("status", "--json", *pointers) or "{}") if pointers else {}
        if state:
            say(f"pulling {_listed(sorted(state))} from the DVC remote")
            self.command.run("pull", *sorted(state))

    def push_data(self, versions: Mapping[str, str], say: Say) -> None:
        """Have the remote hold versions, by asset, as dvc.lock names them now.

        `dvc push` ends well when files are missing on both sides, so that is looked for before and after.

        Raises:
            RunError: the remote does not take them, or the cache does not hold them.
        """
        if not versions:  # `dvc push` of nothing pushes everything
            return
        if missing := [asset for asset, version in versions.items() if self.cache.tree(version) is None]:
            raise RunError(
                f"DVC's cache {self.cache.root} lost files of {_listed(missing)}: run again to make them anew"
            )
        say(f"pushing the data of {_listed(list(versions))}")
        self.command.run("push", *versions)
        state = json.loads(self.command.run("status", "--cloud", "--json", *versions) or "{}")
        lacking = sorted(path for path, what in state.items() if what != _IN_REMOTE)
        if lacking:
            raise RunError(
                f"the DVC remote lacks {_listed(lacking)} after `dvc push`, so nothing was committed: run it by hand"
            )

    def commit_and_push(self, message: str, say: Say) -> bool:
        """Commit dvc.lock where it changed, and push the branch where the remote is not there yet; whether it did.

        Raises:
            RunError: the branch moved on meanwhile, or the remote does not answer; the commit is taken back, dvc.lock
                stays as it was made.
        """
        commits = self.checkout.lock_differs()
        if commits:
            self.checkout.commit_lock(message)
        try:
            if self.checkout.is_pushed():
                return False
            say(f"pushing {self.checkout.where()}")
            self.checkout.push()
        except RunError as error:
            if commits:
                self.checkout.undo_commit()
            self._check_not_moved(self.checkout.branch())
            raise error from None
        return True

    def _check_not_moved(self, branch: str) -> None:
        if there := self.checkout.moved_to():
            raise RunError(
                f"{self.checkout.where()} moved on to {there[:8]}, which {branch} here does not contain, so nothing "
                "was committed: `git pull --rebase`, then run again; finished work is kept"
            )


def _listed(names: Sequence[str]) -> str:
    most = 3
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
