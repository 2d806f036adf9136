"""Denoising diffusion: DDPM of Ho et al. (2020), with the sampler of Song et al. (2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, random

from bloodjax import nets, options
from bloodjax.diffusion import samplers
from bloodjax.diffusion.guidance import drop_labels, guide
from bloodjax.diffusion.process import Levels, LinearBeta, estimate_from_noise
from bloodjax.methods import Batch, Dtype, Loss, Metrics, Params, Shape, Stats
from bloodjax.options import Count, Interval, NonNegative, PositiveFloat, PositiveInt, UnitInterval
from bloodjax.randomness import normal_batch

Beta = Annotated[float, Interval(0, 1, open_low=True, open_high=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM:
    """ε-prediction by a U-Net, linear β.

    Attributes:
        shape, classes, dtype: see `Method`.
        timesteps: T.
        beta_first, beta_last: β_1 and β_T, linear in between.
        widths, blocks, patch: of the network, see `nets.unet.UNet`.
        net: a file in bloodjax/nets, "unet" or "course_unet".
        label_drop: probability of training without the label, which guidance needs.
    """

    shape: Shape
    timesteps: PositiveInt
    beta_first: Beta
    beta_last: Beta
    widths: tuple[PositiveInt, ...]
    blocks: PositiveInt
    patch: PositiveInt
    net: str = "unet"
    classes: Count = 0
    label_drop: UnitInterval = 0.1
    dtype: Dtype = "float32"

    trace_title = "denoising"

    def __post_init__(self) -> None:
        options.check(type(self), "method", vars(self))
        _ = self.network  # which checks its own hyper-parameters

    @property
    def network(self) -> nn.Module:
        """The network that predicts ε."""
        return nets.make_denoiser(self)

    @property
    def process(self) -> LinearBeta:
        """The process that turns images into noise."""
        return LinearBeta(self.timesteps, self.beta_first, self.beta_last)

    @property
    def losses(self) -> Mapping[str, Loss]:
        """One player, the network."""
        return {"ddpm": self.loss}

    def init(self, key: Array) -> tuple[Params, Stats]:
        """Return the parameters of the network; there are no statistics."""
        return {"ddpm": nets.init(self.network, key, self.shape)}, {}

    def predict_noise(
        self, params: Params, x: Array, t: Array, label: Array | None = None
    ) -> Array:
        """Return the predicted ε, float32 [B, H, W, C].

        Args:
            params: of the network.
            x: x_t, float32 [B, H, W, C].
            t: float32 [B] in 1..T.
            label: int32 [B]; `classes` or None stand for an unknown class.
        """
        inputs = (x, t, *([label] if self.classes else []))
        return nets.apply(self.network, {"params": params["ddpm"]}, *inputs)

    def loss(
        self, params: Params, stats: Stats, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """Return the mean squared error of ε at t uniform on 1..T: L_simple, eq. 14 of Ho et al."""
        images, labels = batch
        key_t, key_noise = random.split(key)
        t = random.randint(key_t, (len(images),), 1, self.timesteps + 1)
        noise = normal_batch(key_noise, images.shape)
        if self.classes:  # by a further key: those of the unconditional method stay as they are
            labels = drop_labels(random.fold_in(key, 2), labels, self.classes, self.label_drop)
        x = self.process.corrupt(images, t, noise)
        predicted = self.predict_noise(params, x, t.astype(jnp.float32), labels)
        return jnp.mean((predicted - noise) ** 2), ({}, stats)

    def sample(
        self,
        params: Params,
        stats: Stats,
        key: Array,
        label: Array | None = None,
        pictures: int = 0,
        *,
        steps: PositiveInt,
        eta: UnitInterval,
        clip: bool,
        variance: samplers.Variance,
        name: str = "ddim",
        guidance: NonNegative = 1.0,
        guidance_low: NonNegative = 0.0,
        guidance_high: PositiveFloat = 1000.0,
    ) -> Array:
        """Return one image, or `pictures` estimates of it from the first step to the last.

        Args:
            params, stats, key, label: see `Method`.
            pictures: 0 for the image; not an option.
            steps: between noise levels. T of ddim with eta 1 are the ancestral sampler, algorithm 2
                of Ho et al.
            eta: of ddim, from 0, deterministic after the first noise, to 1.
            clip: clip the estimate of x_0 to [-1, 1] at every step.
            variance: of ddim's added noise, "posterior" (β̃) or "beta".
            name: of a sampler in `diffusion.samplers.SAMPLERS`.
            guidance, guidance_low, guidance_high: see `diffusion.guidance.guide`.
        """

        def predict(x: Array, level: Levels, label: Array | None) -> Array:
            return self.predict_noise(params, x, jnp.broadcast_to(level.t, len(x)), label)

        levels, interval = self.process.levels(steps), (guidance_low, guidance_high)
        guided = guide(predict, self.classes, label, guidance, interval, levels)
        x = random.normal(random.fold_in(key, 0), self.shape)
        walk = (name, guided, estimate_from_noise, x, levels, key)
        return samplers.draw(*walk, clip=clip, pictures=pictures, eta=eta, variance=variance)

    def trace(
        self, params: Params, stats: Stats, key: Array, label: Array | None = None, **sampler: Any
    ) -> Array:
        """Return nine estimates of x_0 from the first step to the last; options as in `sample`."""
        return self.sample(params, stats, key, label, 9, **sampler)


Method = DDPM
