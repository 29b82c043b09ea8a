"""What is loaded, and from where: artifacts hold together by hashes, and no file of theirs can run code."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import add_generator, export_tiny

import llmrec_plugin
from llmrec_plugin.artifacts import ArtifactStore, read_artifact, sha256_file
from llmrec_plugin.errors import ArtifactCorruptError
from llmrec_plugin.manifests import GOLDEN, GRAPH, MANIFEST, TOKENIZER
from llmrec_plugin.runtime.encoder import Encoder

PACKAGE = Path(llmrec_plugin.__file__).parent


@pytest.fixture
def store(tmp_path):
    return ArtifactStore([tmp_path / "artifacts"])


def edit(artifact, **changes):
    """The artifact with other values in its manifest."""
    path = artifact.folder / MANIFEST
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))
    return read_artifact(artifact.folder)


# --- files


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER, GOLDEN])
def test_a_file_that_the_manifest_does_not_list_is_not_loaded(store, tmp_path, name):
    artifact = export_tiny(store)
    files = {other: sha for other, sha in artifact.manifest.files.items() if other != name}
    with pytest.raises(ArtifactCorruptError, match=rf"expected the sha256 of '{name}'.*`llmrec export tiny` again"):
        Encoder(edit(artifact, files=files), samples.settings(tmp_path))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/file", "..", ".", "", MANIFEST, "a/../../b"])
def test_a_manifest_cannot_name_a_file_elsewhere(store, name):
    with pytest.raises(ArtifactCorruptError, match="file names must be plain"):
        edit(export_tiny(store), files={name: "0" * 64})


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/model", "a/b", "", "..", ".hidden", "a\nb", 7, None])
def test_a_manifest_cannot_name_a_model_that_is_a_path(store, name):
    with pytest.raises(ArtifactCorruptError, match="expected letters, digits"):
        edit(export_tiny(store), model=name)


def test_a_link_out_of_the_folder_is_refused_though_its_content_is_right(store, tmp_path):
    artifact = export_tiny(store)
    artifact.path(GRAPH).rename(tmp_path / "elsewhere.onnx")
    artifact.path(GRAPH).symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactCorruptError, match=r"got a link to .*elsewhere\.onnx"):
        artifact.verify()


def test_a_folder_may_be_a_link(store, tmp_path):
    artifact = export_tiny(store)
    (tmp_path / "link").symlink_to(artifact.folder)
    read_artifact(tmp_path / "link").verify()


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/tmp/weights.bin", "x" * 200])
def test_weights_in_a_file_that_is_not_listed_are_refused(store, location):
    import onnx

    artifact = export_tiny(store)
    graph = onnx.load(artifact.path(GRAPH))
    for initializer in graph.graph.initializer:
        initializer.data_location = onnx.TensorProto.EXTERNAL
        initializer.external_data.add(key="location", value=location)
    artifact.path(GRAPH).write_bytes(graph.SerializeToString())
    files = {**artifact.manifest.files, GRAPH: sha256_file(artifact.path(GRAPH))}
    with pytest.raises(ArtifactCorruptError, match="reads weights from"):
        edit(artifact, files=files).verify()


def test_the_arrays_of_an_artifact_cannot_be_pickles(store, tmp_path):
    """numpy runs code of an array of objects; ours are read without."""
    artifact = export_tiny(store)
    np.save(artifact.path(GOLDEN), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    files = {**artifact.manifest.files, GOLDEN: sha256_file(artifact.path(GOLDEN))}
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Encoder(edit(artifact, files=files), samples.settings(tmp_path))


# --- manifests made to hurt

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    store = ArtifactStore([tmp_path_factory.mktemp("manifests")])
    found = [export_tiny(store), add_generator(store)]
    return tmp_path_factory.mktemp("hostile"), [json.loads((item.folder / MANIFEST).read_text()) for item in found]


@settings(max_examples=150)
@given(data=st.data())
def test_a_manifest_is_read_or_refused_and_nothing_else(manifests, data):
    folder, known = manifests
    values = dict(data.draw(st.sampled_from(known)))
    for name in data.draw(st.lists(st.sampled_from(sorted(values)), max_size=3)):
        values[name] = data.draw(_JSON)
    whole = data.draw(st.one_of(st.just(values), _JSON))
    (folder / MANIFEST).write_text(json.dumps(whole), encoding="utf-8", errors="surrogatepass")
    try:
        artifact = read_artifact(folder)
    except ArtifactCorruptError:
        return
    assert len(artifact.id) == 64
    if artifact.manifest.files:
        with pytest.raises(ArtifactCorruptError):
            artifact.verify()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"format":' * 50_000, b"1" * 10_000])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactCorruptError, match="is not a readable manifest"):
        read_artifact(tmp_path)


# --- the code itself

_RUNS_CODE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
_OWN_PICKLES = {"testing/child.py", "testing/feast_steps.py"}
"""The conformance kit hands work to processes that it starts, in folders of its own."""


def calls():
    """(file, line, name of what is called, argument names -> constant values) of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = {item.arg: getattr(item.value, "value", None) for item in node.keywords}
                yield path.relative_to(PACKAGE).as_posix(), node.lineno, ast.unparse(node.func), given


def test_nothing_is_unpickled():
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [path.relative_to(PACKAGE).as_posix() for name in names if name.partition(".")[0] in _RUNS_CODE]
    assert set(found) == _OWN_PICKLES


def test_arrays_and_weights_are_read_without_pickles():
    loads = [(where, line, given) for where, line, name, given in calls() if name == "np.load"]
    assert len(loads) >= 5
    assert [item for item in loads if item[2].get("allow_pickle") is not False] == []
    loads = [(where, line, given) for where, line, name, given in calls() if name.endswith("torch.load")]
    assert loads
    assert [item for item in loads if item[2].get("weights_only") is not True] == []


def test_models_are_read_without_code_of_theirs():
    """An Auto class runs a repository's Python where it may; weights of other formats than safetensors are pickles."""
    loads = [item for item in calls() if item[2].endswith(".from_pretrained")]
    assert len(loads) >= 8
    weights = ("AutoModel", "BertModel", "ForConditionalGeneration", "kind.", "tower)")
    for where, line, name, arguments in loads:
        chosen = "Auto" in name or "kind." in name
        assert not chosen or arguments.get("trust_remote_code") is False, (where, line, name)
        loads_weights = any(kind in name for kind in weights)
        assert not loads_weights or arguments.get("use_safetensors") is True, (where, line, name)
    assert {given["trust_remote_code"] for *_, given in calls() if "trust_remote_code" in given} == {False}


def test_folders_of_models_are_looked_at_before_transformers_reads_them():
    """The export and training take theirs from `find_folder`, which looks."""
    readers = {
        where for where, _, name, _ in calls() if name.endswith(".from_pretrained") and "nn.Embedding" not in name
    }
    looking = {where for where, _, name, _ in calls() if name == "check_model_folder"}
    assert "export/sources.py" in looking
    assert {where for where in readers if not where.startswith(("export/", "training/"))} <= looking


def test_nothing_is_evaluated():
    found = [(where, line) for where, line, name, _ in calls() if name in ("eval", "exec", "compile", "os.system")]
    assert found == []
    unsafe = [(where, line) for where, line, name, _ in calls() if name in ("yaml.load", "yaml.unsafe_load")]
    assert unsafe == []
