"""The command line.

    llmrec plugins | features | models | check | export | data | train | evaluate | calibrate
    llmrec plan | doctor | report | rollout | cache

Errors of this package end with one line and exit code 1; wrong usage with exit code 2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, get_args

import click

from llmrec_plugin import __version__
from llmrec_plugin.artifacts import AnyArtifact, ArtifactStore
from llmrec_plugin.binding import bind
from llmrec_plugin.errors import DeclarationError, LLMRecError
from llmrec_plugin.evaluation.commands import evaluate
from llmrec_plugin.inference import Profile
from llmrec_plugin.interactions.commands import data
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.registry import Catalogue
from llmrec_plugin.reporting.commands import report
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import (
    EncoderModel,
    Feature,
    GeneratorModel,
    GeneratorTask,
    LabelModel,
    Model,
    NetworkModel,
    SimilarityFeature,
    to_spec,
)
from llmrec_plugin.testing.commands import check
from llmrec_plugin.training.commands import train

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


class _Commands(click.Group):
    """Prints our own errors as one line; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LLMRecError as exc:
            click.secho(f"{type(exc).__name__}: {exc}", fg="red", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="llmrec-plugin")
def main() -> None:
    """LLM features for Feast: declare once, get batch, on-demand and training values."""


@main.command()
@_as_json
def plugins(as_json: bool) -> None:
    """Lists plugins: where they come from, what they declare, what is wrong with them.

    Disable one without uninstalling it: LLMREC_DISABLE_PLUGINS=name,other llmrec plugins
    """
    catalogue = _catalogue()
    rows = [
        {
            "plugin": plugin.plugin,
            "package": f"{plugin.distribution} {plugin.version}",
            "features": [name for name, item in catalogue.features.items() if item.provenance == plugin],
            "models": [name for name, item in catalogue.models.items() if item.provenance == plugin],
            "generators": [name for name, item in catalogue.generators.items() if item.provenance == plugin],
            "runtimes": [name for name, item in catalogue.runtimes.items() if item.provenance == plugin],
            "problems": [f"{item.hook}: {item.cause}" for item in catalogue.failures if item.provenance == plugin],
        }
        for plugin in dict.fromkeys(catalogue.plugins)
    ]
    if as_json:
        _print_json({"plugins": rows, "disabled": list(catalogue.disabled)})
    else:
        _print_table(rows)
        if catalogue.disabled:
            click.echo(f"Disabled by LLMREC_DISABLE_PLUGINS: {', '.join(catalogue.disabled)}")
    if catalogue.failures:
        sys.exit(1)


@main.command()
@_as_json
def features(as_json: bool) -> None:
    """Lists the features that plugins declare, with their fingerprints where the model is exported."""
    catalogue = _catalogue()
    store = _store()
    rows = []
    for name, item in sorted(catalogue.features.items()):
        spec = to_spec(item.declaration)
        rows.append(
            {
                "feature": name,
                "kind": spec.pop("kind"),
                "plugin": item.provenance.plugin,
                "fingerprint": _fingerprint(item.declaration, store)[:16],
                **({"declaration": spec} if as_json else {}),
            }
        )
    _print_json(rows) if as_json else _print_table(rows)


@main.command()
@_as_json
def models(as_json: bool) -> None:
    """Lists models: those that plugins declare and those that are exported here."""
    catalogue, store = _catalogue(), _store()
    exported: dict[str, list[str]] = {}
    for artifact in store:
        exported.setdefault(artifact.manifest.model, []).append(artifact.id[:16])
    rows = []
    for name in sorted({*catalogue.models, *exported}):
        item = catalogue.models.get(name)
        held = store.find(name, store.current_id(name)) if name in exported else None
        current = held.id[:16] if held else ""
        declared = _source(item.declaration) if item else ""
        rows.append(
            {
                "model": name,
                "plugin": item.provenance.plugin if item else "",
                "source": declared or (held.manifest.source.get("source", "") if held else ""),
                "current artifact": current or f"none; run: llmrec export {name}",
                "older": [older for older in exported.get(name, []) if older != current],
            }
        )
    _print_json(rows) if as_json else _print_table(rows)


def _parse_layers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """``0,2,4`` as numbers."""
    try:
        return tuple(int(part) for part in value.split(",")) if value is not None else None
    except ValueError as exc:
        raise click.BadParameter(f"expected layer numbers such as 0,2,4, got {value!r}", ctx, parameter) from exc


@main.command()
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
def export(model: str, name: str | None, texts: Path | None, **overrides: Any) -> None:
    """Exports MODEL to ONNX, compares it with PyTorch and with its quality floor, and makes it current.

    MODEL is the name of a registered model, a recipe (.toml), a Hugging Face folder, also one with a LoRA adapter, or a
    hub id with its full commit. A folder's own files tell pooling, normalization and lengths; what they do not tell
    must be given by options. A folder is an encoder, or with --task a generator.

    \b
    llmrec export all-minilm-l6-v2
    llmrec export onnx_export/recipes/all-minilm-l6-v2.toml
    llmrec export ./my-model --pooling cls --no-normalize --max-tokens 512 --metric dot
    llmrec export intfloat/e5-small-v2@<40 hex digits>
    llmrec export all-minilm-l6-v2-int8 --texts titles.txt
    llmrec export ./my-model --name my-model-int8 --precision int8 --min-overlap 0.98
    llmrec export ./my-qwen2 --task causal --chat --max-tokens 2048
    llmrec export ./my-adapter --base ./my-qwen2 --task causal --chat
    """
    artifact = _export(_resolve(model, name, overrides), texts)
    click.secho(
        f"{artifact.manifest.model}: exported, parity and quality passed, current is now {artifact.id[:16]}", fg="green"
    )


