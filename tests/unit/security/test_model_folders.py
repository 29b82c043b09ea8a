"""Folders of models that would make transformers run code or write elsewhere, though every call forbids it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmrec_plugin.errors import SourceError
from llmrec_plugin.export.sources import find_folder, find_place
from llmrec_plugin.model_folders import check_model_folder

BERT = {"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 64}
KERNEL = "someone/kernel"


@pytest.fixture
def folder(tmp_path):
    """A folder with weights, and a tokenizer that nobody reads."""
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    return tmp_path


def state(folder, name="config.json", **more):
    (folder / name).write_text(json.dumps(BERT | more), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "hostile",
    [
        {"_attn_implementation_internal": KERNEL},
        {"_attn_implementation": f"{KERNEL}@main:function"},
        {"attn_implementation": f"sdpa|{KERNEL}"},
        {"attn_implementation": {"": "sdpa", "text_config": KERNEL}},
        {"attn_implementation": "flash_attention_2"},  # fetched from a repository where it is not installed
        {"attn_implementation": [KERNEL]},
        {"text_config": {"layers": [{"_attn_implementation_internal": KERNEL}]}},
        {"trust_remote_code": True},
        {"trust_remote_code": "yes"},
        {"vision_config": {"trust_remote_code": 1}},
    ],
)
@pytest.mark.parametrize("name", ["config.json", "config.4.57.0.json"])
def test_a_configuration_that_names_code_is_refused(folder, name, hostile):
    state(folder)
    state(folder, name, **hostile)
    with pytest.raises(SourceError, match=rf"{name}: '.*' is .* code .*never done here.*remove the key.*path:<folder>"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    "templates",
    [
        {"../up": ""},
        {"default": "", "/tmp/x": ""},
        {"C:x": ""},
        {"..\\x": ""},
        {"": ""},
        [{"name": "a/b", "template": ""}],
        [{"template": ""}, "c"],
    ],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json", "chat_template.json"])
def test_a_chat_template_that_is_named_by_a_path_is_refused(folder, name, templates):
    (folder / name).write_text(json.dumps({"chat_template": templates}))
    with pytest.raises(SourceError, match=rf"{name}: 'chat_template' is .*write outside of the folder"):
        check_model_folder(state(folder))


@pytest.mark.parametrize(
    "harmless",
    [
        {},
        {"_attn_implementation": "eager", "attn_implementation": None},
        {"attn_implementation": {"text_config": "sdpa"}},
        {"_attn_implementation_autoset": True},  # which some versions of transformers write
        {"trust_remote_code": False},
        {"cache_implementation": "hybrid"},
        {"auto_map": {"AutoModel": "code.Model"}},  # read only where code may be run
        {"chat_template": "{% for message in messages %}../{% endfor %}"},
        {"chat_template": {"default": "../", "tool use": ""}},
        {"chat_template": [{"name": "default", "template": "../"}]},
    ],
)
def test_other_configurations_pass(folder, harmless):
    check_model_folder(state(folder, **harmless))


def test_a_folder_without_a_configuration_passes(tmp_path):
    check_model_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000])
def test_a_configuration_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"config\.json is no JSON"):
        check_model_folder(tmp_path)


def test_a_long_value_is_not_repeated_whole(folder):
    with pytest.raises(SourceError) as raised:
        check_model_folder(state(folder, attn_implementation="x" * 10_000))
    assert len(str(raised.value)) < 600


def find_bert(folder):
    pytest.importorskip("transformers", reason="the export extra is not installed")
    from llmrec_plugin.systems.bert import base_folder

    base_folder(str(folder))


def load_clip(folder):
    from llmrec_plugin.systems.clip.towers import load_text

    state(folder, model_type="clip", trust_remote_code=True)
    load_text(folder)


def train_mint(folder):
    from llmrec_plugin.systems.mint.training import TrainingSettings, train_bi_encoder

    train_bi_encoder([("a", "b"), ("c", "d")], folder, folder / "target", TrainingSettings(max_tokens=8))


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: find_folder(f"path:{folder}"),
        lambda folder: find_place(str(folder)),
        find_bert,
        load_clip,
        train_mint,
    ],
    ids=["export of a model", "export of a network", "bert", "clip", "mint"],
)
def test_whoever_reads_a_model_refuses_one_that_names_code(folder, read):
    with pytest.raises(SourceError, match="run code that comes with it, which is never done here"):
        read(state(folder, trust_remote_code=True))


KERNELS = """
import enum, os, pathlib

