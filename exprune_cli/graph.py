"""The main graph for matching and editing, and the way back into the user's model.

Matching and editing work on onnx-graphsurgeon's IR. Its round trip loses parts of a model
(doc strings, metadata, quantisation annotations, overloads, unused value_info, ...), so nothing
that we did not touch takes it: :meth:`ModelGraph.graft` puts the nodes that are new into a copy
of the original ModelProto, in place of those that are gone, and leaves every other byte alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.logger import G_LOGGER

from exprune_cli.errors import ExpruneError
from exprune_cli.model import Model
from exprune_cli.protobuf import copy_fields
from exprune_cli.shapes import Dims, infer_shapes
from exprune_cli.weights import Spill, kept

#: Operators that exporters compute constant pads and shapes with.
SHAPE_OPS = (
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


class ModelGraph:
    """A model's main graph with what matching needs to know about it.

    Attributes:
        graph: The graphsurgeon graph as it was imported; :meth:`nodes` has the nodes as they are now.
        shapes: Dims by tensor name (see :func:`exprune_cli.shapes.infer_shapes`).
        outputs: Names of the graph's outputs.
        staged_ops: Staged ops in use, those inside branches included.
        overridable: Initializers that a caller may override (they are graph inputs as well).
    """

    def __init__(self, model: Model):
        """Imports ``model.proto``.

        Raises:
            ExpruneError: graphsurgeon cannot import the graph.
        """
        self.model = model
        proto = model.proto
        # It would print on standard output, which is for results, that it knows no bfloat16.
        G_LOGGER.severity = G_LOGGER.CRITICAL
        try:
            self.graph: gs.Graph = OnnxImporter.import_graph(
                proto.graph, opset=model.opset, import_domains=proto.opset_import, ir_version=proto.ir_version
            )
        except Exception as error:  # whatever it is, the model goes through unharmed
            raise ExpruneError(f"the graph cannot be edited ({type(error).__name__}: {error})") from error
        # The nodes are held as long as their ids are keys: a freed node's id may be given out again.
        self._nodes = list(self.graph.nodes)
        self._protos = {id(node): p for node, p in zip(self._nodes, proto.graph.node, strict=True)}
        self.shapes: dict[str, Dims] = infer_shapes(proto)
        self.outputs = {value.name for value in proto.graph.output}
        # Before IR version 4 every initializer had to be listed as an input.
        inputs = {value.name for value in proto.graph.input} if proto.ir_version >= 4 else set()
        self.overridable = inputs & {tensor.name for tensor in proto.graph.initializer}
        self._readers = Counter(_read_names(proto.graph))
        self._symbols = set(_symbols(proto.graph))
        self._new_values: list[onnx.ValueInfoProto] = []
        self._new_constants: dict[str, onnx.TensorProto] = {}
        self.staged_ops: set[str] = set()
        self._taken: set[str] | None = None
        # Where the nodes stand: a slot for each of the model's, so that replacing some costs what they are.
        self._slots = [[node] for node in self._nodes]
        self._slot_of = {id(node): slot for slot, node in enumerate(self._nodes)}
        self._producer = {node.outputs[0].name: node for node in self._nodes if node.outputs}
        self._spill = Spill() if kept(proto) else None
        if self._spill is not None:
            model.spills.append(self._spill)

    def readers(self, tensor: gs.Tensor) -> int:
        """How many node inputs read a tensor, those in subgraphs included."""
        return self._readers[tensor.name]

    def rank(self, name: str) -> int | None:
        """Rank of a tensor, None if unknown."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def same_shape(self, first: str, second: str) -> bool:
        """Whether two tensors are known to have equal shapes (equal sizes or equal symbols)."""
        a, b = self.shapes.get(first), self.shapes.get(second)
        return a is not None and a == b and all(size is not None for size in a)

    def node_proto(self, node: gs.Node) -> onnx.NodeProto:
        """A node as the user's model has it."""
        proto: onnx.NodeProto = self._protos[id(node)]
        return proto

    # --- editing -----------------------------------------------------------------------------

    def unique_name(self, name: str) -> str:
        """``name``, or ``name_2``, ``name_3``... if the model uses it already."""
        taken, candidate, count = self._names(), name, 1
        while candidate in taken:
            count += 1
            candidate = f"{name}_{count}"
        return candidate

    def holds(self, node: gs.Node) -> bool:
        """Whether a node is in the main graph (and not in a subgraph)."""
        return id(node) in self._slot_of

    def nodes(self) -> Iterator[gs.Node]:
        """The nodes of the main graph, in order."""
        for slot in self._slots:
            yield from slot

    def producers(self, names: Iterable[str]) -> list[gs.Node]:
        """The nodes whose first outputs have these names, in the order of the graph."""
        found = [self._producer[name] for name in names if name in self._producer]
        return sorted(filter(self.holds, found), key=lambda node: self._slot_of[id(node)])

    def _names(self) -> set[str]:
        if self._taken is not None:
            return self._taken
        names = set(self._readers) | set(self._new_constants) | set(self.shapes)
        names |= {tensor.name for tensor in self.model.proto.graph.initializer}
        for node in self.nodes():
            names.update(tensor.name for tensor in node.outputs)
            names.add(node.name)
        self._taken = names
        return names

    def constant(self, name: str, values: np.ndarray) -> gs.Constant:
        """A new initializer."""
        name = self.unique_name(name)
        self._names().add(name)
        values = np.ascontiguousarray(values)
        if self._spill is None:
            self._new_constants[name] = onnx.numpy_helper.from_array(values, name)
        else:
            self._new_constants[name] = self._spill.tensor(values, name)
        return gs.Constant(name, np.empty(0, values.dtype))

    def shared_constant(self, name: str, values: np.ndarray) -> gs.Constant:
        """A new initializer that all users of ``name`` share; the values must be the same."""
        if name in self._new_constants:
            return gs.Constant(name, np.empty(0, values.dtype))
        return self.constant(name, values)

    def declare(self, name: str, dtype: int, shape: Iterable[int | str | None]) -> None:
        """Adds a value_info, so that neighbours see the staged output's rank.

        Symbols that the model does not use itself are left out: shape inference makes names up, and
        ONNX Runtime takes equal names for equal sizes when it shares buffers.
        """
        known = [size if isinstance(size, int) or size in self._symbols else None for size in shape]
        self._new_values.append(onnx.helper.make_tensor_value_info(name, dtype, known))

    def stage(self, op: str) -> None:
        """Notes that a node of this staged op goes into the graph or one of its branches."""
        self.staged_ops.add(op)

    def replace(self, old: list[gs.Node], new: list[gs.Node]) -> None:
        """Puts ``new`` where the last of ``old`` stood; the order stays topological."""
        last = max(self._slot_of[id(node)] for node in old)
        for node in old:
            slot = self._slots[self._slot_of.pop(id(node))]
            slot[:] = [other for other in slot if other is not node]
        self._slots[last] += new
        for node in new:
            self._slot_of[id(node)] = last
            if node.outputs:
                self._producer[node.outputs[0].name] = node
            self._names().update((node.name, *(tensor.name for tensor in node.outputs)))

    # --- back into the model -----------------------------------------------------------------

    def graft(self, functions: Iterable[onnx.FunctionProto], domain: str) -> onnx.ModelProto:
        """The user's model with the edited nodes, everything else untouched.

        Initializers and ``Constant`` nodes that only removed nodes read are dropped.
        """
        source = self.model.proto
        nodes = [self._protos.get(id(node)) or _node_proto(node) for node in self.nodes()]
        nodes = _drop_unread_constants(nodes, source, self.outputs)
        proto = onnx.ModelProto()
        copy_fields(source, proto, without="graph")
        copy_fields(source.graph, proto.graph, without=("node", "initializer", "value_info", "input"))
        proto.graph.node.extend(nodes)
        read = set(_read_names(proto.graph))
        was_read = set(self._readers)
        unread = {t.name for t in source.graph.initializer if t.name in was_read and t.name not in read}
        unread -= self.overridable | self.outputs
        proto.graph.initializer.extend(t for t in source.graph.initializer if t.name not in unread)
        proto.graph.initializer.extend(t for t in self._new_constants.values() if t.name in read)
        initializers = {t.name for t in source.graph.initializer}
        for value in source.graph.input:
            # From IR version 4 on an initializer among the inputs could be overridden: not so before.
            if source.ir_version >= 4 or value.name not in initializers:
                proto.graph.input.append(value)
        alive = read | {name for node in nodes for name in node.output}
        known = {value.name for value in source.graph.value_info}
        gone = was_read - alive
        proto.graph.value_info.extend(v for v in source.graph.value_info if v.name not in gone)
        proto.graph.value_info.extend(
            v for v in self._new_values if v.name not in known and v.name not in self.outputs
        )
        # Model-local functions exist from IR version 8 on.
        proto.ir_version = max(proto.ir_version, 8)
        if not any(o.domain == domain for o in proto.opset_import):
            proto.opset_import.add(domain=domain, version=1)
        present = {(f.domain, f.name) for f in proto.functions}
        proto.functions.extend(f for f in functions if (f.domain, f.name) not in present)
        return proto


