import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmrec_plugin.errors import DeclarationError, MissingExtraError, SourceError
from llmrec_plugin.export.sources import as_source, find_folder, weights_sha256

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"


@pytest.fixture
def hub(monkeypatch, folder):
    """A hub that answers every request with `folder` and remembers what was asked for."""
    calls = []

    def snapshot_download(**arguments):
        calls.append(arguments)
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return calls


def test_a_hub_source_is_downloaded_at_its_pinned_revision_without_pickles(hub, folder):
    assert find_folder(f"hub:org/name@{COMMIT}") == folder
    (call,) = hub
    assert (call["repo_id"], call["revision"]) == ("org/name", COMMIT)
    assert "*.safetensors" in call["allow_patterns"]
    assert not {"*.bin", "*.pt", "*.py", "*"} & set(call["allow_patterns"])


def test_a_hub_that_cannot_be_reached_is_a_source_error_with_a_remedy(monkeypatch):
    def snapshot_download(**arguments):
        raise ConnectionError("no route to host.")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(SourceError, match=r"no route to host\. .*path:<folder>"):
        find_folder(f"hub:org/name@{COMMIT}")


def test_without_huggingface_hub_a_hub_source_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"llmrec-plugin\[export\]"):
        find_folder(f"hub:org/name@{COMMIT}")


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "tf_model.h5"])
def test_pickle_weights_are_refused_by_name(hub, folder, pickle):
    (folder / "model.safetensors").rename(folder / pickle)
    with pytest.raises(SourceError, match=rf"only {pickle}, which can run code"):
        find_folder(f"hub:org/name@{COMMIT}")


def test_pickle_weights_beside_safetensors_are_not_in_the_way(folder):
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert find_folder(f"path:{folder}") == folder


def test_a_folder_without_any_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="no weights in that format"):
        find_folder(f"path:{folder}")


def test_an_adapter_is_refused_because_its_base_model_is_elsewhere(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"adapter.*Merge"):
        find_folder(f"path:{folder}")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"config\.json"):
        find_folder(f"path:{tmp_path}")
    with pytest.raises(SourceError, match="no such folder"):
        find_folder(f"path:{tmp_path / 'absent'}")


def test_a_package_source_is_found_without_importing_the_package(monkeypatch, tmp_path, folder):
    package = tmp_path / "weights_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('was imported')")
    folder.rename(package / "inner" / "model")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_folder("package:weights_package/inner/model") == package / "inner" / "model"
    assert find_folder("package:weights_package.inner/model") == package / "inner" / "model"
    assert "weights_package" not in sys.modules
    with pytest.raises(SourceError, match="does not exist"):
        find_folder("package:weights_package/other")


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(SourceError, match="'no_such_package', which is not installed"):
        find_folder("package:no_such_package/model")


def test_bare_folders_and_hub_ids_become_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    assert as_source("model") == f"path:{tmp_path / 'model'}"
    assert as_source(f"org/name@{COMMIT}") == f"hub:org/name@{COMMIT}"
    assert as_source("package:a/b") == "package:a/b"


@pytest.mark.parametrize("place", ["org/name", "org/name@main", f"hub:org/name@{COMMIT[:12]}"])
def test_a_hub_id_without_a_full_commit_is_refused(place):
    with pytest.raises(DeclarationError, match="40 hex digits"):
        as_source(place)


def test_a_place_that_is_nothing_is_refused():
    with pytest.raises(DeclarationError, match="no folder here"):
        as_source("./absent/folder/of/nobody")


def test_the_hash_of_shards_covers_all_of_them(folder):
    whole = weights_sha256(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"1")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert find_folder(f"path:{folder}") == folder
    first = weights_sha256(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"2")
    assert len({whole, first, weights_sha256(folder)}) == 3
