"""Which tokens stand around a prompt, end an output, pad a batch and begin a decoder's input.

Said in three places, in order of weight: generation_config.json, config.json, the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export.statements import read_json
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.specs import GeneratorModel

_TEXTS = ("a", "The red web server.", "é")


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The fields of the same names of `llmrec_plugin.manifests.GeneratorManifest`."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    decoder_start_token_id: int | None


def special_tokens(model: GeneratorModel, folder: Path, tokenizer: Any, exported: Path) -> SpecialTokens:
    """The special tokens of the model in `folder`.

    Args:
        model: Gives the task, and whether the chat template writes what stands around a prompt.
        folder: A Hugging Face folder.
        tokenizer: Its transformers tokenizer.
        exported: The exported ``tokenizer.json``.

    Raises:
        DeclarationError: Nothing says what ends an output, or what begins a decoder's input.
    """
    said = (read_json(folder / "generation_config.json"), read_json(folder / "config.json"))
    ends = _ids(said, "eos_token_id")
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends = (*ends, tokenizer.eos_token_id)
    if not ends:
        raise DeclarationError(
            f"model {model.name!r}: neither the tokenizer in {folder} nor config.json says which token ends an output. "
            "Set eos_token in tokenizer_config.json to the one used in training."
        )
    start = None
    if model.task == "seq2seq":
        starts = _ids(said, "decoder_start_token_id") or _ids(said, "bos_token_id")
        if not starts:
            raise DeclarationError(
                f"model {model.name!r}: config.json in {folder} has no decoder_start_token_id. Set it to the token "
                "that began the decoder's input in training."
            )
        start = starts[0]
    pad = tokenizer.pad_token_id
    prefix, suffix = ((), ()) if model.chat else _around(exported, model.name)
    return SpecialTokens(
        prefix_ids=prefix,
        suffix_ids=suffix,
        eos_token_ids=ends,
        pad_token_id=pad if pad is not None else (_ids(said, "pad_token_id") or ends)[0],
        decoder_start_token_id=start,
    )


def _ids(said: Sequence[Mapping[str, Any]], name: str) -> tuple[int, ...]:
    """What the first place that says `name` says: a token or several."""
    value = next((place[name] for place in said if place.get(name) is not None), ())
    return (value,) if isinstance(value, int) else tuple(value)


def _around(exported: Path, model: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the post-processor puts before and after a text."""
    tokenizer = require("tokenizers").Tokenizer.from_file(str(exported))
    found: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for text in _TEXTS:
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        ids = tokenizer.encode(text).ids
        starts = [row for row in range(len(ids) - len(plain) + 1) if ids[row : row + len(plain)] == plain]
        found.update((tuple(ids[:row]), tuple(ids[row + len(plain) :])) for row in starts[:1])
    if len(found) != 1:
        raise DeclarationError(
            f"model {model!r}: its tokenizer does not put the same tokens around every text, so prompts cannot be put "
            "together from parts. Use a model whose tokenizer.json has a template as post-processor."
        )
    return found.pop()
