"""`CountsSteps`: a module that notices when an optimizer has stepped, and counts."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class CountsSteps(nn.Module):
    """Counts optimizer steps by looking at a parameter of its own, before a forward pass and a `state_dict`.

    Attributes:
        step: optimizer steps so far, a buffer.
    """

    step: Tensor
    _seen: Tensor | None

    def _register_count(self) -> None:
        """To be called once, when the module's parameters are there."""
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("_seen", None, persistent=False)
        self.register_state_dict_pre_hook(_before_saving)
        self.register_load_state_dict_post_hook(_after_loading)

    @abstractmethod
    def _marker(self) -> Tensor | None:
        """Required. A small parameter whose change tells that an optimizer has stepped; None: nothing is counted."""

    @torch.no_grad()
    def _mark(self) -> None:
        marker = self._marker()
        with torch.inference_mode(False):
            self._seen = None if marker is None else marker.detach().clone()

    @torch.no_grad()
    def settle(self) -> None:
        """Count the step that an optimizer has made; runs by itself before a forward pass or a `state_dict`."""
        marker = self._marker()
        if marker is None:
            return
        if self._seen is not None and not torch.equal(marker, self._seen):
            self.step += 1
            self._mark()
        elif self._seen is None:
            self._mark()


def _before_saving(module: CountsSteps, *_: object) -> None:
    module.settle()


def _after_loading(module: CountsSteps, _: object) -> None:
    module._mark()
