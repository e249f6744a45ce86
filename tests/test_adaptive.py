"""Adaptive classifiers: grids of tuples, equal sizes, the tricks, whole runs, resuming, CIFAR-10, errors."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ash import Codebook
from ash.losses import Reconstruction
from experiments import adaptive, adaptive_training, mnist
from experiments.__main__ import main
from experiments.adaptive_training import drawing, shifted
from experiments.runs import Run

MNIST, COLOUR = (1, 28, 28), (3, 32, 32)
KEYS = {
    *("experiment", "seed", "steps", "seconds", "peak_memory_bytes", "dataset", "model", "parameters", "best_epoch"),
    *("test_accuracy", "test_accuracy_at_best_validation", "validation_accuracy", "train_accuracy"),
}
ADAPTIVE_KEYS = {
    *("tuples", "emitted", "codebook", "test_accuracy_rounded", "test_accuracy_sampled"),
    *("validation_accuracy_rounded", "validation_accuracy_sampled"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny set in MNIST's format: the label says which of ten rows of a noisy image is bright."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, n in (("train", 90), ("t10k", 30)):
        y = random.integers(0, 10, n)
        x = random.integers(0, 60, (n, 28, 28))
        x[np.arange(n), 4 + 2 * y] += 150
        heads = struct.pack(">4I", 0x803, n, 28, 28), struct.pack(">2I", 0x801, n)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(heads[0] + x.astype("u1").tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(heads[1] + y.astype("u1").tobytes())
    return folder


def start(out: Path, *arguments: object) -> int:
    return main(["mnist", "--out", str(out), *map(str, arguments)])


def content(out: Path, name: str = "summary.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text(encoding="utf-8")))


def hyper(image: tuple[int, int, int] = MNIST, plain: bool = False, **how: Any) -> adaptive.Hyper:
    return adaptive.Hyper(adaptive.shapes_for(image, plain), adaptive.Wirings(steps=10, **how), 2, 10)


# --- what it is made of --------------------------------------------------------------------------------


def test_tuples_start_at_the_places_of_their_outputs() -> None:
    net = hyper()
    first, second = net.wirings
    for wiring, side, each, size in ((first, 14, 1, 28), (second, 5, 4, 14)):
        assert (wiring.k, wiring.out_shape, wiring.in_shape) == (side**2 * each, (side, side), (size, size))
        wiring.hypernetwork.head.weight.data.zero_()
        with torch.no_grad():
            wiring.offset[:, :2] = 0.0
            wiring.base.zero_()
        means = wiring.tuples(torch.randn(3, 16, 14, 14)).means.detach()
        centres = adaptive.centres(side, (size, size)).repeat_interleave(each, 0).double()
        torch.testing.assert_close(means, centres.expand(3, -1, -1), atol=1e-5, rtol=0)
        assert torch.equal(wiring.fixed, wiring.template.indices)


def test_the_hypernetworks_see_the_view_alone() -> None:
    """An image and another one with the same averages over 2 x 2 pixels get the same tuples."""
    net = hyper().eval()
    x = torch.randn(2, 28, 28)
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(14, 14)
    net(x)
    before = [tuples.means for tuples in net.last_tuples()]
    y = net(x + checker)
    for one, other in zip(before, net.last_tuples(), strict=True):
        torch.testing.assert_close(one, other.means, atol=1e-5, rtol=0)
    assert (y - net(x)).abs().max() > 1e-3  # what is read is the image itself


def test_tuples_differ_from_image_to_image_unless_fixed() -> None:
    for model, differs in (("hyper", True), ("fixed", False)):
        net = hyper(still=model == "fixed")
        net(torch.randn(2, 28, 28))
        means = net.last_tuples()[1].means
        assert bool((means[0] != means[1]).any()) == differs


@pytest.mark.parametrize("image", [MNIST, COLOUR])
def test_nets_are_of_equal_size(image: tuple[int, int, int]) -> None:
    shapes = adaptive.shapes_for(image, plain=False)
    size = adaptive.learned(hyper(image))
    trunk = adaptive.as_large_as(size, lambda w: adaptive.trunk_net(shapes, 2, 10, w))
    conv = adaptive.as_large_as(size, lambda w: adaptive.conv_net(shapes, 10, w))
    x = torch.randn(2, *(image if image[0] > 1 else image[1:]))
    for net in (trunk, conv, hyper(image)):
        assert net(x).shape == (2, 10)
        assert abs(adaptive.learned(net) - size) < 0.05 * size


def test_the_gradient_reaches_all_that_is_learned() -> None:
    for how in ({}, {"codebook": 5}, {"emit_scales": True}, {"subset": 0.5}, {"reconstruct": True}):
        net = hyper(**how)
        net(torch.randn(4, 28, 28)).square().sum().backward()
        assert all(p.grad is not None for p in net.parameters() if p.requires_grad), how
        assert all(float(w.hypernetwork.head.weight.grad.abs().sum()) > 0 for w in net.wirings)


def test_channels_share_the_wiring() -> None:
    """Each layer's output is the weight of its own draw applied to what its convolution made."""
    net = hyper().eval()
    x = torch.randn(2, 28, 28)
    features = net.trunk(net.pictures(x))
    maps = net.norms[0](net.convolutions[0](x[:, None])).relu()
    dense = net.wirings[0](features).to_dense()
    expected = torch.einsum("brshw,bchw->brsc", dense, maps)
    torch.testing.assert_close(net.layers[0](maps.movedim(1, -1), features), expected, atol=1e-5, rtol=1e-4)


