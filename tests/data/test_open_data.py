"""Folders of samples: what a sample is, what is refused, and how sets are cut and batched."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from exprune_cli.data import DataSet, open_data
from exprune_cli.errors import ExpruneError

X = ("x", TensorProto.FLOAT, ["n", 3])


def model(*inputs) -> onnx.ModelProto:
    """A model with these inputs ``(name, type, shape)``; what it computes does not matter here."""
    values = [helper.make_tensor_value_info(*value) for value in inputs or (X,)]
    nodes = [helper.make_node("Identity", [v.name], [v.name + "_out"]) for v in values]
    outputs = [
        helper.make_tensor_value_info(v.name + "_out", v.type.tensor_type.elem_type, None) for v in values
    ]
    return helper.make_model(helper.make_graph(nodes, "g", values, outputs))


def rows(n: int, start: int = 0, width: int = 3) -> np.ndarray:
    return np.arange(start, start + n * width, dtype=np.float32).reshape(n, width)


def collect(data: DataSet, batch_size: int = 1) -> list[tuple[bytes, bytes | None]]:
    """Every sample's bytes and label, in order."""
    result = []
    for batch in data.batches(batch_size):
        for i in range(batch.count):
            pick = slice(i, i + 1) if batch.count > 1 else slice(None)
            feeds = b"".join(array[pick].tobytes() for array in batch.feeds.values())
            result.append((feeds, None if batch.label is None else batch.label[pick].tobytes()))
    return result


def save_pb(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array).SerializeToString())


# --- what a sample is ----------------------------------------------------------------------------


def test_rows_of_a_dynamic_axis_are_samples(tmp_path):
    np.savez(tmp_path / "b.npz", x=rows(2, 100), label=[7, 8])
    np.savez(tmp_path / "a.npz", x=rows(3), label=[1, 2, 3])
    data = open_data(tmp_path, model())
    assert (len(data), data.has_labels) == (5, True)
    batches = list(data.batches(4))
    assert [b.count for b in batches] == [4, 1]
    np.testing.assert_array_equal(batches[0].feeds["x"], np.concatenate([rows(3), rows(1, 100)]))
    np.testing.assert_array_equal(batches[0].label, [1, 2, 3, 7])
    assert batches[0].where == f"{tmp_path / 'a.npz'}, sample 0 to {tmp_path / 'b.npz'}, sample 0"


def test_single_sample_files_are_batched_and_a_scalar_label_is_enough(tmp_path):
    for i in range(5):
        np.savez(tmp_path / f"{i}.npz", x=rows(1, 10 * i), label=np.int64(i))
    batches = list(open_data(tmp_path, model()).batches(2))
    assert [b.label.tolist() for b in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0].feeds["x"].shape == (2, 3)


def test_shapes_that_differ_are_never_in_one_batch(tmp_path):
    for i, width in enumerate([4, 4, 5, 4]):
        np.savez(tmp_path / f"{i}.npz", x=rows(2, i, width))
    data = open_data(tmp_path, model(("x", TensorProto.FLOAT, ["n", "w"])))
    assert [b.feeds["x"].shape for b in data.batches(8)] == [(4, 4), (2, 5), (2, 4)]


def test_static_batch_divides_files_into_runs(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(6), label=np.arange(6))
    data = open_data(tmp_path, model(("x", TensorProto.FLOAT, [2, 3])))
    assert len(data) == 3
    batches = list(data.batches(8))
    assert [b.feeds["x"].shape for b in batches] == [(2, 3)] * 3
    assert [b.label.tolist() for b in batches] == [[0, 1], [2, 3], [4, 5]]
    assert len(set(data.ids.tolist())) == 3


@pytest.mark.parametrize(
    "shapes",
    [(["n", 3], ["m", 3]), (["n", 3], [None, 3]), (["n", 3], [4, 3]), (["n", 3], []), ([2, 3], [4, 3])],
    ids=["symbols", "named-and-not", "dynamic-and-static", "scalar", "two-static"],
)
def test_anything_else_is_one_sample_per_file(tmp_path, shapes):
    inputs = [(name, TensorProto.FLOAT, shape) for name, shape in zip("xy", shapes, strict=True)]
    arrays = {
        name: np.zeros([4 if isinstance(d, str) or d is None else d for d in shape], np.float32)
        for name, _, shape in inputs
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **arrays)
    data = open_data(tmp_path, model(*inputs))
    assert len(data) == 2
    assert [b.count for b in data.batches(8)] == [1, 1]


