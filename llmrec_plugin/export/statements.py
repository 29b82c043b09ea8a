"""What a model folder states about itself in the files of sentence-transformers, and whether that fits a declaration.

    modules.json                        the steps after the transformer: pooling, normalization, others
    <n>_Pooling/config.json             pooling, dims
    sentence_bert_config.json           maximum length, lower-casing
    config_sentence_transformers.json   the similarity the model was trained for
    config.json, tokenizer_config.json  hidden size, position embeddings, padding side

Pooling or normalization guessed wrong gives vectors that look fine and rank badly; so what is stated nowhere
must be given by a person.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export.sources import as_source, described_by, find_folder
from llmrec_plugin.specs import EncoderModel, GeneratorModel, GeneratorTask, Metric, Pooling

_POOLING: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last_token"}
_POOLING_FLAGS = {  # how sentence-transformers before 5 wrote `pooling_mode`
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_OPTIONS = {
    "pooling": "--pooling mean|cls|last_token|max",
    "normalize": "--normalize or --no-normalize",
    "max_tokens": "--max-tokens N",
    "metric": "--metric cosine|dot|euclidean",
    "dims": "--dims N",
}
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text", "longformer"}
"""Architectures that number positions from ``pad_token_id + 1``, so fewer tokens fit than there are positions."""


@dataclass(frozen=True, kw_only=True)
class Statements:
    """What a folder states; None where it states nothing.

    Attributes:
        pooling: Pooling.
        normalize: Whether a normalization step follows the pooling.
        dims: Length of a token vector, which is the length of the embedding.
        max_tokens: Longest input in tokens, special tokens included.
        metric: The similarity the model was trained for.
        padding_side: Side on which the tokenizer pads.
        positions: Number of tokens for which there are position embeddings.
        lower_case: Whether texts are lower-cased before tokenization.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    dims: int | None = None
    max_tokens: int | None = None
    metric: Metric | None = None
    padding_side: Literal["right", "left"] | None = None
    positions: int | None = None
    lower_case: bool = False


def read_statements(folder: Path) -> Statements:
    """What the files in `folder` state.

    Raises:
        DeclarationError: The folder describes a model that an `EncoderModel` cannot: another step after the
            pooling, several poolings at once, or one that leaves out the prompt.
    """
    config = read_json(folder / "config.json")
    tokenizer = read_json(folder / "tokenizer_config.json")
    similarity = read_json(folder / "config_sentence_transformers.json").get("similarity_fn_name")
    stated: dict[str, Any] = {
        "dims": next((config[key] for key in ("hidden_size", "dim", "d_model", "n_embd") if key in config), None),
        "positions": positions(config),
        "padding_side": tokenizer.get("padding_side"),
        "metric": similarity if similarity in get_args(Metric) else None,
    }
    if (folder / "modules.json").is_file():
        transformer = read_json(folder / "sentence_bert_config.json")
        # Version 5 of sentence-transformers leaves the length to the tokenizer; transformers writes a
        # huge number there for "none".
        length = transformer.get("max_seq_length") or tokenizer.get("model_max_length") or 0
        stated |= _read_modules(folder)
        stated |= {
            "max_tokens": int(length) if 0 < length < 1_000_000 else None,
            "lower_case": bool(transformer.get("do_lower_case")),
        }
    return Statements(**stated)


def read_model(name: str, source: str, overrides: Mapping[str, Any]) -> EncoderModel:
    """The declaration of a model that comes as a bare folder or hub id.

    Args:
        name: Name to give the model.
        source: A folder, a hub id ``org/name@<commit>``, or a source as in `EncoderModel`.
        overrides: Fields of `EncoderModel` given by the caller; None counts as not given. `base` may be bare, too.

    Raises:
        DeclarationError: A field is neither stated by the folder nor given, or the two contradict each other.
        SourceError: The folder cannot be found, or holds no safetensors weights.
    """
    source = as_source(source)
    base = overrides.get("base") and as_source(overrides["base"])
    folder = described_by(find_folder(source, adapters=True), base)
    stated = read_statements(folder)
    overrides = {**overrides, "base": base}
    values = {field.name: getattr(stated, field.name) for field in fields(Statements)}
    values |= {key: value for key, value in overrides.items() if value is not None}
    missing = [field for field in _OPTIONS if values[field] is None]
    if missing:
        raise DeclarationError(
            f"model {name!r}: the files in {folder} do not state {', '.join(missing)}. "
            f"Look in the model's documentation and add {', '.join(_OPTIONS[field] for field in missing)}."
        )
    known = {field.name for field in fields(EncoderModel)}
    given = {key: value for key, value in values.items() if key in known and value is not None}
    model = EncoderModel(**{**given, "name": name, "source": source})
    check_declaration(model, stated, folder)
    return model


