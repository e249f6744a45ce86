"""CIFAR-10's pickles are read, and no other pickle is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.cifar import TEST, TRAIN
from experiments.data import DataError, cifar10

ROW = 3072


def rows(n: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, ROW)).astype(np.uint8)


def write(folder: Path, protocol: int = 2, **changes: Any) -> Path:
    """The six files with two images each; `changes` replace entries of test_batch."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate((*TRAIN, *TEST)):
        content: dict[Any, Any] = {
            b"batch_label": name.encode(),
            b"labels": [number, 9 - number],
            b"data": rows(seed=number),
            b"filenames": [b"a.png", b"b.png"],
        }
        if name in TEST:
            content |= {key.encode(): value for key, value in changes.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", [1, 2, 3, 4])
@pytest.mark.parametrize("sub", ["", "cifar-10-batches-py"])
def test_the_standard_layout(tmp_path: Path, sub: str, protocol: int) -> None:
    write(tmp_path / sub, protocol)
    images = cifar10(tmp_path)
    assert (images.train_x.shape, images.test_x.shape) == ((10, 3, 32, 32), (2, 3, 32, 32))
    assert images.train_x.dtype == torch.uint8
    assert images.train_y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    np.testing.assert_array_equal(images.train_x[2:4].reshape(2, ROW).numpy(), rows(seed=1))
    assert (images.name, images.classes) == ("cifar10", 10)


def test_a_file_as_python_2_wrote_it(tmp_path: Path) -> None:
    write(tmp_path)
    raw = bytes(range(256)) * 12
    stream = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + raw + b"tb"
        b"U\x06labels]K\x07au."
    )
    (tmp_path / "test_batch").write_bytes(stream)
    images = cifar10(tmp_path)
    assert images.test_x.flatten().tolist() == list(raw)
    assert images.test_y.tolist() == [7]


def test_arrays_stored_by_column(tmp_path: Path) -> None:
    write(tmp_path, data=np.asfortranarray(rows(3)), labels=[1, 2, 3])
    np.testing.assert_array_equal(cifar10(tmp_path).test_x.reshape(3, ROW).numpy(), rows(3))


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def evil(target: Path) -> list[Any]:
    return [
        Calls(os.system, f"touch {target}"),
        Calls(eval, f"open({str(target)!r}, 'w')"),
        Calls(os.mkdir, str(target)),
        Calls(np.save, str(target), 1),
        Calls(getattr, "text", "upper"),
        torch.ones(1),
        np.array([object()], dtype=object),
    ]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_other_name_is_run(tmp_path: Path, number: int, protocol: int) -> None:
    target = tmp_path / "written"
    write(tmp_path)
    (tmp_path / "test_batch").write_bytes(
        pickle.dumps({b"data": evil(target)[number], b"labels": [1]}, protocol=protocol)
    )
    with pytest.raises(DataError, match="test_batch: .*expected a file of"):
        cifar10(tmp_path)
    assert not list(tmp_path.glob("written*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": rows().astype(np.int16)}, "not .*'u1'"),
        ({"data": rows().reshape(-1)}, "shape"),
        ({"data": rows()[:, :100]}, "shape"),
        ({"data": [1, 2]}, "AttributeError"),
        ({"labels": [1]}, "2 images and 1 labels"),
        ({"labels": [1, 10]}, "labels from 1 to 10; expected 0 to 9"),
        ({"labels": "cat"}, "expected a file"),
    ],
)
def test_content_that_is_not_cifar(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        cifar10(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1]), pickle.dumps({}), b"\x80\x02}"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_3: .*unpack that archive again"):
        cifar10(tmp_path)


def test_a_file_cut_off(tmp_path: Path) -> None:
    write(tmp_path)
    whole = (tmp_path / "test_batch").read_bytes()
    for length in (10, 1000, len(whole) - 1):
        (tmp_path / "test_batch").write_bytes(whole[:length])
        with pytest.raises(DataError, match="test_batch"):
            cifar10(tmp_path)


def test_a_folder_without_it_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        cifar10(tmp_path)
    for word in (str(tmp_path), *TRAIN, *TEST, "cifar-10-batches-py", "cifar-10-python.tar.gz"):
        assert word in str(error.value)
