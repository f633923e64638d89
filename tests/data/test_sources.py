"""Samples from memory and from streams: what a folder with the same arrays would give."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader

from exprune_cli.data import Data, DataSet, open_data
from exprune_cli.errors import ExpruneError, UsageError
from tests.data.test_open_data import model

X = ("x", TensorProto.FLOAT, ["n", 3])
TWO = (X, ("ids", TensorProto.INT64, ["n"]))


def items(count: int = 7) -> list[dict[str, np.ndarray]]:
    """Dicts of one, two or three samples."""
    rng = np.random.default_rng(0)
    sizes = [1 + index % 3 for index in range(count)]
    return [
        {
            "x": rng.standard_normal((size, 3)).astype(np.float32),
            "ids": rng.integers(0, 9, size),
            "label": rng.integers(0, 9, size),
        }
        for size in sizes
    ]


class Reader(CalibrationDataReader):
    """A reader as ONNX Runtime's documentation shows it."""

    def __init__(self, given: list[dict[str, np.ndarray]]) -> None:
        self.given = given
        self.left = iter(given)
        self.rewinds = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)

    def rewind(self) -> None:
        self.left = iter(self.given)
        self.rewinds += 1


class MapStyle:
    """What torch calls a map-style dataset: no ``__iter__``."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return items()[index]


def stored(folder: Path) -> DataSet:
    folder.mkdir()
    for index, item in enumerate(items()):
        np.savez(folder / f"{index}.npz", **item)
    return open_data(folder, model(*TWO))


def as_bytes(data: DataSet, batch_size: int) -> list[object]:
    return [
        ({name: value.tobytes() for name, value in batch.feeds.items()}, batch.label.tolist(), batch.count)
        for batch in data.batches(batch_size)
    ]


FORMS: dict[str, Data] = {
    "list": items(),
    "tuple": tuple(items()),
    "generator": (item for item in items()),
    "reader": Reader(items()),
    "map-style": MapStyle(),  # type: ignore[dict-item]  # read by __getitem__, which Iterable does not say
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_samples_and_splits_as_a_folder(form: str, tmp_path: Path) -> None:
    folder, memory = stored(tmp_path / "d"), open_data(FORMS[form], model(*TWO))
    assert memory.has_labels and len(memory) == len(folder) == 13
    for size in (1, 4):
        assert as_bytes(memory, size) == as_bytes(folder, size)
    assert memory.digest == folder.digest
    for ours, theirs in zip(memory.split(0.4, 3), folder.split(0.4, 3), strict=True):
        assert as_bytes(ours, 2) == as_bytes(theirs, 2)
    assert as_bytes(memory.take(5, 1), 1) == as_bytes(folder.take(5, 1), 1)
    assert as_bytes(memory.without(folder.take(5, 1).ids), 1) == as_bytes(
        folder.without(folder.take(5, 1).ids), 1
    )


def test_an_array_is_the_only_input_and_is_not_copied() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    (batch,) = open_data(x, model()).batches(4)
    assert batch.feeds["x"] is not x and np.shares_memory(batch.feeds["x"], x)
    assert [b.feeds["x"].tolist() for b in open_data(x, model()).batches()] == [[row] for row in x.tolist()]


def test_one_dict_is_one_file(tmp_path: Path) -> None:
    arrays = {"x": np.ones((5, 3), np.float32), "label": np.arange(5)}
    data = open_data(arrays, model())
    assert len(data) == 5 and data.has_labels
    assert [b.label.tolist() for b in data.batches(2) if b.label is not None] == [[0, 1], [2, 3], [4]]


def test_what_numpy_takes_for_an_array_will_do() -> None:
    """Python numbers as labels, other byte orders, lists of strings, arrays that are not contiguous."""
    big = np.arange(6, dtype=">f4").reshape(3, 2).T
    (batch,) = open_data(iter([{"x": big, "label": 3}]), model()).batches(2)
    assert batch.feeds["x"].dtype == np.dtype("=f4") and batch.feeds["x"].tolist() == big.tolist()
    words = model(("w", TensorProto.STRING, ["n"]))
    for given in ([{"w": ["a", "bc"]}], iter([{"w": np.array(["a", "bc"], object)}])):
        (batch,) = open_data(given, words).batches(2)
        assert batch.feeds["w"].tolist() == ["a", "bc"]


def test_arrays_without_elements_are_spooled() -> None:
    edges = (("x", TensorProto.FLOAT, ["n", 3]), ("edges", TensorProto.INT64, ["e", 2]))
    item = {"x": np.ones((2, 3), np.float32), "edges": np.empty((0, 2), np.int64)}
    (batch,) = open_data(iter([item]), model(*edges)).batches()
    assert batch.feeds["edges"].shape == (0, 2) and batch.feeds["x"].tolist() == item["x"].tolist()


def test_a_reader_is_rewound_before_and_after() -> None:
    reader = Reader(items())
    reader.get_next()
    assert len(open_data(reader, model(*TWO))) == 13
    assert reader.rewinds == 2 and reader.get_next() is not None


def test_memory_of_a_stream_is_that_of_an_item() -> None:
    def stream() -> Iterator[dict[str, np.ndarray]]:
        for index in range(64):
            yield {"x": np.full((1, 2**18), index, np.float32)}  # 1 MiB each

    proto = model(("x", TensorProto.FLOAT, ["n", 2**18]))
    tracemalloc.start()
    try:
        data = open_data(stream(), proto)
        total = sum(int(batch.feeds["x"][0, 0]) for batch in data.batches())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == sum(range(64))
    assert peak < 6 * 2**20


def test_the_spool_goes_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = []
    original = __import__("tempfile").TemporaryFile

    def record(*arguments: object, **options: object) -> object:
        opened.append(original(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr("exprune_cli.data.sources.tempfile.TemporaryFile", record)
    data = open_data(iter(items()), model(*TWO))
    subset = data.take(3, 0)
    del data
    gc.collect()
    assert len(list(subset.batches())) == 3
    assert not list(tmp_path.iterdir())
    del subset
    gc.collect()
    assert [file.closed for file in opened] == [True]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ExpruneError, match=r"missing: samples cannot be kept there .*set TMPDIR"):
        open_data(iter(items()), model(*TWO))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"data: is empty"),
        (iter([]), r"data: has no samples: .*no rewind"),
        ([(1, 2)], r"data\[0\]: is a tuple: give a dict of arrays by input name \('x'\)"),
        (iter([{"x": np.ones((1, 3), np.float32)}, {"y": 1}]), r"data\[1\]: unknown key 'y'"),
        ({"x": np.ones((1, 3))}, r"data: 'x' is float64, the model wants float32: .*astype"),
        (np.ones((1, 4), np.float32), r"data: 'x' has shape \[1, 4\], the model wants \[n, 3\]"),
        ([{"x": [[1, 2], [3]]}], r"data\[0\]: 'x': is no array"),
        ([{"x": np.array([None])}], r"data\[0\]: 'x': holds objects of type 'object'"),
        (
            iter([{"x": np.ones((1, 3), np.float32), "label": np.nan}]),
            r"data\[0\]: 'label' has NaN or infinite values",
        ),
        (
            [{"x": np.ones((1, 3), np.float32)}, {"x": np.ones((1, 3), np.float32), "label": 1}],
            r"data\[0\]: has no 'label'",
        ),
    ],
)
def test_what_does_not_fit_is_named(data: Data, message: str) -> None:
    with pytest.raises(ExpruneError, match=message):
        open_data(data, model())


@pytest.mark.parametrize("data", [b"x", 3, object()])
def test_other_types_are_refused(data: object) -> None:
    with pytest.raises(UsageError, match=f"object of type '{type(data).__name__}'"):
        open_data(data, model())  # type: ignore[arg-type]


def test_an_array_alone_needs_a_model_with_one_input() -> None:
    with pytest.raises(ExpruneError, match=r"data: is a ndarray: give a dict of arrays .*\('x', 'ids'\)"):
        open_data(np.ones((1, 3), np.float32), model(*TWO))


def test_low_precision_types_are_spooled() -> None:
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n", 2])],
            [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, None)],
        )
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    x = np.arange(4, dtype=np.float32).astype(dtype).reshape(2, 2)
    (batch,) = open_data(iter([{"x": x}]), proto).batches(2)
    assert batch.feeds["x"].dtype == dtype and batch.feeds["x"].tobytes() == x.tobytes()
