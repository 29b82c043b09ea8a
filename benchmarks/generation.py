"""Generation beside transformers, Optimum and onnxruntime-genai: the same weights, the same prompts, equal tokens.

    python benchmarks/generation.py [--rows 1000] [--rounds 3] [--peers transformers optimum genai]
        [--output docs/benchmarks/generation]

``labels`` has a quarter of the prompts that --rows says.

The model is a Qwen2 of about 20 M parameters with random weights: its tokens mean nothing, and cost what they cost.

    prefix   prompts with 200 tokens of instructions in common, 16 new tokens each
    ragged   prompts of 8 to 64 tokens with little in common, 1 to 48 new tokens: a row ends at one of many tokens
    labels   log probabilities of 2 answers after 256 tokens of instructions and a short item; peers: one pass over
             the whole prompt per row

Every engine is a process with the same number of threads. A peer gets token ids, and the best of some batch sizes that
are tried on a part of the prompts before the rounds. Where lengths differ (``ragged``) a peer takes part twice: in the
order of the prompts, as it comes, and with prompts that the benchmark has sorted by length for it. Engines take turns,
so that what else the machine does meets all of them. Their results are compared with ours.

onnxruntime-genai, whose model builder needs another transformers, gets an environment of its own below ``--work``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.encoders import machine
from benchmarks.encoders.client import Worker, WorkerError

HERE = Path(__file__).parent
PEERS = ("transformers", "optimum", "genai")
TARGETS = {"prefix": 4.0, "ragged": 3.0, "labels": 8.0}
SIZES = (8, 32)
SHARES = {"prefix": 1.0, "ragged": 1.0, "labels": 0.25}
"""Of the rows."""
SORTED = ", sorted"
"""Ends the name of a peer whose prompts are sorted for it."""
VOCABULARY, LENGTH = 8_192, 512
END, PAD = 1, 0
ENDING_SHARE = 0.08
"""Of the tokens that end a row of ``ragged``."""
GENAI = ("onnxruntime-genai==0.18.*", "onnxruntime>=1.31,<1.32", "onnx_ir", "transformers>=5", "torch==2.13.0", "onnx")


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Made-up words."""
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    return ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(count)]


