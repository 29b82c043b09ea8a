"""A remote endpoint as a runtime: an OpenAI-compatible server, or text-embeddings-inference.

    batch -> pieces of LLMREC_REMOTE_BATCH texts -> POST, LLMREC_REMOTE_CONCURRENCY at a time -> vectors, checked
             each with one golden text              tried again until the deadline

The endpoint must serve the very model of the artifact: it has to give the golden vectors when the model is loaded, and
the vector of one golden text in every single request, so a model that is swapped behind the address is noticed before
a vector of it is stored. The fingerprint is the artifact's; no setting of the endpoint is in it.
"""

from __future__ import annotations

from llmrec_plugin import Runtime, hookimpl


@hookimpl
def llmrec_register_runtimes() -> list[Runtime]:
    return [
        Runtime(
            name="remote",
            opener="llmrec_plugin.systems.remote.session:open_model",
            precisions=("fp32", "fp16", "bf16", "int8"),
            reads="texts",
            description="An OpenAI-compatible or text-embeddings-inference endpoint, see LLMREC_REMOTE_URL",
        )
    ]
