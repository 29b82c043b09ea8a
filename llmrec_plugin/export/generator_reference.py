"""The reference of a generator: transformers' own ``generate``, float32, eager attention, one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import DeclarationError, SourceError
from llmrec_plugin.export.greedy import Prompt, Written
from llmrec_plugin.export.special_tokens import SpecialTokens
from llmrec_plugin.export.statements import positions, read_json
from llmrec_plugin.export.toolchain import quiet, require
from llmrec_plugin.specs import GeneratorModel

_RELATIVE = ("t5", "mt5", "umt5", "longt5")
"""Architectures whose ``n_positions`` is the length of the training texts; their positions are relative."""


class GeneratorReference:
    """The model as PyTorch runs it.

    Args:
        model: Gives the task.
        folder: Folder with config.json and safetensors weights.
        special: What ends an output.

    Raises:
        SourceError: transformers cannot load the model, or the folder lacks some of its weights.
        DeclarationError: The folder holds a model of the other task, or of another kind.
    """

    def __init__(self, model: GeneratorModel, folder: Path, special: SpecialTokens) -> None:
        self._causal = model.task == "causal"
        self._special = special
        self._network = load_generator(model, folder)

    @property
    def config(self) -> Any:
        """The configuration as transformers reads it."""
        return self._network.config

    def write(self, prompt: Prompt, new_tokens: int) -> Written:
        """At most `new_tokens` most probable tokens after `prompt`.

        Penalties, beams and temperatures of the model's own generation_config.json are left out: a feature declares
        how its tokens are chosen.
        """
        torch = require("torch")
        config = require("transformers").GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(self._special.eos_token_ids),
            pad_token_id=self._special.pad_token_id,
            decoder_start_token_id=self._special.decoder_start_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        self._network.generation_config = config  # whose values would else stand in for those not given
        ids = torch.tensor([list(prompt)])
        with quiet(), torch.inference_mode():
            found = self._network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        begin = ids.shape[1] if self._causal else 1
        logits = np.stack([step[0].numpy() for step in found.logits])
        return Written(tokens=tuple(found.sequences[0, begin:].tolist()), logits=logits)


def check_task(model: GeneratorModel, folder: Path) -> None:
    """Checks that the folder's configuration does not contradict the declaration.

    Raises:
        DeclarationError: It does; the message has both values.
    """
    config = read_json(folder / "config.json")
    actual = "seq2seq" if config.get("is_encoder_decoder") else "causal"
    if model.task != actual:
        raise DeclarationError(
            f"model {model.name!r} declares task={model.task!r}, but config.json in {folder} describes a "
            f"{actual} model. Declare task={actual!r}."
        )
    context = None if config.get("model_type") in _RELATIVE else positions(config)
    if context is not None and model.max_tokens > context:
        raise DeclarationError(
            f"model {model.name!r} declares max_tokens={model.max_tokens}, but config.json in {folder} has positions "
            f"for {context} tokens. Declare at most {context}."
        )


def windows(config: Any, layers: int) -> list[int | None]:
    """For each layer of a causal model how many of the last tokens it sees, the token itself included; None: all."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def load_generator(model: GeneratorModel, folder: Path) -> Any:
    """The model in `folder` with its language model head, in float32, ready for inference.

    Raises:
        SourceError: transformers cannot load it, or the folder lacks some of its weights.
    """
    torch = require("torch")
    transformers = require("transformers")
    kind = transformers.AutoModelForCausalLM if model.task == "causal" else transformers.AutoModelForSeq2SeqLM
    try:
        with quiet():
            network, found = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError) as exc:
        raise SourceError(f"model {model.name!r}: transformers cannot load the weights in {folder}: {exc}") from exc
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise SourceError(
            f"model {model.name!r}: the weights in {folder} lack {len(missing)} of {type(network).__name__}, e.g. "
            f"{missing[0]!r}, so it cannot write. Export the model with its language model head, not the base model."
        )
    return network.eval()
