"""Runs a model and its staged form over a folder of data, with and without the native runtime.

Needs onnxruntime and numpy alone, so that it also runs where an old ONNX Runtime is installed:

    python tests/compatibility/agreement.py STAGED DATA [--library FILE] [--samples N]

Prints one JSON object: how many output elements there are, how many integers differ between the two ways to
run the file, and the largest relative difference of floats.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort


def open_session(path: str, library: str | None) -> ort.InferenceSession:
    """A session, with the runtime registered if it is given."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def batches(folder: Path, names: list[str], samples: int, size: int = 50):
    """Feeds: files that hold many samples of one input in parts, others whole."""
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
        if len(names) > 1:
            yield arrays
            continue
        count = min(samples, len(arrays[names[0]]))
        for i in range(0, count, size):
            yield {names[0]: arrays[names[0]][i : min(i + size, count)]}


def compare(staged: str, folder: Path, library: str, samples: int) -> dict[str, object]:
    """Compares both ways to run ``staged``."""
    native, function = open_session(staged, library), open_session(staged, None)
    names = [value.name for value in native.get_inputs()]
    elements = different = 0
    relative = 0.0
    for feeds in batches(folder, names, samples):
        for a, b in zip(native.run(None, feeds), function.run(None, feeds), strict=True):
            elements += a.size
            if a.dtype.kind == "i":
                different += int((a != b).sum())
            elif a.size:
                relative = max(relative, float(np.abs(a - b).max() / (np.abs(b).max() + 1e-30)))
    return {
        "onnxruntime": ort.__version__,
        "elements": elements,
        "different": different,
        "relative": relative,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("staged")
    parser.add_argument("data", type=Path)
    parser.add_argument("--library", required=True)
    parser.add_argument("--samples", type=int, default=10**9, help="per file")
    args = parser.parse_args()
    print(json.dumps(compare(args.staged, args.data, args.library, args.samples)))


if __name__ == "__main__":
    main()
