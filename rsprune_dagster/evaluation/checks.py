"""Checks of the trained model and its scores: loss, regression against the champion, leakage.

Scores are read from the files of `writer.py`. The champion is the evaluation that was accepted last; only scores with
equal protocols are compared.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rsprune_dagster.config.layout import LOSS, METRICS, PROTOCOLS
from rsprune_dagster.evaluation.protocol import Score, difference
from rsprune_dagster.pruning.checks.verdict import Verdict
from rsprune_dagster.utils.csv_files import read_sheet
from rsprune_dagster.utils.errors import RunError

DISTANCES: Final = ("fid", "frechet_")
"""Name prefixes of Fréchet distances."""
LEAKED: Final = "n_leaked_"
"""Name prefix of the counts of leaked evaluation tiles."""
LOSS_TAIL: Final = 10
"""Number of parts of the loss curve, of which the first and the last are compared."""


@dataclass(frozen=True)
class StoredEvaluation:
    """The results of an evaluation, as written to its folder."""

    metrics: Mapping[str, float]
    scores: Mapping[str, Score]
    """By name."""
    leaks: tuple[str, ...]
    """A sentence per set with leaked tiles; empty: no leaks."""


def read_evaluation(files: Mapping[str, Path]) -> StoredEvaluation:
    """Read an evaluation from its files by name, which may be in a cache."""
    told = json.loads(files[PROTOCOLS].read_text())
    scores = {name: Score.from_json(raw) for name, raw in told["scores"].items()}
    return StoredEvaluation(json.loads(files[METRICS].read_text()), scores, tuple(told["leaks"]))


def training_went_well(checkpoint: Path, section: str = "training") -> Verdict:
    """All losses are finite, and their mean is lower in the last tenth of the training than in the first.

    The loss of single batches is noisy: a training with too few batches per tenth need not show a decrease.
    """
    losses = [float(line["loss"]) for line in read_sheet(checkpoint / LOSS)]
    n_odd = sum(not math.isfinite(loss) for loss in losses)
    figures: dict[str, int | float | str] = {"n_losses": len(losses), "n_not_finite": n_odd}
    if n_odd or not losses:
        what = f"{n_odd:,} of {len(losses):,} losses are not finite" if losses else "there is no loss"
        todo = f"lower {section}.learning_rate, or set training.precision to float32; then train again"
        return Verdict(False, f"{what}: {todo}.", figures)
    tenth = len(losses) // LOSS_TAIL
    if not tenth:
        return Verdict(
            True, f"the losses of {len(losses)} batches are finite; too few to tell whether they fall.", figures
        )
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    figures |= {"first_loss": first, "last_loss": last}
    if last < first:
        return Verdict(True, f"the loss fell from {first:.3f} to {last:.3f}.", figures)
    return Verdict(
        False,
        f"the loss did not fall: {first:.3f} at first, {last:.3f} at last. Train longer ({section}.n_images), or lower "
        f"{section}.learning_rate.",
        figures,
    )


def no_leakage(evaluation: StoredEvaluation) -> Verdict:
    """No evaluation tile is in the training set, also not as a near-duplicate."""
    counts = {name: int(n) for name, n in evaluation.metrics.items() if name.startswith(LEAKED)}
    if not counts:
        return Verdict(True, "not measured: there are no held-out tiles, or it is not known what was trained on.", {})
    if not sum(counts.values()):
        return Verdict(True, f"no tile of the evaluation was trained on{_compared(evaluation.metrics)}.", counts)
    what = " ".join(evaluation.leaks) or "evaluation tiles were trained on."
    todo = "Such scores flatter the model: take these tiles out of the corpus or of the evaluation, then train again."
    return Verdict(False, f"{what} {todo}", counts)


def _compared(metrics: Mapping[str, float]) -> str:
    """A phrase on which tiles were compared, if the evaluation recorded it."""
    try:
        drawn = int(metrics["n_held_out"]), int(metrics["n_training_tiles"])
        everything = int(metrics["n_held_out_all"]), int(metrics["n_training_tiles_all"])
    except KeyError:
        return ", of those that were compared"
    held_out, training = (f"{n:,}" for n in everything)
    if drawn == everything:
        return f": all {held_out} held-out tiles were compared with all {training} training tiles"
    return (
        f", by content: all {held_out} held-out tiles were compared with all {training} training tiles. Nearly equal "
        f"tiles were sought among {drawn[0]:,} and {drawn[1]:,} of them (evaluation.max_tiles)"
    )


def not_worse_than_champion(
    evaluation: StoredEvaluation, champion: StoredEvaluation | None, *, max_fid_loss: float
) -> Verdict:
    """No Fréchet distance exceeds the champion's by more than `max_fid_loss`, relatively.

    A distance fails if the difference is larger and its interval excludes 0.

    Args:
        champion: the accepted evaluation; None: none yet.
    """
    if champion is None:
        return Verdict(
            True, "no other evaluation was accepted: commit dvc.lock, and this one is the champion of the next.", {}
        )
    figures: dict[str, int | float | str] = {}
    worse, unequal, compared = [], [], 0
    for name in sorted(_distances(evaluation) & _distances(champion)):
        score, best = evaluation.scores[name], champion.scores[name]
        try:
            gap = difference(score, best)
        except RunError as error:
            unequal.append(str(error))
            continue
        compared += 1
        margin = max_fid_loss * best.value
        figures |= {name: score.value, f"{name} of the champion": best.value, f"{name} margin": margin}
        if gap.value > margin and gap.low > 0:
            worse.append(f"{name} is {score.value:.4g} where the champion has {best.value:.4g}")
    if worse:
        return Verdict(
            False,
            f"{'; '.join(worse)}: worse by more than {max_fid_loss:.0%}, and not by chance. Keep the champion "
            "(`rsprune restore` brings its checkpoint back), and look at what `rsprune diff` says of the subset.",
            figures,
        )
    if not compared:
        why = unequal[0] if unequal else "they have no distance in common"
        return Verdict(True, f"not compared with the champion: {why}.", figures)
    return Verdict(
        True, f"{compared} Fréchet distances are not worse than the champion's by {max_fid_loss:.0%}.", figures
    )


def _distances(evaluation: StoredEvaluation) -> set[str]:
    """The names of the Fréchet distances over all scenes."""
    return {name for name in evaluation.scores if name.startswith(DISTANCES) and "/" not in name}
