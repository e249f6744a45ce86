"""A training on Lightning Fabric: device, precision, several processes, batches in parts, clipping.

A training makes a `Loop`, calls it instead of its model on this rank's parts of each batch, and lets it step:

    for part, share in loop.parts(batch):
        loop.backward(loss_of(loop(x[part])) * share)
    loop.step(step)

A batch is divided among ranks and then into `--accumulate` parts, whose gradients add up to that of the whole: for
nets without batch norm whose wiring draws nothing, two processes train as one does, but for rounding. All ranks
see the data in the same order; each draws points of its own. After every step ranks compare their topologies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from ash import check_same_topology
from ash.checks import positive, require
from experiments import processes
from experiments.descent import Descent
from experiments.options import RunOptions
from experiments.runs import Run, restore, training_state

SEEDS_APART = 1 << 32
"""Between the seeds of ranks."""


@dataclass(kw_only=True)
class LoopOptions(RunOptions):
    """Options of experiments that train by a `Loop`."""

    precision: Literal["32", "bf16-mixed"] = "32"
    """Numbers of the training: float32, or bfloat16 where that does no harm."""
    processes: int = 1
    """Processes on this machine that share each batch; torchrun starts them on several machines."""
    accumulate: int = 1
    """Parts in which a process works off its share of a batch: the same step in less memory."""
    clip: float | None = None
    """Largest norm of the gradient."""


class Loop:
    """The steps of a training of `model` by `optimizer`, on this rank's parts of each batch; call it for the model.

    Args:
        run: whose options and device count. clip: as for `Descent`, where `--clip` is not given.

    One process in float32 needs nothing of Fabric, which takes two seconds to load, and does without.
    """

    def __init__(self, run: Run, model: nn.Module, optimizer: Optimizer, clip: float | None = None):
        options = run.options
        assert isinstance(options, LoopOptions)
        positive("processes", options.processes)
        positive("accumulate", options.accumulate)
        self.model, self.optimizer = model, optimizer
        self.descent = Descent(model, optimizer, clip if options.clip is None else options.clip)
        self.run, self.accumulate = run, options.accumulate
        self.ranks, self.rank = max(options.processes, processes.world_size()), 0
        plain = self.ranks == 1 and options.precision == "32"
        self.fabric = None if plain else processes.fabric(run.device, options.processes, options.precision)
        self._learning: list[int] = []
        self._wrap()
        self._loss = torch.zeros((), device=run.device)
        if self.ranks > 1:
            self.rank = dist.get_rank()
        if self.rank:
            torch.manual_seed(run.options.seed + SEEDS_APART * self.rank)

    def _wrap(self) -> None:
        """Wrap the model anew where other parameters learn than before, as when means are frozen in the middle."""
        learning = [i for i, parameter in enumerate(self.model.parameters()) if parameter.requires_grad]
        if learning != self._learning:
            self._wrapped = self.model
            if self.fabric is not None:
                self._wrapped = self.fabric.setup_module(self.model, move_to_device=False)
        self._learning = learning

    def __call__(self, *inputs: Tensor) -> Any:
        """The model's output, in the precision of the options."""
        return self._wrapped(*inputs)

    def shared(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0."""
        if self.ranks > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def parts(self, batch: Int64[Tensor, " b"]) -> Iterator[tuple[Int64[Tensor, " p"], float]]:
        """This rank's parts of a batch, and the weight of each one's mean loss. Gradients are exchanged in the last.

        A rank that none of a small batch is left for works on its first instance, with weight 0.
        """
        own = batch[self.rank :: self.ranks]
        pieces = own.tensor_split(min(self.accumulate, len(own))) if len(own) else (batch[:1],)
        self._wrap()
        self.optimizer.zero_grad()
        self._loss.zero_()
        for i, piece in enumerate(pieces):
            with self._without_exchange(i + 1 < len(pieces)):
                yield piece, self.ranks * len(piece) / len(batch) if len(own) else 0.0

    def _without_exchange(self, so: bool) -> contextlib.AbstractContextManager[None]:
        if self.fabric is None or self.ranks == 1 or not so:
            return contextlib.nullcontext()
        return self.fabric.no_backward_sync(self._wrapped)  # type: ignore[arg-type]

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part's loss, weighted by its share."""
        self._loss += loss.detach() / self.ranks
        if self.fabric is None:
            loss.backward()
        else:
            self.fabric.backward(loss)

    def step(self, step: int) -> Tensor:
        """The optimizer's step after the parts of the `step`-th batch; the batch's loss.

        Raises `Diverged` before it, on all ranks, if the loss is not finite.
        """
        loss = self._loss.clone()
        if self.ranks > 1:
            loss, self.run.stopping.agreed = self._agreed(loss)
        self.descent.check(loss, step)
        self.descent.move()
        if self.ranks > 1:
            check_same_topology(self.model)
        return loss

    def _agreed(self, loss: Tensor) -> tuple[Tensor, int]:
        """The loss of the whole batch, and the exit status with which a rank was told to stop, or 0; one exchange."""
        own = torch.stack([loss.double(), torch.tensor(float(self.run.stopping.own), device=loss.device).double()])
        each = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(each, own)
        told = torch.stack(each)
        return told[:, 0].sum().to(loss.dtype), int(told[:, 1].max())

    def state(self, **generators: torch.Generator) -> dict[str, Any]:
        """As `training_state`, and torch's default generator of every rank. Every rank has to call it."""
        state = training_state(self.model, self.optimizer, **generators)
        if self.ranks == 1:
            return state
        own = state["torch"]["cpu"].to(self.run.device)  # NCCL moves what is on a GPU
        each = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(each, own)
        return state | {"ranks": each}

    def restore(self, state: dict[str, Any], **generators: torch.Generator) -> None:
        """Put a `state` back. Raises `UserError` as `restore` does, and for one of another number of ranks."""
        each = state.get("ranks", [None])
        require(
            len(each) == self.ranks,
            f"the checkpoint is of {len(each)} processes; expected {self.ranks}, as now; resume with as many.",
        )
        restore(state, self.model, self.optimizer, **generators)
        if self.ranks > 1:
            torch.set_rng_state(each[self.rank].cpu())
