"""One step down the gradient, watched: a loss that is not finite stops the run and is traced to its layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ash.checks import UserError

REMEDY = "The checkpoint is as it was: go on from it with --resume and a smaller step"


class Diverged(UserError):
    """A training whose loss, output or parameters are no longer finite."""


class Descent:
    """Takes the steps of a training: gradients from zero, backward, their norm cut, the optimizer's step.

    Args:
        model: whose parameters learn. A `Diverged` names the first of its modules whose output was not finite.
        clip: largest norm of the gradient of all parameters together; None: as it is.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, clip: float | None = None):
        self.model, self.optimizer, self.clip = model, optimizer, clip
        self._last: list[tuple[Any, ...]] = []
        model.register_forward_pre_hook(_remembering(self._last))

    def step(self, loss: Tensor, step: int) -> None:
        """One step of the optimizer, the `step`-th from 0. Raises `Diverged` before it if the loss is not finite."""
        self.check(loss, step)
        self.optimizer.zero_grad()
        loss.backward()
        self.move()

    def check(self, loss: Tensor, step: int) -> None:
        """Raise `Diverged` if the loss, a scalar or several, is not finite."""
        found = float(loss.detach().sum())
        if not math.isfinite(found):
            raise Diverged(f"step {step}: the loss is {found}; {self._culprit()}. {REMEDY}.")

    def move(self) -> None:
        """The optimizer's step, with the gradient's norm cut."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def _culprit(self) -> str:
        """Where the last forward pass, done once more, first is not finite; else the parameter that is not."""
        name = parameter_not_finite(self.model)
        if name is not None:
            return f"the first parameter that is not finite is {name}"
        if not self._last:
            return "all parameters are finite"
        return first_not_finite(self.model, self._last[-1]) or "all parameters and all outputs of layers are finite"


def parameter_not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter that holds NaN or infinity; None where none does."""
    return next((name for name, parameter in model.named_parameters() if not _finite(parameter)), None)


def _remembering(last: list[tuple[Any, ...]]) -> Callable[..., None]:
    """A hook that keeps a model's last input. A function, so that copies of the model share it."""

    def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        last[:] = [inputs]

    return remember


@torch.no_grad()
def first_not_finite(model: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """The first module of `model(*inputs)` whose output is not finite, in words; None where all are.

    The states of torch's generators stay. The innermost module that gives such an output is the one named.
    """
    if not all(_finite(each) for each in inputs):
        return "the input is not finite already"
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not found and not _finite(output):
            found.append(f"the first output that is not finite is that of {names[module] or 'the model'} "
                         f"({type(module).__name__})")  # fmt: skip

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.random.fork_rng():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all())