for _command in (check, data, evaluate, report, train):
    main.add_command(_command)


@main.command()
@click.argument("model")
@click.option("--profile", type=click.Choice(get_args(Profile)), default="batch", show_default=True)
@_as_json
def calibrate(model: str, profile: Profile, as_json: bool) -> None:
    """Measures how MODEL is fastest on this machine, shows it, and keeps it for later runs.

    Batch runs and servers do this by themselves. Do it by hand on an idle machine if they had to measure on a busy one.

    \b
    llmrec calibrate all-minilm-l6-v2
    llmrec calibrate all-minilm-l6-v2 --profile online
    """
    from dataclasses import asdict

    from llmrec_plugin.runtime.encoder import Encoder  # loads numpy and, with the model, a runtime

    encoder = Encoder(_store().current(model), load_settings(), profile)
    measured = encoder.calibrate()
    unit = "tokens/s" if profile == "batch" else "ms"
    rows = [
        {
            **asdict(placement),
            unit: round(median(values) * (1 if profile == "batch" else 1000), 2 if profile == "online" else 0),
            "chosen": placement == encoder.placement,
        }
        for placement, values in measured.items()
    ]
    if as_json:
        _print_json({"model": model, "runtime": encoder.runtime.name, "provider": encoder.provider, "placements": rows})
    elif rows:
        _print_table(rows)
    else:
        click.echo(f"{encoder.runtime.name} on {encoder.provider} leaves nothing to choose.")


@main.command()
@click.argument("views", nargs=-1)
@click.option("--repo", type=click.Path(path_type=Path), default=".", help="Folder with feature_store.yaml.")
@click.option("--start", type=click.DateTime(), help="As for feast materialize.  [default: what was not done yet]")
@click.option("--end", type=click.DateTime(), help="UTC.  [default: now]")
@_as_json
def plan(views: tuple[str, ...], repo: Path, start: datetime | None, end: datetime | None, as_json: bool) -> None:
    """Shows what the next materialization would compute: rows, texts, tokens, seconds, memory.

    Reads the feature repo like `feast plan`, so a change can be planned before it is applied. Writes nothing.

    \b
    llmrec plan
    llmrec plan item_title_embedding --start 2026-01-01 --end 2026-02-01 --json
    """
    from dataclasses import asdict

    from llmrec_plugin.feast.plan import plan as make_plan  # imports feast, which takes seconds

    plans = make_plan(repo, views, start, end)
    if as_json:
        _print_json([{**asdict(item), "rows": item.rows} for item in plans])
        return
    columns = ("view", "entities", "rows", "new", "changed", "unchanged", "late", "texts", "cached", "compute")
    _print_table(
        [
            {
                **{name: getattr(item, name) for name in columns},
                "tokens": f"{'' if item.tokens_exact else '~'}{item.tokens}",
                "seconds": f"~{item.seconds:.0f}",
                "memory": f"~{item.memory_bytes / 2**20:.0f} MiB",
            }
            for item in plans
        ]
    )


@main.command()
@click.option("--repo", type=click.Path(path_type=Path), default=".", help="Folder with feature_store.yaml.")
@_as_json
def doctor(repo: Path, as_json: bool) -> None:
    """Looks for what loses data, stops serving or computes for nothing, and says how to mend it.

    Exit code 1 if there is an error.

    \b
    llmrec doctor --repo feature_repo
    """
    from dataclasses import asdict

    from llmrec_plugin.feast.doctor import examine  # imports feast, which takes seconds

    findings = examine(repo)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        colors = {"error": "red", "warning": "yellow", "note": "blue"}
        for finding in findings:
            click.secho(f"{finding.level}: {finding.found}", fg=colors[finding.level])
            click.echo(f"    {finding.fix}")
        click.echo("Nothing else is wrong." if findings else "Nothing is wrong.")
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


@main.group()
def cache() -> None:
    """Looks at the value cache."""


@cache.command()
@_as_json
@click.option("--last", default=10, show_default=True, help="How many runs to list.")
def stats(as_json: bool, last: int) -> None:
    """Size of the cache, and what the last runs computed or found."""
    from dataclasses import asdict

    from llmrec_plugin.runtime.cache import ValueCache

    settings = load_settings()
    values = ValueCache(settings.cache_folder, settings.cache_max_bytes)
    entries, size = values.size()
    runs = [asdict(run) for run in values.runs()[-last:]]
    if as_json:
        _print_json(
            {
                "path": str(values.path),
                "entries": entries,
                "bytes": size,
                "max_bytes": settings.cache_max_bytes,
                "runs": runs,
            }
        )
        return
    click.echo(f"{values.path}: {entries} values, {size / 2**20:.1f} MiB of {settings.cache_max_bytes / 2**20:.0f} MiB")
    columns = ("feature", "mode", "rows", "empty", "invalid", "fallback", "texts", "cached", "computed", "tokens")
    _print_table([{**{name: run[name] for name in columns}, "seconds": f"{run['seconds']:.1f}"} for run in runs])