def test_all_unnamed_first_dimensions_are_one_batch_axis(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(4), y=rows(4))
    inputs = [(name, TensorProto.FLOAT, [None, 3]) for name in "xy"]
    assert [b.count for b in open_data(tmp_path, model(*inputs)).batches(3)] == [3, 1]


def test_label_of_another_length_makes_the_file_one_sample(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(4), label=np.arange(7))
    data = open_data(tmp_path, model())
    assert len(data) == 1
    (batch,) = data.batches(8)
    assert batch.feeds["x"].shape == (4, 3) and batch.label.shape == (7,)


def test_label_of_another_length_in_a_file_with_one_row(tmp_path):
    for i in range(2):
        np.savez(tmp_path / f"{i}.npz", x=rows(1, i), label=np.arange(5))
    assert [b.label.tolist() for b in open_data(tmp_path, model()).batches(2)] == [[0, 1, 2, 3, 4]] * 2


def test_npy_protobuf_and_npz_hold_the_same_samples(tmp_path):
    for name in ("npz", "npy", "pb"):
        (tmp_path / name).mkdir()
    np.savez_compressed(tmp_path / "npz" / "a.npz", x=rows(4))
    np.save(tmp_path / "npy" / "a.npy", np.asfortranarray(rows(4).astype(">f4")))
    save_pb(tmp_path / "pb" / "test_data_set_0" / "input_0.pb", rows(4))
    save_pb(tmp_path / "pb" / "test_data_set_0" / "output_0.pb", rows(1))
    sets = [open_data(tmp_path / name, model()) for name in ("npz", "npy", "pb")]
    assert len({data.digest for data in sets}) == 1
    assert collect(sets[0], 3) == collect(sets[1], 3) == collect(sets[2], 3)


def test_protobufs_follow_the_order_of_the_inputs_that_are_no_initializers(tmp_path):
    proto = model(
        ("x", TensorProto.FLOAT, ["n"]), ("w", TensorProto.FLOAT, [1]), ("y", TensorProto.INT64, ["n"])
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    save_pb(tmp_path / "test_data_set_0" / "input_0.pb", np.ones(2, np.float32))
    save_pb(tmp_path / "test_data_set_0" / "input_1.pb", np.arange(2))
    (batch,) = open_data(tmp_path, proto).batches(2)
    assert {name: array.dtype for name, array in batch.feeds.items()} == {"x": np.float32, "y": np.int64}


def test_an_input_called_label_is_an_input(tmp_path):
    np.savez(tmp_path / "a.npz", label=rows(2))
    data = open_data(tmp_path, model(("label", TensorProto.FLOAT, ["n", 3])))
    assert not data.has_labels and next(data.batches(2)).feeds["label"].shape == (2, 3)


def test_strings_can_be_fed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array(["a", "bc"]))
    assert len(open_data(tmp_path, model(("x", TensorProto.STRING, ["n"]))).ids) == 2


def test_hidden_files_and_others_are_ignored(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(1))
    (tmp_path / ".b.npz").write_bytes(b"?")
    (tmp_path / "README.md").write_text("where the data comes from")
    assert len(open_data(tmp_path, model())) == 1


# --- what is refused -----------------------------------------------------------------------------


def refuse(path: Path, match: str, *inputs) -> str:
    with pytest.raises(ExpruneError, match=match) as error:
        data = open_data(path, model(*inputs))
        list(data.batches(2))
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    return text


def test_bad_folders(tmp_path):
    refuse(tmp_path / "none", "no such folder")
    refuse(tmp_path, "has no samples")
    np.save(tmp_path / "a.npy", rows(1))
    refuse(tmp_path / "a.npy", "is a file: data takes the folder")
    two = [("x", TensorProto.FLOAT, ["n", 3]), ("y", TensorProto.FLOAT, ["n", 3])]
    refuse(tmp_path, r"one input, this one has 2 \('x', 'y'\)", *two)
    np.savez(tmp_path / "a.npz", x=rows(1))
    refuse(tmp_path, r"mixes \*.npz and \*.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": rows(1), "xx": rows(1)}, "unknown key 'xx': did you mean 'x'"),
        ({"x": rows(1), "quux": rows(1)}, "unknown key 'quux': the model's inputs are 'x'"),
        ({"label": [1]}, r"has no array 'x' \(it holds 'label'\): the model needs 'x'"),
        ({}, r"has no array 'x' \(it holds nothing\)"),
        ({"x": rows(1).astype("f8")}, "'x' is float64, the model wants float32"),
        ({"x": rows(1)[0]}, r"'x' has 1 dimensions \[3\], the model wants 2 \[n, 3\]: add the batch axis"),
        ({"x": rows(1)[None]}, r"'x' has 3 dimensions \[1, 1, 3\], the model wants 2"),
        ({"x": rows(2, 0, 4)}, r"has shape \[2, 4\], the model wants \[n, 3\]: axis 1 must be 3"),
        ({"x": rows(0)}, r"has no samples \(its arrays' first size is 0\)"),
        ({"x": rows(2), "label": [1.0, np.nan]}, "'label' has NaN or infinite values"),
        ({"x": rows(2), "label": ["a", "b"]}, "labels must be numbers"),
        ({"x": np.array([[1, 2, "a"]], object)}, "'x': holds pickled objects, which are never loaded"),
        ({"x": rows(1), "label": np.array([object()])}, "'label': holds pickled objects"),
        ({"x": np.zeros((1, 3), "f4,i4")}, "structured type"),
    ],
)
def test_bad_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    refuse(tmp_path, message)


