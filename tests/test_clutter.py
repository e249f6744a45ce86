"""Cluttered canvases: what lies on them, that they are drawn as said, and their cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ash.checks import UserError
from experiments import clutter
from experiments.clutter import Cluttered, Patches, cluttered, draw_patches, generate
from experiments.images import DataError, Images

N, SIDE = 12, 28


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_digits(n: int = N, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, SIDE, SIDE), dtype=torch.uint8, generator=generator(seed))


def some_images() -> Images:
    y = torch.arange(N) % 10
    return Images(some_digits(), y, some_digits(seed=1), y, "test", 10, some_digits(seed=2), y)


def made(canvas: int = 60, pieces: int = 5, seed: int = 0) -> Cluttered:
    return generate(some_digits(), torch.arange(N), canvas, pieces, generator(seed))


def test_digits_alone_lie_where_the_places_say() -> None:
    data = made(pieces=0)
    canvases = data.compose(torch.arange(N))
    for canvas, (row, column), digit in zip(canvases, data.places.tolist(), data.digits, strict=True):
        assert torch.equal(canvas[row : row + SIDE, column : column + SIDE], digit)
        assert int(canvas.long().sum()) == int(digit.long().sum())


def test_composing_is_the_brighter_of_clutter_and_digit() -> None:
    data = made()
    which = torch.tensor([7, 2, 2])
    for i, canvas in zip(which.tolist(), data.compose(which), strict=True):
        expected = torch.zeros(60 * 60, dtype=torch.uint8)
        for at in range(int(data.offsets[i]), int(data.offsets[i + 1])):
            expected[int(data.positions[at])] = data.brightness[at]
        expected = expected.reshape(60, 60)
        row, column = data.places[i].tolist()
        window = expected[row : row + SIDE, column : column + SIDE]
        window.copy_(torch.maximum(window, data.digits[i]))
        assert torch.equal(canvas, expected)


def test_every_pixel_of_a_clutter_stands_once_with_its_brightest_ink() -> None:
    data = made(pieces=40)
    for i in range(N):
        positions = data.positions[data.offsets[i] : data.offsets[i + 1]]
        assert len(positions.unique()) == len(positions)
        assert int(positions.min()) >= 0
        assert int(positions.max()) < 60 * 60
    assert (data.brightness > 0).all()


def test_the_same_seed_gives_the_same_canvases() -> None:
    first, second, other = made(), made(), made(seed=1)
    assert torch.equal(first.compose(torch.arange(N)), second.compose(torch.arange(N)))
    assert not torch.equal(first.compose(torch.arange(N)), other.compose(torch.arange(N)))


def test_redrawing_moves_digits_and_exchanges_clutter() -> None:
    data = made()
    other = data.redrawn(generator(5))
    assert torch.equal(other.digits, data.digits)
    assert torch.equal(other.labels, data.labels)
    assert not torch.equal(other.places, data.places)
    assert other.clutter.sort().values.tolist() == list(range(N))
    assert other.compose(torch.arange(N)).shape == (N, 60, 60)


def test_patches_are_drawn_as_said() -> None:
    own = torch.arange(200)
    patches = draw_patches(200, own, 10, (SIDE, SIDE), generator())
    assert (patches.source != own.repeat_interleave(10)).all()
    assert int(patches.source.min()) >= 0
    assert int(patches.source.max()) < 200
    assert sorted(patches.side.unique().tolist()) == list(range(4, 15))
    assert (patches.corner >= 0).all()
    assert (patches.corner + patches.side <= SIDE).all()
    longer, shorter = patches.scales.max(1).values, patches.scales.min(1).values
    assert ((longer >= 1) & (longer <= 2)).all()
    assert ((longer / shorter >= 1) & (longer / shorter <= 2)).all()
    assert float(patches.angle.max()) > 6
    assert (patches.scales[:, 0] > patches.scales[:, 1]).float().mean().item() == pytest.approx(0.5, abs=0.05)


def one_patch(scales: tuple[float, float], angle: float) -> Patches:
    corner, side = torch.tensor([[3, 5]]), torch.tensor([[4, 6]])
    return Patches(torch.tensor([0]), corner, side, torch.tensor([scales]), torch.tensor([angle]))


def drawn(patches: Patches, centre: tuple[float, float], digits: torch.Tensor) -> torch.Tensor:
    keys = clutter._render(digits, patches, torch.tensor([centre]), torch.tensor([0]), 40)
    canvas = torch.zeros(1600, dtype=torch.int64)
    canvas[keys >> 8] = keys & 255
    return canvas.reshape(40, 40)


def test_a_patch_that_is_not_transformed_is_a_cut() -> None:
    digits = some_digits(1)
    canvas = drawn(one_patch((1.0, 1.0), 0.0), (20.0, 20.0), digits)
    expected = torch.zeros(40, 40, dtype=torch.int64)
    expected[18:22, 17:23] = digits[0, 3:7, 5:11].long()
    assert torch.equal(canvas, expected)


def test_a_turn_by_a_right_angle_and_a_scale_by_two() -> None:
    digits = torch.full((1, SIDE, SIDE), 200, dtype=torch.uint8)
    turned = drawn(one_patch((1.0, 1.0), torch.pi / 2), (20.0, 20.0), digits)
    assert turned[17:23, 18:22].eq(200).all()
    assert int((turned > 0).sum()) == 24
    large = drawn(one_patch((2.0, 1.0), 0.0), (20.0, 20.0), digits)
    assert large[16:24, 17:23].eq(200).all()
    assert int((large > 0).sum()) == 48


def test_patches_are_cut_off_at_the_border() -> None:
    digits = torch.full((1, SIDE, SIDE), 200, dtype=torch.uint8)
    corner = drawn(one_patch((1.0, 1.0), 0.0), (0.0, 40.0), digits)
    assert corner[:2, 37:].eq(200).all()
    assert int((corner > 0).sum()) == 6


def test_large_canvases_take_no_more_room() -> None:
    small, large = made(canvas=100), made(canvas=1000)
    assert len(large.positions) < 1.6 * len(small.positions)
    assert large.compose(torch.tensor([3])).shape == (1, 1000, 1000)


def test_small_digits_and_a_single_one() -> None:
    data = generate(torch.full((1, 8, 8), 9, dtype=torch.uint8), torch.zeros(1).long(), 20, 3, generator())
    assert data.compose(torch.tensor([0])).max() == 9


def test_the_cache_gives_back_what_was_made(tmp_path: Path) -> None:
    first = cluttered(some_images(), 50, 4, 3, tmp_path)
    stamp = (tmp_path / "state.json").read_bytes()
    second = cluttered(some_images(), 50, 4, 3, tmp_path)
    assert (tmp_path / "state.json").read_bytes() == stamp
    for name in ("train", "validation", "test"):
        which = torch.arange(N)
        assert torch.equal(first[name].compose(which), second[name].compose(which))
    assert not torch.equal(first["train"].places, first["test"].places)


def test_another_seed_or_other_digits_make_new_canvases(tmp_path: Path) -> None:
    first = cluttered(some_images(), 50, 4, 3, tmp_path)["train"]
    second = cluttered(some_images(), 50, 4, 4, tmp_path)["train"]
    assert not torch.equal(first.places, second.places)
    assert torch.equal(cluttered(some_images(), 50, 4, 3, tmp_path)["train"].places, first.places)


def test_a_damaged_cache_is_refused_and_made_anew_on_demand(tmp_path: Path) -> None:
    first = cluttered(some_images(), 50, 4, 3, tmp_path)["train"]
    file = next(tmp_path.glob("*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"cache in .* is damaged.*--regenerate"):
        cluttered(some_images(), 50, 4, 3, tmp_path)
    again = cluttered(some_images(), 50, 4, 3, tmp_path, regenerate=True)["train"]
    assert torch.equal(again.positions, first.positions)


@pytest.mark.parametrize(("canvas", "pieces"), [(27, 1), (20_000, 1), (50, -1)])
def test_canvases_that_cannot_be_are_refused(canvas: int, pieces: int) -> None:
    with pytest.raises(UserError, match=r"--(canvas|pieces) .*expected"):
        made(canvas, pieces)
