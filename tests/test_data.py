"""Reading data sets: what is whole is read exactly, and what is not is refused by name."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ash.checks import UserError
from experiments import data
from experiments.data import (
    DataError,
    Images,
    digits,
    download_mnist,
    mnist,
    read_idx,
    standardise,
    train_validation,
)

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx(array: np.ndarray, dtype: str = "u1") -> bytes:
    """`array` as the content of an IDX file."""
    head = bytes([0, 0, CODES[dtype], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(dtype).tobytes()


def write_mnist(folder: Path, end: str = "", train: int = 7, test: int = 3, side: int = 28) -> Path:
    """A tiny data set with the four standard names."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        contents = {
            f"{part}-images-idx3-ubyte": random.integers(0, 256, (n, side, side)),
            f"{part}-labels-idx1-ubyte": np.arange(n) % 10,
        }
        for name, array in contents.items():
            raw = idx(array)
            (folder / (name + end)).write_bytes(gzip.compress(raw) if end else raw)
    return folder


@given(st.sampled_from(sorted(CODES)), st.data())
def test_idx_of_any_type_and_shape(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, draw: st.DataObject
) -> None:
    shape = draw.draw(arrays.array_shapes(max_dims=4, min_side=0, max_side=4))
    array = draw.draw(arrays.arrays(np.dtype(dtype).newbyteorder("="), shape))
    path = tmp_path_factory.mktemp("idx") / "file"
    for content in (idx(array, dtype), gzip.compress(idx(array, dtype))):
        path.write_bytes(content)
        tensor = read_idx(path)
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_an_idx_file_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes([0, 0, 0x0B, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0x01, 0x02, 0xFF, 0xFE]))
    assert read_idx(path).tolist() == [[258], [-2]]


WHOLE = idx(np.arange(24).reshape(2, 3, 4))
PACKED = gzip.compress(WHOLE)
BROKEN = {
    "empty": (b"", "starts with the bytes \\(none\\)"),
    "one byte short": (WHOLE[:-1], "23 bytes of entries; expected 24.*truncated"),
    "one byte long": (WHOLE + b"\0", "25 bytes of entries; expected 24.*too long"),
    "no entries": (WHOLE[:16], "0 bytes of entries; expected 24"),
    "half a header": (WHOLE[:9], "expected an IDX file"),
    "another magic": (b"\x01" + WHOLE[1:], "expected an IDX file"),
    "unknown type": (WHOLE[:2] + b"\x0a" + WHOLE[3:], "expected an IDX file"),
    "no dimension": (b"\0\0\x08\0", "expected an IDX file"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "expected an IDX file"),
    "huge dimensions": (bytes([0, 0, 8, 4]) + b"\xff" * 16, "0 bytes of entries; expected"),
    "gzip cut off": (PACKED[:-9], "gzip archive is damaged"),
    "gzip header only": (PACKED[:5], "gzip archive is damaged"),
    "gzip flipped": (PACKED[:-6] + bytes([PACKED[-6] ^ 1]) + PACKED[-5:], "gzip archive is damaged"),
    "gzip of half": (gzip.compress(WHOLE[:-4]), "20 bytes of entries; expected 24.*truncated"),
    "gzip and more": (PACKED + b"more", "gzip archive is damaged"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_idx_file_is_named(tmp_path: Path, damage: str) -> None:
    content, message = BROKEN[damage]
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)
    assert "; expected" in str(error.value)


@given(st.integers(0, len(PACKED) - 1))
def test_a_gzip_archive_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "file.gz"
    path.write_bytes(PACKED[:length])
    with pytest.raises(DataError, match="expected"):
        read_idx(path)


def test_an_idx_file_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="expected an IDX file that can be read"):
            read_idx(path)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("sub", ["", "MNIST/raw"])
def test_mnist_is_found_and_read(tmp_path: Path, sub: str, end: str) -> None:
    write_mnist(tmp_path / sub, end)
    images = mnist(tmp_path)
    assert (images.train_x.shape, images.test_x.shape) == ((7, 28, 28), (3, 28, 28))
    assert (images.train_x.dtype, images.train_y.dtype) == (torch.uint8, torch.int64)
    assert images.train_y.tolist() == list(range(7))
    assert (images.name, images.classes) == ("mnist", 10)
    first = np.random.default_rng(0).integers(0, 256, (7, 28, 28))
    np.testing.assert_array_equal(images.train_x.numpy(), first)


def test_an_empty_or_missing_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError) as error:
            mnist(folder)
        for word in (str(folder), *data.MNIST_SHA256, ".gz", "MNIST/raw", "--data-dir", "--download"):
            assert word in str(error.value)


def test_the_missing_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="exists without t10k-labels-idx1-ubyte; expected"):
        mnist(tmp_path)