def test_static_sizes_that_do_not_fit(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(5))
    refuse(tmp_path, "axis 0 must be 2 or a multiple of it", ("x", TensorProto.FLOAT, [2, 3]))
    np.savez(tmp_path / "a.npz", x=rows(4), label=[1, 2])
    refuse(tmp_path, "disagree about the number of samples .*'label' ", ("x", TensorProto.FLOAT, [2, 3]))


def test_labels_in_some_files_only(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(1), label=[1])
    np.savez(tmp_path / "b.npz", x=rows(1))
    assert "b.npz" in refuse(tmp_path, "has no 'label', but other files have")


def test_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    np.save(tmp_path / "a.npy", np.array([Bomb()], object), allow_pickle=True)
    refuse(tmp_path, "pickled objects")
    assert not (tmp_path / "ran").exists()


def test_zip_that_holds_more_than_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    refuse(tmp_path, "holds 'notes.txt', which is no array")
    content = io.BytesIO()
    np.save(content, rows(1))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content.getvalue())
        with pytest.warns(UserWarning):
            archive.writestr("x.npy", content.getvalue())
    refuse(tmp_path, "holds 'x' twice")


@pytest.mark.parametrize("shape", [(1000000000, 3), (2, 3), (-1, -3), (2**62, 2**62, 0)])
def test_size_that_is_a_lie(tmp_path, shape):
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(rows(1).tobytes())
    refuse(tmp_path, "is damaged" if 0 in shape else "damaged or cut short")


def test_bad_protobufs(tmp_path):
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    refuse(tmp_path, "has no input_0.pb: it belongs to the model's input 'x'")
    (folder / "input_0.pb").write_bytes(b"\xff\xff")
    refuse(tmp_path, "damaged or cut short")
    tensor = numpy_helper.from_array(rows(2))
    tensor.dims[0] = 3
    (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    refuse(tmp_path, "damaged or cut short")
    tensor = TensorProto(dims=[1, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    refuse(tmp_path, "keeps its data in another file")
    save_pb(folder / "input_0.pb", rows(1))
    save_pb(folder / "input_1.pb", rows(1))
    refuse(tmp_path, "has input_1.pb, but the model has 1 inputs")


def test_file_that_changes_after_opening(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(2))
    data = open_data(tmp_path, model())
    np.savez(tmp_path / "a.npz", x=rows(3))
    with pytest.raises(ExpruneError, match="changed while it was being used"):
        list(data.batches())
    (tmp_path / "a.npz").unlink()
    with pytest.raises(ExpruneError, match=r"a.npz: cannot be read"):
        list(data.batches())


def test_model_that_cannot_be_fed(tmp_path):
    proto = model()
    del proto.graph.input[:]
    with pytest.raises(ExpruneError, match="no inputs"):
        open_data(tmp_path, proto)
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    proto.graph.input.append(sequence)
    with pytest.raises(ExpruneError, match="'s' is no tensor"):
        open_data(tmp_path, proto)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["npz", "npy", "pb"]), data=st.data())
def test_damaged_files_give_one_line(tmp_path, kind, data):
    for old in tmp_path.rglob("*.*"):
        old.unlink()
    path = tmp_path / f"a.{kind}" if kind != "pb" else tmp_path / "test_data_set_0" / "input_0.pb"
    if kind == "npz":
        np.savez_compressed(path, x=rows(3), label=[1, 2, 3])
    elif kind == "npy":
        np.save(path, rows(3))
    else:
        save_pb(path, rows(3))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for batch in open_data(tmp_path, model()).batches(2):
            assert batch.feeds["x"].shape == (batch.count, 3)
    except ExpruneError as error:
        assert "\n" not in str(error)
