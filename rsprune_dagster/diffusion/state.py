"""The training state on disk: safetensors and JSON, written atomically, without pickle.

It needs no random generator state: every draw depends on the seed and the image number.
"""

import copy
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rsprune_dagster.diffusion.denoiser import Denoiser, read_denoiser
from rsprune_dagster.utils.errors import RunError, UsageError

if TYPE_CHECKING:
    from rsprune_dagster.diffusion.tile_set import TrainingData
    from rsprune_dagster.diffusion.training import TrainingOptions

N_KEPT = 2
MOMENTS = ("exp_avg", "exp_avg_sq")
MAY_CHANGE = ("n_images", "save_every_images", "micro_batch_size", "gradient_checkpointing")
"""Options that may change when a training resumes, since earlier losses do not depend on them."""
HARMLESS = tuple(name for name in MAY_CHANGE if name != "n_images")
"""Options that do not change the training's result."""
OF_A_CONDITION = ("condition", "condition_dropout", "mean_share", "parent")
"""Options that a training without a condition does not have."""


@dataclass
class TrainingState:
    """The state of a training. The loop changes it in place, since the weights are large."""

    denoiser: Denoiser
    averaged: Denoiser
    optimizer: torch.optim.Adam
    n_images: int = 0
    losses: list[float] = field(default_factory=list)
    n_threads: int = 0
    """Number of CPU threads of torch; 0: unknown or not started."""

    @classmethod
    def new(cls, denoiser: Denoiser) -> "TrainingState":
        """The state before the first image."""
        averaged = copy.deepcopy(denoiser).requires_grad_(False)
        return cls(denoiser, averaged, torch.optim.Adam(denoiser.parameters()))

    def on(self, device: str) -> "TrainingState":
        """Move to a device, in the memory format that is faster there."""
        for model in (self.denoiser, self.averaged):
            model.to(device=device, memory_format=layout(device))
        for moments in self.optimizer.state.values():
            for name in MOMENTS:
                moments[name] = moments[name].to(device)
        return self

    def after(self, loss: float, *, n: int, half_life_images: int) -> None:
        """Record a step of `n` images and update the EMA (Karras et al. 2022, half-life in images)."""
        self.n_images += n
        self.losses.append(loss)
        # early in training, average over the steps so far, not over the initialization
        beta = min(0.5 ** (n / max(half_life_images, 1e-9)), self.n_images / (self.n_images + 10 * n))
        with torch.no_grad():
            own, followed = list(self.averaged.parameters()), list(self.denoiser.parameters())
            torch._foreach_lerp_(own, followed, 1 - beta)


def layout(device: str) -> torch.memory_format:
    """channels_last on GPUs, where it is faster; contiguous on CPUs, where it is a fifth faster for few channels."""
    return torch.channels_last if device.startswith("cuda") else torch.contiguous_format


def training_key(options: "TrainingOptions", tiles: "TrainingData") -> str:
    """A folder name: the hash of tiles and options, except options that do not change the result or are not in use."""
    unused = {name for name in OF_A_CONDITION if not getattr(options, name)}
    fixed = {name: value for name, value in asdict(options).items() if name not in {*HARMLESS, *unused}}
    return hashlib.sha256(json.dumps([fixed, tiles.fingerprint()]).encode()).hexdigest()[:20]


def save_state(state: TrainingState, folder: Path, options: "TrainingOptions", tiles: "TrainingData") -> Path:
    """Write `folder/state-IMAGES` and remove all states but the last two.

    Raises:
        RunError: the disk is full or not writable; earlier states are unchanged.
    """
    target = folder / f"state-{state.n_images:012d}"
    draft = folder / f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir(parents=True)
        _write(state, draft, {"options": asdict(options), "tiles": tiles.fingerprint()})
        if target.exists():
            shutil.rmtree(target)
        os.rename(draft, target)
    except (OSError, SafetensorError) as error:  # the latter is safetensors' own OSError
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise RunError(
            f"cannot write {target}: {reason}; free some space, then run again: the training goes on "
            "from its last state"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in states(folder)[:-N_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest_state(folder: Path, options: "TrainingOptions", tiles: "TrainingData") -> TrainingState | None:
    """The last complete state in `folder`; None if there is none.

    Raises:
        UsageError: the state has other options or tiles; lists the differences.
        RunError: its weights are truncated or of another architecture.
    """
    found = states(folder)
    if not found:
        return None
    about = json.loads((found[-1] / "state.json").read_text())
    _check_same(found[-1], about, options, tiles)
    if about["n_images"] > options.n_images:
        raise UsageError(
            f"{found[-1]} has seen {about['n_images']:,} images already, more than the {options.n_images:,} asked: "
            "raise training.n_images, or remove it"
        )
    try:
        return _read(found[-1], about)
    except Exception as error:  # safetensors and diffusers raise many exception types
        raise RunError(
            f"the training state {found[-1]} cannot be read ({' '.join(str(error).split())[:300]}): remove it, "
            "and the training goes on from the one before"
        ) from error


def states(folder: Path) -> list[Path]:
    """The states in a folder, oldest first."""
    return sorted(folder.glob("state-*"))


def _write(state: TrainingState, folder: Path, about: dict[str, Any]) -> None:
    state.denoiser.save_pretrained(folder / "denoiser")
    state.averaged.save_pretrained(folder / "averaged")
    names = [name for name, _ in state.denoiser.named_parameters()]
    moments = {
        f"{moment}.{name}": state.optimizer.state[parameter][moment].contiguous()
        for name, parameter in zip(names, state.denoiser.parameters(), strict=True)
        for moment in MOMENTS
        if parameter in state.optimizer.state
    }
    save_file(moments, folder / "optimizer.safetensors")
    steps = {"n_steps": len(state.losses), "n_images": state.n_images, "losses": state.losses}
    (folder / "state.json").write_text(json.dumps({**about, **steps, "n_threads": state.n_threads}))


def _read(folder: Path, about: dict[str, Any]) -> TrainingState:
    denoiser = read_denoiser(folder / "denoiser")
    state = TrainingState.new(denoiser)
    state.averaged = read_denoiser(folder / "averaged").requires_grad_(False)
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in denoiser.named_parameters():
        own = {moment: moments[f"{moment}.{name}"] for moment in MOMENTS}
        state.optimizer.state[parameter] = {"step": torch.tensor(float(about["n_steps"])), **own}
    state.n_images, state.losses = about["n_images"], about["losses"]
    state.n_threads = about.get("n_threads", 0)
    return state


def _check_same(folder: Path, about: dict[str, Any], options: "TrainingOptions", tiles: "TrainingData") -> None:
    defaults = {one.name: one.default for one in fields(options)}  # an older state lacks a newer option
    asked = {name: value for name, value in asdict(options).items() if name not in MAY_CHANGE}
    before = {name: about["options"].get(name, defaults[name]) for name in asked}
    differences = [
        f"{name} was {before[name]!r} and is {value!r}" for name, value in asked.items() if before[name] != value
    ]
    if about["tiles"] != tiles.fingerprint():
        differences.append("the tiles are others")
    if differences:
        raise UsageError(
            f"{folder} is the state of another training: {'; '.join(differences)}. "
            "Train in another folder, or remove it"
        )
