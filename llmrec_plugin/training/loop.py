"""The training loop: warm-up, early stopping, and checkpoints from which a run goes on as if it had never stopped.

Every epoch draws from a seed of its own, so a resumed run sees the same batches and the same dropout and ends with the
same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from llmrec_plugin.errors import InputError
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.specs import digest

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to learn.

    Attributes:
        epochs: Passes over the training rows at most.
        patience: Epochs without a better validation loss after which to stop.
        learning_rate: The highest; it rises over `warmup` and falls to a twentieth at the last planned epoch.
        weight_decay: Of AdamW.
        warmup: Share of all steps in which the rate rises.
        seed: Of the order of rows, of dropout and of new weights.
    """

    epochs: int
    patience: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.05
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass: its number from 1, and the mean losses."""

    number: int
    training_loss: float
    validation_loss: float


def fit(
    network: Any,
    batches: Callable[[int], Sequence[Item]],
    loss: Callable[[Item], Any],
    validate: Callable[[], float],
    plan: Plan,
    *,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> list[Epoch]:
    """Trains the parameters of `network` that require a gradient, and leaves it with those of the best epoch.

    Args:
        network: A ``torch.nn.Module``.
        batches: The batches of an epoch, by a seed; always equally many.
        loss: The mean loss of a batch, a tensor with a gradient.
        validate: The mean loss on the validation rows, called without gradients and in evaluation mode.
        plan: How long and how fast.
        checkpoint: File that is written after every epoch; a run that finds it goes on from there.
        identity: What else makes the run, e.g. a hash of the data.
        progress: Whether to show a bar.
        report: Called with one line per epoch.

    Returns:
        The epochs, also those of before a resumption.

    Raises:
        InputError: `checkpoint` belongs to another run.
    """
    torch = require("torch")
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    run = digest([asdict(plan), identity, {name: list(weight.shape) for name, weight in trained.items()}])
    history: list[Epoch] = []
    best = {name: weight.detach().clone() for name, weight in trained.items()}
    if checkpoint is not None and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["run"] != run:
            raise InputError(f"{checkpoint} belongs to a run with other data or settings; delete it or move --output.")
        history, best = [Epoch(**values) for values in saved["history"]], saved["best"]
        _put(trained, saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        report(f"resuming after epoch {len(history)} from {checkpoint}")

    while len(history) < plan.epochs and not _is_over(history, plan.patience):
        number = len(history) + 1
        seed = plan.seed * 100_003 + number
        torch.manual_seed(seed)
        items = batches(seed)
        network.train()
        total = 0.0
        for index, item in enumerate(tqdm(items, desc=f"epoch {number}", disable=not progress, leave=False)):
            rate = _rate(plan, (number - 1) * len(items) + index, plan.epochs * len(items))
            for group in optimizer.param_groups:
                group["lr"] = rate
            value = loss(item)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            total += value.item()
        network.eval()
        with torch.no_grad():
            validated = validate()
        if validated < min((epoch.validation_loss for epoch in history), default=float("inf")):
            best = {name: weight.detach().clone() for name, weight in trained.items()}
        history.append(Epoch(number=number, training_loss=total / len(items), validation_loss=validated))
        report(f"epoch {number}: training loss {total / len(items):.4f}, validation loss {validated:.4f}")
        if checkpoint is not None:
            weights = {name: weight.detach() for name, weight in trained.items()}
            state = {"run": run, "history": [asdict(epoch) for epoch in history], "weights": weights, "best": best}
            _save({**state, "optimizer": optimizer.state_dict()}, checkpoint)
    _put(trained, best)
    network.eval()
    return history


def _is_over(history: Sequence[Epoch], patience: int) -> bool:
    if not history:
        return False
    best = min(history, key=lambda epoch: epoch.validation_loss).number
    return len(history) - best >= patience


def _rate(plan: Plan, step: int, steps: int) -> float:
    rising = max(1, round(plan.warmup * steps))
    if step < rising:
        return plan.learning_rate * (step + 1) / rising
    return plan.learning_rate * (1 - 0.95 * (step - rising) / max(1, steps - rising))


def _put(trained: dict[str, Any], values: dict[str, Any]) -> None:
    torch = require("torch")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(values[name])


def _save(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    require("torch").save(state, temporary)
    os.replace(temporary, path)
