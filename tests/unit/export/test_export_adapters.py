"""LoRA adapters are merged into their base, or refused with the reason."""

import json
import shutil

import numpy as np
import pytest
from tiny_generators import declare_generator

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import DeclarationError, MissingExtraError, ParityError, SourceError
from llmrec_plugin.specs import EncoderModel

torch = pytest.importorskip("torch", reason="the export extra is not installed")
transformers = pytest.importorskip("transformers", reason="the export extra is not installed")

from safetensors.torch import load_file, save_file  # noqa: E402

from llmrec_plugin.export import adapters, export_generator, export_model, read_generator, read_model  # noqa: E402
from llmrec_plugin.export.adapters import check_adapter, whole_folder  # noqa: E402
from llmrec_plugin.export.sources import base_of  # noqa: E402

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IDS = torch.arange(20).reshape(2, 10)


@pytest.fixture(scope="session")
def peft():
    return pytest.importorskip("peft", reason="the tune extra is not installed")


@pytest.fixture(scope="session")
def save_adapter(peft):
    """Saves an adapter with random weights for the model in a folder; gives what base and adapter compute together."""

    def save(base, folder, kind, *, moved=True, task=None, **lora):
        network = kind.from_pretrained(base).eval()
        torch.manual_seed(1)
        adapted = peft.get_peft_model(network, peft.LoraConfig(r=4, lora_alpha=16, task_type=task, **lora)).eval()
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if moved and weight.requires_grad and "lora_A" not in name:
                    weight.add_(torch.randn(weight.shape) * 0.2)
        adapted.save_pretrained(folder, safe_serialization=True)
        with torch.inference_mode():
            found = adapted(input_ids=IDS, return_dict=True)
        return (found["logits"] if "logits" in found else found["last_hidden_state"]).numpy()

    return save


LLAMA = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
GPT2 = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", LLAMA),
        ("llama", {**LLAMA, "use_rslora": True}),
        ("llama", {**LLAMA, "use_dora": True}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("gpt2", GPT2),
    ],
    ids=["plain", "rslora", "dora", "modules_to_save", "fan_in_fan_out"],
)
def test_the_merged_folder_computes_what_base_and_adapter_compute(
    architecture, options, generator_folder, save_adapter, tmp_path
):
    base, folder = generator_folder(architecture), tmp_path / "adapter"
    expected = save_adapter(base, folder, transformers.AutoModelForCausalLM, task="CAUSAL_LM", **options)
    model = declare_generator(folder, architecture, base=f"path:{base}")
    merged = whole_folder(model, tmp_path / "merged")
    network = transformers.AutoModelForCausalLM.from_pretrained(merged).eval()
    with torch.inference_mode():
        got = network(input_ids=IDS).logits.numpy()
        plain = transformers.AutoModelForCausalLM.from_pretrained(base).eval()(input_ids=IDS).logits.numpy()
    assert np.abs(got - expected).max() < 1e-4
    assert np.abs(plain - expected).max() > 0.1  # the adapter does something
    assert (merged / "tokenizer.json").is_file()
    assert not (merged / CONFIG).exists()


def test_a_generator_exports_from_its_adapter_and_the_manifest_names_both(
    generator_folder, save_adapter, few_tokens, tmp_path
):
    base, folder = generator_folder("llama"), tmp_path / "adapter"
    save_adapter(base, folder, transformers.AutoModelForCausalLM, task="CAUSAL_LM", **LLAMA)
    model = read_generator("tuned", str(folder), task="causal", chat=False, max_tokens=64)  # the adapter names its base
    assert model.base is None
    lines = []
    first = export_generator(model, ArtifactStore([tmp_path / "store"]), report=lines.append)
    assert first.manifest.parity["passed"]
    assert first.manifest.source["base"] == f"path:{base}"
    assert len(first.manifest.source["adapter_sha256"]) == 64
    assert any("merging the adapter" in line for line in lines)
    assert export_generator(model, ArtifactStore([tmp_path / "again"])).id == first.id


