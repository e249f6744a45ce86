"""Operators that torch knows by name: with a fake kernel for `torch.compile`, and with their derivatives.

As `torch.library.custom_op`, whose calls would load all of `torch._dynamo` (a second and 75 MB) at first use.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("ash", "DEF")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Operator:
    """The operator `ash::<name>`, called like the function that it is made of.

    Args:
        schema: in torch's notation, such as `"scale(Tensor x, float by) -> Tensor"`.
        kernel: the function itself, for every device; its result must not share memory with an argument.
    """

    def __init__(self, schema: str, kernel: Callable[..., Tensor]):
        self.name = schema.split("(")[0]
        _LIBRARY.define(schema)
        _LIBRARY.impl(self.name, kernel, "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.ash, self.name).default
        self.kernel, self.__doc__ = kernel, kernel.__doc__

    def __call__(self, *arguments: Any) -> Tensor:
        if _observed(arguments):
            result: Tensor = self.overload(*arguments)
            return result
        return self.kernel(*arguments)

    def register_fake(self, fake: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Say what the result looks like, without computing it."""
        torch.library.register_fake(f"ash::{self.name}", fake, lib=_LIBRARY)
        return fake

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Give the derivative, made of operators that have one."""
        torch.library.register_autograd(f"ash::{self.name}", backward, setup_context=setup_context, lib=_LIBRARY)


def _observed(arguments: tuple[Any, ...]) -> bool:
    """Whether a call has to be seen by torch: by derivatives, tracers, transforms, or types of tensors of others.

    A call through torch takes about 0.05 ms, which is much of a small layer's step.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return any(isinstance(each, Tensor) and type(each) not in _PLAIN for each in arguments)


def operator(schema: str) -> Callable[[Callable[..., Tensor]], Operator]:
    """Decorator: make a function the operator of that schema."""
    return lambda kernel: Operator(schema, kernel)
