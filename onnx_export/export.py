"""Exports the recipes of this folder and writes their parity records.

Usage:

    python onnx_export/export.py                      every recipe
    python onnx_export/export.py all-minilm-l6-v2     those named
    python onnx_export/export.py --artifacts FOLDER   into FOLDER instead of the configured artifact folder
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from llmrec_plugin.artifacts import AnyArtifact, ArtifactStore
from llmrec_plugin.errors import DeclarationError, LLMRecError, UnknownNameError
from llmrec_plugin.export import export_generator, export_model, load_recipe
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import EncoderModel, GeneratorModel, Model

HERE = Path(__file__).parent


def find_recipes(names: list[str]) -> list[Path]:
    """The recipe files with these names, or all of them, in order of name.

    Raises:
        UnknownNameError: There is no recipe of that name.
    """
    recipes = {path.stem: path for path in sorted((HERE / "recipes").glob("*.toml"))}
    for name in names:
        if name not in recipes:
            raise UnknownNameError("recipe", name, recipes)
    return [recipes[name] for name in names or recipes]


def export(model: Model, store: ArtifactStore) -> AnyArtifact:
    """Exports a model of any kind that a recipe may declare.

    Raises:
        DeclarationError: It scores labels, so it is exported with its encoder: `llmrec export`.
    """
    if isinstance(model, GeneratorModel):
        return export_generator(model, store, report=print)
    if isinstance(model, EncoderModel):
        return export_model(model, store, report=print)
    raise DeclarationError(f"model {model.name!r} scores labels; run `llmrec export {model.name}`.")


def write_record(artifact: AnyArtifact, folder: Path) -> Path:
    """Writes what is worth committing of the manifest: no golden texts, and no place on this machine."""
    manifest = json.loads(artifact.manifest.to_json())
    kept = ("model", "artifact_id", "source", "precision", "attention", "files", "versions", "parity", "quality")
    record = {key: manifest[key] for key in kept if key in manifest}
    path = folder / f"{artifact.manifest.model}.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Export the recipes of this folder and write their parity records.")
    parser.add_argument("names", nargs="*", metavar="name", help="recipe to export; default: all")
    parser.add_argument("--artifacts", type=Path, help="folder for the artifacts; default: LLMREC_ARTIFACTS")
    options = parser.parse_args(arguments)
    try:
        folders = (options.artifacts,) if options.artifacts else load_settings().artifact_folders
        for recipe in find_recipes(options.names):
            artifact = export(load_recipe(recipe), ArtifactStore(folders))
            print(f"record: {write_record(artifact, HERE / 'records')}")
    except LLMRecError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
