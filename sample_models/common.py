"""What ``relu_lm`` needs to write and check its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


def fresh_directory(path: Path) -> Path:
    """Create ``path`` empty, dropping what an earlier run left there."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def load_directory(path: Path) -> list[dict[str, np.ndarray]]:
    """Read every .npz of a data directory, in name order."""
    samples = []
    for file in sorted(path.glob("*.npz")):
        with np.load(file, allow_pickle=False) as archive:
            samples.append(dict(archive))
    return samples


def finish_onnx(path: Path, description: str) -> None:
    """Make an exported model tidy and loadable by ONNX Runtime 1.17, then check it in full."""
    model = onnx.load(path)
    model.ir_version = min(model.ir_version, 9)
    model.doc_string = description
    for node in model.graph.node:
        node.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def session(model: Path | onnx.ModelProto, threads: int = 2) -> ort.InferenceSession:
    """Open a CPU session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def accuracy(path: Path, directory: Path) -> tuple[float, int]:
    """Share of labels the model's first output meets, and the number of labels."""
    runner = session(path)
    right = total = 0
    for sample in load_directory(directory):
        label = sample.pop("label").reshape(-1)
        answer = runner.run(None, sample)[0].reshape(-1)
        right += int((answer == label).sum())
        total += label.size
    return right / total, total


def describe(path: Path, sample: dict[str, np.ndarray], divide: int = 1) -> None:
    """Print the MACs of each linear node, divided by ``divide``, and the share of zeros after each ReLU."""
    model = onnx.load(path)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    linear = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    relus = [node for node in model.graph.node if node.op_type == "Relu"]
    wanted = {node.output[0] for node in relus + linear}
    wanted |= {name for node in linear for name in node.input[:2] if name not in weights}
    known = {value.name for value in [*model.graph.output, *model.graph.input]}
    for name in sorted(wanted - known):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    runner = session(model)
    values = dict(sample)
    values.update(zip([o.name for o in runner.get_outputs()], runner.run(None, sample)))

    total = 0
    for node in linear:
        if node.op_type == "Conv":
            per_output = int(np.prod(weights[node.input[1]][1:]))
        else:
            per_output = values[node.input[0]].shape[-1]
        macs = values[node.output[0]].size * per_output // divide
        total += macs
        print(
            f"  {node.name:44s} {node.op_type:7s} out {values[node.output[0]].shape!s:22s} {macs:>12,} MACs"
        )
    print(f"  {'all linear nodes':44s} {'':34s} {total:>12,} MACs")
    for node in relus:
        zeros = float((values[node.output[0]] == 0).mean())
        print(f"  {node.name:44s} Relu    zeros {zeros:6.1%}")
