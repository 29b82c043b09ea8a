"""A trained decoder on an encoder that lies elsewhere: shipped alone, completed when it is exported.

BERT's layers and those of BART's encoder compute the same: attention and two linear layers, each with a residual and a
normalization behind it. So a BERT is the encoder of a BART, and only a small decoder has to be trained and shipped:

    base.json              where the encoder is, its hash, and the shape of the decoder
    decoder.safetensors    the decoder's weights, float16; ``token_ids`` and ``token_bias`` of what it may write

`complete` makes an ordinary Hugging Face folder of both.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.artifacts import sha256_file
from llmrec_plugin.errors import SourceError
from llmrec_plugin.export.sources import find_folder, weights_sha256
from llmrec_plugin.export.toolchain import quiet, require

BASE = "base.json"
DECODER = "decoder.safetensors"
NEVER = -100.0
"""Added to the logit of tokens that were not in any training target. A larger number would cost digits of float32."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
"""Modules of a BERT layer and of a BART encoder layer that compute the same."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What ``base.json`` says.

    Attributes:
        source: Where the BERT is, as in `EncoderModel`.
        weights_sha256: Of its weights.
        decoder_layers: Layers of the decoder.
        decoder_sha256: Of ``decoder.safetensors``.
        quality: Measured quality, as JSON data.
    """

    source: str
    weights_sha256: str
    decoder_layers: int
    decoder_sha256: str
    quality: dict[str, Any] = field(default_factory=dict)


def is_graft(folder: Path) -> bool:
    """Whether the folder holds a decoder whose encoder is elsewhere."""
    return (folder / BASE).is_file()


def read_base(folder: Path) -> Base:
    """What the folder's ``base.json`` says.

    Raises:
        SourceError: It cannot be read, or the decoder is missing or another one.
    """
    try:
        base = Base(**json.loads((folder / BASE).read_text(encoding="utf-8")))
        actual = sha256_file(folder / DECODER)
    except (OSError, ValueError, TypeError) as exc:
        raise SourceError(f"{folder} holds no decoder that can be read: {exc!r}.") from exc
    if actual != base.decoder_sha256:
        raise SourceError(f"{folder / DECODER}: expected sha256 {base.decoder_sha256}, got {actual}.")
    return base


def complete(folder: Path, target: Path) -> Path:
    """A Hugging Face folder with all weights: `folder` itself, or `target` with encoder and decoder put together.

    Args:
        folder: What a model's source names.
        target: Folder to write to, where the encoder is elsewhere; equal parts give equal bytes.

    Raises:
        SourceError: The encoder is not here or another one, or the decoder does not fit it.
    """
    if not is_graft(folder):
        return folder
    base = read_base(folder)
    source = find_folder(base.source)
    actual = weights_sha256(source)
    if actual != base.weights_sha256:
        raise SourceError(
            f"{folder}: the decoder was trained on {base.source} with weights of sha256 {base.weights_sha256}, found "
            f"{actual}. Install the version it was trained on."
        )
    network = as_bart(source, decoder_layers=base.decoder_layers)
    tensors = require("safetensors.numpy", "safetensors").load_file(folder / DECODER)
    put_decoder(network, tensors)
    with quiet():
        network.save_pretrained(target, safe_serialization=True)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return target


def as_bart(folder: Path, *, decoder_layers: int) -> Any:
    """A BART in float32 whose encoder gives the token vectors of the BERT in `folder`.

    The decoder's layers begin as copies of BERT layers, from the first to the last, and their attention to the encoder
    as a copy of their attention to themselves. Embeddings are shared by both sides and by the output.

    Raises:
        SourceError: It is no BERT, or not of a kind that BART can express.
    """
    torch, transformers = require("torch"), require("transformers")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    supported = (
        config.get("model_type") == "bert"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder", False)
    )
    if not supported:
        raise SourceError(f"{folder}: a decoder can be put on a BERT with absolute positions, and this is none.")
    with quiet():
        bert = transformers.BertModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, add_pooling_layer=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        network = transformers.BartForConditionalGeneration(_bart_config(bert.config, tokenizer, decoder_layers))
    network.eval()
    weights = _encoder_weights(bert)
    weights |= _decoder_weights(weights, bert.config.num_hidden_layers, decoder_layers)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    if unexpected or set(missing) - tied - {"final_logits_bias"}:
        raise SourceError(f"{folder}: BART has no place for {unexpected}, and gets nothing for {missing}.")
    return network


