"""Sort lists of handwritten numbers, given only their order.

A convolutional network gives each picture a key; what sorts the keys decides how it learns. A number is one digit,
or four side by side, drawn anew for every batch from MNIST's training part, a twelfth of which is held out; the
lists judged at the end are drawn from its test part, the same ones for every method and seed. `--method`:

  quicksort  half-permutations around medians (`ash.sorting.Quicksort`)
  hyper      one permutation layer whose tuples say where each element goes (`ash.sorting.PermutationWiring`)
  diffsort   the peer alone, a relaxed sorting network

Unless `--no-peer`, diffsort is trained in the same run: the same batches, the same network from the same start,
as many steps, its own learning rate. Data: as in the experiment mnist.

hyper compares pairs of pictures by `--features 8` numbers, which only a layer that emits an order can do; sorting
networks and pivots need one key each (`--features 1` gives hyper the same). That last layer and the small network
that compares are what the networks of hyper and its peer differ in.

Keys of summary.json: `dataset`, `size`, `digits`, `method`, `lists` (judged), `exact_match` (lists whose numbers all
come in order) and `element_wise` (numbers at their place), both with equal numbers right in any order, at the last
step, by the exact order of the keys, as a network is used; `element_wise_sampled`, the part of the sampled (diffsort:
relaxed) permutation of training that lies on right places; `validation_exact_match`, on half as many lists of the
validation part; `parameters`, learned numbers of the network and of what compares; the same with `peer_` before it
for diffsort.

Pictures: exact_match.png, over the steps; sorted.png, a test list in the order found.

What was learned (validation part, seed 0, 1,000 steps, four digits, `exact_match` in percent; 1,000 to 2,000 lists, so
that a point means little and training varies by two):
- The network decides most: with a dense layer over the whole picture instead of one shared by the digits 25 to 33 of
  100 lists of 9 are sorted instead of 60 to 68.
- Learning rate: 1e-2 serves all methods; 5e-3 costs hyper with keys 2 points at size 5 and diffsort none at 9; 2e-2
  costs diffsort 1 and keys 4 points at 9.
- How an order becomes a loss (size 5, keys, rate 5e-3): share of the target against the places beside it 83.2; against
  all places 81.6; share that a tuple around the sum of all comparisons has of the target 79.8 to 80.2; diffsort 82.0
  (steepness 30: 81.9; binary cross entropy: 81.6). The tail of a Student t matters: a logistic kernel gives 77.4.
- Features instead of keys: 83.2 instead of 78.8 at size 5, where diffsort has 76.9 to 78.0. One scale all through is
  right for them: narrowing it from 1 to 0.003 gives 79.4.
- Keys want a scale that narrows (quicksort of 16, 600 steps): from 0.3 to 0.03 22.4, to 0.01 26.9; from 1 to 0.003
  28.4; diffsort has 21.6 with a bitonic network of steepness 20 and 20.7 with odd_even of steepness 10.
- At size 9 steepness 10 and 30 give diffsort 59.4 and 59.9.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ash import Anneal
from ash.checks import positive
from ash.plot import curves, image_grid
from experiments.data import Images, download_mnist, mnist, train_validation
from experiments.data import digits as small_digits
from experiments.descent import Descent
from experiments.digit_lists import Digits, KeyNetwork, Parts, Score, parts, score, target_places
from experiments.orderings import DiffsortOrdering, HyperOrdering, Ordering, QuicksortOrdering, check_size
from experiments.runs import Run, RunOptions, restore, training_state

VALIDATION, WARM_UP, QUICK = 1 / 12, 100, 40
LOG_EVERY, CHUNK, JUDGED_BY = 100, 250, 20_260_101
OURS, PEER = "", "peer_"
POSITIVE = ["steps", "batch", "lists", "judge_every", "features", "lr", "peer_lr", "scale", "scale_end", "steepness"]


@dataclass(kw_only=True)
class Options(RunOptions):
    """Options of the sorting of handwritten numbers."""

    size: int = 5
    """Numbers in a list."""
    digits: Literal[1, 4] = 4
    """Digits of a number."""
    method: Literal["quicksort", "hyper", "diffsort"] = "hyper"
    """How an order teaches the keys: half-permutations, a permutation layer, or the peer alone."""
    peer: bool = True
    """Train diffsort beside it, on the same batches, from the same start of the network."""
    data_dir: Path | None = None
    """Folder with the four IDX files, gzip or not; scikit-learn's digits without it."""
    download: bool = False
    """Fetch MNIST into --data-dir (data/mnist by default) and check it."""
    steps: int = 3000
    """Batches."""
    batch: int = 100
    """Lists in a batch."""
    lists: int = 2000
    """Lists that are judged at the end, and half as many from the validation part on the way."""
    lr: float = 1e-2
    """Adam's learning rate, after a warm-up of 100 steps; by cosine to 0."""
    kernel: Literal["student_t", "gaussian", "logistic"] = "student_t"
    """The kernel around each key."""
    features: int = 8
    """Numbers that the network gives each picture for hyper, whose layer compares pairs of pictures by them with a
    small network; 1: a key, and pairs are compared by their difference. The other methods have a key."""
    scale: float | None = None
    """Scale of the kernel at the start, in deviations of the keys of a batch; 1 for keys. For features, whose
    comparisons learn their own size, 0.3 all through. If not given."""
    scale_end: float | None = None
    """Its scale after four fifths of the steps; 0.003 for keys and 0.3 for features, if not given."""
    samples: int | None = None
    """Places that hyper compares with, besides the two beside the target; 0 for keys, 1 for features, if not given."""
    peer_lr: float = 1e-2
    """diffsort's learning rate, on the same schedule."""
    network: Literal["odd_even", "bitonic"] | None = None
    """diffsort's sorting network; bitonic for powers of two, if not given."""
    steepness: float | None = None
    """diffsort's steepness; 10 for odd_even and 20 for bitonic, if not given."""
    distribution: Literal["cauchy", "logistic", "logistic_phi", "gaussian", "reciprocal", "optimal"] = "cauchy"
    """The distribution whose mass diffsort swaps by."""
    peer_loss: Literal["categorical", "binary"] = "categorical"
    """diffsort's cross entropy: of each element's place, or of every entry of the matrix."""
    channels: tuple[int, int, int] = (8, 64, 32)
    """Channels of the three convolutions."""
    bfloat16: bool = True
    """Convolutions in bfloat16, several times as fast where the processor multiplies it in hardware."""
    judge_every: int = 500
    """Steps between looks at the validation part, each followed by a checkpoint."""

    may_change: ClassVar[frozenset[str]] = RunOptions.may_change - {"steps"}
    """One cosine spans the run, so that another number of steps is another run."""

    def resolved(self) -> Options:
        """The options with what depends on others decided. Raises `UserError` for impossible ones."""
        features = self.features if self.method == "hyper" else 1
        check_size(self.method, self.size)
        power = self.size & (self.size - 1) == 0
        network = self.network or ("bitonic" if power else "odd_even")
        chosen = dataclasses.replace(
            self,
            network=network,
            steepness=(20.0 if network == "bitonic" else 10.0) if self.steepness is None else self.steepness,
            scale=(1.0 if features == 1 else 0.3) if self.scale is None else self.scale,
            scale_end=(0.003 if features == 1 else 0.3) if self.scale_end is None else self.scale_end,
            samples=int(features > 1) if self.samples is None else self.samples,
            peer=self.peer and self.method != "diffsort",
            features=features,
        )
        for name in POSITIVE:
            positive(f"--{name.replace('_', '-')}", getattr(chosen, name))
        positive("--samples", chosen.samples or 0, zero=True)
        if not self.quick:
            return chosen
        return dataclasses.replace(chosen, steps=min(self.steps, QUICK), lists=min(self.lists, 2 * CHUNK))