def test_values_of_a_codebook_are_its_scalars() -> None:
    net = hyper(codebook=4)
    net(torch.randn(3, 28, 28))
    for wiring, tuples in zip(net.wirings, net.last_tuples(), strict=True):
        assert isinstance(wiring.codebook, Codebook)
        assert set(tuples.values.unique().tolist()) <= set(wiring.codebook.scalars.tolist())


def test_drawing_leaves_norms_alone() -> None:
    net = hyper().eval()
    x = torch.randn(4, 28, 28)
    before = net.state_dict()["norms.0.running_mean"].clone()
    with drawing(net):
        points = net.wirings[0](net.trunk(net.pictures(x))).values.shape[1]
        net(x)
    assert points == 4 * net.wirings[0].k
    assert not any(wiring.training for wiring in net.wirings)
    assert torch.equal(before, net.state_dict()["norms.0.running_mean"])


# --- images --------------------------------------------------------------------------------------------


def test_shifted_images_are_windows_of_the_padded_ones() -> None:
    x = torch.rand(40, 3, 6, 5) + 1
    moved = shifted(x, 2, mirror=True)
    wide = torch.nn.functional.pad(x, (2, 2, 2, 2), value=float(x.min()))
    kinds = set()
    for image, big in zip(moved, wide, strict=True):
        found = [
            (row, col, flip)
            for row in range(5)
            for col in range(5)
            for flip in (False, True)
            if torch.equal(image.flip(-1) if flip else image, big[:, row : row + 6, col : col + 5])
        ]
        assert len(found) == 1
        kinds.add(found[0])
    assert len(kinds) > 15 and {flip for _, _, flip in kinds} == {True, False}
    assert shifted(x, 0, mirror=False) is x


# --- whole runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["hyper", "fixed", "trunk", "convnet"])
def test_a_run_of_every_model(tmp_path: Path, data: Path, model: str) -> None:
    assert start(tmp_path, "--model", model, "--data-dir", data, "--quick", "--batch", 32) == 0
    summary, own = content(tmp_path), model in ("hyper", "fixed")
    assert set(summary) == KEYS | (ADAPTIVE_KEYS if own else set())
    assert (summary["dataset"], summary["model"], summary["steps"]) == ("mnist", model, 6)
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png"} | ({"reading.png"} if own else set())


