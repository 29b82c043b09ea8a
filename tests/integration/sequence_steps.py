"""Trains and exports sequence models. Apart from `steps.py`, because that needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train_sequences(where: str, artifacts: str, titles: list[str]) -> dict[str, Any]:
    """Trains BERT4Rec and UniSRec for a moment on a ring of items, and exports their networks.

    Returns:
        Of six items in a row: keys, item vectors, user vectors and logits by PyTorch.
    """
    import torch
    from network_runs import run
    from rings import ring

    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.export import export_network
    from llmrec_plugin.systems import bert4rec, unisrec
    from llmrec_plugin.systems.bert4rec import export as bert4rec_networks
    from llmrec_plugin.systems.bert4rec.training import train_bert4rec
    from llmrec_plugin.systems.unisrec import export as unisrec_networks
    from llmrec_plugin.systems.unisrec.training import train_unisrec
    from llmrec_plugin.training.loop import Plan
    from llmrec_plugin.training.vectors import frozen_encoder

    torch.set_num_threads(1)
    store = ArtifactStore([Path(artifacts)])
    data = ring(items=len(titles), users=60)
    data.items["title"] = titles
    plan = Plan(epochs=20, patience=20, learning_rate=2e-2)
    small: dict[str, Any] = {"hidden": 16, "inner": 16, "layers": 1, "max_length": 8, "dropout": 0.0}
    small |= {"split": "leave-one-out", "progress": False}
    folders = {name: Path(where, name) for name in ("bert4rec", "unisrec")}
    train_bert4rec(data, folders["bert4rec"], plan, **small)
    encoder = frozen_encoder("tiny", Path(where, "vectors"), progress=False)
    train_unisrec(
        data,
        encoder.encode,
        folders["unisrec"],
        plan,
        template="{title}",
        encoder={"name": encoder.name, "artifact": encoder.artifact},
        **small,
    )
    for model in (*bert4rec.models(folders["bert4rec"]), *unisrec.models(folders["unisrec"])):
        export_network(model, store)

    keys = list(data.items["item_id"])
    row = {"history": keys[5:1:-1], "candidate": keys[6]}
    folder = folders["unisrec"]
    texts = encoder.encode(titles)
    vectors = run(unisrec_networks.item_network(folder), [{"text": text.tolist()} for text in texts])
    networks = {
        "bert4rec_user": bert4rec_networks.user_network(folders["bert4rec"]),
        "score": bert4rec_networks.score_network(folders["bert4rec"]),
        "unisrec_user": unisrec_networks.user_network(folder),
    }
    return {
        "keys": keys,
        "history": row["history"],
        "items": vectors.tolist(),
        "vectors": vectors[5:1:-1].ravel().tolist(),
        **{name: run(network, [row])[0].tolist() for name, network in networks.items()},
    }