def _bart_config(bert: Any, tokenizer: Any, decoder_layers: int) -> Any:
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    return require("transformers").BartConfig(
        vocab_size=bert.vocab_size,
        d_model=bert.hidden_size,
        encoder_layers=bert.num_hidden_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=bert.num_attention_heads,
        decoder_attention_heads=bert.num_attention_heads,
        encoder_ffn_dim=bert.intermediate_size,
        decoder_ffn_dim=bert.intermediate_size,
        activation_function=bert.hidden_act,
        max_position_embeddings=bert.max_position_embeddings,
        scale_embedding=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=begin,
        decoder_start_token_id=begin,
        eos_token_id=end,
        forced_eos_token_id=None,
        dropout=0.1,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )


def _encoder_weights(bert: Any) -> dict[str, Any]:
    """Weights by BART's names, from BERT's."""
    torch = require("torch")
    given = bert.state_dict()
    words = given["embeddings.word_embeddings.weight"]
    # A text alone has token type 0 everywhere, so its embedding is part of every position. BART counts from 2.
    positions = given["embeddings.position_embeddings.weight"] + given["embeddings.token_type_embeddings.weight"][0]
    weights = {"model.shared.weight": words}
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_positions.weight"] = torch.cat([torch.zeros(2, positions.shape[1]), positions])
        for part in ("weight", "bias"):
            weights[f"model.{side}.layernorm_embedding.{part}"] = given[f"embeddings.LayerNorm.{part}"]
    for layer in range(bert.config.num_hidden_layers):
        for old, new in _LAYER.items():
            for part in ("weight", "bias"):
                weights[f"model.encoder.layers.{layer}.{new}.{part}"] = given[f"encoder.layer.{layer}.{old}.{part}"]
    return weights


def _decoder_weights(weights: dict[str, Any], encoder_layers: int, decoder_layers: int) -> dict[str, Any]:
    chosen = np.linspace(0, encoder_layers - 1, decoder_layers).round().astype(int) if decoder_layers > 1 else [0]
    found = {}
    for layer, origin in enumerate(chosen):
        start = f"model.encoder.layers.{origin}."
        for name, values in weights.items():
            if name.startswith(start):
                inner = name.removeprefix(start)
                found[f"model.decoder.layers.{layer}.{inner}"] = values
                if inner.startswith("self_attn"):
                    found[f"model.decoder.layers.{layer}.{inner.replace('self_attn', 'encoder_attn', 1)}"] = values
    return found


def trained_names(network: Any) -> list[str]:
    """The weights that a graft has of its own, by their names in ``model.decoder``."""
    frozen = ("embed_tokens.weight", "embed_positions.weight")
    return [name for name, _ in network.model.decoder.named_parameters() if name not in frozen]


def put_decoder(network: Any, tensors: dict[str, np.ndarray]) -> None:
    """Puts the content of ``decoder.safetensors`` into `network`, in place.

    Raises:
        SourceError: The tensors do not fit.
    """
    torch = require("torch")
    tensors = dict(tensors)
    try:
        ids, bias = tensors.pop("token_ids").astype(np.int64), tensors.pop("token_bias").astype(np.float32)
        expected = set(trained_names(network))
        if set(tensors) != expected:
            raise ValueError(f"expected the tensors {sorted(expected)}, got {sorted(tensors)}")
        with torch.no_grad():
            own = network.model.decoder.state_dict()
            for name, values in tensors.items():
                own[name].copy_(torch.from_numpy(values.astype(np.float32)))
            network.final_logits_bias.fill_(NEVER)
            network.final_logits_bias[0, torch.from_numpy(ids)] = torch.from_numpy(bias)
    except (KeyError, ValueError, RuntimeError, IndexError) as exc:
        raise SourceError(f"The decoder does not fit its encoder: {exc}") from exc


def write_graft(
    network: Any, token_ids: np.ndarray, folder: Path, source: str, quality: dict[str, Any] | None = None
) -> None:
    """Writes the decoder of `network` in float16, and where its encoder is.

    Args:
        network: A BART from `as_bart`.
        token_ids: Tokens that it may write, (n,) int64; their biases are taken from ``final_logits_bias``.
        folder: Folder to write to.
        source: Where the BERT is.
        quality: Measured quality.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = network.model.decoder.state_dict()
    tensors = {name: own[name].numpy().astype(np.float16) for name in trained_names(network)}
    tensors["token_ids"] = token_ids.astype(np.int32)
    tensors["token_bias"] = network.final_logits_bias[0].numpy()[token_ids].astype(np.float16)
    require("safetensors.numpy", "safetensors").save_file(tensors, folder / DECODER)
    base = Base(
        source=source,
        weights_sha256=weights_sha256(find_folder(source)),
        decoder_layers=network.config.decoder_layers,
        decoder_sha256=sha256_file(folder / DECODER),
        quality=quality or {},
    )
    (folder / BASE).write_text(json.dumps(asdict(base), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
