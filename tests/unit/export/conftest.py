"""Tiny encoders with random weights, saved as Hugging Face folders: real architectures, no downloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_generators import declare_generator, save_generator

from llmrec_plugin.artifacts import ArtifactStore, GeneratorArtifact
from llmrec_plugin.specs import EncoderModel

DIMS, MAX_TOKENS = 32, 48
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def save_encoder() -> Iterator[Callable[..., Path]]:
    """Saves a tiny encoder of an architecture (bert, roberta, distilbert, qwen3) into a folder."""
    torch = pytest.importorskip("torch", reason="the export extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the export extra is not installed")

    def save(folder: Path, architecture: str = "bert", *, seed: int = 0) -> Path:
        tokenizer = _wordpiece(architecture)
        shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.3}
        layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": DIMS}
        torch.manual_seed(seed)
        model = {
            "bert": lambda: transformers.BertModel(
                transformers.BertConfig(**shape, **layers, max_position_embeddings=64)
            ),
            "roberta": lambda: transformers.RobertaModel(
                transformers.RobertaConfig(**shape, **layers, max_position_embeddings=64, type_vocab_size=1)
            ),
            "distilbert": lambda: transformers.DistilBertModel(
                transformers.DistilBertConfig(**shape, dim=DIMS, hidden_dim=64, n_layers=2, n_heads=4)
            ),
            "qwen3": lambda: transformers.Qwen3Model(
                transformers.Qwen3Config(**shape, **layers, num_key_value_heads=2, head_dim=8)
            ),
        }[architecture]()
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        return folder

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one, and wait for nobody on a busy machine
    yield save
    torch.set_num_threads(threads)


def _wordpiece(architecture: str) -> Any:
    """A WordPiece tokenizer of single characters and a few words, with traps like those found in real folders."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = ["the", "and", "library", "package", "film", "for", "java", "python"]
    vocabulary = [*SPECIAL, *characters, *("##" + character for character in characters), *words]
    backend = Tokenizer(models.WordPiece({token: row for row, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (architecture == "bert")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)


@pytest.fixture(scope="session")
def bert_folder(save_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without the files of sentence-transformers; read only."""
    return save_encoder(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def declare() -> Callable[..., EncoderModel]:
    """A declaration of a tiny encoder: mean, normalized, unless told otherwise."""

    def declare(folder: Path, **changes: Any) -> EncoderModel:
        values = {
            "name": "tiny", "source": f"path:{folder}", "pooling": "mean", "normalize": True, "dims": DIMS,
            "max_tokens": MAX_TOKENS, "metric": "cosine",
        }  # fmt: skip
        return EncoderModel(**{**values, **changes})

    return declare


@pytest.fixture(scope="session")
def generator_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny generator of an architecture, made once; read only."""
    pytest.importorskip("torch", reason="the export extra is not installed")
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = save_generator(tmp_path_factory.mktemp("generators") / architecture, architecture)
        return made[architecture]

    return folder


@pytest.fixture(scope="session")
def few_tokens() -> Iterator[None]:
    """Generators are compared on fewer tokens, which takes half the time."""
    from llmrec_plugin.export import generation_parity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_parity, "NEW_TOKENS", 5)
        yield


@pytest.fixture(scope="session")
def exported(
    few_tokens: None, generator_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], GeneratorArtifact]:
    """The artifact of a tiny generator of an architecture, exported once; read only."""
    made: dict[str, GeneratorArtifact] = {}

    def artifact(architecture: str) -> GeneratorArtifact:
        from llmrec_plugin.export import export_generator

        if architecture not in made:
            model = declare_generator(generator_folder(architecture), architecture)
            made[architecture] = export_generator(model, ArtifactStore([tmp_path_factory.mktemp("artifacts")]))
        return made[architecture]

    return artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a configuration and an empty weights file, enough for what only reads statements."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "bert", "hidden_size": DIMS, "max_position_embeddings": 64})
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def state() -> Callable[..., None]:
    """Writes the files of sentence-transformers into a folder."""

    def state(folder: Path, *, pooling: dict[str, Any], steps: tuple[str, ...], **transformer: Any) -> None:
        types = [f"sentence_transformers.models.{step}" for step in steps]
        paths = [f"{row}_{step}" for row, step in enumerate(steps)]
        modules = [{"type": kind, "path": path} for kind, path in zip(types, paths, strict=True)]
        write_json(folder / "modules.json", modules)
        write_json(folder / "1_Pooling" / "config.json", pooling)
        write_json(folder / "sentence_bert_config.json", transformer)

    return state


@pytest.fixture
def encoding() -> Callable[..., Any]:
    """What the tokenizer makes of a text, reduced to what the gate reads."""
    return lambda ids: SimpleNamespace(ids=list(ids), overflowing=[])


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
