"""Which checkpoint is the champion: each evaluation decides by the run log, and its record carries the decision.

A decision needs the run log alone. `mlflow_sync` copies it to MLflow's model registry as the alias `champion`, and
notes what the alias points at, which goes before older decisions: a person or another machine may have moved it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsprune_dagster.config.params import EvaluationParams, suggest
from rsprune_dagster.evaluation.protocol import Score, better, difference
from rsprune_dagster.tracking.run_log import Record, RunLog
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.errors import RunError

ALIAS = "champion"
CHECKPOINT, SUBSET = "diffusion_checkpoint", "pruned_subset"
CHECKPOINTS = (CHECKPOINT, "super_resolution_checkpoint", "semantic_synthesis_checkpoint")
"""The assets that are registered as models; all but the first are made from the first."""
SEEN = "champion.json"
"""In the run log: what MLflow's alias pointed at when it was last looked at."""


@dataclass(frozen=True)
class Verdict:
    """What an evaluation decided; kept in its record as plain JSON values."""

    checkpoint: str
    """The data version that was evaluated."""
    champion: str
    """The data version that is the champion from now on; empty: there is none."""
    previous: str
    """The champion before; empty: there was none."""
    reason: str
    """In a sentence."""
    score: Mapping[str, Any] | None = None
    """The deciding score, as `Score.as_json`; None where it was not measured."""
    margin: float = 0.0

    @property
    def moves(self) -> bool:
        return self.champion == self.checkpoint != self.previous


@dataclass(frozen=True)
class ChampionRecord:
    """The champion, and what it is known to have scored, newest first."""

    checkpoint: str
    scores: tuple[Score, ...]


def judge(
    run_log: RunLog,
    checkpoint: str,
    scores: Sequence[Score],
    metrics: Mapping[str, float],
    left_out: Mapping[str, str],
    params: EvaluationParams,
) -> Verdict:
    """What the evaluation of a checkpoint decides, by what the run log knows of the champion."""
    name = params.champion_score
    score = next((score for score in scores if score.name == name), None)
    objection = _copies(metrics, params) if score else _not_measured(name, scores, left_out)
    return verdict(checkpoint, score, current_champion(run_log), margin=params.champion_margin, objection=objection)


def verdict(
    checkpoint: str,
    score: Score | None,
    standing: ChampionRecord | None,
    *,
    margin: float,
    objection: str = "",
) -> Verdict:
    """Whether a checkpoint takes the champion's place.

    Args:
        score: by which it is decided; None: it was not measured, and `objection` says why.
        standing: the champion; None: there is none yet.
        margin: by how much the score has to be better, beyond the interval of the difference.
        objection: why it may not become the champion, whatever it scores.
    """
    previous = standing.checkpoint if standing else ""
    takes, reason = _decided(checkpoint, score, standing, margin, objection)
    return Verdict(
        checkpoint, checkpoint if takes else previous, previous, reason, score.as_json() if score else None, margin
    )


def current_champion(run_log: RunLog) -> ChampionRecord | None:
    """The champion by the newest decision, or by what was found in MLflow since."""
    records = [record for record in run_log.records() if record.verdict and record.status == "FINISHED"]
    records.sort(key=lambda record: record.ended_at or 0.0)
    champion, decided_at = "", 0.0
    for record in records:
        if record.verdict["champion"] != record.verdict["previous"]:
            champion, decided_at = str(record.verdict["champion"]), record.ended_at or 0.0
    found = read_mlflow_alias(run_log)
    if found and found["decided_at"] >= decided_at:
        champion = found["checkpoint"]
    if not champion:
        return None
    scores = [*_scores_of(champion, reversed(records))]
    if found and found["checkpoint"] == champion and found["score"]:
        scores.append(Score.from_json(found["score"]))
    return ChampionRecord(champion, tuple(scores))


def subset_of(run_log: RunLog, checkpoint: str) -> str:
    """The version of pruned_subset that a checkpoint was trained on; empty where the run log does not know it."""
    makers = (record for record in run_log.records() if (record.asset, record.data_version) == (CHECKPOINT, checkpoint))
    return next((record.inputs.get(SUBSET, "") for record in makers), "") if checkpoint else ""


