"""The experiment `characters`: its text and what that is worth, its nets, a quick run, going on after a stop."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ash import SparseLinear, count
from experiments.__main__ import main
from experiments.characters import Options, recipe_of, table
from experiments.characters_net import CharacterTransformer, bits, continued, held_out_bits
from experiments.characters_text import ALPHABET, Writer, read, write
from experiments.characters_training import Recipe, Trial, build, narrow_width
from experiments.runs import Run

SMALL = dataclasses.replace(recipe_of(vars(Options(quick=True).resolved()), "rigl"), steps=12)


# --- the text --------------------------------------------------------------------------------------------


def test_what_can_be_known_is_right() -> None:
    lines = write(20_000, 3).text.splitlines()
    sums = [re.fullmatch(r"(\d+)\+(\d+)=(\d+)", line) for line in lines]
    mirrors = [line.split("|") for line in lines if "|" in line]
    sentences = [line for line in lines if line.endswith(".")]
    assert all(int(found[1]) + int(found[2]) == int(found[3]) for found in sums if found)
    assert all(word[::-1] == mirror for word, mirror in mirrors)
    for line in sentences:
        verb = line.removesuffix(".").split()[-1]
        assert verb.endswith("s") == line.startswith("the ")
    counts = [sum(map(bool, sums)), len(mirrors), len(sentences)]
    assert sum(counts) == len(lines) and min(counts) > 0.25 * len(lines)


def test_the_writers_bits_are_those_of_its_choices() -> None:
    writer = Writer(0)
    writer._sum()
    assert writer.bits == pytest.approx(2 * math.log2(100))
    sentence = Writer(1)
    words = sentence._sentence().removesuffix(".").split()
    nouns = 1 + ("that" in words)
    adjectives = len(words) - 2 * nouns - 1 - 2 * ("that" in words)
    expected = nouns * (1 + 1 + 3) + adjectives * math.log2(6) + 1 + 2 * ("that" in words) + math.log2(5)
    assert sentence.bits == pytest.approx(expected)


def test_a_text_is_a_function_of_its_seed_and_can_be_read_back() -> None:
    text = write(500, 5)
    assert text == write(500, 5) and text.text != write(500, 6).text
    assert 500 <= len(text.text) < 560 and text.text.endswith("\n")
    assert read(text.ids) == text.text
    assert 0.8 < write(50_000, 7).bits_per_character < 1.1


# --- the net ---------------------------------------------------------------------------------------------


class Uniform(nn.Module):
    """Expects every character alike, and notes how many rows it was shown."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, len(ALPHABET))


class Successor(nn.Module):
    """Is certain that the next character of the alphabet follows."""

    def forward(self, ids: Tensor) -> Tensor:
        return 100.0 * nn.functional.one_hot((ids + 1) % len(ALPHABET), len(ALPHABET))


def test_no_character_sees_those_after_it() -> None:
    net = CharacterTransformer(16, 4, 2, context=8)
    one, other = torch.randint(len(ALPHABET), (2, 1, 8))
    other[:, :5] = one[:, :5]
    assert torch.allclose(net(one)[:, :5], net(other)[:, :5], atol=1e-6)
    assert not torch.allclose(net(one)[:, 5:], net(other)[:, 5:], atol=1e-2)


def test_bits_of_nets_that_are_known() -> None:
    rising = torch.arange(200) % len(ALPHABET)
    assert float(bits(Uniform(), rising[None])) == pytest.approx(math.log2(len(ALPHABET)))
    assert held_out_bits(Uniform(), rising, context=8) == pytest.approx(math.log2(len(ALPHABET)))
    assert held_out_bits(Successor(), rising, context=8) == pytest.approx(0, abs=1e-6)
    spoilt = rising.clone()
    spoilt[150] = 0 if rising[150] else 1
    wrong = held_out_bits(Successor(), spoilt, context=8)
    each = 100 / math.log(2)
    assert wrong == pytest.approx(2 * each / 192, rel=0.01)  # one character and the one after it, of 24 windows' halves


def test_the_likeliest_text_is_written_on() -> None:
    assert continued(Successor(), torch.tensor([3, 4]), 3, context=4).tolist() == [3, 4, 5, 6, 7]


