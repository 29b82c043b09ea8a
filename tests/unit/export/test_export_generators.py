"""Whole exports of tiny generators through Optimum and ONNX Runtime."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_generators import (
    BOS,
    END_OF_TURN,
    EOS,
    HEADS,
    KV_HEADS,
    LAYERS,
    MAX_TOKENS,
    PAD,
    TASKS,
    declare_generator,
    save_generator,
)

from llmrec_plugin.artifacts import ArtifactStore, read_artifact
from llmrec_plugin.errors import DeclarationError, ParityError
from llmrec_plugin.export import SourceError, attention, export_generator, generators, load_recipe, read_generator
from llmrec_plugin.export.chat import chat_template
from llmrec_plugin.export.generator_reference import GeneratorReference, windows
from llmrec_plugin.export.greedy import FusedDecoder, Seq2SeqDecoder, write
from llmrec_plugin.export.special_tokens import special_tokens
from llmrec_plugin.export.tokenization import load_fast_tokenizer

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
optimum_onnx = pytest.importorskip("optimum.exporters.onnx", reason="the export extra is not installed")

pytestmark = pytest.mark.usefixtures("few_tokens")
EXPORTED = ("gpt2", "llama", "qwen2", "t5", "bart")


def content(store):
    return sorted(path.name for folder in store.folders for path in folder.rglob("*"))


@pytest.fixture
def store(tmp_path):
    return ArtifactStore([tmp_path / "store"])


@pytest.mark.parametrize("architecture", EXPORTED)
def test_an_export_is_verified_current_and_says_what_it_is(exported, architecture):
    artifact = exported(architecture)
    artifact.verify()
    manifest = read_artifact(artifact.folder).manifest
    causal = TASKS[architecture] == "causal"
    graphs = {"model.onnx"} if causal else {"encoder.onnx", "decoder.onnx", "decoder_with_past.onnx"}
    assert set(manifest.files) == {"golden.json", "tokenizer.json", *graphs}
    assert (manifest.task, manifest.attention) == (TASKS[architecture], "fused" if causal else "plain")
    heads = KV_HEADS if architecture in ("llama", "qwen2") else HEADS
    assert (manifest.layers, manifest.kv_heads, manifest.head_dim) == (LAYERS, heads, 8)
    assert (manifest.max_tokens, manifest.vocab_size) == (MAX_TOKENS, 320)
    assert manifest.parity["passed"]
    assert manifest.parity["max_abs_diff"] < 1e-3
    assert manifest.parity["longest_tokens"] == MAX_TOKENS - (5 if causal else 0)
    assert not list(artifact.folder.parent.parent.glob(".export-*"))


@pytest.mark.parametrize(
    ("architecture", "around"),
    [("gpt2", ((), ())), ("llama", ((BOS,), ())), ("t5", ((), (EOS,))), ("bart", ((BOS,), (EOS,)))],
)
def test_special_tokens_come_from_the_models_own_files(exported, architecture, around):
    manifest = exported(architecture).manifest
    assert (manifest.prefix_ids, manifest.suffix_ids) == around
    assert manifest.eos_token_ids == (EOS,)
    assert manifest.pad_token_id == (EOS if architecture == "gpt2" else PAD)  # GPT-2 has no padding token
    assert manifest.decoder_start_token_id == {"t5": PAD, "bart": EOS}.get(architecture)


@pytest.mark.parametrize("architecture", EXPORTED)
def test_the_golden_tokens_are_written_again(exported, architecture):
    artifact = exported(architecture)
    manifest = artifact.manifest
    golden = json.loads(artifact.path("golden.json").read_text())
    assert len(golden["prompts"]) == 4
    assert len({tuple(item["tokens"]) for item in golden["prompts"]}) > 1
    if manifest.task == "causal":
        decoder = FusedDecoder(artifact.folder, manifest.pad_token_id, MAX_TOKENS)
    else:
        decoder = Seq2SeqDecoder(artifact.folder, manifest.pad_token_id, manifest.decoder_start_token_id)
    rows = write(decoder, [item["ids"] for item in golden["prompts"]], golden["max_new_tokens"], manifest.eos_token_ids)
    for row, item in zip(rows, golden["prompts"], strict=True):
        assert [token for token in row.tokens if token != EOS] == item["tokens"]


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "t5", "bart"])
def test_a_shared_matrix_is_stored_once(exported, architecture):
    artifact = exported(architecture)
    name = "model.onnx" if artifact.manifest.task == "causal" else "decoder.onnx"
    matrices = [item for item in onnx.load(artifact.path(name)).graph.initializer if 320 in item.dims]
    assert [list(item.dims) for item in matrices if len(item.dims) == 2 and min(item.dims) > 1] == [[320, 32]]


def test_the_same_weights_give_the_same_artifact(exported, generator_folder, store):
    again = export_generator(declare_generator(generator_folder("llama"), "llama"), store)
    assert again.id == exported("llama").id
    assert again.manifest.files == exported("llama").manifest.files


def test_weights_in_a_file_of_their_own_belong_to_the_artifact(generator_folder, store, monkeypatch):
    """Optimum writes graphs above 2 GB that way; here a small one is rewritten so."""
    right = optimum_onnx.main_export

    def split(source, output, **options):
        right(source, output=output, **options)
        graph = onnx.load(output / "model.onnx")
        (output / "model.onnx").unlink()
        onnx.save_model(graph, output / "model.onnx", save_as_external_data=True, location="model.onnx_data")

    monkeypatch.setattr(optimum_onnx, "main_export", split)
    artifact = export_generator(declare_generator(generator_folder("gpt2"), "gpt2"), store)
    assert artifact.manifest.attention == "fused"
    assert set(artifact.manifest.files) == {"golden.json", "model.onnx", "model.onnx_data", "tokenizer.json"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"sliding_window": 8}, [8, 8]),
        ({"sliding_window": 8, "use_sliding_window": False}, [None, None]),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, [None, 8]),
        ({"sliding_window": None}, [None, None]),
        ({}, [None, None]),
    ],
)
def test_windows_come_from_the_configuration(config, expected):
    assert windows(SimpleNamespace(**config), 2) == expected


def test_a_wrong_scale_keeps_the_plain_graph_and_says_so(generator_folder, store, monkeypatch):
    right = attention._scales
    monkeypatch.setattr(attention, "_scales", lambda *parts: [1.1 * scale for scale in right(*parts)])
    lines = []
    artifact = export_generator(declare_generator(generator_folder("gpt2"), "gpt2"), store, report=lines.append)
    assert artifact.manifest.attention == "plain"
    assert set(artifact.manifest.files) == {"golden.json", "model.onnx", "tokenizer.json"}
    assert any("stays plain" in line and "(alone, after the prompt" in line for line in lines)
    assert not any("stored" in line for line in lines)
    assert artifact.manifest.parity["pieces_max_abs_diff"] is None
    assert "attention_mask" in {item.name for item in onnx.load(artifact.path("model.onnx")).graph.input}


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_a_changed_weight_fails_the_export_and_stores_nothing(generator_folder, store, monkeypatch, architecture):
    build = generators.build_generator

    def damaged(model, source, scratch, target):
        graphs = build(model, source, scratch, target)
        for path in target.glob("*.onnx"):
            graph = onnx.load(path)
            weight = max(graph.graph.initializer, key=lambda item: int(np.prod(item.dims)))
            values = onnx.numpy_helper.to_array(weight).copy()
            values.flat[::7] += 0.05
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
            onnx.save(graph, path)
        return graphs

    monkeypatch.setattr(generators, "build_generator", damaged)
    with pytest.raises(ParityError, match="Nothing was stored"):
        export_generator(declare_generator(generator_folder(architecture), architecture), store)
    assert content(store) == []


def test_the_models_own_generation_config_says_what_ends_and_nothing_else(exported, generator_folder, tmp_path):
    """What changes the choice of tokens is not taken over: a feature declares that."""
    folder = shutil.copytree(generator_folder("qwen2"), tmp_path / "model")
    config = {"repetition_penalty": 1.5, "do_sample": True, "temperature": 9.0, "eos_token_id": [END_OF_TURN, EOS]}
    (folder / "generation_config.json").write_text(json.dumps(config))
    model = declare_generator(folder, "qwen2")
    special = special_tokens(
        model, folder, load_fast_tokenizer(folder, "qwen2"), exported("qwen2").path("tokenizer.json")
    )
    assert special.eos_token_ids == (END_OF_TURN, EOS)
    prompt = [20, 30, 40]
    written = GeneratorReference(model, folder, special).write(prompt, 12)
    decoder = FusedDecoder(exported("qwen2").folder, PAD, 16)
    assert write(decoder, [prompt], 12, special.eos_token_ids)[0].tokens == written.tokens


@pytest.fixture
def run(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from llmrec_plugin import cli

    monkeypatch.setenv("LLMREC_HOME", str(tmp_path / "home"))
    return lambda *words: CliRunner().invoke(cli.main, words)


def test_the_command_exports_a_folder_with_its_chat_template_in_pieces(run, tmp_path):
    folder = save_generator(tmp_path / "chat", "llama", chat=True)
    done = run("export", str(folder), "--task", "causal", "--chat", "--max-tokens", "64", "--name", "writer")
    assert done.exit_code == 0, done.output
    assert "writer: exported, parity" in done.output
    (row,) = [row for row in json.loads(run("models", "--json").output) if row["model"] == "writer"]
    assert row["source"] == f"path:{folder}"
    (manifest,) = tmp_path.glob(f"home/**/{row['current artifact']}/manifest.json")
    artifact = read_artifact(manifest.parent)
    assert artifact.manifest.max_tokens == 64
    chat = artifact.manifest.chat
    assert chat.without_system == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert chat.with_system == (
        "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n",
    )  # fmt: skip
    assert artifact.manifest.prefix_ids == ()  # the template writes what it wants


def test_chat_without_a_template_is_refused(generator_folder, store):
    with pytest.raises(DeclarationError, match=r"no chat template\. Declare chat=False"):
        export_generator(declare_generator(generator_folder("llama"), "llama", chat=True), store)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] | lower }}", "does not write each message once"),
        ("{{ messages[-1]['content'] }}{{ messages[-1]['content'] }}", "does not write each message once"),
        ("{% if %}", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_be_cut_is_refused(generator_folder, store, tmp_path, template, message):
    folder = shutil.copytree(generator_folder("llama"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(DeclarationError, match=message):
        export_generator(declare_generator(folder, "llama", chat=True), store)


def test_a_template_without_system_gets_it_before_the_users_text(generator_folder, tmp_path):
    tokenizer = load_fast_tokenizer(generator_folder("llama"), "llama")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[INST] {{ messages[0]['content'] }} [/INST]"
    )
    chat = chat_template(tokenizer, "llama")
    assert chat.with_system == ("[INST] ", "\n\n", " [/INST]")
    assert chat.without_system == ("[INST] ", " [/INST]")


def test_a_folder_of_the_other_task_is_refused(generator_folder, store):
    with pytest.raises(DeclarationError, match=r"declares task='causal', but .* Declare task='seq2seq'"):
        export_generator(declare_generator(generator_folder("t5"), "t5", task="causal"), store)
    assert content(store) == []


def test_an_encoder_cannot_write(bert_folder, store):
    with pytest.raises(DeclarationError, match="which token ends an output"):
        export_generator(declare_generator(bert_folder, "gpt2", name="tiny-bert", max_tokens=32), store)
    assert content(store) == []


def test_a_base_model_without_a_head_is_refused(store, tmp_path):
    import transformers

    folder = save_generator(tmp_path / "model", "llama")
    transformers.AutoModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(SourceError, match=r"lack 1 of LlamaForCausalLM, e\.g\. 'lm_head\.weight'"):
        export_generator(declare_generator(folder, "llama"), store)


def test_pickled_weights_are_refused(generator_folder, store, tmp_path):
    folder = shutil.copytree(generator_folder("gpt2"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"only pytorch_model\.bin, which can run code"):
        export_generator(declare_generator(folder, "gpt2"), store)


def test_more_tokens_than_positions_are_refused(generator_folder, store):
    for architecture in ("gpt2", "llama", "bart"):
        model = declare_generator(generator_folder(architecture), architecture, max_tokens=161)
        with pytest.raises(DeclarationError, match="positions for 160 tokens"):
            export_generator(model, store)


def test_a_model_without_an_end_is_refused(generator_folder, store, tmp_path):
    folder = shutil.copytree(generator_folder("gpt2"), tmp_path / "model")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        values = {key: value for key, value in json.loads((folder / name).read_text()).items() if "eos" not in key}
        (folder / name).write_text(json.dumps({**values, "eos_token_id": None} if name == "config.json" else values))
    with pytest.raises(DeclarationError, match="which token ends an output"):
        export_generator(declare_generator(folder, "gpt2"), store)


def test_a_bare_folder_becomes_a_declaration(generator_folder):
    folder = generator_folder("gpt2")
    model = read_generator("mine", str(folder), task="causal", chat=False, max_tokens=None)
    assert model == declare_generator(folder.absolute(), "gpt2", name="mine", max_tokens=160)
    assert read_generator("mine", str(folder), task="causal", chat=False, max_tokens=64).max_tokens == 64


def test_options_of_encoders_and_generators_do_not_mix(run, generator_folder):
    folder = str(generator_folder("gpt2"))
    refused = run("export", folder, "--task", "causal", "--pooling", "cls")
    assert (refused.exit_code, "--task is for generators, which have no --pooling" in refused.stderr) == (1, True)
    refused = run("export", folder, "--chat")
    assert (refused.exit_code, "--chat is for generators" in refused.stderr) == (1, True)


def test_a_recipe_with_a_task_is_a_generator(tmp_path):
    path = tmp_path / "writer.toml"
    path.write_text('name = "writer"\nsource = "path:/models/writer"\ntask = "seq2seq"\nmax_tokens = 512\n')
    assert load_recipe(path) == declare_generator("/models/writer", "t5", name="writer", max_tokens=512)
    path.write_text('name = "scorer"\nencoder = "all-minilm-l6-v2"\nhead = "path:/models/head.safetensors"\n')
    assert load_recipe(path).encoder == "all-minilm-l6-v2"
