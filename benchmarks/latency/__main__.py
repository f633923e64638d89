"""The command: builds the cases, times the contenders in turn, prints the tables."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from benchmarks.latency.case import Case, Feeds
from benchmarks.latency.cases import cases
from benchmarks.latency.contenders import make, session
from benchmarks.latency.turns import SECONDS, ratios, standard_error, timed
from exprune_cli.data import open_data
from exprune_cli.measure import measure
from exprune_cli.record import read_record
from exprune_cli.runtime import runtime_info


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", help="part of a case's name; can be repeated")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", help="only these batch sizes")
    parser.add_argument(
        "--contender", action="append", help="the only ones to time beside dense; can be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    options = parser.parse_args()
    chosen = [
        case
        for case in cases(options.quick)
        if not options.case or any(part in case.name for part in options.case)
    ]
    print(f"{runtime_info()}; numpy reads {read_bandwidth():.0f} GB/s on one thread\n", flush=True)
    print(HEADER)
    for case in chosen:
        run_case(case, options.threads, options.batch, 0.2 if options.quick else SECONDS, options.contender)


HEADER = (
    "| case | threads | batch | contender | ms | x dense | ± | equal | MB | GB/s |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def run_case(
    case: Case,
    threads: Sequence[int],
    batches: Sequence[int] | None,
    seconds: float,
    contenders: Sequence[str] | None = None,
) -> None:
    """Times one case and prints its rows."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = make(case, folder, contenders)
        checks = list(itertools.islice(case.feeds(1, 7), case.checks if seconds == SECONDS else 50))
        equal = agreement(case, made, checks)
        needed = {name: bytes_needed(path, checks[:20], folder) for name, path in made.items()}
        for count in threads:
            wanted = [batch for batch in case.batches if not batches or batch in batches]
            inputs = {batch: list(itertools.islice(case.feeds(batch, 8), 16)) for batch in wanted}
            times = timed(made, inputs, count, seconds)
            for batch in wanted:
                for name, path in made.items():
                    opened = ratios(times[batch], name)
                    ratio = float(np.median(np.concatenate(opened)))
                    milliseconds = float(np.median(np.concatenate(times[batch][name]))) * 1e3
                    speed = needed[name]
                    reached = f"{speed / milliseconds / 1e6:.0f}" if speed and batch == 1 else ""
                    print(
                        f"| {case.name} | {count} | {batch} | {name} | {milliseconds:.3f} | {ratio:.2f} "
                        f"| {standard_error(opened):.2f} | {equal[name]} | {path.stat().st_size / 1e6:.1f} "
                        f"| {reached} |",
                        flush=True,
                    )


def agreement(case: Case, made: dict[str, Path], inputs: Sequence[Feeds]) -> dict[str, str]:
    """How equal every contender's first result is to the dense model's, at batch 1 on one thread.

    Of indices the share that is equal, in percent; of numbers the largest difference, relative to
    the largest number of the result.
    """
    results: dict[str, list[np.ndarray]] = {}
    for name, path in made.items():
        one = session(path, 1)
        results[name] = [one.run(None, feeds)[0] for feeds in inputs]
    said = {}
    for name, values in results.items():
        pairs = list(zip(results["dense"], values, strict=True))
        if case.exact:
            said[name] = f"{100 * np.mean([np.array_equal(a, b) for a, b in pairs]):.2f} %"
        else:
            said[name] = f"{max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs):.1e}"
    return said


def bytes_needed(path: Path, inputs: Sequence[Feeds], folder: Path) -> float | None:
    """Bytes of weights that one run has to read, from what survives on these inputs; None if unknown."""
    proto = onnx.load(path)
    record = read_record(proto)
    sizes = {tensor.name: len(tensor.raw_data) for tensor in proto.graph.initializer}
    if len(inputs[0]) > 1:  # an embedding's rows, and caches
        return None
    if path.name == "dense.onnx":
        return float(sum(sizes.values()))
    if record is None:
        return None
    data = folder / "measured"
    data.mkdir(exist_ok=True)
    np.save(data / "x.npy", np.concatenate([feeds["x"] for feeds in inputs]))
    measured = measure(proto, open_data(data, proto), batch_size=1)
    total = 0.0
    for site in record.sites:
        name = f"{site.name}/codes"
        if not site.staged or site.name not in measured.survivors:
            total += 4.0 * (site.outputs or 0) * (site.groups or 0)
            continue
        left = measured.survivors[site.name][-1] / measured.samples
        width = (site.outputs if site.kind == "sparse" else site.groups) or 0
        total += sizes.get(name, 0) + 4.0 * left * width
    return total


def read_bandwidth() -> float:
    """GB/s at which numpy finds the largest of 128 million floats; the best of some tries."""
    array = np.ones(2**27, np.float32)
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        array.max()
        best = max(best, array.nbytes / (time.perf_counter() - begin) / 1e9)
    return best


if __name__ == "__main__":
    main()
