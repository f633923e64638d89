"""Trains and exports ``graph_gcn``: a graph convolution network on nearest-neighbour graphs.

Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks (2017), in the
form that aggregates first and transforms then, with a residual where widths are equal:
``h' = ReLU((A h) W + b + h)``. Nodes are views of scikit-learn's digits, joined to their nearest
neighbours; the class of every node is predicted. About 3 minutes on one core (OMP_NUM_THREADS=1):

    python sample_models/graph_gcn/train.py
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from graph_data import graphs, save

WIDTH = 512


class GraphNet(nn.Module):
    """Scores ``[nodes, 10]``."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.first = nn.Linear(64, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    @staticmethod
    def aggregate(h: torch.Tensor, edges: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Sums every node's neighbours, weighted."""
        messages = h.index_select(0, edges[0]) * weight[:, None]
        index = edges[1][:, None].expand(-1, h.shape[1])
        return torch.zeros_like(h).scatter_add(0, index, messages)

    def forward(self, x: torch.Tensor, edges: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.first(self.aggregate(x, edges, weight)))
        h = F.relu(self.second(self.aggregate(h, edges, weight)) + h)
        h = F.relu(self.third(self.aggregate(h, edges, weight)) + h)
        return self.head(h)


class Classifier(nn.Module):
    """The exported form: the class of every node, not the scores."""

    def __init__(self, model: GraphNet):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, edge_weight: torch.Tensor) -> torch.Tensor:
        return self.model(x, edge_index, edge_weight).argmax(dim=1)


def tensors(graph: dict[str, np.ndarray]) -> list[torch.Tensor]:
    """A graph as the network's inputs and the labels."""
    return [torch.from_numpy(graph[name]) for name in ("x", "edge_index", "edge_weight", "label")]


def train(epochs: int, per_epoch: int, seed: int) -> GraphNet:
    """Adam with a cosine rate, fresh graphs every few epochs."""
    torch.manual_seed(seed)
    model = GraphNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    for epoch in range(epochs):
        if epoch % 4 == 0:
            data = graphs("train", per_epoch, seed=1000 * (seed + 1) + epoch)
        start, total = time.time(), 0.0
        for graph in data:
            x, edges, weight, label = tensors(graph)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x, edges, weight), label)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / per_epoch:.3f}, {time.time() - start:.1f} s", flush=True)
    return model.eval()


def export(model: GraphNet, path: Path) -> None:
    """Writes the ONNX file, message passing included."""
    graph = graphs("test", 1, seed=5)[0]
    torch.onnx.export(
        Classifier(model),
        tuple(tensors(graph)[:3]),
        str(path),
        input_names=["x", "edge_index", "edge_weight"],
        output_names=["class"],
        dynamic_axes={
            "x": {0: "nodes"},
            "edge_index": {1: "edges"},
            "edge_weight": {0: "edges"},
            "class": {0: "nodes"},
        },
        opset_version=17,
        dynamo=False,
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)
    print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--per-epoch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-only", action="store_true", help="write the data, train nothing")
    args = parser.parse_args()
    save(HERE / "calibration", "calibration", 60, seed=1)
    save(HERE / "test", "test", 40, seed=2)
    if args.data_only:
        return
    model = train(args.epochs, args.per_epoch, args.seed)
    export(model, HERE / "graph_gcn.onnx")
    with torch.no_grad():
        scores = [
            float((model(*tensors(g)[:3]).argmax(1) == tensors(g)[3]).float().mean())
            for g in graphs("test", 40, 2)
        ]
    print(f"test accuracy {np.mean(scores):.4f}")


if __name__ == "__main__":
    main()