def test_sparse_and_narrow_nets_store_what_is_asked_for() -> None:
    recipe = Recipe("rigl", 0.1, "er", 64, 2, 96, 16, 100, 1e-3, 0.0, 10, 0.3)
    sparse, dense = build(recipe), build(dataclasses.replace(recipe, wiring="dense"))
    layers = [each for each in sparse.modules() if isinstance(each, SparseLinear)]
    assert len(layers) == 8 and not any(isinstance(each, SparseLinear) for each in dense.modules())
    assert sum(each.wiring.stored_entries() for each in layers) == round(0.1 * 2 * 12 * 64**2)
    width = narrow_width(recipe)
    numbers = [count(CharacterTransformer(each)).stored_numbers for each in (width, width + 4)]
    assert numbers[0] <= count(sparse).stored_numbers < numbers[1]


@pytest.mark.parametrize("wiring", ["rigl", "top_k", "dense"])
def test_going_on_from_a_checkpoint_changes_nothing(wiring: str, tmp_path: Path) -> None:
    recipe, text, found = dataclasses.replace(SMALL, wiring=wiring), write(2_000, 0).ids, []
    run = Run("characters", Options(out=tmp_path))
    for stop in (False, True):
        torch.manual_seed(0)
        trial = Trial(build(recipe), recipe, text, 4, run)
        losses = [trial.train_step() for _ in range(6)]
        if stop:
            state = trial.state()
            torch.manual_seed(1)
            trial = Trial(build(recipe), recipe, text, 5, run)
            trial.resume(state)
        found.append(losses + [trial.train_step() for _ in range(6)])
    run.close()
    assert found[0] == found[1]
    assert len(set(found[0])) == 12


# --- the experiment --------------------------------------------------------------------------------------


def test_a_quick_run_and_its_evaluation(tmp_path: Path) -> None:
    arguments = ["characters", "--quick", "--out", str(tmp_path)]
    assert main([*arguments, "--wiring", "rigl", "top_k"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["wiring"] for row in summary["rows"]] == ["rigl", "top_k"]
    assert set(summary["rows"][0]) == {"wiring", "bits_per_character", "spread", "every_seed", "training_bits",
                                       "entries", "stored_numbers", "seconds"}  # fmt: skip
    assert 0.8 < summary["floor"] < 1.1 < summary["rows"][0]["bits_per_character"] < 7
    assert (tmp_path / "bits.png").stat().st_size > 10_000
    assert (tmp_path / "table.md").read_text().count("\n") == 5
    assert (tmp_path / "samples.txt").read_text().count("  47+38=") == 2
    assert main([*arguments, "--evaluate", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["rows"]
    assert [row["every_seed"] for row in again] == [row["every_seed"] for row in summary["rows"]]


def test_a_run_stopped_between_records_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Trial.train_step, []

    def stopping(trial: Trial) -> float:
        calls.append(trial.recipe.wiring)
        if len(calls) == 33:  # the second net has saved after its tenth step
            raise KeyboardInterrupt
        return step(trial)

    arguments = ["characters", "--quick", "--wiring", "static", "set"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Trial, "train_step", stopping)
        assert main([*arguments, "--out", str(tmp_path / "stopped")]) == 130
    assert main([*arguments, "--out", str(tmp_path / "stopped"), "--resume"]) == 0
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "stopped")]
    assert lines[0] == lines[1]


def test_the_table() -> None:
    row = {"wiring": "set", "bits_per_character": 1.2345, "spread": 0.01, "training_bits": 1.2, "stored_numbers": 1234,
           "seconds": 7.1}  # fmt: skip
    assert table([row], 0.95).splitlines()[2:] == [
        "| set | 1.234 | 0.010 | 1.200 | 1,234 | 7 |",
        "| the writer of the text | 0.950 | | | | |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--density", "0"], "--density 0.0; expected a share above 0"),
        (["--width", "6"], "--width 6; expected a multiple of 4"),
        (["--context", "7"], "--context 7; expected a multiple of 2"),
        (["--seeds", "0"], "--seeds 0; expected at least 1"),
        (["--evaluate", "nowhere"], "--evaluate nowhere: no such folder; expected that of a run"),
        (["--wiring", "narrow", "--width", "4"], "no dense net stores as few numbers as a sparse one of --width 4"),
    ],
)
def test_bad_options(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["characters", *arguments, "--quick", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
