"""A text encoder that is trained: from a folder, by tokens and pooling, to a folder that ``llmrec export`` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.export.reference import load_network, pool
from llmrec_plugin.export.sources import find_folder, weights_sha256
from llmrec_plugin.export.statements import check_declaration, read_model, read_statements
from llmrec_plugin.export.tokenization import load_tokenizer
from llmrec_plugin.export.toolchain import quiet, require
from llmrec_plugin.specs import EncoderModel

_FLAGS = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last_token": "lasttoken"}


def encoder_in(place: str, max_tokens: int, **overrides: Any) -> EncoderModel:
    """The declaration of the encoder in a folder.

    Args:
        place: The folder, or a source as in `EncoderModel`.
        max_tokens: Longest text, if the folder's files state none.
        **overrides: Other fields of `EncoderModel` that its files do not state.

    Raises:
        DeclarationError: A field is neither stated nor given, or the two contradict each other.
        SourceError: The folder cannot be found, or holds no safetensors weights.
    """
    if read_statements(find_folder(place)).max_tokens is None:
        overrides["max_tokens"] = max_tokens
    return read_model("base", place, overrides)


class TrainableEncoder:
    """An `EncoderModel` in PyTorch, with the pooling and normalization that it is served with.

    Args:
        model: The declaration; a whole model in fp32, no adapter.
        max_tokens: Longest text that is read in training, in tokens; default: that of the model.

    Attributes:
        model: The declaration.
        network: What computes, for `llmrec_plugin.training.loop.fit`; may be replaced by itself with LoRA.
        weights_sha256: Of the weights that it started with.

    Raises:
        SourceError: The weights cannot be found or read.
        DeclarationError: The declaration contradicts the model's own files.
    """

    def __init__(self, model: EncoderModel, max_tokens: int | None = None) -> None:
        folder = find_folder(model.source)
        stated = read_statements(folder)
        check_declaration(model, stated, folder)
        self.model = model
        self.network = load_network(model, folder)
        self.weights_sha256 = weights_sha256(folder)
        self._lower_case = stated.lower_case
        self._tokenizer = load_tokenizer(folder, model)
        self._max_tokens = min(max_tokens or model.max_tokens, model.max_tokens)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, special tokens included, cut to the longest that is read."""
        lowered = [text.lower() for text in texts] if self._lower_case else list(texts)
        ids = self._tokenizer(lowered, truncation=True, max_length=self._max_tokens, padding=False)["input_ids"]
        return [list(row) for row in ids]

    def encode(self, tokens: Sequence[Sequence[int]]) -> Any:
        """The vectors of texts as token ids, a (texts, dims) float32 tensor with a gradient where one is taken."""
        torch = require("torch")
        longest = max(map(len, tokens))
        ids = torch.full((len(tokens), longest), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(tokens):
            place = slice(longest - len(own), None) if self.model.padding_side == "left" else slice(len(own))
            ids[row, place] = torch.tensor(own)
            mask[row, place] = 1
        hidden = self.network(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
        vectors = pool(hidden, mask, self.model.pooling)
        return torch.nn.functional.normalize(vectors, dim=1, eps=1e-12) if self.model.normalize else vectors

    def vectors(self, texts: Sequence[str], *, batch_tokens: int = 4096) -> np.ndarray:
        """The vectors of any number of texts, (texts, dims) float32, without dropout; equal lengths together."""
        torch = require("torch")
        tokens = self.tokens(texts)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        vectors = np.empty((len(texts), self.model.dims), dtype=np.float32)
        self.network.eval()
        start = 0
        with torch.inference_mode():
            while start < len(order):
                end = start + 1
                while end < len(order) and (end + 1 - start) * len(tokens[order[end]]) <= batch_tokens:
                    end += 1
                rows = order[start:end]
                vectors[rows] = self.encode([tokens[row] for row in rows]).numpy()
                start = end
        return vectors

    def save(self, folder: Path, network: Any) -> None:
        """Writes weights and tokenizer, and what sentence-transformers and the export read: pooling, metric, length.

        Args:
            folder: Folder to write.
            network: The plain transformers model, with LoRA merged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.backend_tokenizer.no_truncation()  # which training set, and which would be saved
        self._tokenizer.backend_tokenizer.no_padding()
        with quiet():
            network.save_pretrained(folder, safe_serialization=True)
            self._tokenizer.save_pretrained(folder)
        model = self.model
        steps = ["Transformer", "Pooling", *(["Normalize"] if model.normalize else [])]
        files: dict[str, Any] = {
            "modules.json": [
                {
                    "idx": number,
                    "name": str(number),
                    "path": f"{number}_{step}" if number else "",
                    "type": f"sentence_transformers.models.{step}",
                }
                for number, step in enumerate(steps)
            ],
            "1_Pooling/config.json": {"word_embedding_dimension": model.dims}
            | {f"pooling_mode_{flag}": model.pooling == name for name, flag in _FLAGS.items()},
            "sentence_bert_config.json": {"max_seq_length": model.max_tokens, "do_lower_case": self._lower_case},
            "config_sentence_transformers.json": {"similarity_fn_name": model.metric},
        }
        for number, step in enumerate(steps[1:], 1):
            (folder / f"{number}_{step}").mkdir(exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