MISFITS = {
    "too few labels": ("train-labels-idx1-ubyte", np.arange(6), "7 images and 6 labels"),
    "a label too large": (
        "t10k-labels-idx1-ubyte",
        np.array([0, 10, 2]),
        "labels from 0 to 10; expected 0 to 9",
    ),
    "labels that are images": (
        "train-labels-idx1-ubyte",
        np.zeros((7, 2)),
        "expected bytes with 1 dimension",
    ),
    "images that are labels": ("train-images-idx3-ubyte", np.zeros(7), "expected bytes with 3 dimension"),
    "another size": ("t10k-images-idx3-ubyte", np.zeros((3, 8, 8)), "expected one size"),
    "no image": ("t10k-images-idx3-ubyte", np.zeros((0, 28, 28)), "0 images and 3 labels"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_files_that_do_not_fit_each_other(tmp_path: Path, misfit: str) -> None:
    name, array, message = MISFITS[misfit]
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(idx(array))
    with pytest.raises(DataError, match=message):
        mnist(tmp_path)


def test_images_of_another_type(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((7, 28, 28)), ">f4"))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: torch\.float32.*expected bytes"):
        mnist(tmp_path)


def test_digits_are_split_once_and_evenly() -> None:
    images = digits()
    assert (len(images.train_x), len(images.test_x)) == (1438, 359)
    assert images.train_x.shape[1:] == (8, 8)
    assert (int(images.train_x.min()), int(images.train_x.max())) == (0, 16)
    for label in range(10):
        train, test = ((y == label).sum().item() for y in (images.train_y, images.test_y))
        assert abs(test - (train + test) / 5) < 1
    assert torch.equal(digits().test_x, images.test_x)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="install scikit-learn"):
        digits()


def some(n: int = 40, shape: tuple[int, ...] = (4, 4)) -> Images:
    x = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x[:, ..., 0] = 9
    return Images(x, torch.arange(n), x[:5], torch.arange(5), name="some", classes=n)


def test_the_validation_part_is_a_partition_by_seed() -> None:
    images = some()
    split = train_validation(images, 0.25, seed=1)
    assert (len(split.train_x), len(split.validation_x)) == (30, 10)
    both = torch.cat([split.train_y, split.validation_y])
    assert both.sort().values.tolist() == list(range(40))
    assert torch.equal(images.train_x[split.validation_y], split.validation_x)
    assert torch.equal(images.train_x[split.train_y], split.train_x)
    assert torch.equal(split.test_x, images.test_x)
    assert torch.equal(train_validation(images, 0.25, seed=1).validation_y, split.validation_y)
    assert not torch.equal(train_validation(images, 0.25, seed=2).validation_y, split.validation_y)


def test_the_split_leaves_the_default_generator_alone() -> None:
    before = torch.get_rng_state()
    train_validation(some(), 0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.001])
def test_a_fraction_that_leaves_a_side_empty(fraction: float) -> None:
    with pytest.raises(UserError, match="expected at least one image on both sides"):
        train_validation(some(), fraction, seed=0)


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4)])
def test_standardise_by_the_training_part_alone(shape: tuple[int, ...]) -> None:
    images = train_validation(some(shape=shape), 0.25, seed=0)
    result = standardise(images)
    dims = (0, 1, 2) if len(shape) == 2 else (0, 2, 3)
    x = images.train_x.double()
    mean, std = x.mean(dims, keepdim=True), x.std(dims, correction=0, keepdim=True)
    for part in ("train_x", "test_x", "validation_x"):
        expected = ((getattr(images, part) - mean) / std).float()
        assert getattr(result, part).dtype == torch.float32
        torch.testing.assert_close(getattr(result, part), expected)
    assert images.train_x.dtype == torch.uint8


def test_standardise_of_one_value_is_zero() -> None:
    x = torch.full((3, 2, 2), 7, dtype=torch.uint8)
    result = standardise(Images(x, torch.zeros(3), x, torch.zeros(3), name="flat"))
    assert not result.train_x.any()
    assert not result.validation_x.numel()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a server on this machine offers in the place of the mirror."""
    folder = write_mnist(tmp_path / "mirror", ".gz")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(data, "MIRROR", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sums = {n: hashlib.sha256((folder / f"{n}.gz").read_bytes()).hexdigest() for n in data.MNIST_SHA256}
    monkeypatch.setattr(data, "MNIST_SHA256", sums)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(tmp_path: Path, mirror: Path) -> None:
    target = tmp_path / "data"
    assert download_mnist(target) == target
    assert torch.equal(mnist(target).train_x, mnist(mirror).train_x)
    (mirror / "t10k-labels-idx1-ubyte.gz").unlink()
    assert download_mnist(target) == target


def test_a_download_that_was_tampered_with(tmp_path: Path, mirror: Path) -> None:
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz could not be fetched.*checksum"):
        download_mnist(tmp_path / "data")
    assert not (tmp_path / "data" / "t10k-images-idx3-ubyte.gz").exists()


def test_a_download_without_a_file(tmp_path: Path, mirror: Path) -> None:
    (mirror / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="could not be fetched.*404.*--data-dir"):
        download_mnist(tmp_path / "data")


def test_a_download_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MIRROR", "http://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match="could not be fetched.*check the network"):
        download_mnist(tmp_path / "data")


def test_a_download_without_pooch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match="install pooch"):
        download_mnist(tmp_path)
