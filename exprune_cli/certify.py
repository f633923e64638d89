"""Is a drop small enough? Verified on samples that the plan has not seen, or certified.

The unit is a sample; its loss is the baseline's score minus the optimised model's, averaged over
its positions (which are not independent), in [-1, 1] for accuracy and agreement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, stdtrit

#: One-sided level at which a drop is verified when no ``--confidence`` asks for a certificate.
VERIFY_LEVEL = 0.95
_BETS = 64


@dataclass(frozen=True)
class Drop:
    """A measured drop.

    Attributes:
        mean: Mean loss over the samples.
        upper: Its upper limit: Student's, one-sided, at :data:`VERIFY_LEVEL`.
        p_value: Of the hypothesis that the expected drop is larger than allowed.
        samples: How many samples.
    """

    mean: float
    upper: float
    p_value: float
    samples: int


def judge(losses: np.ndarray, max_drop: float, *, bounded: bool = True, unit: float = 1.0) -> Drop:
    """Measures a drop against what is allowed.

    Args:
        losses: ``[n]`` paired losses, higher is worse.
        max_drop: The allowed expected drop.
        bounded: Whether losses are in [-1, 1]; the p-value of others is 1.
        unit: The smallest change of a sample's score: 1 for right or wrong, less for a mean over
            positions (see :func:`score_unit`).
    """
    count = len(losses)
    mean = float(np.mean(losses))
    if count < 2:
        return Drop(mean, math.inf, 1.0, count)
    # A sample without any change says that changes are rare, not that there are none:
    # one further sample, with half of its positions changed at random, keeps the limit above zero.
    spread = math.sqrt(float(np.var(losses, ddof=1)) + 0.25 * unit / count**2)
    upper = mean + float(stdtrit(count - 1, VERIFY_LEVEL)) * spread / math.sqrt(count)
    return Drop(mean, upper, betting_p_value(losses, max_drop) if bounded else 1.0, count)


def score_unit(scores: np.ndarray) -> float:
    """The smallest difference between scores: 1 where samples are right or wrong as a whole."""
    gaps = np.diff(np.unique(np.round(scores, 9)))
    return float(np.clip(gaps.min(initial=1.0), 1e-6, 1.0))


def betting_p_value(losses: np.ndarray, max_drop: float) -> float:
    """p-value of "the expected loss is larger than ``max_drop``", for losses in [-1, 1].

    For a bet ``l`` in ``[0, 1 / (1 - max_drop))`` the product of ``1 - l (x_i - max_drop)`` has
    expectation at most 1 under the hypothesis; so has its mean over a fixed grid of bets, and by
    Markov's inequality 1 over that mean is a p-value (Waudby-Smith and Ramdas, Estimating means
    of bounded random variables by betting, JRSS-B 2024).

    Raises:
        ValueError: A loss is outside [-1, 1] or not finite.
    """
    if not np.all(np.abs(losses) <= 1):
        raise ValueError("losses must be finite and in [-1, 1]")
    bets = _bets(max_drop)
    return _p_value(np.log1p(-bets[:, None] * (losses[None, :] - max_drop)).sum(axis=1))


def contradicts(losses: np.ndarray, max_drop: float, confidence: float) -> bool:
    """Whether new samples show that the expected loss is larger than ``max_drop``.

    The same test from the other side: under "the expected loss is at most ``max_drop``" the mean
    over bets of ``prod(1 + l (x_i - max_drop))`` has expectation at most 1.

    Args:
        losses: ``[n]`` paired losses in [-1, 1].
        max_drop: What was certified.
        confidence: One minus the risk of contradicting a certificate that is right.

    Raises:
        ValueError: A loss is outside [-1, 1] or not finite.
    """
    return betting_p_value(-losses, -max_drop) <= 1 - confidence


def _bets(max_drop: float) -> np.ndarray:
    top = 1 / (1 - max_drop) if max_drop < 1 else 1.0
    return top * np.arange(1, _BETS + 1) / (_BETS + 1)


def _p_value(log_wealth: np.ndarray) -> float:
    return float(math.exp(min(0.0, math.log(len(log_wealth)) - logsumexp(log_wealth))))


def samples_needed(max_drop: float, confidence: float) -> int:
    """How many samples a certificate needs at least: enough if none of them changes.

    Args:
        max_drop: Positive.
        confidence: Below 1.
    """
    growth = np.log1p(_bets(max_drop) * max_drop)
    low, high = 0, 1
    while _p_value(high * growth) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _p_value(middle * growth) > 1 - confidence else (low, middle)
    return high


def furthest(steps: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """Fixed-sequence testing: walks along the knob until a step does not hold.

    Each step is tested at the full level; stopping at the first failure keeps the error of the
    whole walk at that level (Angelopoulos et al., Learn then Test, 2021).

    Args:
        steps: From the safest to the boldest.
        holds: Whether a step passes.

    Returns:
        The last step that held, None if the first did not.
    """
    best = None
    for step in steps:
        if not holds(step):
            break
        best = step
    return best


def boldest(steps: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """Bisection for the last step that holds, in few trials; no certificate may rest on it.

    Args:
        steps: From the safest to the boldest.
        holds: Whether a step passes; taken to be monotone.

    Returns:
        The boldest step found to hold, None if none was.
    """
    low, high = -1, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(steps[middle]) else (low, middle)
    return steps[low] if low >= 0 else None
