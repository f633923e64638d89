"""Weights in other files: nothing outside the model's folder is read, nothing is read that does not fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exprune_cli.errors import ExpruneError
from exprune_cli.model import load
from exprune_cli.structure import all_tensors
from tests.hostile.conftest import Fails
from tests.models import mlp, run

WEIGHT_BYTES = 4 * 96 * 64


def _outside(tensor: onnx.TensorProto, location: str, **more: object) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model whose first weight is said to be at a location; ``w.bin`` holds it."""

    def write(location: str, **more: object) -> Path:
        folder = tmp_path / "models"
        folder.mkdir(exist_ok=True)
        proto = mlp()
        weight = proto.graph.initializer[0]
        (folder / "w.bin").write_bytes(weight.raw_data)
        (tmp_path / "secret.bin").write_bytes(weight.raw_data)
        _outside(weight, location, **more)
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        return folder / "m.onnx"

    return write


Write = Callable[..., Path]


def test_weights_beside_the_model(model: Write) -> None:
    loaded = load(model("w.bin"))
    x = np.ones((2, loaded.proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value), np.float32)
    assert loaded.external
    np.testing.assert_array_equal(run(loaded.proto, x=x)[0], run(mlp(), x=x)[0])


def test_weights_in_a_folder_below(model: Write) -> None:
    path = model("below/w.bin")
    (path.parent / "below").mkdir()
    (path.parent / "w.bin").rename(path.parent / "below" / "w.bin")
    assert load(path).external


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("../secret.bin", "leads out of the model's folder"),
        ("below/../../secret.bin", "leads out of the model's folder"),
        ("..\\secret.bin", "leads out of the model's folder"),
        ("/etc/hostname", "is an absolute path"),
        ("C:\\secret.bin", "is an absolute path"),
        ("\\\\server\\share", "is an absolute path"),
        ("*/_ORT_MEM_ADDR_/*", "No such file"),
        ("", "names no file"),
        ("w.bin\0x", "names no file"),
        (".", "cannot be loaded"),
        ("missing.bin", "No such file"),
    ],
)
def test_places_that_are_not_read(model: Write, location: str, expected: str) -> None:
    with pytest.raises(ExpruneError, match="cannot be loaded") as caught:
        load(model(location))
    assert expected in str(caught.value)


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "linked folder", "pipe", "device"])
def test_what_is_no_file_of_the_folder(model: Write, tmp_path: Path, kind: str) -> None:
    path = model("x.bin" if kind != "linked folder" else "below/secret.bin")
    place = path.parent / "x.bin"
    if kind == "symbolic link":
        place.symlink_to("w.bin")  # even where it stays inside
    elif kind == "hard link":
        os.link(tmp_path / "secret.bin", place)
    elif kind == "linked folder":
        (path.parent / "below").symlink_to(tmp_path)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        try:
            os.mknod(place, 0o666 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root makes devices")
    with pytest.raises(ExpruneError, match="is a link|hard links|no regular file"):
        load(path)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"offset": -4}, "no count of bytes"),
        ({"length": -4}, "no count of bytes"),
        ({"offset": "1e3"}, "no count of bytes"),
        ({"offset": "٣"}, "no count of bytes"),
        ({"length": 2**80}, "no count of bytes"),
        ({"offset": 2**58}, "takes"),
        ({"offset": 4}, "takes"),
        ({"offset": 4, "length": WEIGHT_BYTES}, "has"),
        ({"length": WEIGHT_BYTES - 4}, "takes"),
        ({"length": 2**50}, "takes"),
    ],
)
def test_offsets_and_lengths(model: Write, numbers: dict[str, object], expected: str) -> None:
    path = model("w.bin", **numbers)
    with pytest.raises(ExpruneError, match="cannot be loaded") as caught:
        load(path)
    assert expected in str(caught.value)


def test_more_than_the_memory_is_refused_before_it_is_read(
    model: Write, refuses: Fails, tmp_path: Path
) -> None:
    proto = onnx.load(model("w.bin"), load_external_data=False)
    size = 2**33
    with (tmp_path / "hole.bin").open("wb") as file:
        file.truncate(4 * size)
    proto.graph.initializer[0].dims[:] = [size // 128, 128]
    _outside(proto.graph.initializer[0], "hole.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert "of memory" in refuses("report", "m.onnx")


@pytest.mark.parametrize(
    "place",
    [
        "subgraph",
        "attribute",
        "attribute list",
        "sparse",
        "sparse attribute",
        "function",
        "function's subgraph",
    ],
)
def test_tensors_in_every_place_are_looked_at(tmp_path: Path, place: str) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "t")
    _outside(tensor, "../secret.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    proto = mlp()
    sparse = onnx.SparseTensorProto(values=tensor, dims=[9])
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4), "i"))
    inner = helper.make_graph([helper.make_node("Identity", ["t"], ["o"])], "s", [], [], [tensor])
    branch = helper.make_node("If", ["c"], ["o"], then_branch=inner)
    constant = helper.make_node("Constant", [], ["o"], value=tensor)
    if place == "subgraph":
        proto.graph.node.append(branch)
    elif place == "attribute":
        proto.graph.node.append(constant)
    elif place == "attribute list":
        proto.graph.node.append(helper.make_node("Own", [], ["o"], domain="own", values=[tensor]))
    elif place == "sparse":
        proto.graph.sparse_initializer.append(sparse)
    elif place == "sparse attribute":
        proto.graph.node.append(helper.make_node("Constant", [], ["o"], sparse_value=sparse))
    else:
        nodes = [constant if place == "function" else branch]
        proto.functions.append(
            helper.make_function("own", "F", [], ["o"], nodes, [helper.make_opsetid("", 17)])
        )
    assert sum(t.data_location == onnx.TensorProto.EXTERNAL for t in all_tensors(proto)) == 1
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ExpruneError, match="leads out of the model's folder"):
        load(tmp_path / "models" / "m.onnx")
    with pytest.raises(ExpruneError, match="in another file"):
        load(proto)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_model_that_is_no_file(refuses: Fails, tmp_path: Path, kind: str) -> None:
    name = "m.onnx"
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "folder":
        (tmp_path / name).mkdir()
    else:
        name = "/dev/zero"
    assert "cannot be read" in refuses("report", name, seconds=20)
