"""Runs the examples of a `Network` through PyTorch, as the contract says that rows become graph inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmrec_plugin.networks import Id, IdSequence, Network, Vector, VectorSequence


def inputs_of(network: Network, rows: list[dict[str, Any]], *, padding: int = 0) -> list[torch.Tensor]:
    """The graph inputs of some rows, with `padding` more places behind sequences than are needed."""
    arrays: list[np.ndarray] = []
    for part in network.inputs:
        values = [row[part.name] for row in rows]
        if isinstance(part, Vector):
            arrays.append(np.array(values, dtype=np.float32))
        elif isinstance(part, VectorSequence):
            cut = [np.array(value, dtype=np.float32).reshape(-1, part.dims)[: part.max_length] for value in values]
            longest = min(max(map(len, cut)) + padding, part.max_length)
            arrays.append(np.stack([np.pad(value, ((0, longest - len(value)), (0, 0))) for value in cut]))
            arrays.append(np.array([[1] * len(value) + [0] * (longest - len(value)) for value in cut]))
        else:
            ids = {key: place + 1 for place, key in enumerate(network.vocabularies[part.vocabulary])}
            if isinstance(part, Id):
                arrays.append(np.array([ids[value] for value in values]))
            else:
                assert isinstance(part, IdSequence)
                known = [[ids[key] for key in value if key in ids][: part.max_length][::-1] for value in values]
                longest = min(max(map(len, known)) + padding, part.max_length)
                arrays.append(np.array([row + [0] * (longest - len(row)) for row in known]))
    return [torch.from_numpy(array) for array in arrays]


@torch.no_grad()
def run(network: Network, rows: list[dict[str, Any]], **options: Any) -> np.ndarray:
    """(n, dims) or (n,) float32."""
    return network.module(*inputs_of(network, rows, **options)).numpy()


def check(network: Network) -> None:
    """What every network promises: shape, a row's value whatever its neighbours and padding are, finite numbers."""
    rows = list(network.examples)
    together = run(network, rows)
    assert len(rows) >= 8
    assert together.dtype == np.float32
    assert together.shape == ((len(rows),) if network.dims is None else (len(rows), network.dims))
    assert np.isfinite(together).all()
    alone = np.concatenate([run(network, [row]) for row in rows])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([run(network, [row], padding=3) for row in rows]), together, atol=1e-5)
    if network.normalized:
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    if network.candidates is not None:
        assert network.candidates.shape[1] == network.dims
        assert network.candidates.dtype == np.float32
