"""Hash keys for sampling: the same on every machine, whatever the order or the batch size."""

from __future__ import annotations

import hashlib

import numpy as np

#: The increment and the multipliers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, element by element: a bijection of uint64 that scatters every bit."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def text_key(text: str) -> int:
    """64 bits of a text's BLAKE2b digest."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream_keys(seed: int, name: str, ids: np.ndarray) -> np.ndarray:
    """One stream per sample: ``[n]`` uint64 from a seed, the stream's name and the samples' ids."""
    base = mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + _GAMMA)
    return mix(mix(base ^ np.uint64(text_key(name))) ^ ids.astype(np.uint64))


def position_keys(streams: np.ndarray, positions: int) -> np.ndarray:
    """``[n, positions]`` uint64: the first outputs of SplitMix64 started at each of ``streams``."""
    steps = np.arange(1, positions + 1, dtype=np.uint64) * _GAMMA
    return mix(streams[:, None] + steps)
