"""The base of the three methods in PyTorch: a training step, sampling, and compilation."""

import abc
import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bloodjax.bench.torch_nets import Shape
from bloodjax.bench.torch_weights import Arrays, load, statistics, views

Noise = dict[str, Tensor]
PRECISIONS = ("float32", "tf32", "bfloat16")


class Twin(abc.ABC):
    """A method with its players and the training state of one seed; see `torch_twin.make`.

    Attributes:
        players: name -> module, in order of update.
        averages: name -> module with the moving average of the parameters, which sampling uses;
            the players themselves if `ema_decay` is 0.
        losses: player -> function of (images, noise) that returns (scalar, further metrics).
    """

    def __init__(
        self,
        shape: Shape,
        weights: Arrays,
        *,
        optimizer: Mapping[str, float],
        ema_decay: float = 0.0,
        fused: bool = False,
        channels_last: bool = False,
        device: str = "cpu",
        precision: str = "float32",
        **options: object,
    ) -> None:
        """Build the players and load their state.

        Args:
            shape: (H, W, C) of the images.
            weights: one seed's State, see `torch_twin.make`.
            optimizer: learning_rate, beta1 and beta2 of Adam.
            ema_decay: of the moving average of the parameters; 0: none.
            fused: Adam in one kernel.
            channels_last: the memory format.
            device: "cpu" or "cuda".
            precision: "float32", "tf32" or "bfloat16" (autocast), process-wide.
            options: the method's hyper-parameters.
        """
        self.shape, self.ema_decay, self.precision = shape, ema_decay, precision
        self.device = torch.device(device)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        set_precision(precision)
        torch.backends.cudnn.benchmark = channels_last  # the tuned variants have both
        self.players = {
            player: net.to(self.device, memory_format=self.format)
            for player, net in self.build(**options).items()
        }
        self.averages = {p: average(net) if ema_decay else net for p, net in self.players.items()}
        self.losses = {player: getattr(self, f"{player}_loss") for player in self.players}
        self.step, self.batch_size, self.graphs = int(weights["step"]), 1, False
        self.optimizers, self.views = {}, {}
        for player, net in self.players.items():
            adam = make_adam(net, int(weights[f"opt/{player}/0/count"]), fused, **optimizer)
            self.optimizers[player] = adam
            self.views |= views(player, net, self.averages[player], adam)
        self.loaded = dict(weights)
        skipped = ("seed", "step", *(f"opt/{player}/0/count" for player in self.players))
        load(self.views, {name: weights[name] for name in weights if name not in skipped})

    # ---- a method defines these, and a loss for each player ----

    @abc.abstractmethod
    def build(self, **options: object) -> dict[str, nn.Module]:
        """Return the players of a method with these hyper-parameters."""

    @abc.abstractmethod
    def noise(self, batch_size: int) -> Noise:
        """Draw the noise of one training step."""

    @abc.abstractmethod
    def evaluate(self, *args: object) -> Tensor:
        """Call the sampling network once, with the arithmetic around it."""

    @abc.abstractmethod
    def generate(self, draws: Iterator[Tensor], **options: object) -> Tensor:
        """Return images, float [B, C, H, W], from batches of N(0, 1), by way of `call`."""

    @abc.abstractmethod
    def normal(self, count: int) -> Tensor:
        """Draw N(0, 1) in the shape that sampling starts from."""

    # ---- data ----

    def hold(self, images: np.ndarray) -> None:
        """Keep a training set on the device: uint8 [N, H, W, C]."""
        data = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        self.data = data.contiguous(memory_format=self.format)

    def batch(self, rows: Tensor) -> Tensor:
        """Return the images of these rows, float [B, C, H, W] in [-1, 1]."""
        images = self.data[rows].to(torch.float32, memory_format=self.format)
        return images.div_(127.5).sub_(1.0)

    # ---- training ----

    def train_step(self, images: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Update each player in turn, then the moving average; return the metrics of bloodjax."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        metrics = {}
        for player, loss in self.losses.items():
            opponents = [net for name, net in self.players.items() if name != player]
            for net in opponents:  # no gradient for them, nor for their fakes
                net.requires_grad_(False)
            with self.autocast():
                value, terms = loss(images, noise)
            value.backward()
            for net in opponents:
                net.requires_grad_(True)
            self.optimizers[player].step()
            self.optimizers[player].zero_grad(set_to_none=True)
            metrics |= {f"{player}_loss": value, **terms}
        if self.ema_decay:
            self.move_averages()
        self.step, self.batch_size = self.step + 1, len(images)
        return {name: self.copy_out(value.detach()) for name, value in metrics.items()}

    @torch.no_grad()
    def move_averages(self) -> None:
        """Update the moving averages, with a short memory at first, as bloodjax does."""
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        for player, net in self.players.items():
            slow = list(self.averages[player].parameters())
            torch._foreach_lerp_(slow, list(net.parameters()), 1 - decay)

    # ---- sampling ----

    def sample(
        self, count: int, noise: Iterable[Tensor] | None = None, **options: object
    ) -> Tensor:
        """Return `count` images, uint8 [count, H, W, C]; `noise` replaces random draws."""
        return to_uint8(self.sample_floats(count, noise, **options))

    @torch.inference_mode()
    def sample_floats(
        self, count: int, noise: Iterable[Tensor] | None = None, **options: object
    ) -> Tensor:
        """Return `count` images before rounding, float [count, C, H, W]."""
        draws = (self.normal(count) for _ in itertools.count())
        for net in self.averages.values():
            net.eval()
        with self.autocast():
            images = self.generate(draws if noise is None else iter(noise), **options)
        for net in self.averages.values():
            net.train()
        return images.float()

    def call(self, *args: object) -> Tensor:
        """Return the result of `evaluate`; CUDA graphs reuse its memory."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.copy_out(self.evaluate(*args))

    # ---- compilation and precision ----

    def compile(self, mode: str = "default") -> None:
        """Compile every loss with its gradient, and the sampling network, by torch.compile.

        Args:
            mode: "default", or "reduce-overhead": as CUDA graphs.
        """
        self.graphs = mode == "reduce-overhead"
        self.losses = {p: torch.compile(loss, mode=mode) for p, loss in self.losses.items()}
        self.evaluate = torch.compile(self.evaluate, mode=mode)

    def copy_out(self, value: Tensor) -> Tensor:
        """Copy `value` out of the memory that the next replay of a CUDA graph overwrites."""
        return value.clone() if self.graphs else value

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context of the precision."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def weights(self) -> dict[str, np.ndarray]:
        """Return the state with JAX's names, layouts and statistics.

        BatchNorm's variances are exact if all steps had batches of one size.
        """
        state = self.loaded | {"step": np.int32(self.step)}
        for name, view in self.views.items():
            state[name] = view.numpy(force=True).reshape(self.loaded[name].shape).copy()
        for player, net in self.players.items():
            count = next(iter(self.optimizers[player].state.values()))["step"]
            state[f"opt/{player}/0/count"] = np.int32(count.item())  # the fused one is on the GPU
            for name, norm in statistics(net):
                # Torch averages variances of n - 1 degrees of freedom, flax those of n. The loaded
                # variance has a part in the average, and is of flax's kind.
                name, n = f"stats/{player}{name}/var", norm.pixels * self.batch_size
                rest = (1 - norm.momentum) ** int(norm.num_batches_tracked) * self.loaded[name]
                state[name] += (rest - state[name]) / n
        return state


def average(net: nn.Module) -> nn.Module:
    """Return a copy of a network with parameters of its own, and the statistics of `net`."""
    shared = {id(buffer): buffer for buffer in net.buffers()}
    return copy.deepcopy(net, shared).requires_grad_(False)


def make_adam(
    net: nn.Module, count: int, fused: bool, *, learning_rate: float, beta1: float, beta2: float
) -> torch.optim.Adam:
    """Return Adam with zero moments after `count` steps."""
    adam = torch.optim.Adam(net.parameters(), learning_rate, (beta1, beta2), fused=fused)
    for tensor in adam.param_groups[0]["params"]:
        # A counter on the host costs no launches; the fused kernel needs one on the device.
        device = tensor.device if fused else "cpu"
        adam.state[tensor] = {
            "step": torch.tensor(float(count), device=device),
            "exp_avg": torch.zeros_like(tensor),
            "exp_avg_sq": torch.zeros_like(tensor),
        }
    return adam


def set_precision(precision: str) -> None:
    """Set the precision of every matrix product and convolution of this process.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"


def to_uint8(images: Tensor) -> Tensor:
    """Return uint8 [B, H, W, C] of float [B, C, H, W] in [-1, 1]: clip, round half to even."""
    levels = ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()