class Device: ...

class LayerRepository:
    def __init__(self, *args, **kwargs): ...

class Mode(enum.Flag):
    INFERENCE = enum.auto()
    TRAINING = enum.auto()
    TORCH_COMPILE = enum.auto()

def get_kernel(repository, revision=None):
    pathlib.Path(os.environ["RAN"], "kernel").touch()
    raise RuntimeError

def use_kernel_forward_from_hub(*args, **kwargs):
    return lambda layer: layer

register_kernel_mapping = replace_kernel_forward_from_hub = use_kernel_forward_from_hub
"""
"""In place of the package of this name, which would download a repository and import it."""
CODE = """
import os, pathlib
import transformers

pathlib.Path(os.environ["RAN"], "code").touch()

class Config(transformers.PretrainedConfig):
    model_type = "hostile"
"""
ATTACKS = """
import json, shutil, sys
from pathlib import Path
import transformers
from click.testing import CliRunner
from llmrec_plugin.cli import main

where, ran = Path(sys.argv[1]), Path(sys.argv[2])
kernel, light, paths = where / "kernel", where / "light", where / "paths"

def edit(path, **more):
    path.write_text(json.dumps(json.loads(path.read_text()) | more))

sizes = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=10)
transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(kernel)
words = where / "words"
words.write_text("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e"]))
transformers.BertTokenizerFast(vocab_file=str(words)).save_pretrained(kernel)
shutil.copytree(kernel, paths)
templates = [{"name": "default", "template": ""}, {"name": str(ran / "elsewhere"), "template": ""}]
edit(paths / "tokenizer_config.json", chat_template=templates)
edit(kernel / "config.json", _attn_implementation_internal="someone/kernel")

def ours(folder):
    stated = "--pooling mean --normalize --max-tokens 16 --metric cosine --dims 8".split()
    return " ".join(CliRunner().invoke(main, ["export", str(folder), *stated]).output.split())

def theirs(folder):
    try:
        transformers.AutoModel.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(where / "target")
    except Exception as exc:
        return repr(exc)

for run in (ours, theirs):
    said = [run(folder) for folder in (kernel, light, paths)]
    print(json.dumps([said, sorted(path.name for path in ran.iterdir())]))
"""


def test_transformers_falls_for_such_folders_and_an_export_does_not(tmp_path):
    """CVE-2026-4372, -5241 and -9856. When the last line fails, transformers has been mended: see docs/security.md."""
    pytest.importorskip("transformers", reason="the export extra is not installed")
    for name in ("ran", "light", "inner", "packages"):
        (tmp_path / name).mkdir()
    inner = {"model_type": "hostile", "_name_or_path": str(tmp_path / "inner")}
    light = {"model_type": "lightglue", "trust_remote_code": True, "keypoint_detector_config": inner}
    auto_map = {"AutoConfig": "code_of_theirs.Config"}
    for place, content in (("light", light), ("inner", {"model_type": "hostile", "auto_map": auto_map})):
        (tmp_path / place / "config.json").write_text(json.dumps(content))
    (tmp_path / "light" / "model.safetensors").touch()
    (tmp_path / "inner" / "code_of_theirs.py").write_text(CODE)
    (tmp_path / "packages" / "kernels.py").write_text(KERNELS)
    environ = {
        **os.environ,
        "RAN": str(tmp_path / "ran"),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "LLMREC_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "packages"), str(Path(__file__).parents[3])]),
    }
    done = subprocess.run(
        [sys.executable, "-c", ATTACKS, str(tmp_path), environ["RAN"]],
        env=environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = map(json.loads, done.stdout.splitlines()[-2:])
    assert ours[1] == [], ours
    assert ["some versions of transformers" in said for said in ours[0]] == [True] * 3, ours
    assert theirs[1] == ["code", "elsewhere.jinja", "kernel"], theirs
