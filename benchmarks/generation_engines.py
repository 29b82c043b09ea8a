"""The process of one engine in `generation.py`: it loads a model and answers commands, one JSON object a line.

    python benchmarks/generation_engines.py ENGINE OPTIONS

Peers get token ids, so that they spend no time on tokenization; ours gets text, as features give it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Work = dict[str, Any]
"""``instructions``, ``data`` and ``ids`` of the prompts, ``new_tokens``, ``ends`` (ids), ``answers`` (texts), and
``answer_ids``."""


def batches(work: Work, size: int, by_length: bool) -> Iterator[list[int]]:
    """Positions of the prompts, `size` at a time."""
    order = list(range(len(work["ids"])))
    if by_length:
        order.sort(key=lambda position: -len(work["ids"][position]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def cut(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """Without the token that ends and what is after it."""
    end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return list(map(int, tokens[:end]))


class Ours:
    """`llmrec_plugin`."""

    packages = ("onnxruntime", "tokenizers")

    def __init__(self, options: dict[str, Any]) -> None:
        import dataclasses

        from llmrec_plugin.artifacts import GeneratorArtifact, read_artifact
        from llmrec_plugin.runtime.generation.session import OnnxGenerator

        artifact = read_artifact(Path(options["artifact"]))
        self._open = {}
        for name, ends in options["ends"].items():
            manifest = dataclasses.replace(artifact.manifest, eos_token_ids=tuple(ends))
            ended = GeneratorArtifact(artifact.folder, manifest)
            self._open[name] = OnnxGenerator(ended, device="cpu", threads=options["threads"])

    def _requests(self, work: Work) -> list[Any]:
        from llmrec_plugin.generation import Request, Segment

        return [Request((Segment(work["instructions"]), Segment(text, data=True))) for text in work["data"]]

    def generate(self, work: Work, size: int, by_length: bool) -> list[list[int]]:
        from llmrec_plugin.specs import Decoding

        session = self._open[work["name"]]
        found = session.generate(self._requests(work), Decoding(max_new_tokens=work["new_tokens"]))
        return [list(one.tokens) for one in found]

    def score(self, work: Work, size: int, by_length: bool) -> np.ndarray:
        return self._open[work["name"]].score(self._requests(work), work["answers"])


class Transformers:
    """`transformers` on PyTorch."""

    packages = ("transformers", "torch")

    def __init__(self, options: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(options["threads"])
        self._torch = torch
        self._pad = options["pad"]
        self._model = self._load(options)

    def _load(self, options: dict[str, Any]) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(options["weights"]).eval()

    def _padded(self, rows: list[list[int]]) -> tuple[Any, Any]:
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, values in enumerate(rows):
            ids[row, longest - len(values) :] = values
            mask[row, longest - len(values) :] = 1
        return self._torch.from_numpy(ids), self._torch.from_numpy(mask)

    def generate(self, work: Work, size: int, by_length: bool) -> list[list[int]]:
        from transformers import GenerationConfig

        ends = set(work["ends"])
        config = GenerationConfig(
            max_new_tokens=work["new_tokens"], do_sample=False, eos_token_id=sorted(ends), pad_token_id=self._pad
        )
        found: list[list[int]] = [[] for _ in work["ids"]]
        with self._torch.inference_mode():
            for rows in batches(work, size, by_length):
                ids, mask = self._padded([work["ids"][row] for row in rows])
                written = self._model.generate(ids, attention_mask=mask, generation_config=config)
                for row, tokens in zip(rows, written[:, ids.shape[1] :].tolist(), strict=True):
                    found[row] = cut(tokens, ends)
        return found

    def score(self, work: Work, size: int, by_length: bool) -> np.ndarray:
        """All answers have one token: one pass over the prompt tells them."""
        columns = [ids[0] for ids in work["answer_ids"]]
        scores = np.zeros((len(work["ids"]), len(columns)), dtype=np.float32)
        with self._torch.inference_mode():
            for rows in batches(work, size, by_length):
                ids, mask = self._padded([work["ids"][row] for row in rows])
                logits = self._last_logits(ids, mask)
                scores[rows] = self._torch.log_softmax(logits, -1)[:, columns].numpy()
        return scores

    def _last_logits(self, ids: Any, mask: Any) -> Any:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = self._model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False)
        return found.logits[:, -1]


class Optimum(Transformers):
    """Optimum's model on ONNX Runtime, driven by `transformers`."""

    packages = ("optimum-onnx", "onnxruntime", "transformers")

    def _load(self, options: dict[str, Any]) -> Any:
        import onnxruntime
        from optimum.onnxruntime import ORTModelForCausalLM

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return ORTModelForCausalLM.from_pretrained(
            options["optimum"], session_options=settings, use_io_binding=False, provider="CPUExecutionProvider"
        )

    def _last_logits(self, ids: Any, mask: Any) -> Any:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return self._model(ids, attention_mask=mask, position_ids=positions).logits[:, -1]


