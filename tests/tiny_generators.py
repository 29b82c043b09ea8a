"""Tiny generators with fixed random weights, saved as Hugging Face folders: real architectures, no downloads.

    save_generator(folder, "llama")         a folder that `export_generator` reads
    declare_generator(folder, "llama")      the declaration of it

Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmrec_plugin.specs import GeneratorModel, GeneratorTask

HIDDEN, LAYERS, HEADS, KV_HEADS, POSITIONS = 32, 2, 4, 2, 160
MAX_TOKENS = 128

SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
PAD, BOS, EOS, TURN, END_OF_TURN = range(len(SPECIAL))

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TASKS: dict[str, GeneratorTask] = {
    "gpt2": "causal",
    "llama": "causal",
    "qwen2": "causal",
    "mistral": "causal",
    "qwen3": "causal",
    "t5": "seq2seq",
    "bart": "seq2seq",
}
"""The architectures, and what each is."""

_TEXTS = (
    "the red web server and the blue database", "a fast python library for graphs and parsers",
    "tags of the item: web, server, database, editor", "is this item relevant for the user? answer yes or no",
    "write a short description of the package", "sound, image and video tools for small machines",
)  # fmt: skip

_AROUND = {"llama": "<s> $A", "mistral": "<s> $A", "t5": "$A </s>", "bart": "<s> $A </s>"}
"""What the post-processor puts around a text; GPT-2 and Qwen put nothing."""


def save_generator(
    folder: Path, architecture: str = "gpt2", *, seed: int = 0, chat: bool = False, **config: Any
) -> Path:
    """Saves a tiny generator into `folder`.

    Args:
        folder: Folder to write.
        architecture: A key of `TASKS`.
        seed: Of the weights.
        chat: Whether the tokenizer has a chat template.
        **config: More values of the model's configuration.

    Returns:
        `folder`.
    """
    import torch
    import transformers

    tokenizer = _tokenizer(architecture)
    if chat:
        tokenizer.chat_template = CHATML
    torch.manual_seed(seed)
    network = _NETWORKS[architecture](transformers, {"vocab_size": len(tokenizer), **config}).eval()
    network.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def declare_generator(folder: Path, architecture: str = "gpt2", **changes: Any) -> GeneratorModel:
    """The declaration of the generator in `folder`."""
    values = {"name": architecture, "source": f"path:{folder}", "task": TASKS[architecture], "max_tokens": MAX_TOKENS}
    return GeneratorModel(**{**values, **changes})


def _tokenizer(architecture: str) -> Any:
    """A byte-level tokenizer, so that every text can be encoded and decoded, with some merges."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    from llmrec_plugin.testing.tiny import train_byte_tokenizer  # loads onnx

    backend = train_byte_tokenizer(_TEXTS, SPECIAL, 320)
    if architecture in _AROUND:
        backend.post_processor = processors.TemplateProcessing(
            single=_AROUND[architecture], special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    if architecture != "gpt2":  # which has none, as the real one
        names["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


_IDS = {"bos_token_id": BOS, "eos_token_id": EOS}
# Large random weights, so that logits differ and the output is not one token again and again.
_DECODER = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "max_position_embeddings": POSITIONS, "initializer_range": 0.4,
    "pad_token_id": PAD, **_IDS,
}  # fmt: skip


def _gpt2(transformers: Any, values: dict[str, Any]) -> Any:
    shape = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS, "initializer_range": 0.4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**shape, **_IDS, **values}))


def _llama(transformers: Any, values: dict[str, Any]) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**_DECODER, **values}))


def _qwen2(transformers: Any, values: dict[str, Any]) -> Any:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**{**_DECODER, "tie_word_embeddings": True, **values})
    )


def _mistral(transformers: Any, values: dict[str, Any]) -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**{**_DECODER, "sliding_window": None, **values}))


def _qwen3(transformers: Any, values: dict[str, Any]) -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**_DECODER, "head_dim": 16, **values}))


def _t5(transformers: Any, values: dict[str, Any]) -> Any:
    shape = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": HEADS}
    ids = {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD, "initializer_factor": 2.0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**{**shape, **ids, **values}))


def _bart(transformers: Any, values: dict[str, Any]) -> Any:
    sides = ("encoder", "decoder")
    shape = {"d_model": HIDDEN, "max_position_embeddings": POSITIONS, "init_std": 0.4}
    shape |= {f"{side}_layers": LAYERS for side in sides} | {f"{side}_attention_heads": HEADS for side in sides}
    shape |= {f"{side}_ffn_dim": 64 for side in sides}
    ids = {"pad_token_id": PAD, "decoder_start_token_id": EOS, "forced_eos_token_id": None, **_IDS}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**{**shape, **ids, **values}))


_NETWORKS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "gpt2": _gpt2, "llama": _llama, "qwen2": _qwen2, "mistral": _mistral, "qwen3": _qwen3, "t5": _t5, "bart": _bart,
}  # fmt: skip
