"""A generator that is trained on the prompts of a feature, token for token as they are read when it is served."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec_plugin.export.chat import chat_template
from llmrec_plugin.export.generator_reference import check_task, load_generator
from llmrec_plugin.export.sources import find_folder, weights_sha256
from llmrec_plugin.export.special_tokens import special_tokens
from llmrec_plugin.export.statements import read_generator
from llmrec_plugin.export.tokenization import load_fast_tokenizer, save_tokenizer
from llmrec_plugin.export.toolchain import quiet
from llmrec_plugin.manifests import TOKENIZER, GeneratorManifest
from llmrec_plugin.pipeline.prompts import read_rows, render
from llmrec_plugin.runtime.generation.prompts import PromptTokenizer, encode_requests
from llmrec_plugin.specs import GeneratorModel, TokenFeature


def generator_in(place: str, *, chat: bool, max_tokens: int | None = None) -> GeneratorModel:
    """The declaration of the causal generator in a folder.

    Raises:
        DeclarationError: config.json states no length and none is given.
        SourceError: The folder cannot be found, or holds no safetensors weights.
    """
    return read_generator("base", place, task="causal", chat=chat, max_tokens=max_tokens)


class TrainableGenerator:
    """A causal `GeneratorModel` in PyTorch, with the prompts that it is served with.

    Args:
        model: The declaration; a whole model, no adapter.

    Attributes:
        model: The declaration.
        network: What computes, for `llmrec_plugin.training.loop.fit`; may be replaced by itself with LoRA.
        weights_sha256: Of the weights that it started with.

    Raises:
        SourceError: The weights or the tokenizer cannot be found or read.
        DeclarationError: The declaration contradicts the model's own files.
    """

    def __init__(self, model: GeneratorModel) -> None:
        folder = find_folder(model.source)
        check_task(model, folder)
        self.model = model
        self.weights_sha256 = weights_sha256(folder)
        self.network = load_generator(model, folder)
        self._saved = load_fast_tokenizer(folder, model.name)
        chat = chat_template(self._saved, model.name) if model.chat else None
        with tempfile.TemporaryDirectory(prefix="llmrec-") as temporary:
            exported = Path(temporary, TOKENIZER)
            save_tokenizer(self._saved, exported, lower_case=False)
            special = special_tokens(model, folder, self._saved, exported)
            self._tokenizer = PromptTokenizer(exported.read_text(encoding="utf-8"))
        self._manifest = GeneratorManifest(
            model=model.name,
            source={},
            task="causal",
            max_tokens=model.max_tokens,
            vocab_size=0,  # nothing that a prompt depends on
            layers=0,
            kv_heads=0,
            head_dim=0,
            eos_token_ids=special.eos_token_ids,
            pad_token_id=special.pad_token_id,
            files={},
            prefix_ids=special.prefix_ids,
            suffix_ids=special.suffix_ids,
            chat=chat,
        )

    @property
    def pad_token_id(self) -> int:
        """The token that stands where there is nothing."""
        return self._manifest.pad_token_id

    def prompts(
        self, feature: TokenFeature, columns: Mapping[str, Sequence[Any]], *, room: int
    ) -> list[list[int] | None]:
        """The token ids of each row's prompt, in order; None for a row without input.

        Args:
            feature: The feature that is trained for.
            columns: The rows by column.
            room: Tokens that are left free behind the prompt.

        Raises:
            InputError: A row cannot be read, or the instructions alone do not fit.
        """
        keys = read_rows(feature, columns).keys
        requests = [render(feature, key) for key in keys if key is not None]
        found = iter(encode_requests(requests, self._manifest, self._tokenizer, room))
        return [None if key is None else next(found).ids.tolist() for key in keys]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of answers, as they are scored."""
        return [list(ids) for ids in self._tokenizer.data(list(texts))]

    def save(self, folder: Path, network: Any) -> None:
        """Writes weights and tokenizer into a folder that ``llmrec export`` takes.

        Args:
            folder: Folder to write.
            network: The plain transformers model, with LoRA merged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            network.save_pretrained(folder, safe_serialization=True)
            self._saved.save_pretrained(folder)
