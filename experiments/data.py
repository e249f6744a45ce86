"""The data sets of the experiments: IDX files such as MNIST's, scikit-learn's digits, CIFAR-10."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments import sources
from experiments.cifar import cifar10
from experiments.images import DataError, Images, check_labels, standardise, train_validation

__all__ = [
    "DataError",
    "Images",
    "cifar10",
    "digits",
    "download_mnist",
    "mnist",
    "read_idx",
    "standardise",
    "train_validation",
]

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""The four files of MNIST and the checksums of their gzip archives."""


def read_idx(path: Path | str) -> Tensor:
    """The tensor in an IDX file, plain or gzip (seen from its first bytes, not its name).

    The format: two zero bytes, a byte for the type, a byte for the number of dimensions, each dimension
    as a big-endian 32-bit number, the entries. Raises `DataError`, naming the file, if it is missing,
    damaged, too short or too long.
    """
    path = Path(path)
    raw = _content(path)
    dtype, shape, start = _header(path, raw)
    found, expected = len(raw) - start, math.prod(shape) * dtype.itemsize
    if found != expected:
        raise DataError(
            f"{path}: {found} bytes of entries; expected {expected} for shape {shape}; "
            f"the file is {'truncated' if found < expected else 'too long'}, get it again."
        )
    entries = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return torch.from_numpy(entries.astype(dtype.newbyteorder("=")))


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise DataError(
            f"{path}: the gzip archive is damaged ({problem}); expected a whole one; get the file again."
        ) from None
    except OSError as problem:
        raise DataError(f"{path}: {problem.strerror}; expected an IDX file that can be read.") from None
    sources.note(path, raw)
    return raw


def _header(path: Path, raw: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """Type, shape and place of the first entry."""
    rank = raw[3] if len(raw) >= 4 else 0
    start = 4 + 4 * rank
    if raw[:2] != b"\0\0" or len(raw) < start or raw[2] not in IDX_TYPES or rank == 0:
        raise DataError(
            f"{path}: starts with the bytes {raw[:4].hex(' ') or '(none)'} and has {len(raw)} of them; "
            "expected an IDX file: 00 00, a type, a number of dimensions, and these; get the file again."
        )
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=rank, offset=4))
    return np.dtype(IDX_TYPES[raw[2]]), shape, start


def mnist(data_dir: Path | str) -> Images:
    """MNIST, or a set in its format with labels 0 to 9, from `data_dir` or its subfolder MNIST/raw.

    Reads the four standard names, with or without .gz. Pixels are (n, 28, 28) uint8. Raises `DataError`
    for a missing or damaged file and for labels that do not fit the images. Source: LeCun, Cortes and
    Burges, The MNIST database of handwritten digits.
    """
    paths = _find(Path(data_dir), tuple(MNIST_SHA256))
    train_x, train_y = _labelled(*paths[:2])
    test_x, test_y = _labelled(*paths[2:])
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(
            f"{data_dir}: training images of {tuple(train_x.shape[1:])} pixels and test images of "
            f"{tuple(test_x.shape[1:])}; expected one size; take all files from the same download."
        )
    return Images(train_x, train_y, test_x, test_y, name="mnist", classes=10)


def _find(folder: Path, names: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        places = [place / (name + end) for place in (folder, folder / "MNIST" / "raw") for end in ("", ".gz")]
        found += [path for path in places if path.is_file()][:1]
    if len(found) == len(names):
        return found
    missing = [name for name in names if not any(path.name.removesuffix(".gz") == name for path in found)]
    state = "exists without" if folder.is_dir() else "is no folder with"
    raise DataError(
        f"{folder} {state} {', '.join(missing)}; expected the files {', '.join(names)}, each plain or with "
        ".gz, there or in MNIST/raw/; give their folder as --data-dir, or download them with --download."
    )


def _labelled(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    x, y = read_idx(images), read_idx(labels)
    for path, tensor, rank in ((images, x, 3), (labels, y, 1)):
        if tensor.dtype != torch.uint8 or tensor.dim() != rank:
            raise DataError(
                f"{path}: {tensor.dtype} of shape {tuple(tensor.shape)}; expected bytes with {rank} "
                "dimension(s); take images and labels from the files of their names."
            )
    check_labels(f"{images} and {labels}", x, y.long(), classes=10)
    return x, y.long()


def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, values 0 to 16, without a download.

    The split is fixed and stratified: of each class, in the order of the data set, images 2, 7, 12, ...
    (counted from 0) are the test set, 359 in all; 1,438 train. Raises `DataError` without scikit-learn.
    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the digits come with scikit-learn, which is missing; install scikit-learn."
        ) from None
    data = load_digits()
    x, y = torch.from_numpy(data.images.astype(np.uint8)), torch.from_numpy(data.target.astype(np.int64))
    test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(10):
        test[(y == label).nonzero().flatten()[2::5]] = True
    return Images(x[~test], y[~test], x[test], y[test], name="digits", classes=10)


def download_mnist(folder: Path | str) -> Path:
    """Fetch what is missing of MNIST's four archives into `folder`, check them, and return the folder.

    An archive whose SHA-256 is not the known one is never left under its name. Raises `DataError` if the
    network, the mirror or the disk fails.
    """
    try:
        import pooch
    except ImportError:
        raise DataError("--download needs the package pooch, which is missing; install pooch.") from None
    for name, digest in MNIST_SHA256.items():
        url = f"{MIRROR}{name}.gz"
        try:
            pooch.retrieve(url, f"sha256:{digest}", fname=f"{name}.gz", path=folder, progressbar=True)
        except (OSError, ValueError) as problem:
            raise DataError(
                f"{url} could not be fetched: {problem}; expected a file of known checksum; check the "
                "network, or put the four files into a folder and give it as --data-dir."
            ) from None
    return Path(folder)