class Contender(nn.Module):
    """A network that gives keys, and the way by which it learns them."""

    def __init__(self, network: KeyNetwork, ordering: Ordering, bfloat16: bool):
        super().__init__()
        self.network, self.ordering, self.fast = network, ordering, bfloat16

    def keys(self, pictures: Tensor, n: int) -> Tensor:
        """Keys `(b, n)`, or features `(b, n, f)`, of pictures `(b * n, 1, h, w)`."""
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=self.fast):
            keys: Tensor = self.network(pictures)
        return keys.float().unflatten(0, (-1, n))

    @torch.no_grad()
    def judge(self, pool: Digits, n: int, lists: int) -> tuple[Score, float]:
        """How well it sorts lists from `pool`; and the share of the sampled or relaxed permutation that is right.

        The lists are the same for every contender and seed.
        """
        source = torch.Generator(pool.labels.device).manual_seed(JUDGED_BY)
        values, orders, masses = [], [], []
        with torch.random.fork_rng():  # a look changes nothing of what comes after it
            for start in range(0, lists, CHUNK):
                drawn = pool.draw(min(CHUNK, lists - start), n, source)
                self.eval()
                keys = self.keys(drawn.pictures, n)
                values.append(drawn.values)
                orders.append(self.ordering.order(keys))
                self.train()
                right = drawn.values.sort(dim=-1).values.unsqueeze(-1) == drawn.values.unsqueeze(-2)
                masses.append((self.ordering.matrix(keys) * right).sum((-2, -1)) / n)
        return score(torch.cat(values), torch.cat(orders)), float(torch.cat(masses).mean())


