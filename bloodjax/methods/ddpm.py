"""Denoising diffusion: DDPM of Ho et al. (2020), with the sampler of Song et al. (2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bloodjax import nets, options
from bloodjax.diffusion import samplers
from bloodjax.diffusion.process import Estimate, Levels, LinearBeta, clip_image, estimate_from_noise
from bloodjax.methods import Batch, Dtype, Loss, Metrics, Params, Shape, Stats
from bloodjax.options import Interval, Positive, Share
from bloodjax.randomness import batch_normal

Beta = Annotated[float, Interval(0, 1, open_low=True, open_high=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM:
    """ε-prediction by a U-Net, linear β.

    Attributes:
        shape: (H, W, C) of the images.
        timesteps: T.
        beta_first, beta_last: β_1 and β_T, linear in between.
        widths, blocks, patch: of the network, see `nets.unet.UNet`.
        net: a file in bloodjax/nets, "unet" or "course_unet".
        dtype: of the network's activations.
    """

    shape: Shape
    timesteps: Positive
    beta_first: Beta
    beta_last: Beta
    widths: tuple[Positive, ...]
    blocks: Positive
    patch: Positive
    net: str = "unet"
    dtype: Dtype = "float32"

    classes = 0
    trace_title = "denoising"

    def __post_init__(self) -> None:
        options.check(type(self), "method", vars(self))
        _ = self.network  # which checks its own hyper-parameters

    @property
    def network(self) -> nn.Module:
        """The network that predicts ε."""
        names = ("shape", "widths", "blocks", "patch", "dtype")
        return nets.make(self.net, **{name: getattr(self, name) for name in names})

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
        variables = self.network.init(key, jnp.zeros((1, *self.shape)), jnp.zeros((1,)))
        return {"ddpm": variables["params"]}, {}

    def predict_noise(self, params: Params, x: Array, t: Array) -> Array:
        """Return the predicted ε for x float [B, H, W, C], t float [B] in 1..T: [B, H, W, C]."""
        return nets.apply(self.network, {"params": params["ddpm"]}, x, t)

    def loss(
        self, params: Params, stats: Stats, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """Return the mean squared error of ε at t uniform on 1..T: L_simple, eq. 14 of Ho et al."""
        images, _ = batch
        key_t, key_noise = random.split(key)
        t = random.randint(key_t, (len(images),), 1, self.timesteps + 1)
        noise = batch_normal(key_noise, images.shape)
        x = self.process.corrupt(images, t, noise)
        predicted = self.predict_noise(params, x, t.astype(jnp.float32))
        return jnp.mean((predicted - noise) ** 2), ({}, stats)

    def sample(
        self,
        params: Params,
        stats: Stats,
        key: Array,
        label: Array | None = None,
        *,
        steps: Positive,
        eta: Share,
        clip: bool,
        variance: Literal["posterior", "beta"],
        name: str = "ddim",
    ) -> Array:
        """Return one image after `steps` network calls.

        Args:
            params: of the network.
            stats: unused.
            key: the image is a function of it.
            label: unused; the method is unconditional.
            steps: T with eta 1 is the ancestral sampler, algorithm 2 of Ho et al.; fewer steps, or
                another eta, is DDIM.
            eta: from 0, deterministic after the first noise, to 1.
            clip: clip the estimate of x_0 to [-1, 1] at every step.
            variance: of the added noise, "posterior" (β̃) or "beta".
            name: of the sampler in `samplers.SAMPLERS`; it may ignore eta and variance.
        """
        image, _ = self.walk(
            params, key, steps=steps, eta=eta, clip=clip, variance=variance, name=name
        )
        return image

    def trace(
        self,
        params: Params,
        stats: Stats,
        key: Array,
        label: Array | None = None,
        **sampler: Any,
    ) -> Array:
        """Return nine estimates of x_0 from the first step to the last; options as in `sample`."""
        _, estimates = self.walk(params, key, **sampler)
        return estimates[np.round(np.linspace(0, len(estimates) - 1, 9)).astype(int)]

    def walk(
        self,
        params: Params,
        key: Array,
        *,
        clip: bool,
        steps: int,
        name: str = "ddim",
        **sampler: Any,
    ) -> tuple[Array, Array]:
        """Return x_0 and the estimate of it at every step, [H, W, C] and [steps, H, W, C]."""
        checked = {"clip": clip, "steps": steps, "name": name, **sampler}
        options.check(self.sample, "sampler", checked)

        def denoise(x: Array, level: Levels) -> Estimate:
            noise = self.predict_noise(params, x[None], level.t[None])[0]
            estimate = estimate_from_noise(x, noise, level)
            return clip_image(x, estimate, level) if clip else estimate

        levels = self.process.levels(steps)
        x = random.normal(random.fold_in(key, 0), self.shape)
        return samplers.choose_sampler(name)(denoise, x, levels, key, **sampler)


Method = DDPM
