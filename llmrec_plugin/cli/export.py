"""``llmrec export``: a model as an ONNX artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from llmrec_plugin.artifacts import AnyArtifact
from llmrec_plugin.cli.common import open_artifacts, open_catalogue
from llmrec_plugin.console import result
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs import EncoderModel, GeneratorModel, GeneratorTask, Model, NetworkModel


def _parse_layers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """``0,2,4`` as numbers."""
    try:
        return tuple(int(part) for part in value.split(",")) if value is not None else None
    except ValueError as exc:
        raise click.BadParameter(f"expected layer numbers such as 0,2,4, got {value!r}", ctx, parameter) from exc


def _show(exported: dict[str, Any]) -> None:
    current = exported["artifact"][:16]
    click.secho(f"{exported['model']}: exported, parity and quality passed, current is now {current}", fg="green")


@click.command()
@click.argument("model")
@click.option("--name", help="Name for a model given as a folder or hub id.  [default: the folder's name]")
@click.option("--task", type=click.Choice(get_args(GeneratorTask)), help="The folder holds a generator of this kind.")
@click.option("--chat", is_flag=True, default=None, help="Put a generator's prompts into its chat template.")
@click.option("--base", help="The model that MODEL, a folder with a LoRA adapter, was trained on: a folder or hub id.")
@click.option("--pooling", type=click.Choice(["mean", "cls", "last_token", "max"]))
@click.option("--normalize/--no-normalize", default=None, help="Scale vectors to unit L2 norm.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest input, special tokens included.")
@click.option("--dims", type=click.IntRange(min=1), help="Length of the vector.")
@click.option("--metric", type=click.Choice(["cosine", "dot", "euclidean"]))
@click.option("--tolerance", type=float, help="Largest absolute difference to PyTorch that is accepted.")
@click.option("--precision", type=click.Choice(["fp32", "int8", "fp16", "bf16"]))
@click.option("--layers", callback=_parse_layers, metavar="N,N,...", help="Transformer layers to keep, e.g. 0,2,4.")
@click.option("--rotation", type=click.Choice(["pca"]), help="Turn vectors so that prefixes of them lose least.")
@click.option("--min-overlap", type=click.FloatRange(0, 1), help="Share of neighbors the model must still find.")
@click.option(
    "--texts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Texts to calibrate and measure on: one a line, or .jsonl with `text` or `description`.  [default: built in]",
)
@result(_show)
def export(model: str, name: str | None, texts: Path | None, **overrides: Any) -> dict[str, Any]:
    """Exports MODEL to ONNX, compares it with PyTorch and with its quality floor, and makes it current.

    MODEL is the name of a registered model, a recipe (.toml), a Hugging Face folder, also one with a LoRA adapter, or a
    hub id with its full commit. A folder's own files tell pooling, normalization and lengths; what they do not tell
    must be given by options. A folder is an encoder, or with --task a generator.

    \b
    llmrec export all-minilm-l6-v2
    llmrec export onnx_export/recipes/all-minilm-l6-v2.toml
    llmrec export ./my-model --pooling cls --no-normalize --max-tokens 512 --metric dot
    llmrec export intfloat/e5-small-v2@<commit>
    llmrec export all-minilm-l6-v2-int8 --texts titles.txt
    llmrec export ./my-model --name my-model-int8 --precision int8 --min-overlap 0.98
    llmrec export ./my-qwen2 --task causal --chat --max-tokens 2048
    llmrec export ./my-adapter --base ./my-qwen2 --task causal --chat
    """
    artifact = _export(_resolve(model, name, overrides), texts)
    manifest = artifact.manifest
    return {
        "model": manifest.model,
        "artifact": artifact.id,
        "folder": artifact.folder,
        "parity": manifest.parity,
        "quality": manifest.quality,
    }


def _export(model: Model, texts: Path | None) -> AnyArtifact:
    from llmrec_plugin import export  # torch and optimum come in here

    if isinstance(model, EncoderModel):
        measured = export.read_texts(texts) if texts else None
        return export.export_model(model, open_artifacts(), texts=measured, report=click.echo)
    if texts:
        raise DeclarationError(f"model {model.name!r} is no encoder, so there is nothing to measure on --texts.")
    if isinstance(model, NetworkModel):
        return export.export_network(model, open_artifacts(), report=click.echo)
    if isinstance(model, GeneratorModel) and model.source.startswith("endpoint:"):
        return export.export_endpoint(model, open_artifacts())
    if isinstance(model, GeneratorModel):
        return export.export_generator(model, open_artifacts(), report=click.echo)
    encoder = open_catalogue().model(model.encoder)
    if not isinstance(encoder, EncoderModel):
        raise DeclarationError(f"model {model.name!r}: {model.encoder!r} is no EncoderModel.")
    return export.export_labels(model, open_artifacts(), encoder, report=click.echo)


def _resolve(text: str, name: str | None, overrides: dict[str, Any]) -> Model:
    """The model that the argument of ``llmrec export`` means."""
    given = {key: value for key, value in overrides.items() if value is not None}
    is_recipe = text.endswith(".toml")
    if is_recipe or not (Path(text).is_dir() or "/" in text or "@" in text):
        if given or name:
            options = ["--" + key.replace("_", "-") for key in given] + ["--name"] * bool(name)
            raise DeclarationError(
                f"{text!r} is declared completely, so {', '.join(options)} would contradict it. Such options are for "
                "folders and hub ids; give a folder as ./folder."
            )
        if not is_recipe:
            return open_catalogue().model(text)
        from llmrec_plugin.export import load_recipe

        return load_recipe(Path(text))
    from llmrec_plugin.export import read_generator, read_model

    default = Path(text).resolve().name if Path(text).is_dir() else text.partition("@")[0].rpartition("/")[2]
    if "task" not in given:
        if given.pop("chat", False):
            raise DeclarationError("--chat is for generators: add --task causal or --task seq2seq.")
        return read_model(name or default, text, given)
    others = sorted(given.keys() - {"task", "chat", "max_tokens", "base"})
    if others:
        unfit = ", ".join("--" + key.replace("_", "-") for key in others)
        raise DeclarationError(f"--task is for generators, which have no {unfit}.")
    return read_generator(
        name or default,
        text,
        task=given["task"],
        chat=given.get("chat", False),
        max_tokens=given.get("max_tokens"),
        base=given.get("base"),
    )