def read_mlflow_alias(run_log: RunLog) -> dict[str, Any] | None:
    """The checkpoint, score and decision of the last look at MLflow's alias; None if it was never read."""
    try:
        found: dict[str, Any] = json.loads(_path(run_log).read_text())
    except (OSError, ValueError):
        return None
    return found


def write_mlflow_alias(run_log: RunLog, checkpoint: str, score: Mapping[str, Any] | None, decided_at: float) -> None:
    """Note what MLflow's alias points at, now that all decisions until `decided_at` were delivered."""
    with atomic_write(_path(run_log)) as draft:
        draft.write_text(json.dumps({"checkpoint": checkpoint, "score": score, "decided_at": decided_at}))


def _not_measured(name: str, scores: Sequence[Score], left_out: Mapping[str, str]) -> str:
    if not name:
        return "no checkpoint becomes the champion, as evaluation.champion_score is empty"
    if name in left_out:
        return f"it does not become the champion, as {name} was not measured: {left_out[name]}"
    known = tuple(score.name for score in scores)
    hint = suggest(name, known) or f"; there are {', '.join(known) or 'no scores'}"
    return f"it does not become the champion, as evaluation.champion_score names {name}, which is no score{hint}"


def _copies(metrics: Mapping[str, float], params: EvaluationParams) -> str:
    """Why a checkpoint that copies its training tiles is no champion; empty where it does not."""
    share = metrics.get("singled_out_pixels", 0.0)
    if share <= params.champion_max_copies:
        return ""
    return (
        f"it does not become the champion: {share:.1%} of its samples are near one training tile alone, more than the "
        f"{params.champion_max_copies:.1%} that evaluation.champion_max_copies allows: copies score well"
    )


def _decided(
    checkpoint: str, score: Score | None, standing: ChampionRecord | None, margin: float, objection: str
) -> tuple[bool, str]:
    """Whether the checkpoint becomes the champion, and why."""
    if standing and standing.checkpoint == checkpoint:
        return False, "this checkpoint is the champion already"
    if objection or score is None:
        return False, objection
    if standing is None:
        return True, f"it becomes the champion as the first that was evaluated: {score.name} {_shown(score)}"
    for theirs in standing.scores:
        if theirs.name == score.name and not score.protocol.differences(theirs.protocol):
            return _compared(score, theirs, standing.checkpoint, margin)
    return False, _why_not_comparable(score, standing)


def _compared(score: Score, theirs: Score, champion: str, margin: float) -> tuple[bool, str]:
    try:
        takes, gap = better(score, theirs, margin), difference(score, theirs)
    except RunError as error:
        return False, f"the champion {champion[:8]} stays: {error}"
    start = "it becomes the champion" if takes else f"the champion {champion[:8]} stays"
    verb = "is better" if takes else "is not better"
    beyond = f" by more than {margin:g}" if margin else ""
    return takes, (
        f"{start}: {score.name} {_shown(score)} {verb}{beyond} than {_shown(theirs)} of {champion[:8]}, the difference "
        f"being {gap.value:.3g} ({gap.low:.3g} to {gap.high:.3g})"
    )


def _why_not_comparable(score: Score, standing: ChampionRecord) -> str:
    champion = standing.checkpoint[:8]
    same = [theirs for theirs in standing.scores if theirs.name == score.name]
    if not same:
        return (
            f"the champion {champion} stays: no {score.name} of it is known here; bring it back with "
            "`rsprune restore`, evaluate it, then evaluate this one again"
        )
    differing = "; ".join(score.protocol.differences(same[0].protocol))
    return (
        f"the champion {champion} stays: its {score.name} was measured with another protocol ({differing}); bring it "
        "back with `rsprune restore`, evaluate it, then evaluate this one again"
    )


def _scores_of(checkpoint: str, records: Iterable[Record]) -> Iterable[Score]:
    for record in records:
        if record.verdict["checkpoint"] == checkpoint and record.verdict["score"]:
            yield Score.from_json(record.verdict["score"])


def _shown(score: Score) -> str:
    return f"{score.value:.3g} ({score.low:.3g} to {score.high:.3g})"


def _path(run_log: RunLog) -> Path:
    return run_log.root / SEEN
