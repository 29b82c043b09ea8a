"""Writes a plugin's package from the templates beside this module.

A template is a file with ``$placeholders`` (`string.Template`). Those in ``templates/common`` are in every package, the
others in packages of their kind. In paths, ``package`` stands for the module, ``feature`` for the feature and ``dot-``
for a leading dot.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from string import Template
from typing import Literal, TypeAlias

from llmrec_plugin.errors import DeclarationError, NameCollisionError
from llmrec_plugin.registry import Catalogue

Kind: TypeAlias = Literal["embedding", "generator"]
PREFIX = "llmrec-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FEATURE_KINDS: dict[Kind, str] = {"embedding": "embedding", "generator": "tags"}


@dataclass(frozen=True, kw_only=True)
class NewPlugin:
    """What a plugin's package is called and what it declares.

    Attributes:
        name: Name of the plugin, of its entry point.
        kind: ``embedding``: one vector of a column; ``generator``: tags of a closed vocabulary that a model writes.
        entity: Name of the Feast entity whose rows are read.
        column: The column that is read.
    """

    name: str
    kind: Kind = "embedding"
    entity: str = "item"
    column: str = "title"

    def __post_init__(self) -> None:
        name = self.name.removeprefix(PREFIX)
        if not _NAME.fullmatch(name):
            raise DeclarationError(
                "A plugin's name must be lower-case letters and digits, words joined by single hyphens, and begin with "
                f"a letter, as in 'acme' or 'film-moods'; got {self.name!r}. Plugin 'acme' is package 'llmrec-acme' "
                "with module 'llmrec_acme'."
            )
        object.__setattr__(self, "name", name)
        for what, value in (("entity", self.entity), ("column", self.column)):
            if not value.isidentifier() or keyword.iskeyword(value):
                raise DeclarationError(
                    f"The {what} must be a Python identifier, as the name of the Feast {what} is, for example "
                    f"'item' or 'title'; got {value!r}."
                )

    @property
    def package(self) -> str:
        """What pip installs."""
        return PREFIX + self.name

    @property
    def module(self) -> str:
        """What Python imports."""
        return self.package.replace("-", "_")

    @property
    def feature(self) -> str:
        """Name of the feature that the package declares at first."""
        return f"{self.entity}_{self.column}_{_FEATURE_KINDS[self.kind]}"

    def check_free(self, catalogue: Catalogue) -> None:
        """Checks that nothing installed has one of these names.

        Raises:
            NameCollisionError: A plugin, a feature or a module has.
        """
        for plugin in catalogue.plugins:
            if plugin.plugin == self.name:
                raise NameCollisionError(f"{plugin} is installed. Choose another name, or uninstall that package.")
        if self.feature in catalogue.features:
            raise NameCollisionError(
                f"{catalogue.features[self.feature].provenance} declares {self.feature!r}. Choose another --entity or "
                "--column, or uninstall that package."
            )
        if self.name in catalogue.disabled:
            raise NameCollisionError(
                f"Plugin {self.name!r} is installed and disabled by LLMREC_DISABLE_PLUGINS. Choose another name, or "
                "uninstall its package."
            )
        if importlib.util.find_spec(self.module):
            raise NameCollisionError(
                f"A module {self.module!r} can be imported here already. Choose another name, or uninstall it."
            )

    def files(self) -> dict[str, str]:
        """Every file of the package: its path, with ``/`` between folders, and its text."""
        names = {
            "name": self.name,
            "package": self.package,
            "module": self.module,
            "feature": self.feature,
            "entity": self.entity,
            "column": self.column,
            "data": '["prompts/*.md", "py.typed"]' if self.kind == "generator" else '["py.typed"]',
            "variable": f"{self.name.replace('-', '_').upper()}_MODEL",
        }
        written = {}
        for folder in ("common", self.kind):
            for path, template in _templates(resources.files(__package__) / "templates" / folder):
                path = path.replace("package/", f"{self.module}/").replace("feature.", f"{self.feature}.")
                written[path.replace("dot-", ".")] = Template(template).substitute(names)
        return dict(sorted(written.items()))

    def write(self, folder: Path) -> Path:
        """Writes the package into a new folder of its name in `folder`, and gives the new folder.

        Raises:
            FileExistsError: There is something of that name; nothing is written.
        """
        root = folder / self.package
        root.mkdir(parents=True)
        for path, text in self.files().items():
            file = root / PurePosixPath(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return root


def _templates(folder: Traversable, inside: str = "") -> Iterator[tuple[str, str]]:
    """Path and text of every template in `folder`."""
    for item in folder.iterdir():
        if item.is_dir():
            yield from _templates(item, f"{inside}{item.name}/")
        elif item.name.endswith(".tmpl"):
            yield f"{inside}{item.name.removesuffix('.tmpl')}", item.read_text(encoding="utf-8")
