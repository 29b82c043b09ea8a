"""The encoders of a CLIP and their fusion: against transformers, in one space, through export and runtime."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from samples import settings

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundSimilarity, bind, to_values
from llmrec_plugin.errors import DeclarationError, SourceError
from llmrec_plugin.networks import Image
from llmrec_plugin.runtime.runner import Runner
from llmrec_plugin.specs import SimilarityFeature
from llmrec_plugin.systems import clip
from llmrec_plugin.systems.clip.fusion import load_fusion
from llmrec_plugin.transform import Transform

torch = pytest.importorskip("torch", reason="needs the extra 'export'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

import tiny_clip  # noqa: E402 - it needs torch
from tiny_clip import DIMS, MAX_TOKENS, SIZE, picture, save_clip  # noqa: E402

from llmrec_plugin.systems.clip.towers import load_image, load_text  # noqa: E402

SHAPES = [(16, 16), (64, 48), (48, 64), (17, 300), (300, 17), (5, 9), (640, 31), (33, 32), (1000, 999)]
PICTURES = [picture(*shape, seed=number) for number, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    where = tmp_path_factory.mktemp("exported")
    ids = tiny_clip.export_clip(str(where / "trained"), str(where / "artifacts"))
    return where / "artifacts", ids


@pytest.fixture
def runner(artifacts, tmp_path):
    return Runner(settings(tmp_path, artifact_folders=(artifacts[0],)))


# --- pictures


@pytest.mark.parametrize("size", [SIZE, 224])
def test_pixels_are_those_of_clips_own_processor(size):
    from PIL import Image as Pictures
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    item = Image(name="image", size=size, mean=tuple(processor.image_mean), std=tuple(processor.image_std))
    files = [*PICTURES, picture(90, 70, kind="JPEG"), picture(50, 60, mode="L"), picture(50, 60, mode="P")]
    for data in files:
        expected = processor(Pictures.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0]
        difference = np.abs(item.pixels(data) - expected)
        # A level of 255 where a value lies at the border of two, float32 elsewhere. In Pillow 13 a tall picture that is
        # cut before it is made larger has other roundings than after: 3 % of its values, a few by two levels.
        step = 1 / 255 / min(processor.image_std)
        assert difference.max() <= step * 2.01
        assert (difference > step * 1.01).mean() < 1e-3
        assert (difference > 1e-5).mean() < 0.05


# --- towers


def test_the_image_tower_gives_transformers_vectors(folder, reference):
    network = load_image(folder)
    batch = np.stack([network.inputs[0].pixels(data) for data in PICTURES])
    with torch.inference_mode():
        mine = network.module(torch.from_numpy(batch))
        theirs = reference.get_image_features(pixel_values=torch.from_numpy(batch))
    torch.testing.assert_close(mine, torch.nn.functional.normalize(theirs, dim=-1), rtol=0, atol=1e-6)
    assert network.dims == DIMS
    assert network.normalized


def test_the_text_tower_gives_transformers_vectors_whatever_padding_follows(folder, reference):
    network = load_text(folder)
    ids = torch.tensor([[2, 3, 4, 5, 6, 9, 18], [2, 7, 18, 0, 0, 0, 0]])
    mask = (ids > 0).long()
    with torch.inference_mode():
        mine = network.module(ids, mask)
        theirs = reference.get_text_features(input_ids=ids, attention_mask=mask)
        alone = network.module(ids[1:, :3], mask[1:, :3])
    torch.testing.assert_close(mine, torch.nn.functional.normalize(theirs, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(mine[1:], alone, rtol=0, atol=1e-6)
    assert network.inputs[0].max_tokens == MAX_TOKENS


def test_both_towers_are_of_one_space_and_other_weights_of_another(folder, tmp_path):
    assert load_image(folder).space == load_text(folder).space
    assert load_image(save_clip(tmp_path, seed=1)).space != load_image(folder).space


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{"resample": 2}, {"do_center_crop": False}, {"size": 20}, {"size": {"height": 16, "width": 16}},
     {"rescale_factor": 1 / 127.5}],
)  # fmt: skip
def test_pictures_that_are_prepared_otherwise_are_refused(tmp_path, changes):
    folder = save_clip(tmp_path)
    change(folder / "preprocessor_config.json", **changes)
    with pytest.raises(SourceError, match="prepares pictures as no Image input does"):
        load_image(folder)


def test_a_folder_that_is_no_clip_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"config.json cannot be read"):
        load_image(tmp_path)
    folder = save_clip(tmp_path / "clip")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="CLIPTokenizerFast"):
        load_text(folder)
    change(folder / "config.json", model_type="siglip")
    with pytest.raises(SourceError, match="'siglip'"):
        load_image(folder)


# --- fusion


def fuse(folder, texts, images):
    with torch.inference_mode():
        return load_fusion(folder).module(torch.tensor(texts), torch.tensor(images)).numpy()


def test_a_sum_of_one_space_is_the_middle_of_both_and_stands_for_what_is_missing(tmp_path):
    clip.write_fusion(tmp_path, clip.summing_projection(2), text_dims=2, text_weight=3.0, image_weight=4.0)
    zero, text, image = [0.0, 0.0], [5.0, 0.0], [0.0, 0.1]
    fused = fuse(tmp_path, [text, text, zero, zero], [image, zero, image, zero])
    np.testing.assert_allclose(fused, [[0.6, 0.8], [1, 0], [0, 1], [0, 0]], atol=1e-6)


def test_a_random_projection_keeps_what_is_near_near(tmp_path):
    clip.write_fusion(tmp_path, clip.random_projection(40, 60, 64, seed=0), text_dims=40)
    assert np.array_equal(clip.random_projection(4, 6, 3, seed=1), clip.random_projection(4, 6, 3, seed=1))
    random = np.random.default_rng(0)
    texts, images = random.standard_normal((30, 40)).astype("f4"), random.standard_normal((30, 60)).astype("f4")
    fused = fuse(tmp_path, texts, images)
    parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (texts, images)]
    joined = np.hstack(parts) / np.sqrt(2)
    assert np.abs(fused @ fused.T - joined @ joined.T).mean() < 0.15
    assert np.corrcoef((fused @ fused.T).ravel(), (joined @ joined.T).ravel())[0, 1] > 0.8


@pytest.mark.parametrize(
    ("matrix", "more"),
    [
        (np.zeros(4), {"text_dims": 2}),
        (np.zeros((2, 4)), {"text_dims": 4}),
        (np.full((2, 4), np.nan), {"text_dims": 2}),
        (np.zeros((2, 4)), {"text_dims": 2, "text_weight": 0}),
        (np.zeros((2, 4)), {"text_dims": 2, "image_weight": float("inf")}),
    ],
)
def test_a_fusion_that_cannot_be_is_refused(tmp_path, matrix, more):
    with pytest.raises(DeclarationError, match="fusion: "):
        clip.write_fusion(tmp_path, matrix, **more)
    with pytest.raises(SourceError, match="write_fusion"):
        load_fusion(tmp_path)


# --- exported


def test_text_finds_pictures_with_the_numbers_of_transformers(runner, reference, folder, monkeypatch):
    monkeypatch.setattr("llmrec_plugin.transform.runner_for", lambda settings: runner)
    image = clip.image_embedding(dims=DIMS, entity=None, status=True)
    text = clip.text_embedding(dims=DIMS)
    bound = BoundSimilarity(
        SimilarityFeature(name="match", left=text.name, right=image.name, metric="cosine"),
        bind(text, runner.store), bind(image, runner.store),
    )  # fmt: skip
    payload = json.dumps({"bound": to_values(bound)}, sort_keys=True)
    queries = ["a photo of a cat", "two red lamp", "blue", "old cup", "a", "dog", "table", "green", "photo"]
    answer = Transform("on_demand", "match", payload)({"image": PICTURES, "query": queries})
    network = load_image(folder)
    texts = load_text(folder)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with torch.inference_mode():
        pictures = network.module(torch.from_numpy(np.stack([network.inputs[0].pixels(data) for data in PICTURES])))
        rows = [torch.tensor([tokenizer.encode(query).ids]) for query in queries]
        vectors = torch.cat([texts.module(ids, torch.ones_like(ids)) for ids in rows])
    np.testing.assert_allclose(answer["match"], (pictures * vectors).sum(1).numpy(), atol=1e-4)


def test_a_picture_that_is_none_and_one_that_is_missing_are_told_apart(runner):
    bound = bind(clip.image_embedding(dims=DIMS, status=True), runner.store)
    computed = runner.compute(bound, {"image": [PICTURES[0], b"no picture", None, b""]}, "batch")
    assert computed.statuses == ["ok", "invalid", "empty", "empty"]
    assert [value is None for value in computed.values] == [False, True, True, True]
    assert np.linalg.norm(computed.values[0]) == pytest.approx(1, abs=1e-5)


def test_the_fused_vector_is_the_same_in_every_mode_and_follows_the_rule(runner):
    bound = bind(clip.fused_embedding(text_vector="t", image_vector="i", dims=DIMS), runner.store)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((4, DIMS)).astype("f4")
    zero = [0.0] * DIMS
    rows = {
        "t": [vectors[0].tolist(), vectors[1].tobytes(), zero, None],
        "i": [vectors[2].tolist(), zero, vectors[3].tolist(), vectors[3].tolist()],
    }
    batch = runner.compute(bound, rows, "batch").values
    units = [part / np.linalg.norm(part) for part in vectors]
    both = units[0] + units[2]
    np.testing.assert_allclose(batch[0], both / np.linalg.norm(both), atol=1e-5)
    np.testing.assert_allclose(batch[1], units[1], atol=1e-5)
    np.testing.assert_allclose(batch[2], units[3], atol=1e-5)
    assert batch[3] is None
    again = runner.compute(bound, rows, "on_demand").values
    runner.drain()
    for one, other in zip(batch[:3], again[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_export_proves_each_of_them(artifacts):
    folder, ids = artifacts
    store = ArtifactStore([folder])
    assert set(ids) == {"clip_image", "clip_text", "clip_fusion"}
    for name in ids:
        manifest = store.find(name, ids[name]).manifest
        assert manifest.parity["max_abs_diff"] <= 1e-5
    spaces = {store.find(name, ids[name]).manifest.space for name in ids}
    assert len(spaces) == 1


def test_the_plugin_registers_no_feature_and_its_page_runs():
    assert not any(hasattr(clip, name) for name in ("llmrec_register_features", "llmrec_register_models"))
    namespace: dict[str, object] = {}
    page = Path(__file__).parents[3] / "docs/systems/clip.md"
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(block, namespace)
    assert "item_fused" in namespace
