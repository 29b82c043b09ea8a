"""The public names and their signatures, read from the sources without importing anything.

``python tests/public_api.py > tests/public_api.txt`` writes the snapshot that `test_public_api.py` compares with.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("", ".adapters", ".export", ".feast", ".interactions", ".privacy", ".serving", ".testing")
"""Modules whose ``__all__`` is public."""
NAMES = {".model_folders": ["check_model_folder"], ".prompts": ["load_prompt"]}
ALL_CLASSES = (".errors", ".networks")
"""Modules whose classes are public, without an ``__all__``."""
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def snapshot() -> str:
    """Every public name with its signature, one block a module."""
    return "\n".join(_module_text(module, names) for module, names in public_names().items())


def public_names() -> dict[str, list[str]]:
    """Public module -> its public names, sorted."""
    names = {f"llmrec_plugin{module}": _all_of(f"llmrec_plugin{module}") for module in PACKAGES}
    names |= {f"llmrec_plugin{module}": listed for module, listed in NAMES.items()}
    for module in ALL_CLASSES:
        found = _definitions(f"llmrec_plugin{module}").items()
        names[f"llmrec_plugin{module}"] = [
            name for name, node in found if isinstance(node, ast.ClassDef) and not name.startswith("_")
        ]
    hooks = _definitions("llmrec_plugin.hookspecs")
    names["llmrec_plugin.hookspecs"] = [name for name in hooks if name.startswith("llmrec_")]
    fixtures = _definitions("llmrec_plugin.testing.fixtures")
    names["llmrec_plugin.testing.fixtures"] = [
        name for name, node in fixtures.items() if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    return {module: sorted(found) for module, found in sorted(names.items())}


def _module_text(module: str, names: list[str]) -> str:
    lines = [f"# {module}"]
    for name in names:
        found = _find(module, name)
        assert found is not None, f"{module}.{name} is public, and its definition is not found in the package"
        lines += _described(*found, name)
    return "\n".join(lines) + "\n"


def _described(module: str, node: Definition, name: str) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [_signature(node)]
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        kind = "".join(f"@{ast.unparse(mark)} " for mark in node.decorator_list)
        return [f"{kind}class {name}({bases})", *(f"    {member}" for member in _members(module, node).values())]
    return [ast.unparse(node)]


def _members(module: str, node: ast.ClassDef) -> dict[str, str]:
    """Public fields and methods by name, those of bases in this package first."""
    members: dict[str, str] = {}
    for base in node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        found = _find(module, base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef):
            members |= _members(found[0], found[1])
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and (
            not item.name.startswith("_") or item.name in ("__init__", "__call__")
        ):
            kind = "".join(f"@{ast.unparse(mark)} " for mark in item.decorator_list)
            members[item.name] = kind + _signature(item)
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_"):
            members[ast.unparse(item.target)] = ast.unparse(item)
    return members


def _signature(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}"


def _find(module: str, name: str) -> tuple[str, Definition] | None:
    """Where a name is defined, and how; None for what is defined outside the package."""
    definitions = _definitions(module)
    if name in definitions:
        return module, definitions[name]
    imported = dict(_imports(module)).get(name)
    return _find(*imported) if imported and imported[0].startswith("llmrec_plugin") else None


def _imports(module: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((item.asname or item.name, (node.module, item.name)) for item in node.names)
    lazy = _definitions(module).get("_MODULES")
    if isinstance(lazy, ast.Assign) and isinstance(lazy.value, ast.Dict):
        yield from ((name, (f"{module}.{place}", name)) for name, place in ast.literal_eval(lazy.value).items())


def _all_of(module: str) -> list[str]:
    listed = _definitions(module)["__all__"]
    lazy = _definitions(module).get("_MODULES")
    of_lazy = ast.unparse(listed.value) == "list(_MODULES)"
    return sorted(ast.literal_eval(lazy.value if of_lazy else listed.value))


def _definitions(module: str) -> dict[str, Definition]:
    found: dict[str, Definition] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                found[ast.unparse(name)] = node
    return found


@functools.cache
def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    print(snapshot(), end="")
