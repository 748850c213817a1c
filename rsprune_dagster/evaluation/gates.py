"""Of the trained model and its scores: the training went well, the champion is not beaten downwards, nothing leaked.

The scores are read from what `Evaluation.as_json` writes. The champion is the evaluation that was accepted last; scores
are compared under equal protocols only, as anywhere.
"""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from rsprune_dagster.errors import RunError
from rsprune_dagster.evaluation.protocol import Protocol, Score, difference
from rsprune_dagster.pruning.checks.verdict import Verdict

Json = Mapping[str, Any]

DISTANCES: Final = ("fid", "frechet_")
"""How the names of Fréchet distances start."""
LOSS_TAIL: Final = 10
"""The first and the last tenth of the training are held against each other."""


def training_went_well(checkpoint: Path) -> Verdict:
    """The loss is finite all along, and less in the last tenth of the training than in the first."""
    with (checkpoint / "loss.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(line["loss"]) for line in csv.DictReader(file)]
    n_odd = sum(not math.isfinite(loss) for loss in losses)
    figures: dict[str, int | float | str] = {"n_losses": len(losses), "n_not_finite": n_odd}
    if n_odd or not losses:
        what = f"{n_odd:,} of {len(losses):,} losses are not finite" if losses else "there is no loss"
        todo = "lower training.learning_rate, or set training.precision to float32; then train again"
        return Verdict(False, f"{what}: {todo}.", figures)
    tenth = max(1, len(losses) // LOSS_TAIL)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    figures |= {"first_loss": first, "last_loss": last}
    if last < first or len(losses) == 1:
        return Verdict(True, f"the loss fell from {first:.3f} to {last:.3f}.", figures)
    return Verdict(
        False,
        f"the loss did not fall: {first:.3f} at first, {last:.3f} at last. Train longer (training.n_images), or lower "
        "training.learning_rate.",
        figures,
    )


def no_leakage(metrics: Json) -> Verdict:
    """No tile that scores are measured on was trained on, nor nearly."""
    counts = {name: int(n) for name, n in metrics["metrics"].items() if name.startswith("n_leaked_")}
    sentences = [str(sentence) for sentence in metrics.get("leaks", ())]
    if not counts:
        return Verdict(True, "not measured: what the model was trained on is not known.", {})
    if not sum(counts.values()):
        return Verdict(True, "no tile of the evaluation was trained on.", counts)
    todo = "Such scores flatter the model: take these tiles out of the corpus or of the evaluation, then train again."
    return Verdict(False, f"{' '.join(sentences) or 'evaluation tiles were trained on.'} {todo}", counts)


def not_worse_than_champion(metrics: Json, champion: Json | None, *, max_fid_loss: float) -> Verdict:
    """No Fréchet distance is above the champion's by more than `max_fid_loss` of it.

    A distance has failed where the difference is more than that and its interval does not hold 0, so not by chance.

    Args:
        champion: the accepted evaluation; None: there is none yet.
    """
    if champion is None:
        return Verdict(
            True, "no other evaluation was accepted: commit dvc.lock, and this one is the champion of the next.", {}
        )
    figures: dict[str, int | float | str] = {}
    worse, unequal, compared = [], [], 0
    for name in sorted(set(_distances(metrics)) & set(_distances(champion))):
        score, best = _score(metrics["protocols"][name]), _score(champion["protocols"][name])
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


def read_metrics(folder: Path) -> Json:
    """metrics.json of an evaluation."""
    content: Json = json.loads((folder / "metrics.json").read_text())
    return content


def _distances(metrics: Json) -> list[str]:
    return [name for name in metrics["protocols"] if name.startswith(DISTANCES) and "/" not in name]


def _score(raw: Json) -> Score:
    """What `Score.as_json` wrote."""
    protocol = {**raw["protocol"], "parameters": tuple(raw["protocol"]["parameters"].items())}
    values = {field.name: raw[field.name] for field in fields(Score) if field.name != "protocol"}
    return Score(**values, protocol=Protocol(**protocol))