def detach(nodes: Iterable[gs.Node]) -> None:
    """Takes nodes off their tensors, which then belong to what comes in their place."""
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()


def _node_proto(node: gs.Node) -> onnx.NodeProto:
    return onnx.helper.make_node(
        node.op,
        [tensor.name for tensor in node.inputs],
        [tensor.name for tensor in node.outputs],
        name=node.name,
        domain=node.domain or "",
        **node.attrs,
    )


def _drop_unread_constants(
    nodes: list[onnx.NodeProto], source: onnx.ModelProto, outputs: set[str]
) -> list[onnx.NodeProto]:
    """Drops producers of weights, pads, shapes and places that lost their last reader to a new node."""
    before = Counter(_read_names(source.graph))
    while True:
        read = set(_names_of(nodes)) | outputs
        dead = [
            node
            for node in nodes
            if node.op_type in (*SHAPE_OPS, "Add", "Shape")
            and node.output[0] not in read
            and before[node.output[0]] > 0
        ]
        if not dead:
            return nodes
        gone = {id(node) for node in dead}
        nodes = [node for node in nodes if id(node) not in gone]


def _symbols(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that a graph's inputs give to unknown sizes."""
    for value in graph.input:
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param)


def _read_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from _names_of(graph.node)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names of all tensors that a node reads, in its subgraphs too."""
    yield from _names_of([node])


def _names_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from (name for name in node.input if name)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.type in _GRAPH_TYPES else ():
                yield from _names_of(graph.node)
                # A subgraph may hand out an outer tensor directly.
                yield from (value.name for value in graph.output)


_GRAPH_TYPES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
