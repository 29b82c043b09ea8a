"""One vector of a text's and a picture's.

    fused = normalize(P [ a * normalize(text) ; b * normalize(image) ])

`P`, (dims, text dims + image dims), is declared, not trained: a sum for two vectors of one space, a random projection
for vectors of two spaces, or whatever somebody trained. A vector of zeros counts as missing and leaves the other alone;
if both are missing, the fused vector is zero.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import DeclarationError, SourceError
from llmrec_plugin.networks import Network, Vector

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_SYSTEM = "clip-fusion"


def summing_projection(dims: int) -> np.ndarray:
    """For two vectors of one space: their weighted sum, in the same space, (dims, 2 * dims) float32."""
    return np.hstack([np.eye(dims, dtype=np.float32)] * 2)


def random_projection(text_dims: int, image_dims: int, dims: int, *, seed: int) -> np.ndarray:
    """For vectors of two spaces: both joined and projected, (dims, text_dims + image_dims) float32.

    Normal numbers of deviation ``1 / sqrt(dims)``, which nearly keep lengths and angles (Johnson, Lindenstrauss 1984).
    """
    normal = np.random.default_rng(seed).standard_normal((dims, text_dims + image_dims))
    return (normal / np.sqrt(dims)).astype(np.float32)


def write_fusion(
    folder: Path | str,
    projection: np.ndarray,
    *,
    text_dims: int,
    text_weight: float = 1.0,
    image_weight: float = 1.0,
    space: str = "",
) -> None:
    """Writes a fusion that `llmrec export` reads.

    Args:
        folder: Is created.
        projection: (dims, text dims + image dims) float32.
        text_dims: Length of the text's vector.
        text_weight: `a` above.
        image_weight: `b` above.
        space: The space of the fused vectors where they may be compared with others, for example the space of the
            artifact of both encoders after `summing_projection`.

    Raises:
        DeclarationError: The numbers do not fit each other.
    """
    from safetensors.numpy import save_file  # part of the export extra

    matrix = np.asarray(projection, dtype=np.float32)
    if matrix.ndim != 2 or not 0 < text_dims < matrix.shape[1] or not np.isfinite(matrix).all():
        raise DeclarationError(
            f"fusion: expected a finite matrix (dims, text dims + image dims) and text_dims below its width, got shape "
            f"{matrix.shape} and text_dims={text_dims}."
        )
    if not (text_weight > 0 and image_weight > 0 and np.isfinite([text_weight, image_weight]).all()):
        raise DeclarationError(f"fusion: weights must be positive, got {text_weight!r} and {image_weight!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"system": _SYSTEM, "text_dims": text_dims, "weights": [text_weight, image_weight], "space": space}
    save_file({"projection": np.ascontiguousarray(matrix)}, folder / _WEIGHTS)
    (folder / _CONFIG).write_text(json.dumps(config, sort_keys=True) + "\n", encoding="utf-8")


def load_fusion(folder: Path) -> Network:
    """The fusion; inputs ``text`` and ``image``, vectors.

    Raises:
        SourceError: The folder holds none.
    """
    from safetensors.numpy import load_file

    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        projection = load_file(folder / _WEIGHTS)["projection"]
        if config["system"] != _SYSTEM:
            raise ValueError(f"system is {config['system']!r}")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SourceError(f"{folder}: expected what llmrec_plugin.systems.clip.write_fusion writes: {exc}.") from exc
    text_dims, image_dims = config["text_dims"], projection.shape[1] - config["text_dims"]
    weights = (folder / _CONFIG).read_bytes() + (folder / _WEIGHTS).read_bytes()
    return Network(
        module=_module(projection, text_dims, *config["weights"]).eval(),
        inputs=(Vector(name="text", dims=text_dims), Vector(name="image", dims=image_dims)),
        dims=projection.shape[0],
        examples=_examples(text_dims, image_dims),
        metric="cosine",
        normalized=True,
        space=config["space"],
        source={"weights": hashlib.sha256(weights).hexdigest()},
    )


def _module(projection: np.ndarray, text_dims: int, text_weight: float, image_weight: float) -> Any:
    import torch
    from torch.nn.functional import normalize

    class Fusion(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("text", torch.from_numpy(projection[:, :text_dims].T * np.float32(text_weight)))
            self.register_buffer("image", torch.from_numpy(projection[:, text_dims:].T * np.float32(image_weight)))

        def forward(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return normalize(normalize(text, dim=-1) @ self.text + normalize(image, dim=-1) @ self.image, dim=-1)

    return Fusion()


def _examples(text_dims: int, image_dims: int) -> list[dict[str, list[float]]]:
    random = np.random.default_rng(0)
    texts = random.standard_normal((10, text_dims)).astype(np.float32)
    images = random.standard_normal((10, image_dims)).astype(np.float32)
    texts[7], images[8] = 0, 0  # one of both is missing
    return [{"text": text.tolist(), "image": image.tolist()} for text, image in zip(texts, images, strict=True)]