_repo = click.option(
    "--chdir",
    "-c",
    "folder",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False),
    help="The feature repo.",
)


@main.group()
def rollout() -> None:
    """Switches every view to the fingerprint that `feast apply` declared last, or back."""


@rollout.command("status")
@_as_json
@_repo
def rollout_status(folder: str, as_json: bool) -> None:
    """Lists which version of each view is served, which one waits, and how many rows it lacks."""
    from dataclasses import asdict

    from llmrec_plugin.feast import rollouts  # takes seconds to import

    views = rollouts.status(rollouts.open_store(folder))
    if as_json:
        _print_json([asdict(view) for view in views])
        return

    def version(view: rollouts.ViewStatus, number: int | None) -> str:
        if number is None:
            return ""
        model, _, artifact = view.artifacts.get(number, "").partition("@")
        return f"v{number} {view.fingerprints.get(number, '')[:8]} {model}@{artifact[:8]}".removesuffix(" @")

    _print_table(
        [
            {
                "view": view.view,
                "served": version(view, view.served),
                "waits": version(view, view.candidate),
                "before": version(view, view.previous),
                "rows": f"{view.rows.complete} of {view.rows.expected}" if view.rows else "",
                "newly null": view.rows.null if view.rows else "",
            }
            for view in views
        ]
    )
    for view in views:
        if view.candidate is not None and view.rows is not None and view.rows.missing:
            click.echo(rollouts.fill_command(view.view, view.candidate))


@rollout.command("promote")
@_repo
def rollout_promote(folder: str) -> None:
    """Serves every version that waits, in one write of the registry; refused while one lacks rows."""
    from llmrec_plugin.feast import rollouts

    for view in rollouts.promote(rollouts.open_store(folder)):
        click.secho(f"{view.view}: v{view.candidate} is served instead of v{view.served}", fg="green")
    click.echo("To return: llmrec rollout rollback")


@rollout.command("rollback")
@_repo
def rollout_rollback(folder: str) -> None:
    """Serves again what was served before the last promotion, in one write of the registry."""
    from llmrec_plugin.feast import rollouts

    for view in rollouts.roll_back(rollouts.open_store(folder)):
        click.secho(f"{view.view}: v{view.previous} is served instead of v{view.served}", fg="green")
    click.echo("Rows written since the promotion: feast materialize-incremental $(date -u +%Y-%m-%dT%H:%M:%S)")


@rollout.command("clean")
@_repo
def rollout_clean(folder: str) -> None:
    """Removes versions, with their online rows, that are neither served, nor waiting, nor the one before."""
    from llmrec_plugin.feast import rollouts

    removed = rollouts.clean(rollouts.open_store(folder))
    for name, number in removed:
        click.echo(f"{name}: v{number} removed")
    if not removed:
        click.echo("Nothing to remove.")


def _catalogue() -> Catalogue:
    return load_catalogue(load_settings().disabled_plugins)


def _store() -> ArtifactStore:
    return ArtifactStore(load_settings().artifact_folders)


def _source(model: Model) -> str:
    return f"{model.encoder} + {model.head}" if isinstance(model, LabelModel) else model.source


def _export(model: Model, texts: Path | None) -> AnyArtifact:
    from llmrec_plugin import export  # torch and optimum come in here

    if isinstance(model, EncoderModel):
        measured = export.read_texts(texts) if texts else None
        return export.export_model(model, _store(), texts=measured, report=click.echo)
    if texts:
        raise DeclarationError(f"model {model.name!r} is no encoder, so there is nothing to measure on --texts.")
    if isinstance(model, NetworkModel):
        return export.export_network(model, _store(), report=click.echo)
    if isinstance(model, GeneratorModel) and model.source.startswith("endpoint:"):
        return export.export_endpoint(model, _store())
    if isinstance(model, GeneratorModel):
        return export.export_generator(model, _store(), report=click.echo)
    encoder = _catalogue().model(model.encoder)
    if not isinstance(encoder, EncoderModel):
        raise DeclarationError(f"model {model.name!r}: {model.encoder!r} is no EncoderModel.")
    return export.export_labels(model, _store(), encoder, report=click.echo)


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
            return _catalogue().model(text)
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


def _fingerprint(declaration: Feature, store: ArtifactStore) -> str:
    if isinstance(declaration, SimilarityFeature):  # has no model of its own; publishing binds its sides
        return ""
    try:
        return bind(declaration, store).fingerprint
    except LLMRecError:  # not exported, or another model than the feature is made for: `feast apply` says which
        return ""


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        click.echo("None.")
        return
    header = list(rows[0])
    cells = [header] + [[_cell(row[name]) for name in header] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    for line in cells:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value != "" else "-"