TRICKS = {
    "codebook": ["--codebook", "15"],
    "reconstruction": ["--reconstruction", "0.01"],
    "pretrain": ["--pretrain", "1"],
    "subset": ["--subset", "0.5"],
    "penalty": ["--scales", "emitted", "--scale-penalty", "0.1"],
    "tail": ["--kernel", "student_t", "--local-samples", "2"],
    "plain": ["--plain-image", "--augment", "0"],
    "view": ["--view", "2"],
    "few": ["--train-images", "40"],
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_run_of_every_trick(tmp_path: Path, data: Path, trick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive_training, "draw_reading", lambda *_: None)
    arguments = ["--data-dir", data, "--quick", "--batch", 32, "--lr", 1e-3, *TRICKS[trick]]
    assert start(tmp_path, "--model", "hyper", *arguments) == 0
    assert content(tmp_path)["codebook"] == (15 if trick == "codebook" else 0)


def test_pretraining_learns_one_layer_after_the_other(data: Path, tmp_path: Path) -> None:
    options = mnist.Options(model="hyper", data_dir=data, batch=20, epochs=2, pretrain=1.0, out=tmp_path, device="cpu")
    with Run("mnist", options) as run:
        options, images = mnist.prepare(run.options, run)
        net = adaptive_training.build(options, images, 10)
        training = adaptive_training.AdaptiveTraining(
            net, adaptive_training.optimizer_for(net, 1e-2, 0.1), images, mnist.Plan(2, 20, 1.0), run, options
        )
        terms = [module for module in net.modules() if isinstance(module, Reconstruction)]
        assert (len(terms), training.pretraining) == (2, 5)
        for training.step, layer in ((0, 0), (2, 0), (3, 1), (4, 1)):
            loss, _ = training.objective(images.train_x[:8], images.train_y[:8])
            assert loss is terms[layer].loss
        training.step = 5
        loss, output = training.objective(images.train_x[:8], images.train_y[:8])
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(output, images.train_y[:8]))


@pytest.mark.parametrize("model", ["hyper", "trunk"])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr(adaptive_training, "draw_reading", lambda *_: None)
    arguments = ["--model", model, "--data-dir", data, "--epochs", 2, "--batch", 32]
    assert start(tmp_path / "whole", *arguments) == 0
    save = Run.save

    def save_and_stop(run: Run, step: int, state: Any, *score: Any) -> None:
        save(run, step, state, *score)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Run, "save", save_and_stop)
        assert start(tmp_path / "run", *arguments) == 130
    assert start(tmp_path / "run", *arguments, "--resume") == 0
    name = "metrics.jsonl"
    assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_cifar(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = random.integers(0, 256, (16, 3072)).astype(np.uint8)
        labels = random.integers(0, 10, 16).tolist()
        (tmp_path / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels}))
    for model in ("hyper", "convnet"):
        arguments = ["--model", model, "--data", "cifar10", "--data-dir", tmp_path, "--quick", "--batch", 32]
        assert start(tmp_path / "run", *arguments) == 0
        assert content(tmp_path / "run")["dataset"] == "cifar10"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "hyper", "--view", "3"], "view=3"),
        (["--model", "hyper", "--codebook", "-1"], "--codebook -1"),
        (["--model", "hyper", "--train-images", "-1"], "--train-images -1"),
        (["--model", "hyper", "--scale-penalty", "0.1"], "--scales emitted"),
        (["--model", "hyper", "--reconstruction", "-1"], "--reconstruction=-1"),
        (["--codebook", "15"], "--codebook 15 with --model ash"),
        (["--model", "hyper", "--data", "cifar10"], "--data-dir"),
        (["--model", "ash", "--data", "cifar10", "--data-dir", "nowhere"], "--data cifar10 with --model ash"),
    ],
)
def test_options_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert start(tmp_path, *arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
