"""The reference: the model in PyTorch, float32, with pooling and normalization written out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import SourceError
from llmrec_plugin.export.graph import MASKED_OUT
from llmrec_plugin.export.toolchain import quiet, require
from llmrec_plugin.specs import EncoderModel


class Reference:
    """The model as PyTorch runs it.

    Args:
        model: Gives pooling and normalization.
        folder: Folder with config.json and safetensors weights.

    Raises:
        SourceError: transformers cannot load the model.
    """

    def __init__(self, model: EncoderModel, folder: Path) -> None:
        self._model = model
        self._network = load_network(model, folder)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The embeddings of a batch.

        Args:
            inputs: ``input_ids``, ``attention_mask`` and what else the model takes, each (batch, length) int64.

        Returns:
            (batch, dims) float32.
        """
        torch = require("torch")
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        with torch.inference_mode():
            tokens = self._network(**tensors, return_dict=True).last_hidden_state
            pooled = pool(tokens, tensors["attention_mask"], self._model.pooling)
            if self._model.normalize:
                pooled = torch.nn.functional.normalize(pooled, p=2, dim=1, eps=1e-12)
        return np.asarray(pooled.numpy())


def load_network(model: EncoderModel, folder: Path) -> Any:
    """The transformer in `folder` in float32, ready for inference.

    Raises:
        SourceError: transformers cannot load it.
    """
    torch = require("torch")
    transformers = require("transformers")
    try:
        with quiet():
            network = transformers.AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
    except (OSError, ValueError, ImportError) as exc:
        raise SourceError(f"model {model.name!r}: transformers cannot load the weights in {folder}: {exc}") from exc
    return network.eval()


def pool(tokens: Any, mask: Any, pooling: str) -> Any:
    """One vector per text.

    Args:
        tokens: Token vectors, (batch, length, dims) float32 tensor.
        mask: 1 for real tokens and 0 for padding, (batch, length) int64 tensor.
        pooling: As in `EncoderModel`.

    Returns:
        (batch, dims) float32 tensor.
    """
    torch = require("torch")
    padding = (mask == 0).unsqueeze(-1)
    if pooling == "mean":
        return tokens.masked_fill(padding, 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)
    if pooling == "max":
        return tokens.masked_fill(padding, MASKED_OUT).amax(1)
    positions = torch.arange(mask.shape[1])
    if pooling == "cls":
        index = torch.where(mask == 1, positions, mask.shape[1] - 1).amin(1)
    else:
        index = torch.where(mask == 1, positions, 0).amax(1)
    return tokens[torch.arange(len(tokens)), index]
