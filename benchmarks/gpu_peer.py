"""sentence-transformers for `gpu.py`, which starts this in the peer's environment and gives it orders as JSON lines.

It does not import our package.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer

GEMM = 8_192
TYPES = {"fp32": torch.float32, "fp16": torch.float16}


def main() -> None:
    folder, listing, max_tokens, device = sys.argv[1:]
    texts = json.loads(Path(listing).read_text(encoding="utf-8"))
    # As ours: float32 is float32, and no TensorFloat-32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("sentence-transformers' torch has no usable GPU; its environment needs a CUDA build of torch.")
    models: dict[str, SentenceTransformer] = {}
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    say({"sentence_transformers": sentence_transformers.__version__, "torch": torch.__version__, "device": name})
    for line in sys.stdin:
        order = json.loads(line)
        if order["order"] == "peak":
            say({"flops": peak(TYPES[order["precision"]], device)})
            continue
        precision = order["precision"]
        if precision not in models:
            model = SentenceTransformer(folder, device=device, model_kwargs={"torch_dtype": TYPES[precision]})
            model.max_seq_length = int(max_tokens)
            models[precision] = model
        begun = time.perf_counter()
        vectors = models[precision].encode(
            texts, batch_size=order["batch"], normalize_embeddings=True, show_progress_bar=False
        )
        seconds = time.perf_counter() - begun  # the vectors are numpy's: the device has finished
        np.save(order["vectors"], np.asarray(vectors, dtype=np.float32))
        say({"seconds": seconds})


def peak(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large matrix product: the best of twenty, as many as keep the card busy."""
    size = GEMM if device == "cuda" else 256
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(20):
        wait(device)
        begun = time.perf_counter()
        left @ right
        wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
