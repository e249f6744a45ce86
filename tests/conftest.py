"""What holds for every test: shapes are checked at run time, one thread, seeded generators.

The fuzz tests run apart, `make fuzz`, and without the checks of shapes: they have to see what users see.
"""

import os
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from jaxtyping import config, install_import_hook

FUZZ = "ASH_FUZZ" in os.environ
collect_ignore = [] if FUZZ else ["fuzz"]
if not FUZZ:
    # Before anything imports ash: from here on beartype checks every annotated shape and type in it.
    # An int passes where a float is asked for, as for a type checker.
    install_import_hook("ash", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

torch.set_num_threads(1)


class TorchRandom:
    """Lets hypothesis seed torch before each example, so that a failing example fails again."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


TORCH_RANDOM = TorchRandom()  # hypothesis holds it by a weak reference
hypothesis.register_random(TORCH_RANDOM)
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], int]], int]:
    """`interrupted(number, run)`: run an experiment whose graph learner is stopped by hand at that step."""
    from experiments.graph_learning import Learner

    def run_until(number: int, run: Callable[[], int]) -> int:
        step = Learner.step

        def stopped(self: Learner, at: int, loss: torch.Tensor) -> float:
            if at == number:
                raise KeyboardInterrupt
            return step(self, at, loss)

        with monkeypatch.context() as patched:
            patched.setattr(Learner, "saved_every", 1)
            patched.setattr(Learner, "step", stopped)
            return run()

    return run_until


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No checks of annotated shapes and types, as for users: what is refused, the library refuses itself."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds torch before every test and gives the seed to those that ask for it."""
    torch.manual_seed(0)
    return 0
