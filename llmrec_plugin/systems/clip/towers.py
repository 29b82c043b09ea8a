"""The two encoders of a CLIP folder as networks. Loaded by export alone.

The folder is what transformers' ``CLIPModel.save_pretrained`` and its processor write: ``config.json``,
``model.safetensors``, ``preprocessor_config.json`` and, for texts, ``tokenizer.json``.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import MissingExtraError, SourceError
from llmrec_plugin.model_folders import check_model_folder
from llmrec_plugin.networks import Image, Network, Tokens

_WEIGHTS = "model.safetensors"
_BICUBIC = 3
_TEXTS = (
    "cat",
    "a photo of a cat",
    "a red lamp beside a green chair",
    "two people on a bicycle in the rain, seen from above",
    "a wooden table " * 12,
    "42 blue cups",
    "a diagram",
    "the front of an old shop in a small town by the sea at night " * 4,
)


def load_image(folder: Path) -> Network:
    """The image encoder; input ``image``, the bytes of a PNG or JPEG file.

    Raises:
        SourceError: The folder holds no CLIP, or one whose pictures are prepared in another way.
    """
    model = _load(folder, "CLIPVisionModelWithProjection")
    image = _preparation(folder)
    return _network(
        folder, _image_module(model), image, [{"image": picture} for picture in _pictures(image.size)], model
    )


def load_text(folder: Path) -> Network:
    """The text encoder; input ``text``.

    Raises:
        SourceError: The folder holds no CLIP, or no tokenizer.json.
    """
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise SourceError(
            f"{folder}: expected tokenizer.json beside the weights; write it with "
            "CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder)."
        )
    model = _load(folder, "CLIPTextModelWithProjection")
    text = Tokens(name="text", max_tokens=model.config.max_position_embeddings)
    return _network(folder, _text_module(model), text, [{"text": text} for text in _TEXTS], model, tokenizer=tokenizer)


def space_of(folder: Path) -> str:
    """What the vectors of both encoders have in common: the hash of their weights and configuration."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    with (folder / _WEIGHTS).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _network(
    folder: Path, module: Any, item: Image | Tokens, examples: list[dict[str, Any]], model: Any, **more: Any
) -> Network:
    space = space_of(folder)
    return Network(
        module=module.eval(),
        inputs=(item,),
        dims=model.config.projection_dim,
        examples=examples,
        metric="cosine",
        normalized=True,
        space=space,
        source={"weights": space, "model_type": "clip"},
        **more,
    )


def _image_module(model: Any) -> Any:
    import torch

    class ImageEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(self.model(pixel_values=image).image_embeds, dim=-1)

    return ImageEncoder()


def _text_module(model: Any) -> Any:
    import torch

    class TextEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            embeds = self.model(input_ids=ids, attention_mask=mask).text_embeds
            return torch.nn.functional.normalize(embeds, dim=-1)

    return TextEncoder()


def _load(folder: Path, tower: str) -> Any:
    import transformers

    config = _json(folder, "config.json")
    if config.get("model_type") != "clip" or not (folder / _WEIGHTS).is_file():
        raise SourceError(
            f"{folder}: expected config.json with model_type 'clip' and {_WEIGHTS}, as CLIPModel.save_pretrained "
            f"writes them, got model_type {config.get('model_type')!r}."
        )
    check_model_folder(folder)
    # Eager: the only attention whose masks export to ONNX for every length.
    return getattr(transformers, tower).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, attn_implementation="eager"
    )


def _preparation(folder: Path) -> Image:
    """How pictures are prepared, from what the processor wrote."""
    config = _json(folder, "preprocessor_config.json")
    size, crop = _side(config.get("size"), "shortest_edge"), _side(config.get("crop_size"), "height", "width")
    usual = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": _BICUBIC}
    unusual = [f"{key}={config[key]!r}" for key, value in usual.items() if config.get(key, value) != value]
    if size is None or size != crop or unusual or abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise SourceError(
            f"{folder}: preprocessor_config.json prepares pictures as no Image input does: expected size and "
            "crop_size of one length, bicubic resizing, values divided by 255 and standardized; got "
            f"size={config.get('size')!r}, crop_size={config.get('crop_size')!r}, "
            f"{', '.join(unusual) or 'the rest as expected'}."
        )
    return Image(name="image", size=size, mean=tuple(config["image_mean"]), std=tuple(config["image_std"]))


def _side(size: Any, *names: str) -> int | None:
    """The one length that a size is made of: a number, or a mapping that holds it under these names."""
    if isinstance(size, Mapping):
        lengths = {size.get(name) for name in names}
        return lengths.pop() if len(lengths) == 1 else None
    return size if isinstance(size, int) else None


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SourceError(f"{folder}: {name} cannot be read: {exc}. Name the folder of a CLIPModel.") from exc
    return value if isinstance(value, dict) else {}


def _pictures(size: int) -> list[bytes]:
    """Eight pictures to compare on: larger and smaller than the network's, wide and tall, colored and gray."""
    try:
        from PIL import Image as Pictures
    except ImportError as exc:
        raise MissingExtraError("pillow", "images", "Exporting an image encoder") from exc
    random = np.random.default_rng(0)
    shapes = [(size, size), (2 * size, 3 * size), (size // 2, size), (3 * size, size + 1), (7, 5), (size, 4 * size)]
    pictures = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    ramp = np.linspace(0, 255, 2 * size, dtype=np.uint8)
    pictures += [np.tile(ramp, (size, 1)), np.full((size, size, 3), 255, np.uint8)]
    written = []
    for number, picture in enumerate(pictures):
        stream = io.BytesIO()
        Pictures.fromarray(picture).save(stream, "PNG" if number % 2 == 0 else "JPEG")
        written.append(stream.getvalue())
    return written