def build(options: Options, side: int, device: torch.device) -> dict[str, Contender]:
    """The contenders; all start from the same network, but for its last layer where it gives more than a key."""
    network = KeyNetwork(side, options.digits, options.channels)
    scale = Anneal(options.scale or 0.0, options.scale_end or 0.0, max(1, round(0.8 * options.steps)))
    diffsort = (options.network or "", options.steepness or 0.0, options.distribution, options.peer_loss)
    orderings: dict[str, Ordering] = {}
    if options.method == "quicksort":
        orderings["method"] = QuicksortOrdering(options.size, scale, options.kernel)
    elif options.method == "hyper":
        orderings["method"] = HyperOrdering(options.size, scale, options.kernel, options.samples or 0, options.features)
    else:
        orderings["method"] = DiffsortOrdering(options.size, *diffsort, device)
    if options.peer:
        orderings["peer"] = DiffsortOrdering(options.size, *diffsort, device)
    made = {name: Contender(copy.deepcopy(network), each, options.bfloat16) for name, each in orderings.items()}
    if options.features > 1:
        own = made["method"].network
        own.key = nn.Linear(own.key.in_features, options.features)
    return {name: each.to(device) for name, each in made.items()}


class Training:
    """Trains all contenders on the same batches, from the checkpoint of `run` if it has one.

    Attributes:
        history: what was seen of the validation part, for every contender.
    """

    def __init__(self, contenders: dict[str, Contender], pools: Parts, options: Options, run: Run):
        self.contenders, self.pools, self.options, self.run = contenders, pools, options, run
        self.rates = {"method": options.lr, "peer": options.peer_lr}
        if options.method == "diffsort":
            self.rates["method"] = options.peer_lr
        groups = [{"params": list(each.parameters()), "lr": self.rates[name]} for name, each in contenders.items()]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.models = nn.ModuleDict(contenders)
        self.descent = Descent(self.models, self.optimizer)
        self.history: list[dict[str, float]] = []

    def __call__(self) -> None:
        """Train to the last step."""
        step, steps = self._go_on(), self.options.steps
        bar = self.run.progress(steps, f"{self.options.method} {self.options.size}", start=step)
        while step < steps:
            losses = self._step(step)
            step += 1
            bar.update(1)
            judged = step % self.options.judge_every == 0 or step == steps
            if step % LOG_EVERY == 0 or judged:
                self.run.log(step, **{f"{name}_loss": float(loss) for name, loss in losses.items()})
                self.run.time(step)
            if judged:
                self._judge(step)
            self.run.keep(step, self._state, due=judged)

    def _state(self) -> dict[str, Any]:
        return training_state(self.models, self.optimizer) | {"history": self.history}

    def _go_on(self) -> int:
        saved = self.run.load()
        if saved is None:
            return 0
        restore(saved[1], self.models, self.optimizer)
        self.history = saved[1]["history"]
        return saved[0]

    def _step(self, step: int) -> dict[str, Tensor]:
        """One optimizer step of every contender; the losses before it."""
        warm = min(1.0, (step + 1) / WARM_UP)
        factor = warm * 0.5 * (1 + math.cos(math.pi * step / self.options.steps))
        for group, rate in zip(
            self.optimizer.param_groups, (self.rates[name] for name in self.contenders), strict=True
        ):
            group["lr"] = rate * factor
        n = self.options.size
        drawn = self.pools.train.draw(self.options.batch, n)
        self.optimizer.zero_grad()
        losses = {}
        for name, contender in self.contenders.items():
            contender.ordering.at_step(step)
            keys = contender.keys(drawn.pictures, n)
            loss = contender.ordering.loss(keys, target_places(drawn.values, contender.ordering.ranks(keys)))
            self.descent.check(loss, step)
            loss.backward()
            losses[name] = loss.detach()
        self.descent.move()
        return losses

    def _judge(self, step: int) -> None:
        figures: dict[str, float] = {"step": step}
        for name, contender in self.contenders.items():
            found, _ = contender.judge(self.pools.validation, self.options.size, max(1, self.options.lists // 2))
            figures[f"{name}_exact_match"], figures[f"{name}_element_wise"] = found
        self.history.append(figures)
        self.run.log(step, **{key: value for key, value in figures.items() if key != "step"})


def run(options: Options, run: Run) -> dict[str, object]:
    """Train, draw, and return the figures that the module's docstring tells."""
    images = read(options)
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    pools = parts(images, options.digits, run.device, dtype)
    for pool in pools:
        pool.check(options.size)
    contenders = build(options, pools.train.pixels.shape[-1], run.device)
    training = Training(contenders, pools, options, run)
    training()
    draw(training, run)
    result: dict[str, object] = {"dataset": images.name, "size": options.size, "digits": options.digits}
    result |= {"method": options.method, "lists": options.lists}
    last = training.history[-1]
    for name, contender in contenders.items():
        before = OURS if name == "method" else PEER
        found, mass = contender.judge(pools.test, options.size, options.lists)
        result |= {f"{before}exact_match": found.exact_match, f"{before}element_wise": found.element_wise}
        result[f"{before}element_wise_sampled"] = mass
        result[f"{before}validation_exact_match"] = last[f"{name}_exact_match"]
        result[f"{before}parameters"] = sum(p.numel() for p in contender.parameters())
    return result


def read(options: Options) -> Images:
    """The digits, with a validation part that is the same for every seed."""
    folder = options.data_dir
    if options.download:
        folder = download_mnist(folder or Path("data") / "mnist")
    return train_validation(small_digits() if folder is None else mnist(folder), VALIDATION, seed=0)


def draw(training: Training, run: Run) -> None:
    """The pictures: validation figures over the steps; a test list as each contender sorts it."""
    options, steps = training.options, [figures["step"] for figures in training.history]
    names: dict[str, str] = {"method": options.method, "peer": "diffsort"}
    series = {
        names[name]: (steps, [figures[f"{name}_exact_match"] for figures in training.history])
        for name in training.contenders
    }
    curves(series, run.path("exact_match.png"), ylabel="lists sorted, validation part", xlabel="batch")
    source = torch.Generator(training.pools.test.labels.device).manual_seed(JUDGED_BY)
    drawn = training.pools.test.draw(1, options.size, source)
    contender = training.contenders["method"].eval()
    with torch.no_grad():
        keys = contender.keys(drawn.pictures, options.size)
        ranks, order = contender.ordering.ranks(keys)[0], contender.ordering.order(keys)[0]
    pictures = drawn.pictures.float().cpu()[order.cpu(), 0]
    ink = pictures - pictures.min()
    what = "key" if keys.dim() == 2 else "rank"
    numbers = [f"{int(value):0{options.digits}d}" for value in drawn.values[0, order]]
    titles = [f"{number}, {what} {float(ranks[j]):.2f}" for number, j in zip(numbers, order.tolist(), strict=True)]
    shown = {f"{i + 1}: {title}": ink[i] for i, title in enumerate(titles)}
    image_grid(shown, run.path("sorted.png"), label="ink")
