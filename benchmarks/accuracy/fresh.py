"""New test data of the sample models, which nothing was ever chosen by:

    python -m benchmarks.accuracy.fresh FOLDER            # needs scikit-learn
    python -m benchmarks.accuracy --tests FOLDER

Images and graphs are new views of the test originals, sequences are windows of the test files that are in no
committed data. The text is the standard library of the running Python, so only the Python that wrote the committed
data (3.11.7) writes new ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MODELS = Path(__file__).resolve().parents[2] / "sample_models"
IMAGES, GRAPHS, SEQUENCES = 4500, 120, 1500
#: Of the first draw's views; the committed calibration data are of seed 1, the test data of seed 2, training of
#: seeds from 1,000 on.
SEED = 77
#: The seed that ``relu_lm``'s windows were drawn with, and how many of the test files' were.
_WINDOWS_SEED, _WINDOWS = 1, 500


def write(
    folder: Path, images: int = IMAGES, graphs: int = GRAPHS, sequences: int = SEQUENCES, draw: int = 0
) -> None:
    """Writes ``<model>/test`` for all sample models.

    Args:
        folder: Where to.
        images: Of ``digits_resnet``.
        graphs: Of ``graph_gcn``.
        sequences: Of ``relu_lm``.
        draw: Which: no two have a sequence in common. The test files have as many sequences as asked for in
            draws 0 and 1, and in draw 2 the 547 that are left.

    Raises:
        ValueError: The running Python's text is not that of the committed data.
    """
    if str(MODELS) not in sys.path:  # its modules are scripts' neighbours
        sys.path.append(str(MODELS))
    import digits_data
    import graph_data

    for name in ("digits_resnet", "graph_gcn"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    digits_data.save(folder / "digits_resnet" / "test", "test", images, SEED + draw)
    graph_data.save(folder / "graph_gcn" / "test", "test", graphs, SEED + draw)
    _write_text(folder / "relu_lm" / "test", sequences, _WINDOWS + draw * SEQUENCES)


def _write_text(folder: Path, count: int, skipped: int) -> None:
    import text_data

    home = MODELS / "relu_lm"
    merges = [tuple(pair) for pair in json.loads((home / "tokenizer.json").read_text())["merges"]]
    texts = text_data.read_texts()["test"]
    stream = text_data.encode(texts.values(), merges)
    read = _tokens(home / "test")
    if not np.array_equal(text_data.windows(stream, _WINDOWS, _WINDOWS_SEED)[0], read):
        raise ValueError(
            f"the standard library of Python {sys.version.split()[0]} is not the text that relu_lm's data are of: "
            "run with Python 3.11.7"
        )
    tokens, labels, files = text_data.windows(stream, count, _WINDOWS_SEED, skipped)
    known = {row.tobytes() for row in np.concatenate([read, _tokens(home / "calibration")])}
    new = np.array([row.tobytes() not in known for row in tokens])
    text_data.write_sequences(tokens[new], labels[new], np.array(list(texts))[files[new]], folder)


def _tokens(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(file)["tokens"] for file in sorted(folder.glob("*.npz"))])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.accuracy.fresh", description=__doc__.splitlines()[0].rstrip(":")
    )
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--draw", type=int, choices=(0, 1, 2), default=0, help="which new data [default: 0]")
    args = parser.parse_args(arguments)
    try:
        write(args.folder, draw=args.draw)
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