def build_model(folder: Path) -> None:
    """Weights and tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [" ".join(words(np.random.default_rng(seed), 200)) for seed in range(400)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1_408, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=True, eos_token_id=END,
        pad_token_id=PAD, bos_token_id=None, initializer_range=0.08,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


def build_artifact(weights: Path, folder: Path) -> Path:
    """Our export; the folder of the artifact."""
    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.export.generators import export_generator
    from llmrec_plugin.specs import GeneratorModel

    model = GeneratorModel(name="bench", source=f"path:{weights}", task="causal", max_tokens=LENGTH)
    return export_generator(model, ArtifactStore([folder])).folder


def build_optimum(weights: Path, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(str(weights), output=folder, task="text-generation-with-past", do_validation=False, opset=18)


def build_genai(weights: Path, work: Path, ends: dict[str, list[int]], threads: int) -> tuple[str, dict[str, str]]:
    """The Python of its environment, and a folder for each set of tokens that end a row."""
    environment, base = work / "genai-env", work / "genai"
    python = environment / "bin" / "python"
    if not (environment / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *GENAI], check=True)
        (environment / ".installed").touch()
    if not (base / "genai_config.json").exists():
        builder = [python, "-m", "onnxruntime_genai.models.builder", "-i", weights, "-o", base, "-p", "fp32"]
        subprocess.run([*builder, "-e", "cpu", "-c", work / "genai-cache"], check=True)
    folders = {}
    for name, tokens in ends.items():
        folder = work / f"genai-{name}"
        folder.mkdir(exist_ok=True)
        for path in base.iterdir():
            link = folder / path.name
            if path.name != "genai_config.json" and not link.exists():
                os.link(path, link)
        config = json.loads((base / "genai_config.json").read_text())
        config["model"]["eos_token_id"] = tokens
        config["model"]["pad_token_id"] = PAD
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        (folder / "genai_config.json").write_text(json.dumps(config))
        folders[name] = str(folder)
    return str(python), folders


def make_works(artifact: Path, rows: int, seed: int = 1) -> dict[str, dict[str, Any]]:
    """The three workloads; the ids are those that our engine reads of the texts."""
    from llmrec_plugin.artifacts import read_artifact
    from llmrec_plugin.generation import Request, Segment
    from llmrec_plugin.manifests import TOKENIZER
    from llmrec_plugin.runtime.generation.prompts import PromptTokenizer, encode_requests

    found = read_artifact(artifact)
    tokenizer = PromptTokenizer(found.path(TOKENIZER).read_text())
    rng = np.random.default_rng(seed)
    ending = rng.choice(np.arange(2, VOCABULARY), int(ENDING_SHARE * VOCABULARY), replace=False)
    shapes = {
        # name: (tokens of instructions, least and most tokens of data, new tokens, ends)
        "prefix": (200, 8, 24, 16, [END]),
        "ragged": (4, 4, 60, 48, sorted({END, *map(int, ending)})),
        "labels": (256, 8, 24, 1, [END]),
    }
    single = [piece for piece in tokenizer.pieces(VOCABULARY) if piece.startswith(" ") and piece[1:].isalpha()]
    answers = next(pair for pair in pairwise(single[100:]) if all(len(ids) == 1 for ids in tokenizer.data(pair)))

    def text(tokens: int) -> str:
        ids = tokenizer.data([" ".join(words(rng, tokens + 8))])[0][:tokens]
        return tokenizer.decode(ids)

    works = {}
    for name, (head, least, most, new_tokens, ends) in shapes.items():
        instructions = text(head) + "\n"
        count = max(round(SHARES[name] * rows), 8)
        data = [text(int(rng.integers(least, most + 1))) for _ in range(count)]
        requests = [Request((Segment(instructions), Segment(one, data=True))) for one in data]
        prompts = encode_requests(requests, found.manifest, tokenizer, new_tokens)
        works[name] = {
            "name": name,
            "instructions": instructions,
            "data": data,
            "ids": [prompt.ids.tolist() for prompt in prompts],
            "new_tokens": new_tokens,
            "ends": ends,
            "answers": list(answers),
            "answer_ids": tokenizer.data(answers),
        }
    return works


def run(engine: Worker, work: str, rows: int, size: int, by_length: bool) -> dict[str, Any]:
    command = "score" if work == "labels" else "generate"
    return engine.ask(command, name=work, rows=rows, size=size, by_length=by_length)


def best_batch(engine: Worker, work: str, rows: int, by_length: bool) -> dict[str, Any]:
    """The fastest batch size on the first `rows` prompts."""
    run(engine, work, 8, 8, False)  # warm
    tried = {size: round(run(engine, work, rows, size, by_length)["seconds"], 3) for size in SIZES}
    return {"size": min(tried, key=lambda size: tried[size]), "by_length": by_length, "tried": tried}


def equality(work: str, ours: Any, theirs: Any) -> dict[str, Any]:
    if work == "labels":
        return {"largest_difference": float(np.abs(np.array(ours) - np.array(theirs)).max())}
    return {"equal_rows": sum(a == b for a, b in zip(ours, theirs, strict=True)), "rows": len(ours)}


def write(result: dict[str, Any], output: Path | None) -> None:
    """The result as JSON and as a page, with the works of an earlier run on the same machine that it lacks."""
    if output is not None:
        path = output.with_suffix(".json")
        earlier = json.loads(path.read_text()) if path.is_file() else {}
        same = earlier.get("conditions", {}).get("versions") == result["conditions"]["versions"]
        result = {**result, "works": (earlier["works"] if same else {}) | result["works"]}
        output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        output.with_suffix(".md").write_text(report(result))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.work.absolute()
    weights = folder / "weights"
    if not (weights / "config.json").exists():
        build_model(weights)
    store = folder / "artifacts"
    artifact = next(iter(store.glob("bench/*/manifest.json")), None)
    place = artifact.parent if artifact else build_artifact(weights, store)
    if not (folder / "optimum" / "model.onnx").exists():
        build_optimum(weights, folder / "optimum")
    works = make_works(place, options.rows)
    ends = {name: work["ends"] for name, work in works.items()}
    common = {
        "threads": options.threads, "pad": PAD, "weights": str(weights), "optimum": str(folder / "optimum"),
        "artifact": str(place), "ends": ends,
    }  # fmt: skip
    pythons = dict.fromkeys(("llmrec", *options.peers), sys.executable)
    if "genai" in options.peers:
        pythons["genai"], common["genai"] = build_genai(weights, folder, ends, options.threads)
    environ = {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1"}
    script = str(HERE / "generation_engines.py")
    engines = {
        name: Worker([python, script, name, json.dumps(common)], folder / f"{name}.log", environ)
        for name, python in pythons.items()
    }
    result: dict[str, Any] = {
        "conditions": {
            "threads": options.threads,
            "machine": machine.describe(),
            "python": platform.python_version(),
            "plugin": version("llmrec-plugin"),
            "versions": {name: engine.ready["versions"] for name, engine in engines.items()},
            "load_before": os.getloadavg(),
        },
        "works": {},
    }
    for name, work in works.items():
        path = folder / f"work-{name}.json"
        path.write_text(json.dumps(work))
        for engine in engines.values():
            engine.ask("work", name=name, path=str(path))
    for name in options.works:
        result["works"][name] = measure_work(engines, name, works[name], options)
        print(json.dumps({name: summary(result["works"][name])}), file=sys.stderr, flush=True)
        write(result, options.output)  # what is measured is kept, whatever happens to the next
    for engine in engines.values():
        engine.close()
    return result


def measure_work(
    engines: dict[str, Worker], name: str, work: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    rows = len(work["ids"])
    taking_part: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for engine, worker in engines.items():
        try:
            if engine == "llmrec":
                run(worker, name, min(64, rows), 0, False)
                taking_part[engine] = {"size": 0, "by_length": False}
                continue
            taking_part[engine] = best_batch(worker, name, min(options.tried, rows), by_length=False)
            if name == "ragged":
                taking_part[engine + SORTED] = best_batch(worker, name, min(options.tried, rows), by_length=True)
        except WorkerError as exc:
            failed[engine] = str(exc)
    seconds: dict[str, list[float]] = {engine: [] for engine in taking_part}
    processor: dict[str, list[float]] = {engine: [] for engine in taking_part}
    load: list[float] = []
    found: dict[str, Any] = {}
    for turn in range(options.rounds):
        for engine in list(taking_part)[:: -1 if turn % 2 else 1]:
            batches = taking_part[engine]
            worker = engines[engine.removesuffix(SORTED)]
            answer = run(worker, name, rows, batches["size"], batches["by_length"])
            seconds[engine].append(answer["seconds"])
            processor[engine].append(answer["cpu_seconds"])
            found[engine] = answer["found"]
            load.append(round(os.getloadavg()[0], 2))
    lengths = [len(ids) for ids in work["ids"]]
    written = [len(tokens) for tokens in found["llmrec"]] if name != "labels" else []
    return {
        "rows": rows,
        "rounds": options.rounds,
        "prompt_tokens": {"least": min(lengths), "mean": statistics.mean(lengths), "most": max(lengths)},
        "new_tokens": {"least": min(written), "mean": statistics.mean(written), "most": max(written)}
        if written
        else {},
        "seconds": seconds,
        "cpu_seconds": processor,
        "batches": taking_part,
        "failed": failed,
        "load": load,
        "equality": {
            engine: equality(name, found["llmrec"], tokens) for engine, tokens in found.items() if engine != "llmrec"
        },
    }


def summary(work: dict[str, Any]) -> dict[str, Any]:
    """Medians, and how many times longer each peer takes."""
    medians = {engine: statistics.median(taken) for engine, taken in work["seconds"].items()}
    ours = medians["llmrec"]
    return {
        "seconds": {engine: round(taken, 3) for engine, taken in medians.items()},
        "times": {engine: round(taken / ours, 2) for engine, taken in medians.items() if engine != "llmrec"},
        "equality": work["equality"],
    }


def conclusions(times: dict[str, float], aim: float) -> list[str]:
    """What the best peer takes, as it comes and with sorted prompts."""
    as_it_comes = {engine: ratio for engine, ratio in times.items() if not engine.endswith(SORTED)}
    if not as_it_comes:
        return []
    lines = [f"The best peer takes {min(as_it_comes.values())} times as long; the aim was {aim:g}."]
    if len(as_it_comes) < len(times):
        best = min(ratio for engine, ratio in times.items() if engine.endswith(SORTED))
        lines.append(f"With prompts sorted by length before they are given to it, {best} times.")
    return lines


def report(result: dict[str, Any]) -> str:
    conditions = result["conditions"]
    described = conditions["machine"]
    load = sorted(load for work in result["works"].values() for load in work["load"])
    lines = [
        "# Generation",
        "",
        f"Engines in turns, {conditions['threads']} thread(s) for "
        f"every engine; {described['cores']} cores of {described['processor']}, which other work may have used: load "
        f"average {load[0]} to {load[-1]}, of which the engine under test makes up to {conditions['threads']}. A Qwen2 "
        "of 21 M parameters with random weights, float32. Made by `python benchmarks/generation.py`, which says what "
        "the workloads are.",
        "",
    ]
    for name, work in result["works"].items():
        found = summary(work)
        prompts, written = work["prompt_tokens"], work["new_tokens"]
        lines += [
            f"## {name}",
            "",
            f"{work['rows']} prompts, {work['rounds']} round(s). "
            f"Prompts of {prompts['least']} to {prompts['most']} tokens (mean {prompts['mean']:.1f})"
            + (
                f", {written['least']} to {written['most']} new tokens (mean {written['mean']:.1f})."
                if written
                else "."
            ),
            "",
            "| engine | seconds (median, range) | CPU seconds | prompts/s | times ours | batches | equal to ours |",
            "|---|---|---|---|---|---|---|",
        ]
        for engine, taken in work["seconds"].items():
            median = statistics.median(taken)
            same = work["equality"].get(engine, {})
            equal = (
                f"{same['equal_rows']} of {same['rows']} rows" if "rows" in same
                else f"within {same['largest_difference']:.1e}" if same else ""
            )  # fmt: skip
            batches = work["batches"][engine]
            how = "" if engine == "llmrec" else batches["size"]
            lines.append(
                f"| {engine} | {median:.2f} [{min(taken):.2f}, {max(taken):.2f}] "
                f"| {statistics.median(work['cpu_seconds'][engine]):.2f} | {work['rows'] / median:.0f} "
                f"| {found['times'].get(engine, 1)} | {how} | {equal} |"
            )
        lines += [f"\n{engine} took no part: {why}." for engine, why in work["failed"].items()]
        lines += ["", *conclusions(found["times"], TARGETS[name]), ""]
    absent = [peer for peer in PEERS if peer not in conditions["versions"]]
    if absent:
        lines += [f"Not in this run: {', '.join(absent)}.", ""]
    versions = "; ".join(
        f"{engine}: " + ", ".join(f"{name} {number}" for name, number in packages.items())
        for engine, packages in conditions["versions"].items()
    )
    return "\n".join([*lines, f"Versions: {versions}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tried", type=int, default=64, help="prompts on which batch sizes are tried")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--works", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--work", type=Path, default=Path(".bench/generation"), help="folder for models")
    parser.add_argument("--output", type=Path, help="path of the result without its ending; works in it are kept")
    options = parser.parse_args()
    result = measure(options)
    if not options.output:
        print(report(result))


if __name__ == "__main__":
    main()
