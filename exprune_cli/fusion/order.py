"""Putting a graph's nodes back into an order in which each comes after what it reads."""

from __future__ import annotations

from collections import deque

import onnx

from exprune_cli.graph import names_read


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sorts a graph's nodes topologically, in place; of nodes that may stand anywhere the earlier comes first."""
    nodes = list(graph.node)
    producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits = [{producer[name] for name in names_read(node) if name in producer} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, needed in enumerate(waits):
        for other in needed:
            readers[other].append(i)
    placed: list[int] = []
    done = [False] * len(nodes)
    left = [len(needed) for needed in waits]
    for start in range(len(nodes)):
        ready = deque([start] if not left[start] and not done[start] else ())
        while ready:
            i = ready.popleft()
            done[i] = True
            placed.append(i)
            for reader in readers[i]:
                left[reader] -= 1
                # One that stands further on is met there.
                if not left[reader] and reader < start:
                    ready.append(reader)
    if placed != list(range(len(nodes))):
        del graph.node[:]
        graph.node.extend(nodes[i] for i in placed)
