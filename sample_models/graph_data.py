"""The graphs of ``graph_gcn``: views of scikit-learn's digits, joined to their nearest neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from digits_data import views
from sklearn.neighbors import kneighbors_graph

NODES, NEIGHBOURS = 200, 6
#: How strongly the views are distorted, as a share of what ``digits_resnet`` sees.
STRENGTH = 0.5


def graphs(split: str, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Graphs of :data:`NODES` views each.

    Returns:
        For every graph ``x [nodes, 64]`` float32, ``edge_index [2, edges]`` int64 (source, target),
        ``edge_weight [edges]`` float32 (symmetric normalisation, self loops included), and
        ``label [nodes]`` int64.
    """
    images, labels = views(split, count * NODES, 8, seed, STRENGTH)
    order = np.random.default_rng(seed).permutation(len(labels))
    result = []
    for part in order.reshape(count, NODES):
        x = images[part].reshape(NODES, 64)
        adjacency = kneighbors_graph(x, NEIGHBOURS, include_self=False).toarray()
        adjacency = np.maximum(adjacency, adjacency.T) + np.eye(NODES)
        degree = adjacency.sum(axis=1)
        target, source = np.nonzero(adjacency)
        weight = 1 / np.sqrt(degree[target] * degree[source])
        result.append(
            {
                "x": x,
                "edge_index": np.stack([source, target]).astype(np.int64),
                "edge_weight": weight.astype(np.float32),
                "label": labels[part],
            }
        )
    return result


def save(folder: Path, split: str, count: int, seed: int) -> None:
    """Writes one ``.npz`` file per graph."""
    folder.mkdir(exist_ok=True)
    for i, graph in enumerate(graphs(split, count, seed)):
        np.savez_compressed(folder / f"{i:03d}.npz", **graph)
