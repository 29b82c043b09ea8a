"""A tokenizer's chat template as plain pieces, so that prompts are put together without a template engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.manifests import ChatTemplate

_SYSTEM, _USER = "PLACEHOLDER-OF-SYSTEM", "PLACEHOLDER-OF-USER"
"""Stand for the texts while the template is rendered; nothing that a template would trim or escape."""

_SETTINGS = {
    "date_string": "26 Jul 2024",  # templates that write today's date would give another artifact every day
    "enable_thinking": False,  # an output that is parsed leaves no room for thoughts before it
}


def chat_template(tokenizer: Any, model: str) -> ChatTemplate:
    """What the template of `tokenizer` puts around a system text and a user's text.

    A template that refuses a system text gets it at the head of the user's, an empty line between.

    Args:
        tokenizer: A transformers tokenizer.
        model: Name of the model, for messages.

    Raises:
        DeclarationError: There is no template, or one that changes or repeats what is put into it.
    """
    if not tokenizer.chat_template:
        raise DeclarationError(
            f"model {model!r} declares chat=True, but its tokenizer has no chat template. Declare chat=False, or use "
            "the instruction-tuned variant of the model."
        )
    user = {"role": "user", "content": _USER}
    without = _pieces(_render(tokenizer, model, [user]), [_USER], model)
    try:
        text = _render(tokenizer, model, [{"role": "system", "content": _SYSTEM}, user])
    except DeclarationError:
        text = _render(tokenizer, model, [{"role": "user", "content": f"{_SYSTEM}\n\n{_USER}"}])
    with_system = _pieces(text, [_SYSTEM, _USER], model)
    return ChatTemplate(
        with_system=(with_system[0], with_system[1], with_system[2]), without_system=(without[0], without[1])
    )


def _render(tokenizer: Any, model: str, messages: Sequence[Mapping[str, str]]) -> str:
    errors = require("jinja2").exceptions
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **_SETTINGS)
    except (errors.TemplateError, ValueError, TypeError) as exc:
        raise DeclarationError(f"model {model!r}: its chat template cannot be rendered: {exc}") from exc
    return str(text)


def _pieces(text: str, placeholders: Sequence[str], model: str) -> list[str]:
    """`text` cut at the placeholders."""
    pieces = []
    for placeholder in placeholders:
        before, found, text = text.partition(placeholder)
        if not found or placeholder in text:
            raise DeclarationError(
                f"model {model!r}: its chat template does not write each message once and in order, so prompts cannot "
                "be put together without it. Declare chat=False and write the template into the prompt."
            )
        pieces.append(before)
    return [*pieces, text]
