"""Layer pruning: the same model with fewer transformer layers.

Dropping whole layers keeps shapes and formats, and time falls nearly in proportion (LayerDrop, Fan et al. 2020; Sajjad
et al. 2023). Without training afterwards vectors move a lot; the quality record tells how much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export.reference import load_network
from llmrec_plugin.export.toolchain import quiet, require
from llmrec_plugin.specs import EncoderModel, GeneratorModel


def prune(model: EncoderModel, source: Path, target: Path) -> Path:
    """Writes the model in `source` with only ``model.layers`` into the folder `target`, and gives that folder.

    Raises:
        DeclarationError: The model has no such layers, or not one list of layers.
        SourceError: transformers cannot load the model.
    """
    torch = require("torch")
    network = load_network(model, source)
    kept = model.layers or ()
    count = network.config.num_hidden_layers
    name, layers = layer_list(model, network, count)
    if kept[-1] >= count:
        raise DeclarationError(
            f"model {model.name!r} keeps layer {kept[-1]}, but it has {count} layers, 0 to {count - 1}. Correct layers."
        )
    parent = network.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], torch.nn.ModuleList([layers[index] for index in kept]))
    network.config.num_hidden_layers = len(kept)
    if getattr(network.config, "layer_types", None):  # one entry for each layer, as in Qwen3
        network.config.layer_types = [network.config.layer_types[index] for index in kept]
    with quiet():
        network.save_pretrained(target, safe_serialization=True)
    return target


def layer_list(model: EncoderModel | GeneratorModel, network: Any, count: int) -> tuple[str, Any]:
    """Name and module of the one list with `count` modules of one class.

    Raises:
        DeclarationError: There is none, or more than one.
    """
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if type(module).__name__ == "ModuleList" and len(module) == count and len({type(item) for item in module}) == 1
    ]
    if len(lists) != 1:
        raise DeclarationError(
            f"model {model.name!r}: layers can be kept or dropped where a model has one list of {count} equal layers, "
            f"but {type(network).__name__} has {len(lists)}. Declare layers=None."
        )
    return lists[0]