def test_an_encoder_exports_from_its_adapter(bert_folder, save_adapter, state, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(bert_folder, base)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    state(base, pooling=pooling, steps=("Transformer", "Pooling", "Normalize"), max_seq_length=24)
    save_adapter(base, folder, transformers.AutoModel, target_modules=["query", "value"])
    model = read_model("tuned", str(folder), {"metric": "cosine", "base": str(base)})
    assert (model.pooling, model.normalize, model.dims, model.base) == ("mean", True, 32, f"path:{base}")
    manifest = export_model(model, ArtifactStore([tmp_path / "store"])).manifest
    assert manifest.parity["passed"]
    assert manifest.source["base"] == f"path:{base}"
    plain = export_model(
        EncoderModel(**{**vars(model), "source": f"path:{base}", "base": None}), ArtifactStore([tmp_path / "plain"])
    )
    assert plain.manifest.source["weights_sha256"] != manifest.source["weights_sha256"]


@pytest.fixture
def adapter(tmp_path):
    """An adapter that changes something, made without peft."""

    def make(weights=None, **config):
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/name", **config}))
        save_file({"layer.lora_A.weight": torch.ones(2, 2), "layer.lora_B.weight": torch.ones(2, 2)} if weights is None
                  else weights, folder / WEIGHTS)  # fmt: skip
        return folder

    return make


def test_an_adapter_that_holds_nothing_is_refused(adapter):
    with pytest.raises(SourceError, match=r"holds no weights at all \(\d+ bytes\).*Save the adapter again"):
        check_adapter(adapter({}))


def test_an_adapter_that_changes_nothing_is_refused(adapter):
    weights = {"a.lora_A.weight": torch.ones(2, 2), "a.lora_B.weight": torch.zeros(2, 2)}
    with pytest.raises(SourceError, match="every update B is zero"):
        check_adapter(adapter(weights))


def test_an_adapter_whose_updates_are_zero_may_train_a_whole_module(adapter):
    weights = {"a.lora_A.weight": torch.ones(2, 2), "a.lora_B.weight": torch.zeros(2, 2), "head.weight": torch.ones(2)}
    check_adapter(adapter(weights))


def test_another_kind_of_adapter_and_a_pickle_are_refused(adapter):
    folder = adapter(peft_type="PROMPT_TUNING")
    with pytest.raises(SourceError, match="'PROMPT_TUNING'; only LORA is merged"):
        check_adapter(folder)
    (folder / CONFIG).write_text('{"peft_type": "LORA"}')
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(SourceError, match=r"adapter_model.bin is there, which can run code.*safe_serialization"):
        check_adapter(folder)


def test_a_base_is_given_or_here_or_pinned(adapter, tmp_path):
    commit = "0" * 40
    folder = adapter()
    with pytest.raises(SourceError, match=r"'org/name', which is no folder here and has no full commit.*base='path:"):
        base_of(folder, None)
    assert base_of(folder, "path:elsewhere") == "path:elsewhere"
    for config, expected in [
        ({"base_model_name_or_path": "org/name", "revision": commit}, f"hub:org/name@{commit}"),
        ({"base_model_name_or_path": str(tmp_path)}, f"path:{tmp_path}"),
    ]:
        (folder / CONFIG).write_text(json.dumps(config))
        assert base_of(folder, None) == expected
    for text in ("{}", '{"base_model_name_or_path": null}'):
        (folder / CONFIG).write_text(text)
        with pytest.raises(SourceError, match="names no base model"):
            base_of(folder, None)


def test_a_branch_is_no_pinned_revision(adapter):
    with pytest.raises(SourceError, match="no full commit"):
        base_of(adapter(revision="main"), None)


def test_a_whole_model_has_no_base(generator_folder, tmp_path):
    model = declare_generator(generator_folder("llama"), base="path:elsewhere")
    with pytest.raises(DeclarationError, match=r"holds a whole model and no adapter\. Remove base"):
        whole_folder(model, tmp_path)


def test_names_of_another_version_of_peft_are_refused(generator_folder, save_adapter, tmp_path):
    base, folder = generator_folder("llama"), tmp_path / "adapter"
    save_adapter(base, folder, transformers.AutoModelForCausalLM, task="CAUSAL_LM", **LLAMA)
    weights = load_file(folder / WEIGHTS)
    save_file({name.replace("base_model.model.", "model.old."): value for name, value in weights.items()},
              folder / WEIGHTS)  # fmt: skip
    with pytest.raises(SourceError, match=r"does not fit the base .* of its weights have no place there"):
        whole_folder(declare_generator(folder, "llama"), tmp_path / "merged")


def test_an_adapter_of_another_architecture_or_size_is_refused(generator_folder, save_adapter, tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(generator_folder("llama"), folder, transformers.AutoModelForCausalLM, task="CAUSAL_LM", **LLAMA)
    other = declare_generator(folder, "gpt2", base=f"path:{generator_folder('gpt2')}")
    with pytest.raises(SourceError, match="does not fit the base"):
        whole_folder(other, tmp_path / "merged")
    weights = load_file(folder / WEIGHTS)
    save_file({name: torch.cat([value, value]) for name, value in weights.items()}, folder / WEIGHTS)
    with pytest.raises(SourceError, match="does not fit the base"):
        whole_folder(declare_generator(folder, "llama"), tmp_path / "merged")


def test_merged_weights_that_compute_something_else_are_refused(generator_folder, save_adapter, monkeypatch, tmp_path):
    base, folder = generator_folder("llama"), tmp_path / "adapter"
    save_adapter(base, folder, transformers.AutoModelForCausalLM, task="CAUSAL_LM", **LLAMA)
    whole = adapters._load
    # The merged folder is read as if its weights had been lost.
    monkeypatch.setattr(adapters, "_load", lambda model, place: whole(model, base))
    with pytest.raises(ParityError, match="gives other numbers than base and adapter"):
        whole_folder(declare_generator(folder, "llama"), tmp_path / "merged")


def test_a_missing_peft_names_its_extra(generator_folder, adapter, monkeypatch, tmp_path):
    def require(module):
        raise MissingExtraError(module, "export", "Exporting a model")

    model = declare_generator(adapter(), base=f"path:{generator_folder('llama')}")
    whole = adapters.require

    monkeypatch.setattr(adapters, "require", lambda name: require(name) if name == "peft" else whole(name))
    with pytest.raises(MissingExtraError, match=r"llmrec-plugin\[tune\]"):
        whole_folder(model, tmp_path / "merged")
