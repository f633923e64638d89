"""Samples in groups: read from every source, never on two sides, and whatever they are called refused if it is no name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from exprune_cli.data import DataSet, open_data
from exprune_cli.data.groups import means_by_group
from exprune_cli.data.keys import stream_keys
from exprune_cli.errors import ExpruneError
from tests.data.test_open_data import model, refuse, rows


def _stored(folder: Path, *groups: object) -> DataSet:
    """A folder with a file for each array of groups."""
    for index, group in enumerate(groups):
        array = np.asarray(group)
        np.savez(folder / f"{index}.npz", x=rows(max(array.size, 1)), group=array)
    return open_data(folder, model())


def _same(data: DataSet) -> list[list[int]]:
    """The samples of each group, by their place."""
    assert data.groups is not None
    _, at = np.unique(data.groups, return_inverse=True)
    return sorted(np.flatnonzero(at == group).tolist() for group in range(at.max() + 1))


def test_a_group_is_its_value_in_whatever_file_and_type(tmp_path: Path) -> None:
    data = _stored(
        tmp_path,
        np.array([3, -1, 3], np.int64),
        np.array(["3", "book"]),
        np.array([3], np.uint8),
        np.array("book"),
        np.array([-1], ">i4"),
    )
    assert _same(data) == [[0, 2, 3, 5], [1, 7], [4, 6]]
    assert data.extent.text == "3 groups (8 samples)"


@pytest.mark.parametrize("given_as", ["dict", "list", "stream"])
def test_groups_in_memory(given_as: str) -> None:
    items = [{"x": rows(2), "group": ["a", "b"]}, {"x": rows(3), "group": [7, 7, 8]}]
    if given_as == "dict":
        data = open_data({"x": rows(5), "group": np.array(["a", "b", "7", "7", "8"], object)}, model())
    else:
        data = open_data(items if given_as == "list" else iter(items), model())
    assert _same(data) == [[0], [1], [2, 3], [4]]
    assert [set(batch.feeds) for batch in data.batches(3)] == [{"x"}, {"x"}]


def test_an_input_may_be_called_so() -> None:
    inputs = (("group", TensorProto.FLOAT, ["n", 3]),)
    data = open_data({"group": rows(2)}, model(*inputs))
    assert data.groups is None and data.extent.text == "2 samples"
    assert next(data.batches(2)).feeds["group"].shape == (2, 3)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ([1.0, 2.0], r"0\.npz: 'group' is float64: groups must be whole numbers or strings, one per sample"),
        ([1.0, np.nan], "'group' is float64: groups must be"),
        ([True, False], "'group' is bool: groups must be"),
        ([b"a", b"b"], r"'group' is \|S1: groups must be"),
        ([1, 2, 3], r"'group' has shape \[3\], but the file has 2 samples: give one per sample"),
        ([[1], [2]], r"'group' has shape \[2, 1\], but the file has 2 samples"),
        (5, r"'group' has shape \[\], but the file has 2 samples"),
        (np.array([0x110000, 97], np.uint32).view("<U1"), "'group' has strings that are no text"),
        (["a", "\ud800"], "'group' has strings that are no text"),
        (["a" * 257, "b"], "'group' has strings of 257 characters: give names of at most 256"),
        (np.array([object(), 1]), "'group': holds pickled objects, which are never loaded"),
    ],
)
def test_what_is_no_group_is_refused(tmp_path: Path, group: object, message: str) -> None:
    np.savez(tmp_path / "0.npz", x=rows(2), group=group)
    with pytest.raises(ExpruneError, match=message):
        open_data(tmp_path, model())


def test_all_samples_have_groups_or_none_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=rows(2), group=[1, 2])
    np.savez(tmp_path / "b.npz", x=rows(2))
    assert "b.npz" in refuse(tmp_path, "has no 'group', but other files have: give all samples a group, or")


def test_a_name_that_is_nearly_right_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=rows(2), groups=[1, 2])
    refuse(tmp_path, "unknown key 'groups': did you mean 'group'")


_GROUPS = st.lists(st.integers(0, 12), min_size=2, max_size=60).filter(lambda groups: len(set(groups)) > 1)


def _made(groups: list[int]) -> DataSet:
    x = np.arange(3 * len(groups), dtype=np.float32).reshape(-1, 3)
    return open_data({"x": x, "group": groups}, model())


@settings(max_examples=60, deadline=None)
@given(groups=_GROUPS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**63))
def test_no_group_is_on_two_sides_of_a_split(groups: list[int], fraction: float, seed: int) -> None:
    data = _made(groups)
    first, second = data.split(fraction, seed)
    one, other = (set(part.groups.tolist()) for part in (first, second) if part.groups is not None)
    assert one and other and not one & other
    assert len(first) + len(second) == len(data)
    assert len(one) == min(max(round(fraction * len(set(groups))), 1), len(set(groups)) - 1)
    # Whatever the order of the samples, the same groups.
    turned, _ = _made(groups[::-1]).split(fraction, seed)
    assert turned.groups is not None and set(turned.groups.tolist()) == one


@settings(max_examples=60, deadline=None)
@given(groups=_GROUPS, count=st.integers(1, 60), seed=st.integers(0, 2**63))
def test_samples_are_taken_in_turn_or_of_few_groups(groups: list[int], count: int, seed: int) -> None:
    data = _made(groups)
    count = min(count, len(data))
    assert data.groups is not None
    sizes = dict(zip(*np.unique(data.groups, return_counts=True), strict=True))
    for part, few in ((data.take(count, seed), False), (data.take_groups(count, seed), True)):
        assert part.groups is not None and len(part) == count
        taken = {group: int((part.groups == group).sum()) for group in sizes if (part.groups == group).any()}
        if few:
            assert sum(number < sizes[group] for group, number in taken.items()) <= 1
        else:
            most = max(taken.values())
            assert all(taken.get(group, 0) >= min(most - 1, size) for group, size in sizes.items())
        rest = data.without(part.ids)
        assert rest.groups is not None and not set(rest.groups.tolist()) & set(taken)
        assert len(rest) == sum(size for group, size in sizes.items() if group not in taken)
    some = data.groups[: count // 2]
    left = data.without(np.empty(0, np.uint64), some).groups
    assert left is not None and sorted(left.tolist()) == sorted(
        g for g in data.groups.tolist() if g not in some
    )


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(ExpruneError, match=r"has 1 group \(3 samples\) to split: at least 2 groups"):
        _made([4, 4, 4]).split(0.5, 0)


def test_samples_without_groups_are_drawn_as_ever() -> None:
    """Files that were made before there were groups are made again, byte for byte."""
    data = open_data(np.arange(300, dtype=np.float32).reshape(100, 3), model())
    for purpose, part in (
        ("take", data.take(30, 5)),
        ("take", data.take_groups(30, 5)),
        ("split", data.split(0.3, 5)[0]),
    ):
        expected = np.sort(np.argsort(stream_keys(5, purpose, np.arange(100)), kind="stable")[:30])
        assert part.digest == data.at(expected).digest


def test_means_by_group() -> None:
    values, groups = np.array([1.0, 0.0, 0.5, 1.0]), np.array([9, 2, 9, 9], np.uint64)
    np.testing.assert_allclose(means_by_group(values, groups), [0.0, 2.5 / 3])
    assert means_by_group(values, None) is values
