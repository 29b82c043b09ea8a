"""A CLIP with random weights in a folder, as transformers saves it. Needs torch, transformers and Pillow."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.export import export_network
from llmrec_plugin.systems import clip

SIZE, DIMS, MAX_TOKENS = 16, 8, 12
WORDS = "a photo of red green blue lamp chair cat dog cup table old small two".split()
_SPECIAL = ["<|pad|>", "<|unk|>", "<|startoftext|>"]


def save_clip(folder: Path, *, seed: int = 0) -> Path:
    """Writes a whole model folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *WORDS, "<|endoftext|>"])}
    end = vocabulary["<|endoftext|>"]
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config={
            **layer, "vocab_size": len(vocabulary), "max_position_embeddings": MAX_TOKENS, "projection_dim": DIMS,
            "bos_token_id": 2, "eos_token_id": end, "pad_token_id": 0,
        },
        vision_config={**layer, "image_size": SIZE, "patch_size": 8, "projection_dim": DIMS},
        projection_dim=DIMS,
    )  # fmt: skip
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in [*_SPECIAL, "<|endoftext|>"]])
    tokenizer.post_processor = TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 2), ("<|endoftext|>", end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def picture(width: int, height: int, *, seed: int = 0, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A smooth random picture as a file."""
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((width, height)).convert(mode).save(stream, kind)
    return stream.getvalue()


def export_clip(where: str, artifacts: str) -> dict[str, str]:
    """Exports image encoder, text encoder and a fusion into an artifact folder; returns their ids."""
    folder = save_clip(Path(where, "clip"))
    space = json.loads(json.dumps(clip_space(folder)))
    clip.write_fusion(Path(where, "fusion"), clip.summing_projection(DIMS), text_dims=DIMS, space=space)
    store = ArtifactStore([Path(artifacts)])
    models = [
        clip.image_model(f"path:{folder}"), clip.text_model(f"path:{folder}"), clip.fusion_model(f"path:{where}/fusion")
    ]  # fmt: skip
    return {model.name: export_network(model, store).id for model in models}


def clip_space(folder: Path) -> str:
    from llmrec_plugin.systems.clip.towers import space_of

    return space_of(folder)
