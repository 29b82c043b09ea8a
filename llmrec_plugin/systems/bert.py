"""A BERT to train further, and texts as its token ids. Needs the extra ``export``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from llmrec_plugin.errors import SourceError
from llmrec_plugin.model_folders import check_model_folder


def base_folder(source: str) -> Path:
    """The folder of ``package:<package>/<folder>`` or of a path.

    Raises:
        SourceError: It is no folder with a BERT, its tokenizer and safetensors weights, or
            `check_model_folder` refuses it.
    """
    folder = Path(source)
    if source.startswith("package:"):
        package, _, inner = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SourceError(f"{source}: the package {package!r} is not installed; install it or name a folder.")
        folder = Path(next(iter(spec.submodule_search_locations)), inner)
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        raise SourceError(f"{folder}: expected the Hugging Face folder of a BERT, {missing[0]} is not there.")
    check_model_folder(folder)
    return folder


def open_bert(base: Path, *, layers: int | None = None, dims: int | None = None, seed: int = 0) -> Any:
    """The BERT in `base`, or a new one with its vocabulary.

    Args:
        base: Hugging Face folder.
        layers: How many of the first layers to keep; None for all.
        dims: Width of a new BERT with random weights; None for the weights of `base`.
        seed: Of random weights.

    Returns:
        A ``transformers.BertModel`` in float32, without pooler.

    Raises:
        SourceError: `base` holds another kind of network, or fewer layers.
    """
    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if config.model_type != "bert":
        raise SourceError(f"{base}: expected a BERT, got model_type {config.model_type!r}.")
    if layers is not None and dims is None and layers > config.num_hidden_layers:
        raise SourceError(f"{base}: expected at most {config.num_hidden_layers} layers, got {layers}.")
    config.num_hidden_layers = layers or config.num_hidden_layers
    if dims is not None:
        config.hidden_size, config.intermediate_size = dims, 4 * dims
        config.num_attention_heads = max(heads for heads in range(1, max(1, dims // 16) + 1) if dims % heads == 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return new_bert(config.to_dict())
    weights = base / "model.safetensors"
    if not weights.is_file():
        raise SourceError(f"{base}: expected model.safetensors; convert the weights with save_pretrained.")
    bert = new_bert(config.to_dict())
    loaded = {name.removeprefix("bert."): values for name, values in load_file(weights).items()}
    missing = [name for name in bert.state_dict() if name not in loaded]
    if missing:
        raise SourceError(f"{weights}: expected the weights of a BERT, {missing[0]} is not there.")
    bert.load_state_dict({name: loaded[name].float() for name in bert.state_dict()})
    return bert


def new_bert(config: dict[str, Any]) -> Any:
    """A ``transformers.BertModel`` with random weights."""
    settings = transformers.BertConfig.from_dict(config)
    settings._attn_implementation = "eager"  # the plainest graph to export
    return transformers.BertModel(settings, add_pooling_layer=False)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the vectors whose mask is 1: (batch, length, dims), (batch, length) -> (batch, dims)."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def tokenize(tokenizer: Path, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """Token ids of each text, (length,) int64, special tokens included; longer texts are cut."""
    loaded = Tokenizer.from_file(str(tokenizer))
    loaded.no_padding()
    loaded.enable_truncation(max_tokens)
    distinct = list(dict.fromkeys(texts))
    encoded = loaded.encode_batch(distinct)
    ids = {text: np.array(found.ids, dtype=np.int64) for text, found in zip(distinct, encoded, strict=True)}
    return [ids[text] for text in texts]


def padded(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (rows, longest) int64 each, padded with 0."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def batches_by_length(lengths: np.ndarray, size: int, seed: int | None) -> list[np.ndarray]:
    """Rows in batches of similar lengths: shuffled, sorted within 32 batches, and the batches shuffled again.

    Args:
        lengths: Of each row, (n,).
        size: Rows of a batch.
        seed: Of the order; None sorts all rows, for what learns nothing.
    """
    if seed is None:
        return list(_cut(np.argsort(lengths, kind="stable"), size))
    rng = np.random.default_rng(seed)
    pools = _cut(rng.permutation(len(lengths)), 32 * size)
    batches = [batch for pool in pools for batch in _cut(pool[np.argsort(lengths[pool], kind="stable")], size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def save_weights(module: nn.Module, path: Path) -> str:
    """Writes all weights as safetensors; the file's SHA-256."""
    save_file({name: values.detach().contiguous() for name, values in module.state_dict().items()}, path)
    return sha256(path.read_bytes()).hexdigest()


def load_weights(module: nn.Module, path: Path) -> None:
    """Reads what `save_weights` wrote, and puts the module into evaluation mode."""
    module.load_state_dict(load_file(path))
    module.eval()


def _cut(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
