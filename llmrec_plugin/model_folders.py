"""What a Hugging Face folder may say: it is data of others, and transformers believes some of it too much.

Three things in it have made transformers run code, or write where it was not told to, although ``trust_remote_code``
was off:

    trust_remote_code         in a configuration, as in LightGlue's for a model inside the model; mended in 5.5
                              (CVE-2026-5241)
    attn_implementation, ...  in a configuration, the name of a repository of kernels, whose code is fetched and run
                              where the package kernels is installed; 4.56 to 5.2 (CVE-2026-4372)
    chat_template             of a tokenizer or processor: names of templates, which become names of files when it is
                              saved; mended after 5.8 (CVE-2026-9856)

So a folder is read here first, and what says one of them is refused before transformers sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrec_plugin.errors import SourceError

_READ = ("config*.json", "*_config.json", "chat_template.json")
"""transformers takes ``config.4.57.0.json``, say, where ``config.json`` names it and the version fits."""
_ATTENTION = "attn_implementation"
"""In ``_attn_implementation`` and ``_attn_implementation_internal``, too."""
_BUILT_IN = ("eager", "sdpa")
"""Ways to compute attention that are transformers' own. It may fetch the code of ``flash_attention_2``, too."""
_PLAIN_NAME = re.compile(r"[^/\\:\0]+")  # of a file, whatever the system


def check_model_folder(folder: Path) -> None:
    """Refuses a model's folder that can make transformers run code that it fetches, or write outside of its target.

    Call it before ``from_pretrained`` of a configuration, a tokenizer or a model, which all read the configuration.

    Args:
        folder: A Hugging Face folder; one without a configuration passes.

    Raises:
        SourceError: A configuration turns ``trust_remote_code`` on, names another way to compute attention than
            ``eager`` or ``sdpa``, names a chat template by a path, or is no JSON.
    """
    files = {path for pattern in _READ for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as exc:
            raise SourceError(f"{path} is no JSON: {exc}.") from exc
        for key, value in _entries(stated):
            danger = _danger(key, value)
            if danger:
                raise SourceError(
                    f"{path}: {key!r} is {_shown(value)}, by which some versions of transformers {danger}. If you "
                    "trust the model, copy its folder, remove the key there, and declare 'path:<folder>'."
                )


def _danger(key: str, value: Any) -> str | None:
    """What an entry can make transformers do; None if nothing."""
    if key == "trust_remote_code" and value not in (None, False):
        return "run code that comes with it, which is never done here"
    if _ATTENTION in key and any(isinstance(name, str) and name not in _BUILT_IN for name in _each(value)):
        return "fetch code and run it, which is never done here"
    if key == "chat_template" and not all(_PLAIN_NAME.fullmatch(name) for name in _names(value)):
        return "write outside of the folder that they are told to write to"
    return None


def _each(value: Any) -> list[Any]:
    """One for all, or one for each model inside the model; ``_attn_implementation_autoset`` is a bool."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _names(templates: Any) -> list[str]:
    """Of chat templates; a single one has none."""
    if isinstance(templates, dict):
        return list(templates)
    if isinstance(templates, list):
        return [str(item.get("name")) if isinstance(item, dict) else "" for item in templates]
    return []


def _shown(value: Any) -> str:
    whole = repr(value)
    return whole if len(whole) <= 100 else f"{whole[:100]}..."


def _entries(stated: Any) -> Iterator[tuple[str, Any]]:
    """All keys at any depth, with their values."""
    left = [stated]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield from item.items()
            left += item.values()
        elif isinstance(item, list):
            left += item
