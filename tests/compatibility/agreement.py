"""Runs a staged model over a folder of data, with and without the native runtime, and compares sample by sample.

Needs onnx, onnxruntime and numpy alone, so that it also runs where an old ONNX Runtime is installed:

    python tests/compatibility/agreement.py STAGED DATA --library FILE [--samples N]

Both ways add in another order. So a value that lies at a limit may fall on either side of it, and what comes after
differs then by more than rounding. That is told from a fault by what every site reports of its decisions
(`survivors`), per sample: where these are the same, results must be the same but for rounding; where they are not, the
first site at which they differ must have decided one or two outputs differently, not more. Lossless sites decide
nothing in a function, which is the dense layer: for them results are compared alone.

Prints one JSON object, see `compare`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

DOMAIN = "com.exprune"


@dataclass
class Agreement:
    """What was compared: integers and the scores under an ArgMax too, beside the model's own outputs."""

    onnxruntime: str
    #: Samples, and those for which a site decided something differently.
    samples: int = 0
    decided_differently: int = 0
    #: Most outputs that the first site to differ decided differently, in one sample.
    outputs_at_first: int = 0
    #: Where decisions are the same: integers that differ; largest difference of floats, relative to the largest.
    different: int = 0
    relative: float = 0.0
    #: Where they are not: samples with an integer that differs.
    turned: int = 0


@dataclass(frozen=True)
class Exposed:
    """A staged model that also returns its decisions and the scores under an ArgMax."""

    model: bytes
    results: tuple[str, ...]
    #: Per site that may lose outputs, in the graph's order: the output with its decisions, and whether it also has work.
    sites: tuple[tuple[str, bool], ...]


def lossless(op_type: str) -> bool:
    """Whether an op's function is the plain dense layer."""
    return op_type.endswith("Bound") or op_type in {"ConvRelu", "ConvReluPanel", "SparseGemm"}


def expose(path: str) -> Exposed:
    """The model with further outputs."""
    model = onnx.load(path)
    results = [value.name for value in model.graph.output]
    sites = []
    for node in model.graph.node:
        if node.domain == DOMAIN and not lossless(node.op_type):
            sites.append((node.output[-1], node.op_type == "SparseConvThreshold"))
        elif node.op_type == "ArgMax" and node.input[0] not in results:
            results.append(node.input[0])
    known = {value.name for value in model.graph.output}
    names = [name for name in (*results, *(name for name, _ in sites)) if name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return Exposed(model.SerializeToString(), tuple(results), tuple(sites))


def open_session(model: bytes, library: str | None) -> ort.InferenceSession:
    """A session, with the runtime registered if it is given."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def samples(folder: Path, names: list[str], count: int) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of one sample each: files that hold many samples of one input are cut, others are one."""
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
        if len(names) > 1:
            yield arrays
            continue
        for i in range(min(count, len(arrays[names[0]]))):
            yield {names[0]: arrays[names[0]][i : i + 1]}


def outputs_at_first(
    native: list[np.ndarray], function: list[np.ndarray], sites: tuple[tuple[str, bool], ...]
) -> int | None:
    """How many outputs the first site that differs decided differently; None if all decisions are the same.

    A site that multiplies no zeros also reports its work, which differs where rounding made a value 0 or not: that
    alone counts as no output.
    """
    for a, b, (_, reports_work) in zip(native, function, sites, strict=True):
        if not np.array_equal(a, b):
            checks = len(a) // 2 if reports_work else len(a)
            return int(np.abs(a[:checks] - b[:checks]).max(initial=0))
    return None


def compare(staged: str, folder: Path, library: str, count: int) -> Agreement:
    """Compares both ways to run ``staged``, on at most ``count`` samples of each file."""
    exposed = expose(staged)
    native, function = open_session(exposed.model, library), open_session(exposed.model, None)
    names = [value.name for value in native.get_inputs()]
    wanted = [*exposed.results, *(name for name, _ in exposed.sites)]
    seen = Agreement(ort.__version__)
    for feeds in samples(folder, names, count):
        seen.samples += 1
        a, b = native.run(wanted, feeds), function.run(wanted, feeds)
        split = len(exposed.results)
        first = outputs_at_first(a[split:], b[split:], exposed.sites)
        pairs = list(zip(a[:split], b[:split], strict=True))
        different = sum(int((x != y).sum()) for x, y in pairs if x.dtype.kind == "i")
        if first is not None:
            seen.decided_differently += 1
            seen.outputs_at_first = max(seen.outputs_at_first, first)
            seen.turned += different > 0
            continue
        seen.different += different
        for x, y in pairs:
            if x.dtype.kind != "i" and x.size:
                worst = float(np.abs(x - y).max() / (np.abs(y).max() + 1e-30))
                seen.relative = max(seen.relative, worst)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("staged")
    parser.add_argument("data", type=Path)
    parser.add_argument("--library", required=True)
    parser.add_argument("--samples", type=int, default=10**9, help="per file")
    args = parser.parse_args()
    print(json.dumps(asdict(compare(args.staged, args.data, args.library, args.samples))))


if __name__ == "__main__":
    main()
