"""Model export: PyTorch weights in, a checked ONNX artifact out.

    declaration or recipe -> weights folder -> ONNX graph + tokenizer -> comparison with PyTorch -> artifact store

Importing this package loads neither torch nor transformers; they come in when something is exported. Only
this package needs them: serving runs on onnxruntime, tokenizers and numpy.
"""

from llmrec_plugin.errors import SourceError
from llmrec_plugin.export.endpoint import export_endpoint
from llmrec_plugin.export.exporter import export_model
from llmrec_plugin.export.generators import export_generator
from llmrec_plugin.export.labels import export_labels
from llmrec_plugin.export.network_parity import NetworkParity
from llmrec_plugin.export.networks import export_network
from llmrec_plugin.export.parity import ParityRecord
from llmrec_plugin.export.quality import QualityRecord
from llmrec_plugin.export.recipes import load_recipe
from llmrec_plugin.export.statements import read_generator, read_model
from llmrec_plugin.export.texts import Texts, read_texts

__all__ = [
    "NetworkParity",
    "ParityRecord",
    "QualityRecord",
    "SourceError",
    "Texts",
    "export_endpoint",
    "export_generator",
    "export_labels",
    "export_model",
    "export_network",
    "load_recipe",
    "read_generator",
    "read_model",
    "read_texts",
]
