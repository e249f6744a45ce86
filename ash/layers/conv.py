"""`SparseConv2d`: a drop-in for `nn.Conv2d` whose kernel is a sparse weight."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ash.backends import get_backend
from ash.checks import UserError, check_finite, choose, positive, require
from ash.contract import contract
from ash.layers.dense import materialise
from ash.layers.host import BiasedHost, WiringFactory, make_wiring
from ash.layers.unfold import Pair, Window, unfold
from ash.weight import SparseWeight
from ash.wirings.base import Wiring

Pads = tuple[int, int, int, int]

_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def crossover(out_channels: int, taps: int) -> float:
    """Density of a kernel below which CSR × unfolded input beats the dense convolution; 0 where it never does.

    The product's work falls with the density, the unfolding's does not, and weighs the less the more output channels
    share it. Measured on one core of an AVX-512 server, float32, forward and backward, batches of 32:
    256 → 256 channels, 8 × 8 pixels: 1 × 1 kernels between 0.1 and 0.2, 3 × 3 between 0.02 and 0.05;
    64 → 64, 16 × 16: 3 × 3 at 0.01; 16 → 16, 32 × 32: 3 × 3 and, 64 → 64, 5 × 5: never.
    """
    return 0.1 if taps == 1 else max(0.0, 0.06 - 4 / out_channels)


class SparseConv2d(BiasedHost):
    """A drop-in for `nn.Conv2d` with a sparse kernel.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as for `nn.Conv2d`, string paddings and all padding modes included.
        wiring: a `Wiring` of shape `(out_channels,)` x `(in_channels / groups, kh, kw)`, or a factory of one; by
            default a `GaussianWiring` of density 0.1. An adaptive one sees the picture, `condition_shape=(c, h, w)`.
        backend: `"dense"` makes the kernel and convolves with it; `"torch"` and `"torch_sparse"` multiply the
            unfolded input by the stored entries; `"auto"` takes what is expected to be faster.

    Shapes: `(b, c, h, w)` -> `(b, out_channels, oh, ow)`, or both without b. Channels-last input gives
    channels-last output.

    The dense kernel serves in any case where there are groups, a weight per instance (which runs as one grouped
    convolution), a candidate tensor, or a wiring that collects the kernel's gradient.

    Raises `UserError` for options and shapes that do not fit, and for input that is NaN or infinite;
    `layer.check_input = False` leaves the latter out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: str | int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        wiring: Wiring | WiringFactory | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair("kernel_size", kernel_size), _pair("stride", stride)
        self.dilation, self.padding_mode = _pair("dilation", dilation), padding_mode
        self.padding = padding if isinstance(padding, str) else _pair("padding", padding, least=0)
        self.backend, self.check_input = backend, True
        self._check_options()
        self.pads = _pads(self.padding, self.kernel_size, self.stride, self.dilation)
        in_shape = (in_channels // groups, *self.kernel_size)
        self.wiring = make_wiring(wiring, (out_channels,), in_shape, device=device, dtype=dtype)
        self._register_bias(bias, device, dtype)

    def _check_options(self) -> None:
        choose("padding mode", self.padding_mode, _MODES)
        positive("in_channels", self.in_channels)
        positive("out_channels", self.out_channels)
        divides = self.groups >= 1 and self.in_channels % self.groups == 0 and self.out_channels % self.groups == 0
        require(
            divides,
            f"groups={self.groups} for {self.in_channels} input and {self.out_channels} output channels; "
            "expected a number that divides both.",
        )
        if self.backend in ("auto", "dense"):
            return
        get_backend(self.backend)
        require(
            self.groups == 1,
            f"backend {self.backend!r} with groups={self.groups}; use 'auto' or 'dense', or one group.",
        )

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, wiring: Wiring | WiringFactory | None = None, backend: str = "auto"
    ) -> SparseConv2d:
        """A sparse layer with the options and the bias of `conv` and, at the wiring's entries, its weights."""
        weight = conv.weight
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            _pair("kernel_size", conv.kernel_size),
            _pair("stride", conv.stride),
            conv.padding if isinstance(conv.padding, str) else _pair("padding", conv.padding, least=0),
            _pair("dilation", conv.dilation),
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
            wiring=wiring,
            backend=backend,
        )
        return layer._take(conv)

    def forward(self, x: Float[Tensor, "..."], condition: Tensor | None = None) -> Float[Tensor, "..."]:
        """`(b, c, h, w)` -> `(b, o, oh, ow)`, or both without b.

        An adaptive wiring sees `condition` `(b, *condition_shape)`, or x itself where none is given.
        """
        self._check(x)
        if x.dim() == 3:
            alone: Tensor = self.forward(x.unsqueeze(0), None if condition is None else condition.unsqueeze(0))
            return alone.squeeze(0)
        weight = self.wiring(x if condition is None else condition)
        if self._unfolds(weight, x):
            y = self._product(weight, x)
        elif weight.per_instance:
            y = self._instances(materialise(self.wiring, weight), x)
        else:
            return self._convolve(self._pad(x), materialise(self.wiring, weight), self.groups, self.bias)
        return y if self.bias is None else y + self.bias.to(y.dtype).reshape(-1, 1, 1)

    def _check(self, x: Tensor) -> None:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise UserError(
                f"an input of shape {tuple(x.shape)} for {type(self).__name__}({self.extra_repr()}); "
                f"expected (b, {self.in_channels}, h, w) or ({self.in_channels}, h, w)."
            )
        if min(self._steps(x)) < 1:
            raise UserError(
                f"an input of shape {tuple(x.shape)} for {type(self).__name__}({self.extra_repr()}); it is too small: "
                "expected at least the size of the kernel after padding."
            )
        if self.padding_mode in ("reflect", "circular"):
            self._check_margins(x)
        if self.check_input:
            check_finite(x, self)

    def _check_margins(self, x: Tensor) -> None:
        """Raise `UserError` where a picture is too small to be repeated in its margins."""
        h, w = (side - (self.padding_mode == "reflect") for side in x.shape[-2:])
        fits = max(self.pads[:2]) <= w and max(self.pads[2:]) <= h
        require(fits, f"an input of shape {tuple(x.shape)} with margins {self.pads} in mode {self.padding_mode!r}; "
                      "expected a picture larger than its margins.")  # fmt: skip

    @property
    def _window(self) -> Window:
        return Window(self.kernel_size, self.stride, self.dilation)

    def _steps(self, x: Tensor) -> Pair:
        """Height and width of the output."""
        left, right, top, bottom = self.pads
        return self._window.steps((x.shape[-2] + top + bottom, x.shape[-1] + left + right))

    def _unfolds(self, weight: SparseWeight, x: Tensor) -> bool:
        """Whether this weight's entries multiply the unfolded input; otherwise its dense kernel serves."""
        learns = weight.candidate is not None and weight.candidate.requires_grad and torch.is_grad_enabled()
        whole = learns or self.wiring.wants_factors
        if self.backend == "dense" or self.groups > 1 or weight.per_instance or whole:
            return False
        if self.backend != "auto":
            return True
        stored = weight.entries / math.prod(weight.shape)
        return x.is_cpu and stored < crossover(self.out_channels, math.prod(self.kernel_size))

    # --- the dense kernel ------------------------------------------------------------------------------

    def _pad(self, x: Tensor) -> Tensor:
        """x with its margins, but for even margins of zeros, which the convolution adds itself."""
        return x if self._even() else self._margins(x)

    def _margins(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads, _MODES[self.padding_mode]) if any(self.pads) else x

    def _even(self) -> bool:
        left, right, top, bottom = self.pads
        return self.padding_mode == "zeros" and left == right and top == bottom

    def _convolve(self, x: Tensor, kernel: Tensor, groups: int, bias: Tensor | None = None) -> Tensor:
        margins = (self.pads[2], self.pads[0]) if self._even() else (0, 0)
        own = None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, kernel.to(x.dtype), own, self.stride, margins, self.dilation, groups)

    def _instances(self, kernels: Float[Tensor, "b o i kh kw"], x: Float[Tensor, "b c h w"]) -> Tensor:
        """A kernel for each instance: the batch lies in the channels of one picture, in groups."""
        b = x.shape[0]
        require(len(kernels) == b, f"{len(kernels)} weights (one per instance) for a batch of {b}; expected as many.")
        if b == 0:
            return self._convolve(self._pad(x), kernels.sum(0), self.groups)
        padded = self._pad(x)
        y = self._convolve(padded.reshape(1, -1, *padded.shape[2:]), kernels.flatten(0, 1), b * self.groups)
        return _like(y.reshape(b, self.out_channels, *y.shape[2:]), x)

    # --- stored entries × unfolded input ---------------------------------------------------------------

    def _product(self, weight: SparseWeight, x: Tensor) -> Tensor:
        columns = unfold(self._margins(x).transpose(0, 1), self._window)
        y = contract(weight, columns.unsqueeze(0), self.backend)
        return _like(y.reshape(self.out_channels, len(x), *self._steps(x)).transpose(0, 1), x)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        usual = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        given = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        text += "".join(f", {name}={value!r}" for name, value in given.items())
        return text if self.bias is not None else f"{text}, bias=False"


def _pair(name: str, value: object, least: int = 1) -> Pair:
    """An int, or two of them, as two."""
    both = value if isinstance(value, (tuple, list)) else (value, value)
    good = len(both) == 2 and all(isinstance(each, int) and each >= least for each in both)
    require(good, f"{name}={value!r}; expected an int or two of them, rows first, each at least {least}.")
    return both[0], both[1]


def _pads(padding: str | Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    """Margins left, right, top and bottom, in the order of `F.pad`."""
    if not isinstance(padding, str):
        top, left = padding
        return left, left, top, top
    choose("padding", padding, {"same": 0, "valid": 0})
    if padding == "valid":
        return 0, 0, 0, 0
    require(stride == (1, 1), f"padding='same' with stride={stride}; expected stride 1, or give numbers.")
    high, wide = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return wide // 2, wide - wide // 2, high // 2, high - high // 2


def _like(y: Tensor, x: Tensor) -> Tensor:
    """y in the memory format of x."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