class GenAI:
    """`onnxruntime-genai`. Batches are padded on the right: on the left it writes other tokens."""

    packages = ("onnxruntime-genai", "onnxruntime")

    def __init__(self, options: dict[str, Any]) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        self._pad = options["pad"]
        self._models = {name: onnxruntime_genai.Model(folder) for name, folder in options["genai"].items()}

    def generate(self, work: Work, size: int, by_length: bool) -> list[list[int]]:
        ends = set(work["ends"])
        model = self._models[work["name"]]
        found: list[list[int]] = [[] for _ in work["ids"]]
        for rows in batches(work, size, by_length):
            prompts = [work["ids"][row] for row in rows]
            longest = max(map(len, prompts))
            padded = np.full((len(rows), longest), self._pad, dtype=np.int32)
            for row, values in enumerate(prompts):
                padded[row, : len(values)] = values
            params = self._genai.GeneratorParams(model)
            params.set_search_options(
                batch_size=len(rows), max_length=longest + work["new_tokens"], do_sample=False, num_beams=1
            )
            generator = self._genai.Generator(model, params)
            generator.append_tokens(padded)
            steps = 0
            while not generator.is_done() and steps < work["new_tokens"]:
                generator.generate_next_token()
                steps += 1
            for at, row in enumerate(rows):
                found[row] = cut(generator.get_sequence(at)[longest:].tolist(), ends)
        return found

    def score(self, work: Work, size: int, by_length: bool) -> np.ndarray:
        raise NotImplementedError("it gives logits, but no log probabilities of answers")


ENGINES = {"llmrec": Ours, "transformers": Transformers, "optimum": Optimum, "genai": GenAI}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print, and must not meet the answers

    def send(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    kind = ENGINES[sys.argv[1]]
    try:
        engine = kind(json.loads(sys.argv[2]))
    except Exception as exc:  # a peer that does not load is a result, too
        traceback.print_exc()
        send({"error": f"{type(exc).__name__}: {exc}"})
        raise SystemExit(1) from exc
    send({"versions": {name: importlib.metadata.version(name) for name in kind.packages}})
    works: dict[str, Work] = {}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["command"] == "work":
                works[command["name"]] = json.loads(Path(command["path"]).read_text())
                send({})
                continue
            work = dict(works[command["name"]])
            for field in ("ids", "data"):
                work[field] = work[field][: command["rows"]]
            run = engine.generate if command["command"] == "generate" else engine.score
            begun, processor = time.perf_counter(), time.process_time()
            found = run(work, command["size"], command["by_length"])
            taken = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - processor}
            send({**taken, "found": found if isinstance(found, list) else found.tolist()})
        except Exception as exc:  # whatever a peer raises is its result
            traceback.print_exc()
            send({"error": f"{type(exc).__name__}: {exc}"})


if __name__ == "__main__":
    main()
