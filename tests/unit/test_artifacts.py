"""Exported models on disk."""

import json
import shutil
from dataclasses import replace

import pytest
from samples import embedding
from tiny import export_tiny

from llmrec_plugin.artifacts import Artifact, ArtifactStore, read_artifact
from llmrec_plugin.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactNotFoundError
from llmrec_plugin.manifests import GOLDEN, GRAPH, MANIFEST, TOKENIZER


@pytest.fixture
def store(tmp_path):
    return ArtifactStore([tmp_path / "first", tmp_path / "second"])


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of `tiny` that a test may damage."""
    return Artifact(shutil.copytree(tiny.folder, tmp_path / "copy"), tiny.manifest)


def edit_manifest(folder, **changes):
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, **changes}))


# --- the manifest


def test_a_manifest_is_the_same_after_it_was_written_and_read(tiny):
    assert read_artifact(tiny.folder).manifest == tiny.manifest
    assert json.loads((tiny.folder / MANIFEST).read_text())["artifact_id"] == tiny.id


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "cls"}, {"normalize": False}, {"dims": 9}, {"max_tokens": 9}, {"padding_side": "left"},
        {"pad_token_id": 1}, {"output": "other"}, {"precision": "fp16"}, {"files": {GRAPH: "0" * 64}},
    ],
)  # fmt: skip
def test_the_id_changes_with_whatever_makes_the_numbers(tiny, change):
    assert replace(tiny.manifest, **change).artifact_id != tiny.id


def test_the_id_does_not_change_with_the_record_of_the_export(tiny):
    other = replace(
        tiny.manifest,
        model="other",
        source={"declared": "elsewhere"},
        versions={"torch": "9"},
        parity={"passed": True},
        golden_texts=("other",),
        files={**tiny.manifest.files, GOLDEN: "0" * 64},
    )
    assert other.artifact_id == tiny.id


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "Expecting value"),
        (b"\xff\xfe", "decode"),
        (b"[]", "attribute"),
        (b'{"format": 2}', "expected format 1, got 2"),
        (b'{"format": 1}', "inputs"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path, content, reason):
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactCorruptError, match=rf"not a readable manifest: .*{reason}.*Export the model again"):
        read_artifact(tmp_path)


@pytest.mark.parametrize(
    "files", [{"../model.onnx": "0"}, {"/etc/passwd": "0"}, {"sub/model.onnx": "0"}, ["model.onnx"], None]
)
def test_a_manifest_may_name_only_files_of_its_folder(copy, files):
    edit_manifest(copy.folder, files=files)
    with pytest.raises(ArtifactCorruptError, match="file"):
        read_artifact(copy.folder)


def test_a_manifest_of_a_later_version_with_further_fields_can_be_read(copy):
    edit_manifest(copy.folder, licence="Apache-2.0")
    assert read_artifact(copy.folder).id == copy.id


# --- files


def test_a_sound_artifact_passes(tiny):
    tiny.verify()


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER, GOLDEN])
def test_a_single_flipped_bit_is_found(copy, name):
    content = bytearray(copy.path(name).read_bytes())
    content[len(content) // 2] ^= 1
    copy.path(name).write_bytes(content)
    with pytest.raises(
        ArtifactCorruptError, match=rf"{name} of model 'tiny': expected sha256 .* `llmrec export tiny` again"
    ):
        copy.verify()


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER, GOLDEN])
def test_a_missing_file_is_found(copy, name):
    copy.path(name).unlink()
    with pytest.raises(ArtifactCorruptError, match="got no such file"):
        copy.verify()


# --- fitting a feature


@pytest.mark.parametrize(
    "change", [{}, {"max_tokens": 4}, {"dims": 4, "reduction": "prefix"}, {"prefix": "q: "}, {"metric": "dot"}]
)
def test_a_feature_that_the_model_can_compute_fits(tiny, change):
    tiny.check_fits(embedding(**change))


@pytest.mark.parametrize(
    ("change", "declared", "actual", "remedy"),
    [
        ({"pooling": "cls"}, "pooling='cls'", "'mean'", "export the model with that pooling"),
        ({"normalize": False}, "normalize=False", "True", "Declare normalize=True"),
        ({"max_tokens": 17}, "max_tokens=17", "16", "Declare at most 16"),
        ({"dims": 4}, "dims=4", "8", "reduction='prefix'"),
        ({"dims": 9}, "dims=9", "8", "Declare dims=8"),
        ({"dims": 8, "reduction": "prefix"}, "dims=8", "8", "fewer than 8"),
        ({"dims": 9, "reduction": "prefix"}, "dims=9", "8", "fewer than 8"),
    ],
)
def test_a_feature_that_the_model_cannot_compute_is_refused(tiny, change, declared, actual, remedy):
    with pytest.raises(ArtifactMismatchError) as caught:
        tiny.check_fits(embedding(**change))
    for part in ("'item_title_embedding'", declared, f"exported with {actual}", remedy, tiny.id[:16]):
        assert part in str(caught.value)


def test_a_model_without_normalization_fits_either_way(tiny):
    model = Artifact(tiny.folder, replace(tiny.manifest, normalize=False))
    model.check_fits(embedding(normalize=True))
    model.check_fits(embedding(normalize=False))


# --- the store


def test_an_added_model_is_current_and_lies_under_its_id(store):
    added = export_tiny(store)
    assert store.current("tiny") == store.get("tiny", added.id) == added
    assert added.folder == store.folders[0] / "tiny" / added.id[:16]
    added.verify()


def test_adding_a_model_twice_keeps_the_files_that_are_there(store):
    first = export_tiny(store)
    before = {path.name: path.stat().st_ino for path in first.folder.iterdir()}
    assert export_tiny(store) == first
    assert {path.name: path.stat().st_ino for path in first.folder.iterdir()} == before


def test_adding_a_model_again_renews_the_record_of_its_export(store, copy):
    edit_manifest(copy.folder, quality={"overlap_at_10": 0.5})
    store.add(copy.folder)
    again = export_tiny(store)
    assert again.manifest.quality == {}
    assert read_artifact(again.folder).manifest == again.manifest


def test_adding_a_model_again_mends_a_damaged_copy(store):
    first = export_tiny(store)
    first.path(GRAPH).write_bytes(b"damaged")
    export_tiny(store).verify()


def test_a_damaged_model_is_not_added(store, copy):
    export_tiny(store)
    current = store.current("tiny")
    edit_manifest(copy.folder, dims=9)
    copy.path(GRAPH).write_bytes(b"damaged")
    with pytest.raises(ArtifactCorruptError):
        store.add(copy.folder)
    assert store.current("tiny") == current
    assert list(store) == [current]


def test_a_new_model_of_the_same_name_is_current_and_the_old_one_can_still_be_had(store):
    old, new = export_tiny(store, seed=0), export_tiny(store, seed=1)
    assert old.id != new.id
    assert store.current("tiny") == new
    assert store.get("tiny", old.id) == old
    assert {artifact.id for artifact in store} == {old.id, new.id}


def test_folders_are_searched_in_order(store):
    second = export_tiny(ArtifactStore(store.folders[1:]), seed=1)
    assert store.current("tiny") == second
    first = export_tiny(store, seed=0)
    assert store.current("tiny") == first
    assert store.get("tiny", second.id) == second


def test_listing_leaves_out_an_export_in_progress(store, tiny):
    added = export_tiny(store)
    shutil.copytree(tiny.folder, store.folders[0] / ".export-1234" / "artifact")
    assert [artifact.folder for artifact in store] == [added.folder]


def test_a_model_that_was_never_exported_is_an_error_that_names_the_command(store):
    with pytest.raises(ArtifactNotFoundError) as caught:
        store.current("tiny")
    for part in ("'tiny' is not exported", *map(str, store.folders), "`llmrec export tiny`", "LLMREC_ARTIFACTS"):
        assert part in str(caught.value)


def test_an_artifact_of_another_machine_is_an_error_that_names_the_folder_to_copy(store):
    export_tiny(store)
    with pytest.raises(ArtifactNotFoundError) as caught:
        store.get("tiny", "f" * 64)
    for part in (f"Copy the folder tiny/{'f' * 16}", "LLMREC_ARTIFACTS", "feast apply", *map(str, store.folders)):
        assert part in str(caught.value)


def test_an_edited_manifest_is_an_error(store):
    added = export_tiny(store)
    edit_manifest(added.folder, max_tokens=512)
    with pytest.raises(
        ArtifactCorruptError, match=rf"expected artifact id {added.id}, got .*was edited; run `llmrec export tiny`"
    ):
        store.get("tiny", added.id)


def test_an_id_that_only_begins_alike_is_not_taken(store):
    added = export_tiny(store)
    with pytest.raises(ArtifactCorruptError, match="expected artifact id"):
        store.get("tiny", added.id[:16] + "0" * 48)
