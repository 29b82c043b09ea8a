"""Declarations: the models of a folder, and features over pictures and texts."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from llmrec_plugin import NetworkFeature, NetworkModel

Storage: TypeAlias = Literal["list", "float32", "float16", "int8"]
_MODULE = "llmrec_plugin.systems.clip"


def image_model(folder: str, *, name: str = "clip_image", tolerance: float = 1e-4) -> NetworkModel:
    """The image encoder of a folder of transformers' CLIPModel, e.g. ``path:/models/clip-vit-base-patch32``."""
    return NetworkModel(name=name, source=folder, network=f"{_MODULE}.towers:load_image", tolerance=tolerance)


def text_model(folder: str, *, name: str = "clip_text", tolerance: float = 1e-4) -> NetworkModel:
    """The text encoder of the same folder; its vectors may be compared with those of `image_model`."""
    return NetworkModel(name=name, source=folder, network=f"{_MODULE}.towers:load_text", tolerance=tolerance)


def fusion_model(folder: str, *, name: str = "clip_fusion", tolerance: float = 1e-4) -> NetworkModel:
    """The fusion in a folder that `llmrec_plugin.systems.clip.write_fusion` wrote."""
    return NetworkModel(name=name, source=folder, network=f"{_MODULE}.fusion:load_fusion", tolerance=tolerance)


def image_embedding(
    *,
    name: str = "item_image_embedding",
    entity: str | None = "item",
    column: str = "image",
    dims: int,
    model: str = "clip_image",
    storage: Storage = "list",
    **more: Any,
) -> NetworkFeature:
    """The unit vector of a picture.

    Args:
        name: Of the feature.
        entity: Whose rows hold the picture; None for pictures of requests.
        column: Bytes of a PNG or JPEG file.
        dims: Length of the projection, ``projection_dim`` of the folder's configuration.
        model: Name of `image_model`.
        storage: As in `NetworkFeature`.
        more: Further fields of `NetworkFeature`, such as `status` or `on_empty`.
    """
    return NetworkFeature(
        name=name, entity=entity, model=model, inputs={"image": column}, dims=dims, metric="cosine", storage=storage,
        **more,
    )  # fmt: skip


def text_embedding(
    *,
    name: str = "query_clip_embedding",
    entity: str | None = None,
    text: str = "{query}",
    dims: int,
    model: str = "clip_text",
    storage: Storage = "list",
    **more: Any,
) -> NetworkFeature:
    """The unit vector of a text in the space of the pictures; by default of a query at request time.

    Args:
        name: Of the feature.
        entity: Whose rows hold the columns; None for texts of requests.
        text: Template over the columns, such as ``"a photo of {title}"``.
        dims: As in `image_embedding`.
        model: Name of `text_model`.
        storage: As in `NetworkFeature`.
        more: Further fields of `NetworkFeature`.
    """
    return NetworkFeature(
        name=name, entity=entity, model=model, inputs={"text": text}, dims=dims, metric="cosine", storage=storage,
        **more,
    )  # fmt: skip


def fused_embedding(
    *,
    name: str = "item_fused_embedding",
    entity: str | None = "item",
    text_vector: str,
    image_vector: str,
    dims: int,
    model: str = "clip_fusion",
    storage: Storage = "list",
    **more: Any,
) -> NetworkFeature:
    """The unit vector of a text and a picture together, see `llmrec_plugin.systems.clip.fusion`.

    A row that lacks one of the two has the vector of the other where the missing one is all zeros, and is empty where
    it is null: declare the features behind both with ``on_empty="zeros"`` or ``"null"`` accordingly.

    Args:
        name: Of the feature.
        entity: Whose rows hold both vectors; None to compute from vectors that are stored or sent with a request.
        text_vector: Column of the text's vector, or the name of a published feature.
        image_vector: Column of the picture's vector, or the name of a published feature.
        dims: Length of the fused vector.
        model: Name of `fusion_model`.
        storage: As in `NetworkFeature`.
        more: Further fields of `NetworkFeature`.
    """
    inputs = {"text": text_vector, "image": image_vector}
    return NetworkFeature(
        name=name, entity=entity, model=model, inputs=inputs, dims=dims, metric="cosine", storage=storage, **more
    )
