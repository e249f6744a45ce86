"""The experiment `sparse_conv`: its images, its networks, whole runs, resuming, judging, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ash import SparseConv2d, SparseLinear
from experiments import conv_training, sparse_conv
from experiments.__main__ import main
from experiments.conv_training import Network, Row
from experiments.image_source import InMemory, PictureFolder, shifted
from experiments.images import DataError, Images
from experiments.resnets import resnet
from experiments.runs import Run
from experiments.sparse_conv import Options


def start(out: Path, *arguments: object) -> int:
    return main(["sparse_conv", "--quick", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    assert start(out) == 0
    return out


# --- images --------------------------------------------------------------------------------------------


def test_shifted_images_are_those_images_moved_and_flipped() -> None:
    x = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4).expand(200, 2, 3, 4) * torch.tensor([1.0, 9.0]).reshape(1, 2, 1, 1)
    moved = shifted(x, 1)
    padded = nn.functional.pad(x[0], (1,) * 4)
    places = [(down, right) for down in range(3) for right in range(3)]
    windows = [padded[:, down : down + 3, right : right + 4] for down, right in places]
    # A flipped image is padded after it is flipped, so these are the windows of the flipped padding.
    possible = {tuple(each.flatten().tolist()) for window in windows for each in (window, window.flip(2))}
    found = {tuple(each.flatten().tolist()) for each in moved}
    assert found == possible
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(shifted(x, 0).sum(), x.sum())


def test_images_in_memory_come_once_each() -> None:
    x = torch.arange(10.0).reshape(10, 1, 1).expand(10, 8, 8)
    y = torch.arange(10)
    source = InMemory(Images(x, y, x[:3], y[:3], name="ten"), False, torch.device("cpu"))
    assert (source.channels, source.size, source.classes, source.steps(4)) == (1, 8, 10, 3)
    batches = list(source.train(source.order().split(4)))
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(10))
    assert all(torch.equal(images[:, 0, 0, 0].long(), labels) for images, labels in batches)
    assert [labels.tolist() for _, labels in source.test()] == [[0, 1, 2]]


def pictures(folder: Path, parts: tuple[str, ...] = ("train", "val"), classes: tuple[str, ...] = ("cat", "dog")) -> Any:
    """Pictures of one colour for each class, of several sizes."""
    for part in parts:
        for label, name in enumerate(classes):
            place = folder / part / name
            place.mkdir(parents=True)
            for i, size in enumerate([(90, 70), (70, 120)]):
                colour = np.full((*size, 3), 60 + 120 * label, dtype=np.uint8)
                Image.fromarray(colour).save(place / f"{i}.png")
    return folder


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    source = PictureFolder(pictures(tmp_path), torch.device("cpu"), size=66, workers=0)
    assert (source.classes, source.train_images, source.steps(3)) == (2, 4, 2)
    for batches in (list(source.train(source.order().split(3))), list(source.test())):
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert x.shape == (4, 3, 66, 66) and sorted(y.tolist()) == [0, 0, 1, 1]
        expected = ((60 + 120 * y.float()) / 255).reshape(-1, 1, 1)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        assert torch.allclose(x.mean((2, 3)).unsqueeze(1), (expected - mean) / std, atol=1e-5)
    model = resnet("resnet18", 3, 2, 66, 2)
    assert model(source._train[0, 7][0].unsqueeze(0).expand(2, 3, 66, 66)).shape == (2, 2)


def test_crops_are_the_same_whoever_makes_them_and_where_a_pass_goes_on(tmp_path: Path) -> None:
    pictures(tmp_path)
    for path in tmp_path.rglob("*.png"):
        Image.effect_noise((90, 70), 50).save(path)
    sources = [PictureFolder(tmp_path, torch.device("cpu"), size=20, workers=n) for n in (0, 2)]
    parts = sources[0].order().split(1)
    state = torch.get_rng_state()
    alone, two = (torch.cat([x for x, _ in source.train(parts)]) for source in sources)
    rest = torch.cat([x for x, _ in sources[1].train(parts[2:])])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(alone, two) and torch.equal(rest, alone[2:])
    again = next(sources[0].train(sources[0].order().split(4)))
    assert not torch.equal(again[0], alone)


@pytest.mark.parametrize(
    ("parts", "classes", "message"),
    [
        (("train",), ("cat", "dog"), "val holds 0 folders"),
        (("train", "val"), ("cat",), "holds 1 folders; expected one for each of at least 2"),
    ],
)
def test_bad_folders(tmp_path: Path, parts: tuple[str, ...], classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PictureFolder(pictures(tmp_path, parts, classes), torch.device("cpu"))


def test_folders_with_other_classes_or_without_pictures(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "val" / "cow").mkdir()
    with pytest.raises(DataError, match="hold other classes"):
        PictureFolder(tmp_path, torch.device("cpu"))
    (tmp_path / "train" / "cow").mkdir()
    for path in tmp_path.glob("val/*/*.png"):
        path.unlink()
    with pytest.raises(DataError, match="val holds no pictures"):
        PictureFolder(tmp_path, torch.device("cpu"))


# --- networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "classes", "parameters"),
    [("resnet50", 224, 1000, 25_557_032), ("resnet18", 224, 1000, 11_689_512), ("resnet18", 32, 10, 11_173_962)],
)
def test_the_usual_networks_have_their_usual_sizes(kind: str, size: int, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = resnet(kind, 3, classes, size)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, size, size, device="meta")).shape == (2, classes)


def test_the_bottleneck_has_its_stride_in_the_middle() -> None:
    convolutions = [m for m in resnet("resnet50", 3, 10, 32, 4).modules() if isinstance(m, nn.Conv2d)]
    assert {m.kernel_size for m in convolutions if m.stride == (2, 2)} == {(3, 3), (1, 1)}
    assert sum(m.stride == (2, 2) for m in convolutions) == 6  # three blocks: 3 × 3, and the 1 × 1 beside them


class Shape:
    """What a network needs to know of its images."""

    channels, classes, size = 3, 10, 32


@pytest.mark.parametrize("first", [True, False])
def test_all_layers_sparse_or_the_first_one_dense(first: bool) -> None:
    model = Network("small", 4, "top_k", "uniform", Shape()).build(Row(0.3, first, 0))  # type: ignore[arg-type]
    sparse = {name: m for name, m in model.named_modules() if isinstance(m, (SparseConv2d, SparseLinear))}
    dense = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert dense == (["0.0"] if first else [])
    assert len(sparse) + len(dense) == 10
    for layer in sparse.values():
        size = np.prod(layer.wiring.shape)
        assert abs(layer.wiring.stored_entries() - 0.3 * size) <= 1


def test_the_order_of_the_networks() -> None:
    found = sparse_conv.rows(Options(density=(0.5, 1.0), first="sparse", seeds=2, seed=7))
    assert found == [Row(0.5, False, 7), Row(1.0, True, 7), Row(0.5, False, 8), Row(1.0, True, 8)]
    assert len(sparse_conv.rows(Options(seeds=1))) == 11


# --- whole runs ----------------------------------------------------------------------------------------


def test_a_run_leaves_its_rows_table_and_picture(finished: Path) -> None:
    summary = content(finished)
    rows = summary["rows"]
    kinds = [(row["sparsity"], row["first_dense"]) for row in rows]
    assert kinds == [(0.0, True), (0.5, True), (0.5, False), (0.9, True), (0.9, False)]
    assert all(0 <= row["test_accuracy"] <= 1 and row["seeds"] == 1 for row in rows)
    weights = summary["dense_weights"]
    norms = rows[0]["stored_numbers"] - weights
    assert rows[2]["stored_numbers"] == pytest.approx(2 * 0.5 * weights + norms, abs=10)
    assert rows[4]["stored_numbers"] == pytest.approx(2 * 0.1 * weights + norms, abs=10)
    assert (finished / "accuracy.png").stat().st_size > 5000
    assert (finished / "table.md").read_text(encoding="utf-8").count("\n") == 2 + len(rows)
    logged = [json.loads(line) for line in (finished / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["epoch"] for line in logged] == 5 * [1, 2]
    assert logged[-1]["step"] == summary["steps"] == 10 * 4


def test_a_run_that_is_killed_goes_on_and_may_get_another_density(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = conv_training.Training._epoch, []

    def stop(self: Any, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(self, *given)

    monkeypatch.setattr(conv_training.Training, "_epoch", stop)
    assert start(tmp_path) == 130
    assert len(calls) == 4 and not (tmp_path / "summary.json").exists()
    assert start(tmp_path, "--resume") == 0
    assert len(calls) == 4 + 7
    assert content(tmp_path)["rows"] == content(finished)["rows"]
    assert (tmp_path / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()


def test_seeds_are_merged(tmp_path: Path) -> None:
    results = [
        {"density": 0.1, "first_dense": False, "test_accuracy": value, "stored_numbers": 7, "seed": i}
        for i, value in enumerate((0.5, 0.6, 0.7))
    ]
    (row,) = sparse_conv._merged(results)
    assert (row["sparsity"], row["seeds"], row["stored_numbers"]) == (0.9, 3, 7)
    assert (row["test_accuracy"], row["spread"]) == pytest.approx((0.6, 0.1))
    assert "| 90 % | sparse | 60.00 ± 10.00 | 3 | 7 |" in sparse_conv.table([row])


@pytest.mark.parametrize("wiring", ["random", "set", "rigl", "gaussian"])
def test_other_wirings(tmp_path: Path, wiring: str) -> None:
    options = Options(out=tmp_path, wiring=wiring, width=2, density=(0.2,), first="sparse", seeds=1, epochs=1)  # type: ignore[arg-type]
    options.batch, options.train_images = 64, 100
    with Run("sparse_conv", options) as run:
        rows = sparse_conv.run(run.options, run)["rows"]
    assert [row["sparsity"] for row in rows] == [0.0, 0.8]  # type: ignore[attr-defined]


def test_judging_the_last_network(finished: Path, tmp_path: Path) -> None:
    before = content(finished)
    assert start(tmp_path, "--evaluate", finished) == 0
    found = content(tmp_path)
    assert (found["density"], found["first_dense"], found["network_seed"]) == (1.0, True, 0)
    assert found["test_accuracy"] == found["frozen_test_accuracy"] == before["rows"][0]["test_accuracy"]
    assert found["largest_difference"] <= 1e-5
    assert start(finished, "--evaluate", finished) == 0
    assert content(finished) == before and (finished / "evaluation" / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--density", "0"], "--density 0.0; expected numbers above 0"),
        (["--density", "1.5"], "--density 1.5"),
        (["--epochs", "0"], "--epochs=0"),
        (["--data-dir", "nowhere"], "--data-dir nowhere is no folder"),
        (["--evaluate", "nowhere"], "nowhere"),
    ],
)
def test_errors_of_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = ["sparse_conv", "--out", str(tmp_path), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_cifar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sparse_conv", "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]) == 2
    assert "no CIFAR-10; expected the files data_batch_1" in capsys.readouterr().err
