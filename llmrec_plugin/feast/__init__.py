"""Feast objects from declarations. The only part of the package that imports feast.

In a feature repo::

    from llmrec_plugin.feast import publish

    llm = publish(globals())

In its ``static_artifacts.py``::

    from llmrec_plugin.feast import load_artifacts
"""

from llmrec_plugin.feast.publishing import publish
from llmrec_plugin.feast.serving import load_artifacts
from llmrec_plugin.pipeline.history import history_frame

__all__ = ["history_frame", "load_artifacts", "publish"]
