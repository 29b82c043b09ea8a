"""Feast objects from declarations. The only part of the package that imports feast.

In a feature repo::

    from llmrec_plugin.feast import publish

    llm = publish(globals())
"""

from llmrec_plugin.feast.patches import apply_patches
from llmrec_plugin.feast.publishing import publish
from llmrec_plugin.pipeline.history import history_frame

apply_patches()

__all__ = ["history_frame", "publish"]
