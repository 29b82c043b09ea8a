"""The exported ``tokenizer.json``, and the proof that it gives the ids transformers gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrec_plugin.errors import DeclarationError, ParityError, SourceError
from llmrec_plugin.export.toolchain import quiet, require
from llmrec_plugin.specs import EncoderModel


def load_tokenizer(folder: Path, model: EncoderModel) -> Any:
    """The transformers tokenizer in `folder`, with a padding token and a ``tokenizers`` backend.

    Raises:
        SourceError: There is none that can be loaded.
        DeclarationError: It has no fast (``tokenizers``) version or no padding token.
    """
    tokenizer = load_fast_tokenizer(folder, model.name)
    if tokenizer.pad_token_id is None:
        raise DeclarationError(
            f"model {model.name!r}: the tokenizer in {folder} has no padding token. "
            "Set pad_token in tokenizer_config.json to the one used in training."
        )
    return tokenizer


def load_fast_tokenizer(folder: Path, model: str) -> Any:
    """The transformers tokenizer in `folder`, with a ``tokenizers`` backend.

    Args:
        folder: A Hugging Face folder.
        model: Name of the model, for messages.

    Raises:
        SourceError: There is none that can be loaded.
        DeclarationError: It has no fast (``tokenizers``) version.
    """
    transformers = require("transformers")
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, use_fast=True, trust_remote_code=False, local_files_only=True
            )
    except (OSError, ValueError, TypeError, ImportError) as exc:
        raise SourceError(f"model {model!r}: transformers cannot load the tokenizer in {folder}: {exc}") from exc
    if not tokenizer.is_fast:
        raise DeclarationError(
            f"model {model!r}: {type(tokenizer).__name__} has no tokenizer.json form, so it cannot be served "
            "without transformers. Use a model with a fast tokenizer."
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, path: Path, *, lower_case: bool) -> None:
    """Writes the tokenizer's ``tokenizers`` backend without truncation and padding.

    Folders often ship whatever was set last, e.g. "pad every text to 128"; length and padding belong
    to the runtime, which sets them per feature and batch.

    Args:
        tokenizer: A fast transformers tokenizer.
        path: File to write.
        lower_case: Whether the model expects lower-cased text.

    Raises:
        DeclarationError: The model expects lower-cased text and the tokenizer does not see to it.
    """
    tokenizers = require("tokenizers")
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    if lower_case and backend.encode("LOWER Case").ids != backend.encode("lower case").ids:
        raise DeclarationError(
            "sentence_bert_config.json asks for lower-cased text (do_lower_case), but the tokenizer keeps capitals. "
            "Add a Lowercase normalizer to tokenizer.json."
        )
    path.write_text(backend.to_str(), encoding="utf-8")


def encode(path: Path, tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[Any]:
    """What the exported tokenizer makes of each text, in order, truncated to `max_tokens`.

    Args:
        path: The exported ``tokenizer.json``.
        tokenizer: The transformers tokenizer it was made from.
        texts: Texts to encode.
        max_tokens: Longest result in tokens, special tokens included.

    Raises:
        ParityError: A text gets other ids than from transformers.
        DeclarationError: The model gives a single text token types other than 0, which the runtime does not.
    """
    exported = require("tokenizers").Tokenizer.from_file(str(path))
    exported.enable_truncation(max_tokens)
    encodings = exported.encode_batch(list(texts))
    expected = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=False)["input_ids"]
    for text, encoding, ids in zip(texts, encodings, expected, strict=True):
        if encoding.ids != ids:
            raise ParityError(
                f"The exported tokenizer gives {len(encoding.ids)} ids {encoding.ids[:12]}... and transformers "
                f"{len(ids)} ids {ids[:12]}... for the text {text[:200]!r}. Check tokenizer.json and the truncation "
                "side in tokenizer_config.json."
            )
    if any(any(encoding.type_ids) for encoding in encodings):
        raise DeclarationError("The tokenizer gives single texts token types other than 0, which is not supported.")
    return list(encodings)
