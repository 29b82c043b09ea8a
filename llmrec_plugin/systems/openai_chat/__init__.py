"""Models that only an endpoint has: one request per row to an OpenAI-compatible server, or files for its batch service.

    openai      requests -> POST, some at a time -> completions; tried again, paced, bounded in tokens
    batch-file  requests -> LLMREC_BATCH_FOLDER/<model>/requests-*.jsonl -> any batch service -> responses*.jsonl there

A model is declared with the source ``endpoint:<served model>@<version>``, and the version is in the fingerprint of all
it writes. An answer that names another model is refused. What an endpoint computes cannot be proven by golden outputs,
so nothing chooses these engines unasked for a model that is here as ONNX.
"""

from __future__ import annotations

from llmrec_plugin import Generator, hookimpl


@hookimpl
def llmrec_register_generators() -> list[Generator]:
    return [
        Generator(
            name="openai",
            opener="llmrec_plugin.systems.openai_chat.session:open_endpoint",
            description="An OpenAI-compatible endpoint, see LLMREC_OPENAI_URL",
        ),
        Generator(
            name="batch-file",
            opener="llmrec_plugin.systems.openai_chat.batch:open_batch",
            description="Files of an OpenAI-compatible batch service, see LLMREC_BATCH_FOLDER",
        ),
    ]
