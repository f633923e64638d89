"""Samples that belong together: views of one original, frames of one recording, requests of one user.

Samples of different groups are independent draws from the source, samples of one group are not. So a group
is on one side of every split, and counts once: its score is the mean over its samples.
"""

from __future__ import annotations

import numpy as np

from exprune_cli.data.keys import text_key
from exprune_cli.data.layout import Header
from exprune_cli.errors import ExpruneError

#: The key that holds groups, unless a model input is called so.
GROUP = "group"
#: Characters of a group's name, at most.
_LONGEST = 256
_CHARACTER_BYTES = 4


def check_group(header: Header, where: str) -> None:
    """Checks the type of a file's groups.

    Raises:
        ExpruneError: They are neither whole numbers nor short strings.
    """
    if header.dtype.kind not in "iuU":
        raise ExpruneError(
            f"{where}: '{GROUP}' is {header.dtype}: groups must be whole numbers or strings, one per sample"
        )
    if header.dtype.kind == "U" and header.dtype.itemsize > _LONGEST * _CHARACTER_BYTES:
        raise ExpruneError(
            f"{where}: '{GROUP}' has strings of {header.dtype.itemsize // _CHARACTER_BYTES} characters: give names of "
            f"at most {_LONGEST}"
        )


def group_ids(groups: np.ndarray, where: str) -> np.ndarray:
    """A uint64 digest of each group's value, of which it depends alone: the same in every file.

    A whole number and its digits as a string are the same group.

    Args:
        groups: Whole numbers or strings, of any shape, which the result has too.
        where: The file's name in messages.

    Raises:
        ExpruneError: A string is no text.
    """
    values, at = np.unique(groups.reshape(-1), return_inverse=True)
    try:
        ids = np.array([text_key(str(value)) for value in values.tolist()], np.uint64)
    except (ValueError, SystemError):  # lone surrogates; code points that there are not
        raise ExpruneError(f"{where}: '{GROUP}' has strings that are no text: write it again") from None
    found: np.ndarray = ids[at.reshape(groups.shape)]
    return found


def means_by_group(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """``[units]`` means of ``values`` ``[n]`` over each group, by ascending id; the values as they are without groups."""
    if groups is None:
        return values
    _, at, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    means: np.ndarray = np.bincount(at.reshape(-1), values) / sizes
    return means
