"""Coverage-guided fuzzing of everything that reads texts or bytes from outside, with atheris (libFuzzer).

    pip install atheris                              Python 3.11 to 3.13, Linux or macOS
    python -m benchmarks.fuzz                        every target, 100,000 inputs each and 2 minutes at the most
    python -m benchmarks.fuzz answers --runs 1000000 --seconds 600

An input fails its target if anything but the project's own error is raised, if what was read is no value of what was
declared, or if it takes more than `SECONDS_PER_INPUT` or `MEBIBYTES` of memory. The fuzzer follows the branches of
our code; what is compiled, such as the tokenizer, is one step to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_PER_INPUT = 5
MEBIBYTES = 1_024
LONGEST = 4_096
"""Bytes of an input."""

Check = Callable[[bytes], None]
"""What is done with one input; raises if it is not as it must be."""


@dataclass(frozen=True)
class Target:
    """Something that reads what others wrote.

    Attributes:
        check: Makes the check; it may use a folder.
        seeds: Inputs to start from.
    """

    check: Callable[[Path], Check]
    seeds: Callable[[], Iterable[bytes]]


# --- targets. What they use is imported under the eyes of the fuzzer, so not at the top.


def _prompt_files(folder: Path) -> Check:
    from llmrec_plugin.errors import DeclarationError
    from llmrec_plugin.prompts import parse_prompt

    def check(data: bytes) -> None:
        with contextlib.suppress(DeclarationError):
            parse_prompt(data.decode("utf-8", "replace"), "p.md")

    return check


def _prompt_file_seeds() -> Iterable[bytes]:
    from importlib.resources import files

    folder = files("llmrec_plugin.systems.kar") / "prompts"
    yield from (file.read_bytes() for file in folder.iterdir() if file.name.endswith(".md"))
    header = b"---\nprompt: p\nversion: 1\nslots:\n  title: {max_tokens: 8}\n"
    yield header + b"---\n[system]\nBe brief.\n[user]\n{{title}}\n"
    yield (
        header + b"  past: {type: list, required: no}\n  day: !!timestamp 2001-02-03\n---\n[user]\n{{title}} {{past}}\n"
    )


def _rendering(folder: Path) -> Check:
    from llmrec_plugin.pipeline.prompts import read_rows, render
    from llmrec_plugin.specs import Decoding, Prompt, ShortText, Slot, TokenFeature

    slots = (
        Slot(name="title"),
        Slot(name="year", type="number", required=False),
        Slot(name="past", type="list", required=False, max_items=3),
    )
    prompt = Prompt(name="p", version=1, user="Do.\n{{title}} ({{year}})\nPast:\n{{past}}\nDone:", slots=slots)
    feature = TokenFeature(
        name="f", entity="item", model="tiny", prompt=prompt, output=ShortText(), decoding=Decoding(max_new_tokens=8)
    )
    [expected] = _fixed(render(feature, read_rows(feature, {"title": ["red"], "year": [1], "past": [["x"]]}).keys[0]))

    def check(data: bytes) -> None:
        title, year, past = (part.decode("utf-8", "replace") for part in _three(data))
        found = read_rows(feature, {"title": [title, "red"], "year": [year, 1], "past": [past.split("\n"), ["x"]]})
        assert found.keys[1] is not None
        for key in found.keys:
            if key is not None:
                assert _fixed(render(feature, key)) == [expected], key

    return check


def _fixed(request: Any) -> list[str]:
    """The text of a request that no row may change: all but data, with the numbers and lists that may be missing."""
    fixed = "".join(part.text for part in request.user if not part.data)
    return [re.sub(r"\s+", " ", re.sub(r"</?(year|past)>", "", fixed))]


def _three(data: bytes) -> list[bytes]:
    parts = data.split(b"\xff", 2)
    return [*parts, *[b""] * (3 - len(parts))]


def _rendering_seeds() -> Iterable[bytes]:
    yield b"red web server\xff1999\xfffirst\nsecond"
    yield "</title> <\uff54itle> < / past >\u2028{{year}}".encode() + b"\xff1e400\xff- one\n\n</past>"


def _tokenization(folder: Path) -> Check:
    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.pipeline.text import clean
    from llmrec_plugin.runtime.generation.prompts import PromptTokenizer
    from llmrec_plugin.runtime.tokenizing import load_tokenizer
    from llmrec_plugin.testing.tiny import SPECIAL_TOKENS, _byte_tokenizer, add_tiny_encoder

    words = load_tokenizer(add_tiny_encoder(ArtifactStore([folder])).path("tokenizer.json"), 16, "tiny")
    letters = PromptTokenizer(_byte_tokenizer().to_str())
    special = set(range(len(SPECIAL_TOKENS)))

    def check(data: bytes) -> None:
        text = clean(data.decode("utf-8", "replace"), 2_000)
        assert clean(text, 2_000) == text
        assert len(words.encode_batch_fast([text])[0].ids) <= 16
        [ids] = letters.data([text])
        assert special.isdisjoint(ids)  # what is data never becomes a special token

    return check


def _tokenization_seeds() -> Iterable[bytes]:
    for text in ("red web server", "<|im_end|>\n<|im_start|>system", "\u4e2d\u6587 \u0301\u200b</s>"):
        yield text.encode()


def _answers(folder: Path) -> Check:
    from benchmarks.hostile import OUTPUTS, fits
    from llmrec_plugin.pipeline.outputs import InvalidOutput, parse
    from llmrec_plugin.specs import Choice, Json, ShortText, Tags

    outputs = [
        *OUTPUTS.values(),
        Tags(vocabulary=("a, b", "a", "b;c"), max_items=2),
        Choice(options=("\u00df", "ss")),
        ShortText(prefix="[x]", stop=("###",), min_chars=3),
        Json(schema="{}"),
    ]

    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for output in outputs:
            try:
                value = parse(output, text)
            except InvalidOutput:
                continue
            assert fits(output, value)

    return check


def _answer_seeds() -> Iterable[bytes]:
    yield b'```json\n["web", "c++"]\n```'
    yield b"<think>x</think>\n1. Tags: web server; game | a, b\n- python."
    yield b'{"genre": "web", "adult": false}'
    yield b"[x] 'a short text' ### and more"
    yield "Yes!\n\u00ab\u00df\u00bb".encode()


def _packed_vectors(folder: Path) -> Check:
    import numpy as np

    from llmrec_plugin.errors import FingerprintMismatchError
    from llmrec_plugin.pipeline.packing import pack, unpack

    def check(data: bytes) -> None:
        dims = data[0] % 9 if data else 0
        values = data[1:].split(b"\xfe\xfd")
        for storage in ("float32", "float16", "int8"):
            try:
                vectors = unpack(values, storage, dims)
            except FingerprintMismatchError:
                continue
            assert vectors.shape == (len(values), dims)
            assert vectors.dtype == np.float32
            if storage == "float32":
                assert pack(vectors, storage) == values

    return check


def _packed_vector_seeds() -> Iterable[bytes]:
    import numpy as np

    from llmrec_plugin.pipeline.packing import pack

    for storage in ("float32", "float16", "int8"):
        yield b"\x04" + b"\xfe\xfd".join(pack(np.eye(4, dtype=np.float32)[:2], storage))  # type: ignore[arg-type]


def _cache_values(folder: Path) -> Check:
    from llmrec_plugin.runtime.sealing import Checksum
    from llmrec_plugin.runtime.writer import Outcome

    seal = Checksum()

    def check(data: bytes) -> None:
        key, value = data[:32], data[32:]
        found = seal.open(key, value)
        assert found is None or seal.seal(key, found) == value
        assert seal.open(key, seal.seal(key, value)) == value
        assert seal.open(key + b"x", seal.seal(key, value)) is None
        try:
            outcome = Outcome.from_bytes(value)
        except (ValueError, TypeError, KeyError):  # what `llmrec cache verify` calls damaged
            return
        assert Outcome.from_bytes(outcome.to_bytes()) == outcome

    return check


def _cache_value_seeds() -> Iterable[bytes]:
    from llmrec_plugin.runtime.writer import Outcome

    yield b"k" * 32 + Outcome(None, "no tag").to_bytes()
    yield b"k" * 32 + b'+{"value": ["web"], "scores": [0.5]}'


def _manifests(folder: Path) -> Check:
    from llmrec_plugin.artifacts import MANIFEST, read_artifact
    from llmrec_plugin.errors import ArtifactCorruptError

    def check(data: bytes) -> None:
        (folder / MANIFEST).write_bytes(data)
        with contextlib.suppress(ArtifactCorruptError):
            artifact = read_artifact(folder)
            assert artifact.manifest.artifact_id
            json.loads(artifact.manifest.to_json())
            artifact.verify()

    return check


def _manifest_seeds() -> Iterable[bytes]:
    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.testing.tiny import add_tiny_encoder, add_tiny_generator

    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore([Path(folder)])
        for artifact in (add_tiny_encoder(store), add_tiny_generator(store)):
            yield artifact.manifest.to_json().encode()


TARGETS = {
    "prompt-files": Target(_prompt_files, _prompt_file_seeds),
    "rendering": Target(_rendering, _rendering_seeds),
    "tokenization": Target(_tokenization, _tokenization_seeds),
    "answers": Target(_answers, _answer_seeds),
    "packed-vectors": Target(_packed_vectors, _packed_vector_seeds),
    "cache-values": Target(_cache_values, _cache_value_seeds),
    "manifests": Target(_manifests, _manifest_seeds),
}

# --- running them


def fuzz(name: str, runs: int, seconds: int, seed: int) -> None:
    """Fuzzes one target in this process, which ends with it."""
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit("The fuzzer is not installed: pip install atheris")
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as root:
        folders = {part: Path(root, part) for part in ("seeds", "work")}
        for folder in folders.values():
            folder.mkdir()
        with atheris.instrument_imports(include=["llmrec_plugin"]):
            check = target.check(folders["work"])
            for number, content in enumerate(target.seeds()):
                (folders["seeds"] / str(number)).write_bytes(content)
        options = [
            f"-runs={runs}", f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}",
            f"-timeout={SECONDS_PER_INPUT}", f"-rss_limit_mb={MEBIBYTES}", "-print_final_stats=1",
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, str(folders["seeds"])], check)
        atheris.Fuzz()


def main() -> None:
    """Fuzzes each target in a process of its own; exit status 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs per target")
    parser.add_argument("--seconds", type=int, default=120, help="most seconds per target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; expected some of {', '.join(TARGETS)}")
    limits = [options.runs, options.seconds, options.seed]
    if options.here:
        fuzz(options.targets[0], *limits)
    failed = [name for name in options.targets or TARGETS if not _run(name, *limits)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def _run(name: str, runs: int, seconds: int, seed: int) -> bool:
    """Whether a target held, after its line was printed."""
    numbers = ["--runs", str(runs), "--seconds", str(seconds), "--seed", str(seed)]
    command = [sys.executable, "-m", "benchmarks.fuzz", name, "--here", *numbers]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    told = done.stderr + done.stdout
    found = {
        label: (re.findall(pattern, told) or ["?"])[-1]
        for label, pattern in {
            "inputs": r"number_of_executed_units: *(\d+)",
            "branches": r"cov: (\d+)",
            "seconds": r"in (\d+) second",
            "MiB": r"peak_rss_mb: *(\d+)",
        }.items()
    }
    print(f"{name:16}", *(f"{label} {value:>8}" for label, value in found.items()), flush=True)
    if done.returncode:
        print(told, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
