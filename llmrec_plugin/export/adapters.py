"""LoRA adapters: small matrices trained beside frozen weights, put into the weights before the export.

    adapter_config.json           the kind of adapter, the base model, rank and scale
    adapter_model.safetensors     the small matrices A and B of each layer: W' = W + scale * B A

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. Merging is done by `peft`, which knows
the variants (rank-stabilized scale, transposed layers, DoRA, modules trained whole). What peft passes over with a
warning is an error here: an adapter that holds nothing, changes nothing, or has names that the base does not have.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.artifacts import sha256_file
from llmrec_plugin.errors import DeclarationError, MissingExtraError, ParityError, SourceError
from llmrec_plugin.export.generator_reference import load_generator
from llmrec_plugin.export.reference import load_network
from llmrec_plugin.export.sources import ADAPTER, base_of, find_folder, is_adapter
from llmrec_plugin.export.statements import read_json
from llmrec_plugin.export.toolchain import quiet, require
from llmrec_plugin.specs import EncoderModel, GeneratorModel

WEIGHTS = "adapter_model.safetensors"
TOLERANCE = 1e-4
"""Largest difference of the merged model's outputs to those of base and adapter, or this share of the largest output
where that is more than 1."""

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*/config.json")
_NOT_COPIED = ("adapter_config.json", "model.safetensors.index.json")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")
_UPDATES = ("lora_B", "lora_embedding_B")
_FACTORS = (*_UPDATES, "lora_A", "lora_embedding_A")


def whole_folder(
    model: EncoderModel | GeneratorModel, target: Path, report: Callable[[str], None] = lambda line: None
) -> Path:
    """A Hugging Face folder with all weights of `model`: where its source is, or `target` with the adapter merged.

    Args:
        model: The declaration.
        target: Folder to write to if the source is an adapter; equal parts give equal weights.
        report: Called with one line of progress.

    Raises:
        SourceError: Source or base cannot be found, or the adapter is no LoRA, is empty, changes nothing or does not
            fit the base.
        DeclarationError: A base is declared for a source that is no adapter.
        ParityError: The merged weights do not compute what base and adapter compute.
        MissingExtraError: peft is not installed.
    """
    folder = find_folder(model.source, adapters=True)
    if not is_adapter(folder):
        if model.base is not None:
            raise DeclarationError(
                f"model {model.name!r} declares base={model.base!r}, but {folder} holds a whole model and no adapter. "
                "Remove base."
            )
        return folder
    check_adapter(folder)
    base = find_folder(base_of(folder, model.base))
    report(f"{model.name}: merging the adapter into {base}")
    _merge(model, folder, base, target)
    return target


def origin_of(model: EncoderModel | GeneratorModel) -> dict[str, str]:
    """What a manifest says of an adapter: where its base is and its hash; nothing for a whole model."""
    folder = find_folder(model.source, adapters=True)
    if not is_adapter(folder):
        return {}
    return {"base": base_of(folder, model.base), "adapter_sha256": sha256_file(folder / WEIGHTS)}


def check_adapter(folder: Path) -> None:
    """Checks that the adapter is a LoRA that changes something.

    Raises:
        SourceError: It is another kind, its weights are missing or no safetensors, it holds no weights, or all of them
            are zero.
    """
    kind = str(read_json(folder / ADAPTER).get("peft_type"))
    if kind != "LORA":
        raise SourceError(
            f"{folder} holds an adapter of the kind {kind!r}; only LORA is merged. Merge it where it was trained "
            "(`merge_and_unload`, `save_pretrained`), if its kind can be, and export the merged folder."
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (
            " Only adapter_model.bin is there, which can run code when loaded; "
            * (folder / "adapter_model.bin").is_file()
        )
        raise SourceError(
            f"{folder}: expected {WEIGHTS}, which is not there.{pickled or ' '}Save the adapter with "
            "`save_pretrained(folder, safe_serialization=True)`."
        )
    names = changed = 0
    only_factors = True
    with require("safetensors").safe_open(folder / WEIGHTS, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # the file is no mapping
            names += 1
            only_factors &= any(factor in name for factor in _FACTORS)
            if any(update in name for update in _UPDATES):
                changed += bool(tensors.get_tensor(name).any())
    if not names:
        raise SourceError(
            f"{folder / WEIGHTS} holds no weights at all ({(folder / WEIGHTS).stat().st_size} bytes). Some versions of "
            "peft and training scripts that replace `state_dict` save such files. Save the adapter again from the "
            "trained model, with `model.save_pretrained(folder)`."
        )
    if only_factors and not changed:
        raise SourceError(
            f"{folder / WEIGHTS}: every update B is zero, so the adapter changes nothing: it was saved before "
            "training, or training did not reach it. Train it, or export the base model."
        )


def _merge(model: EncoderModel | GeneratorModel, folder: Path, base: Path, target: Path) -> None:
    """Writes base and adapter as one model into `target`."""
    peft = _peft()
    target.mkdir(parents=True, exist_ok=True)
    _copy(base, _COPIED, target)
    _copy(folder, _TOKENIZER, target)
    network = _load(model, base)
    inputs = _probe(network.config, seq2seq=isinstance(model, GeneratorModel) and model.task == "seq2seq")
    try:
        with quiet():
            adapted = peft.PeftModel(network, peft.PeftConfig.from_pretrained(folder)).eval()
            loaded = adapted.load_adapter(folder, adapted.active_adapter, torch_device="cpu")
    except (ValueError, RuntimeError, KeyError, TypeError) as exc:  # what peft raises for adapters of other models
        raise SourceError(f"model {model.name!r}: the adapter in {folder} does not fit the base {base}: {exc}") from exc
    missing = [name for name in loaded.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or loaded.unexpected_keys:
        examples = [*loaded.unexpected_keys[:1], *missing[:1]]
        raise SourceError(
            f"model {model.name!r}: the adapter in {folder} does not fit the base {base}: "
            f"{len(loaded.unexpected_keys)} of its weights have no place there and {len(missing)} places have no "
            f"weights, e.g. {' and '.join(map(repr, examples))}. Give the base it was trained on, and for an encoder "
            "an adapter of the encoder, not of a model with a head; or save it again with the version of peft that "
            "trained it."
        )
    expected = _outputs(adapted, inputs)
    with quiet():
        adapted.merge_and_unload(safe_merge=True).save_pretrained(target, safe_serialization=True)
    del adapted, network
    difference = np.abs(_outputs(_load(model, target), inputs) - expected).max()
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ParityError(
            f"model {model.name!r}: merged with the adapter in {folder}, it gives other numbers than base and adapter: "
            f"they differ by {difference:.3g}. Weights that the base shares (tied embeddings) and that the adapter "
            "trains are one cause. Nothing was stored."
        )


def _load(model: EncoderModel | GeneratorModel, folder: Path) -> Any:
    return load_network(model, folder) if isinstance(model, EncoderModel) else load_generator(model, folder)


def _probe(config: Any, *, seq2seq: bool) -> dict[str, Any]:
    """Token ids on which base with adapter and merged model are compared, (2, 16) int64."""
    torch = require("torch")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, config.vocab_size, (2, 16)))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids.flip(1)} if seq2seq else {})


def _outputs(network: Any, inputs: dict[str, Any]) -> np.ndarray:
    """Logits or token vectors, (2, 16, size) float32."""
    with require("torch").inference_mode():
        found = network(**inputs, return_dict=True)
    return np.asarray((found["logits"] if "logits" in found else found["last_hidden_state"]).float().numpy())


def _copy(source: Path, patterns: tuple[str, ...], target: Path) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            if path.is_file() and path.name not in _NOT_COPIED:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)


def _peft() -> Any:
    try:
        return require("peft")
    except MissingExtraError as exc:
        raise MissingExtraError("peft", "tune", "Merging an adapter") from exc
