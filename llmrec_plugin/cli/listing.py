"""``llmrec plugins``, ``features`` and ``models``: what is declared, and what is exported here."""

from __future__ import annotations

from typing import Any

import click

from llmrec_plugin.artifacts import AnyArtifact, ArtifactStore
from llmrec_plugin.binding import bind_by_name
from llmrec_plugin.cli.common import open_artifacts, open_catalogue
from llmrec_plugin.console import print_table, result
from llmrec_plugin.errors import ArtifactError, LLMRecError
from llmrec_plugin.specs import LabelModel, Model, to_spec
from llmrec_plugin.staleness import why_stale

_SHORT = 16  # digits of fingerprints and artifact ids in tables
_FEW = 2  # names in a cell of them; --json has all
_KINDS = ("features", "models", "generators", "runtimes")


def _few(name: str, value: Any) -> Any:
    """The first names of a column, so that a row fits a terminal."""
    if name not in _KINDS or len(value) <= _FEW:
        return value
    return f"{', '.join(value[:_FEW])} and {len(value) - _FEW} more"


def _show_plugins(found: dict[str, Any]) -> None:
    print_table([{name: _few(name, value) for name, value in row.items()} for row in found["plugins"]])
    if found["disabled"]:
        click.echo(f"Disabled by LLMREC_DISABLE_PLUGINS: {', '.join(found['disabled'])}")


@click.command()
@result(_show_plugins, failed=lambda found: any(row["problems"] for row in found["plugins"]))
def plugins() -> dict[str, Any]:
    """Lists plugins: where they come from, what they declare, what is wrong with them.

    Disable one without uninstalling it: LLMREC_DISABLE_PLUGINS=name,other llmrec plugins. Exit code 1 if one is broken.

    \b
    llmrec plugins
    """
    catalogue = open_catalogue()
    rows = [
        {
            "plugin": plugin.plugin,
            "package": f"{plugin.distribution} {plugin.version}",
            **{
                kind: [name for name, item in getattr(catalogue, kind).items() if item.provenance == plugin]
                for kind in _KINDS
            },
            "problems": [f"{item.hook}: {item.cause}" for item in catalogue.failures if item.provenance == plugin],
        }
        for plugin in dict.fromkeys(catalogue.plugins)
    ]
    return {"plugins": rows, "disabled": list(catalogue.disabled)}


def _show_features(rows: list[dict[str, Any]]) -> None:
    print_table(
        [
            {
                "feature": row["feature"],
                "kind": row["kind"],
                "plugin": row["plugin"],
                "fingerprint": row["fingerprint"][:_SHORT] or "none; see --json",
            }
            for row in rows
        ]
    )


@click.command()
@result(_show_features)
def features() -> list[dict[str, Any]]:
    """Lists the features that plugins declare, with the fingerprints that `feast apply` would give them.

    A feature has one where its model is exported; --json also gives the whole fingerprint, the declaration, and why a
    feature has none. A network's feature that reads stored features has another one in a feature repo.

    \b
    llmrec features
    llmrec features --json
    """
    catalogue, store = open_catalogue(), open_artifacts()
    rows = []
    for name, item in sorted(catalogue.features.items()):
        spec = to_spec(item.declaration)
        fingerprint, problem = "", ""
        try:
            fingerprint = bind_by_name(name, catalogue, store).fingerprint
        except LLMRecError as exc:
            problem = str(exc)
        row = {"feature": name, "kind": spec.pop("kind"), "plugin": item.provenance.plugin, "fingerprint": fingerprint}
        rows.append({**row, "problem": problem, "declaration": spec})
    return rows


def _show_models(rows: list[dict[str, Any]]) -> None:
    columns = ("model", "plugin", "source", "current artifact", "older")
    print_table([{**{name: row[name] for name in columns}, "stale": "; ".join(row["stale"])} for row in rows])


@click.command()
@result(_show_models)
def models() -> list[dict[str, Any]]:
    """Lists models: those that plugins declare and those that are exported here, and which exports are stale.

    A stale export is not what its model declares any more, or was made by another version of this package.

    \b
    llmrec models
    """
    catalogue, store = open_catalogue(), open_artifacts()
    exported: dict[str, list[str]] = {}
    for artifact in store:
        exported.setdefault(artifact.manifest.model, []).append(artifact.id)
    rows = []
    for name in sorted({*catalogue.models, *exported}):
        item = catalogue.models.get(name)
        declared = item.declaration if item else None
        held, problem = _current(name, store) if name in exported else (None, "")
        stale = why_stale(held, declared, catalogue) if held else [problem] * bool(problem)
        rows.append(
            {
                "model": name,
                "plugin": item.provenance.plugin if item else "",
                "source": _source(declared, held),
                "current artifact": held.id[:_SHORT] if held else f"none; run: llmrec export {name}",
                "older": [older[:_SHORT] for older in exported.get(name, []) if held is None or older != held.id],
                "stale": stale,
            }
        )
    return rows


def _current(name: str, store: ArtifactStore) -> tuple[AnyArtifact | None, str]:
    """The current artifact of an exported model, or what is wrong with it."""
    try:
        return store.find(name, store.current_id(name)), ""
    except ArtifactError as exc:
        return None, str(exc)


def _source(model: Model | None, held: AnyArtifact | None) -> str:
    if model is not None:
        return f"{model.encoder} + {model.head}" if isinstance(model, LabelModel) else model.source
    return held.manifest.source.get("source", "") if held else ""
