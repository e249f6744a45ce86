"""The state of a training run that a checkpoint holds: taking it, and putting it back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ash.checks import UserError, require
from experiments.descent import REMEDY, Diverged, parameter_not_finite

ADVICE = "Resume with the options that the run was started with, or start anew without --resume."


def training_state(
    model: nn.Module, optimizer: Optimizer | None = None, **generators: torch.Generator
) -> dict[str, Any]:
    """Everything that decides how training goes on: the states of model, optimizer and generators,
    torch's default generators among them. The result fits `Run.save`.

    Raises `Diverged` if a parameter is not finite, so that nothing can go on from it.
    """
    name = parameter_not_finite(model)
    if name is not None:
        raise Diverged(f"{name} is not finite. {REMEDY}.")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict() if optimizer is not None else None,
        "torch": {"cpu": torch.get_rng_state(), "cuda": list(cuda)},
        "generators": {name: generator.get_state() for name, generator in generators.items()},
    }


def restore(
    state: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    **generators: torch.Generator,
) -> None:
    """Put a `training_state` back, so that training goes on bit-exactly on one CPU.

    On a machine without the GPUs of the checkpoint the generators of the GPUs stay as they are. Raises
    `UserError` if names, shapes or dtypes of the model differ, or optimizer or generators do not match.
    """
    missing = {"model", "optimizer", "torch", "generators"} - set(state)
    require(not missing, f"the checkpoint lacks {sorted(missing)}; expected a training state. {ADVICE}")
    load_model(state["model"], model)
    _restore_optimizer(state["optimizer"], optimizer)
    _restore_generators(state["generators"], generators)
    torch.set_rng_state(state["torch"]["cpu"])
    cuda = state["torch"]["cuda"]
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)


def load_model(saved: dict[str, Any], model: nn.Module) -> None:
    """Give a model the `state_dict` of another. Raises `UserError` if names, shapes or dtypes differ."""
    _check_model(saved, model)
    model.load_state_dict(saved)


def _check_model(saved: dict[str, Any], model: nn.Module) -> None:
    present = model.state_dict()
    only = sorted(set(saved) ^ set(present))
    require(
        not only,
        f"the model of the checkpoint is another one: {only[:3]} in one of the two only; "
        f"expected the same {len(present)} names in both. {ADVICE}",
    )
    for name, value in present.items():
        found, expected = _describe(saved[name]), _describe(value)
        require(
            found == expected,
            f"{name} is {found} in the checkpoint; expected {expected}, as in this model. {ADVICE}",
        )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _restore_optimizer(saved: dict[str, Any] | None, optimizer: Optimizer | None) -> None:
    require(
        (saved is None) == (optimizer is None),
        f"the checkpoint has {'no' if saved is None else 'an'} optimizer; expected the contrary. {ADVICE}",
    )
    if optimizer is None or saved is None:
        return
    try:
        optimizer.load_state_dict(saved)
    except (ValueError, KeyError, RuntimeError) as problem:
        raise UserError(f"the optimizer of the checkpoint does not fit: {problem}. {ADVICE}") from None


def _restore_generators(saved: dict[str, Tensor], generators: dict[str, torch.Generator]) -> None:
    require(
        set(saved) == set(generators),
        f"the checkpoint holds the generators {sorted(saved)}; expected {sorted(generators)}. {ADVICE}",
    )
    for name, generator in generators.items():
        try:
            generator.set_state(saved[name])
        except (RuntimeError, TypeError) as problem:
            raise UserError(f"generator {name!r} does not fit its state: {problem}. {ADVICE}") from None