def read_generator(
    name: str, source: str, *, task: GeneratorTask, chat: bool, max_tokens: int | None, base: str | None = None
) -> GeneratorModel:
    """The declaration of a generator that comes as a bare folder or hub id.

    Args:
        name: Name to give the model.
        source: A folder, a hub id ``org/name@<commit>``, or a source as in `EncoderModel`.
        task: As in `GeneratorModel`.
        chat: As in `GeneratorModel`.
        max_tokens: As in `GeneratorModel`; None: what config.json states.
        base: As in `GeneratorModel`; also a bare folder or hub id.

    Raises:
        DeclarationError: config.json states no length and none is given.
        SourceError: The folder cannot be found, or holds no safetensors weights.
    """
    source = as_source(source)
    base = base and as_source(base)
    folder = described_by(find_folder(source, adapters=True), base)
    length = max_tokens or positions(read_json(folder / "config.json"))
    if length is None:
        raise DeclarationError(
            f"model {name!r}: config.json in {folder} does not state max_tokens. Look in the model's documentation and "
            "add --max-tokens N."
        )
    return GeneratorModel(name=name, source=source, task=task, chat=chat, max_tokens=length, base=base)


def check_declaration(model: EncoderModel, stated: Statements, folder: Path) -> None:
    """Checks that the folder's own files do not contradict the declaration.

    A `max_tokens` beside the folder's own is no contradiction as long as there are position embeddings.

    Raises:
        DeclarationError: They do; the message has both values.
    """
    for field in ("pooling", "normalize", "dims"):
        declared, own = getattr(model, field), getattr(stated, field)
        if own is not None and declared != own:
            raise DeclarationError(
                f"model {model.name!r} declares {field}={declared!r}, but the files in {folder} state {own!r}. "
                f"Declare {field}={own!r}, or correct the files if they are wrong."
            )
    if stated.positions is not None and model.max_tokens > stated.positions:
        raise DeclarationError(
            f"model {model.name!r} declares max_tokens={model.max_tokens}, but config.json in {folder} has position "
            f"embeddings for {stated.positions} tokens. Declare at most {stated.positions}."
        )


def _read_modules(folder: Path) -> dict[str, Any]:
    """Pooling and normalization (and dims, if stated) from ``modules.json``."""
    stated: dict[str, Any] = {"normalize": False}
    for module in read_json(folder / "modules.json", default=[]):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            config = read_json(folder / module["path"] / "config.json")
            stated["pooling"] = _pooling(config, folder)
            dims = config.get("embedding_dimension", config.get("word_embedding_dimension"))
            stated |= {"dims": dims} if dims is not None else {}
        elif kind == "Normalize":
            stated["normalize"] = True
        elif kind != "Transformer":
            raise DeclarationError(
                f"{folder / 'modules.json'} has a {kind} step, which the exported graph does not reproduce. "
                "Only Transformer, Pooling and Normalize are supported."
            )
    return stated


def _pooling(config: dict[str, Any], folder: Path) -> Pooling:
    modes = config.get("pooling_mode") or [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or "mean"
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise DeclarationError(
            f"{folder} pools by {' + '.join(modes)}; supported is one of {', '.join(_POOLING)}. Use another model."
        )
    if config.get("include_prompt") is False:
        raise DeclarationError(
            f"{folder} leaves the prompt out of the pooling (include_prompt=false), which the exported graph does not "
            "reproduce. Use another model."
        )
    return _POOLING[modes[0]]


def positions(config: dict[str, Any]) -> int | None:
    """The number of tokens for which the model of a config.json has positions, if it says so."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and config.get("model_type") in _OFFSET_POSITIONS:
        # Where the config leaves the padding id out, these architectures use 1.
        positions -= config.get("pad_token_id", 1) + 1
    return positions


def read_json(path: Path, default: Any = None) -> Any:
    """The JSON in `path`, or `default` (an empty object) when there is no such file."""
    if not path.is_file():
        return {} if default is None else default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise DeclarationError(f"{path} is not JSON: {exc}.") from exc
