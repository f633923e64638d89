"""Digests of samples, subsets that are cut by a seed, and the memory that a pass takes."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from exprune_cli.data import digest_of, open_data
from exprune_cli.errors import ExpruneError, UsageError
from tests.data.test_open_data import collect, model, rows


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hundred")
    rng = np.random.default_rng(0)
    for i, n in enumerate([30, 1, 1, 50, 7, 11]):
        np.savez(
            folder / f"{i}.npz", x=rng.normal(size=(n, 3)).astype(np.float32), label=rng.integers(0, 9, n)
        )
    return folder


@settings(max_examples=25, deadline=None)
@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**63), batch_size=st.integers(1, 64))
def test_a_split_is_a_partition_in_order(hundred, fraction, seed, batch_size):
    data = open_data(hundred, model())
    first, second = data.split(fraction, seed)
    assert len(first) == round(fraction * 100)
    samples = collect(data)
    chosen = set(first.ids.tolist())
    assert collect(first, batch_size) == [s for s, i in zip(samples, data.ids, strict=True) if i in chosen]
    assert collect(second, batch_size) == [
        s for s, i in zip(samples, data.ids, strict=True) if i not in chosen
    ]
    again, _ = open_data(hundred, model()).split(fraction, seed)
    assert again.digest == first.digest


def test_batches_are_the_same_whatever_their_size(hundred):
    data = open_data(hundred, model()).take(60, 5)
    expected = collect(data)
    for size in (2, 7, 30, 1000):
        batches = list(open_data(hundred, model()).take(60, 5).batches(size))
        assert [b.count for b in batches] == [size] * (60 // size) + ([60 % size] if 60 % size else [])
        assert collect(data, size) == expected
        np.testing.assert_array_equal(np.concatenate([b.ids for b in batches]), data.ids)


def test_subsets(hundred):
    data = open_data(hundred, model())
    assert data.take(1000, 0) is data
    assert set(data.take(5, 1).ids) < set(data.take(10, 1).ids)
    assert data.take(10, 1).digest != data.take(10, 2).digest
    some = data.take(40, 3)
    rest = data.without(some.ids)
    assert len(rest) == 60 and not set(rest.ids) & set(some.ids)
    assert len(rest.without(rest.ids)) == 0 and list(rest.without(rest.ids).batches()) == []
    assert digest_of(data.ids) == data.digest
    half, _ = data.split(0.5, 3)
    # Taking from a half with the same seed is no function of how the half was chosen.
    assert 5 < len(set(half.take(20, 3).ids) & set(some.ids)) < 20
    for call in (lambda: data.take(0, 0), lambda: data.split(0, 0), lambda: list(data.batches(0))):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(ExpruneError, match="at least 2"):
        data.take(1, 0).split(0.5, 0)


def test_digest_is_of_the_inputs_and_not_of_the_file(tmp_path):
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / "one" / "a.npz", x=rows(3))
    for i in range(3):
        np.savez(tmp_path / "many" / f"{i}.npz", x=rows(3)[i : i + 1], label=i)
    one, many = (open_data(tmp_path / name, model()) for name in ("one", "many"))
    assert one.digest == many.digest
    assert len(set(one.ids.tolist())) == 3
    np.savez(tmp_path / "one" / "a.npz", x=rows(3)[::-1])
    assert open_data(tmp_path / "one", model()).digest != one.digest


def test_the_digest_is_blake2b_of_name_type_shape_and_bytes(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(1))
    content = b"x\0<f4\0(1, 3)\0" + struct.pack("<3f", 0, 1, 2)
    digest = hashlib.blake2b(content, digest_size=8).digest()
    data = open_data(tmp_path, model())
    assert data.ids.dtype == np.uint64
    assert data.ids.tolist() == [int.from_bytes(digest, "little")]
    assert data.digest == hashlib.sha256(digest).hexdigest()


def test_one_pass_gives_the_digests(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(4))
    data = open_data(tmp_path, model())
    list(data.batches(2))
    (tmp_path / "a.npz").unlink()
    assert len(data.ids) == 4


@pytest.mark.parametrize(("per_file", "batch_size", "limit"), [(1, 2, 7), (9, 2, 18)])
def test_memory_is_one_file_and_a_batch(tmp_path, per_file, batch_size, limit):
    """In MiB, one per sample: a file and at most four times a batch, which is less than two files."""
    for i in range(4):
        np.savez(tmp_path / f"{i:02}.npz", x=np.full((per_file, 2**18), i, np.float32))
    data = open_data(tmp_path, model(("x", TensorProto.FLOAT, ["n", 2**18])))
    tracemalloc.start()
    for batch in data.batches(batch_size):
        assert batch.count
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert peak < limit
