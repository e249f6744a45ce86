"""Schedules: their ends, their middle, what they refuse."""

import pickle

import pytest

from ash import Anneal, UserError
from ash.schedules import at

MIDDLE = {"geometric": 2.0, "linear": 4.25, "cosine": 4.25}


@pytest.mark.parametrize("shape", MIDDLE)
def test_from_start_to_end_and_constant_after(shape: str) -> None:
    anneal = Anneal(8.0, 0.5, 10, shape)
    assert anneal(0) == pytest.approx(8.0)
    assert anneal(5) == pytest.approx(MIDDLE[shape])
    assert anneal(10) == anneal(1000) == pytest.approx(0.5)
    numbers = [anneal(step) for step in range(11)]
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_an_end_of_zero(shape: str) -> None:
    assert Anneal(1.0, 0.0, 4, shape)(4) == pytest.approx(0.0)


def test_constants_and_schedules_alike() -> None:
    assert at(3, 17) == 3.0
    assert at(Anneal(1.0, 2.0, 10, "linear"), 5) == 1.5
    assert at(lambda step: step * 2, 4) == 8.0


def test_a_schedule_can_be_pickled() -> None:
    anneal = Anneal(8.0, 0.5, 10)
    assert pickle.loads(pickle.dumps(anneal)) == anneal


def test_bad_schedules() -> None:
    with pytest.raises(UserError, match="steps=0"):
        Anneal(1.0, 0.5, 0)
    with pytest.raises(UserError, match="end of a geometric schedule"):
        Anneal(1.0, 0.0, 10)
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        Anneal(1.0, 0.5, 10, "linaer")
