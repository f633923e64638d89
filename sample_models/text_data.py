"""The text of ``relu_lm``: the standard library of the running Python, its tokens and its sequences.

The .py files (PSF licence), without test packages, in name order; whole files go to train / calibration / test
by the CRC of their names. The tokens come from a byte-pair encoding trained on the training files (Sennrich et
al., arXiv 1508.07909), kept in ``relu_lm/tokenizer.json``.
"""

from __future__ import annotations

import heapq
import itertools
import re
import sysconfig
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import common
import numpy as np

CONTEXT = 64
SEPARATOR = 0  # the zero byte, which no source file holds, stands before each file
PIECES = re.compile(r"\n *| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s")
SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "dist-packages",
    "__pycache__",
}


def read_texts() -> dict[str, dict[str, str]]:
    """Return the texts of the standard library's modules by split and name."""
    root = Path(sysconfig.get_path("stdlib"))
    texts: dict[str, dict[str, str]] = {"train": {}, "calibration": {}, "test": {}}
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if SKIPPED.intersection(name.parts) or name.name.startswith("_sysconfigdata"):
            continue
        bucket = zlib.crc32(name.as_posix().encode()) % 100
        split = "test" if bucket < 6 else "calibration" if bucket < 10 else "train"
        text = file.read_text(encoding="utf-8", errors="replace").replace("\0", "")
        texts[split][name.as_posix()] = text
    return texts


def train_tokenizer(texts: Iterable[str], size: int) -> list[tuple[int, int]]:
    """Return the merges of a byte-level byte-pair encoding with ``size`` tokens, in order."""
    counts = Counter(piece for text in texts for piece in PIECES.findall(text))
    words = [(list(word.encode()), count) for word, count in sorted(counts.items()) if count > 1]
    pairs: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = defaultdict(set)
    for index, (word, count) in enumerate(words):
        for pair in itertools.pairwise(word):
            pairs[pair] += count
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while len(merges) < size - 256:
        negative, best = heapq.heappop(heap)
        if pairs[best] != -negative:
            continue  # an out-of-date entry
        token = 256 + len(merges)
        merges.append(best)
        changed = set()
        for index in sorted(where[best]):
            word, count = words[index]
            for pair in itertools.pairwise(word):
                pairs[pair] -= count
                changed.add(pair)
            word[:] = merge(word, best, token)
            for pair in itertools.pairwise(word):
                pairs[pair] += count
                where[pair].add(index)
                changed.add(pair)
        for pair in changed:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
    return merges


def merge(word: list[int], pair: tuple[int, int], token: int) -> list[int]:
    """Replace each occurrence of ``pair`` by ``token``."""
    result, position = [], 0
    while position < len(word):
        if position + 1 < len(word) and (word[position], word[position + 1]) == pair:
            result.append(token)
            position += 2
        else:
            result.append(word[position])
            position += 1
    return result


def encode(texts: Iterable[str], merges: list[tuple[int, int]]) -> np.ndarray:
    """Encode texts to one stream of tokens, a separator before each text."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    known: dict[str, list[int]] = {}
    stream: list[int] = []
    for text in texts:
        stream.append(SEPARATOR)
        for piece in PIECES.findall(text):
            if piece not in known:
                word = list(piece.encode())
                while len(word) > 1:
                    best = min(itertools.pairwise(word), key=lambda pair: ranks.get(pair, len(ranks)))
                    if best not in ranks:
                        break
                    word = merge(word, best, 256 + ranks[best])
                known[piece] = word
            stream.extend(known[piece])
    return np.array(stream, np.int64)


def windows(
    stream: np.ndarray, count: int, seed: int, skipped: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``count`` windows ``[count, CONTEXT]`` that do not overlap, their true next tokens, and their texts' numbers.

    A window that reaches into the next text belongs to that in which it begins.

    Args:
        stream: Tokens.
        count: How many, all that are left if there are fewer.
        seed: Of their choice.
        skipped: How many of the same seed's windows are left out: those of an earlier call.
    """
    slots = np.random.default_rng(seed).permutation((len(stream) - 1) // CONTEXT)[skipped : skipped + count]
    first = np.sort(slots)[:, None] * CONTEXT + np.arange(CONTEXT)
    texts = np.cumsum(stream == SEPARATOR) - 1
    return stream[first], stream[first + 1], texts[first[:, 0]]


def write_sequences(tokens: np.ndarray, labels: np.ndarray, groups: np.ndarray, folder: Path) -> None:
    """Writes windows as ``.npz`` files of 100; ``groups`` are the names of the texts that they are from."""
    common.fresh_directory(folder)
    for number, begin in enumerate(range(0, len(tokens), 100)):
        part = slice(begin, begin + 100)
        np.savez_compressed(
            folder / f"{number:03d}.npz", tokens=tokens[part], label=labels[part], group=groups[part]
        )
