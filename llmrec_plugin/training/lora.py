"""Training few weights of a network: LoRA, by `peft`, or the last layers."""

from __future__ import annotations

from typing import Any, Literal

from llmrec_plugin.errors import InputError, MissingExtraError
from llmrec_plugin.export.prune import layer_list
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.specs import EncoderModel, GeneratorModel

Task = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"]


def add_lora(
    network: Any,
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: tuple[str, ...] | str | None = None,
    task: Task | None = None,
    seed: int = 0,
) -> Any:
    """The network with LoRA beside its weights, of which only LoRA's are trained; at first it computes the same.

    Args:
        network: A transformers model.
        rank: Rows of A and columns of B.
        alpha: The update is scaled by ``alpha / rank``; default: twice the rank.
        dropout: Of the update's input.
        targets: Names of the layers that get an update, or ``all-linear``; None: peft's choice for the architecture,
            which is queries and values of the attention for most.
        task: What the saved adapter says it is for.
        seed: Of A; B begins as zero.

    Raises:
        InputError: `rank` is not positive, or peft does not know which layers to take.
        MissingExtraError: peft is not installed.
    """
    torch = require("torch")
    peft = require_peft()
    if rank < 1:
        raise InputError(f"LoRA needs a rank of 1 or more, got {rank}.")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        task_type=task,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(network, config)
        except ValueError as exc:  # no table entry for the architecture, or no layer of these names
            raise InputError(f"LoRA cannot be added to {type(network).__name__}: {exc} Name the layers.") from exc


def merge_lora(network: Any) -> Any:
    """The plain transformers model with LoRA put into its weights; for a network from `add_lora`."""
    return network.merge_and_unload(safe_merge=True).eval()


def train_last_layers(model: EncoderModel | GeneratorModel, network: Any, count: int) -> None:
    """Freezes all weights but those of the last `count` transformer layers.

    Args:
        model: For messages.
        network: A transformers model.
        count: Layers to train.

    Raises:
        InputError: The model has fewer layers, or `count` is not positive.
        DeclarationError: The model has not one list of layers.
    """
    total = int(network.config.num_hidden_layers)
    if not 1 <= count <= total:
        raise InputError(f"model {model.name!r} has {total} layers, of which {count} cannot be trained.")
    _, layers = layer_list(model, network, total)
    network.requires_grad_(False)
    for layer in layers[-count:]:
        layer.requires_grad_(True)


def require_peft() -> Any:
    """The module peft.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return require("peft")
    except MissingExtraError as exc:
        raise MissingExtraError("peft", "tune", "LoRA") from exc
