"""Denoising diffusion: DDPM of Ho et al. (2020), with the sampler of Song et al. (2021)."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, random

from bloodjax import nets, options
from bloodjax.diffusion import samplers
from bloodjax.diffusion.guidance import drop_labels, guide
from bloodjax.diffusion.process import Estimate, Levels, LinearBeta, clip_image, estimate_from_noise
from bloodjax.methods import Batch, Dtype, Loss, Metrics, Params, Shape, Stats
from bloodjax.options import Above0, Count, Interval, NonNegative, Positive, Share
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
        classes: of the labels; 0 for an unconditional model.
        label_drop: probability of training without the label, which guidance needs.
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
    classes: Count = 0
    label_drop: Share = 0.1
    dtype: Dtype = "float32"

    trace_title = "denoising"

    def __post_init__(self) -> None:
        options.check(type(self), "method", vars(self))
        _ = self.network  # which checks its own hyper-parameters

    @property
    def network(self) -> nn.Module:
        """The network that predicts ε."""
        names = ("shape", "widths", "blocks", "patch", "dtype", "classes")
        values = {name: getattr(self, name) for name in names}
        return nets.make(self.net, **{k: value for k, value in values.items() if value != 0})

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
        noise = batch_normal(key_noise, images.shape)
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
        *,
        steps: Positive,
        eta: Share,
        clip: bool,
        variance: samplers.Variance,
        name: str = "ddim",
        guidance: NonNegative = 1.0,
        guidance_low: NonNegative = 0.0,
        guidance_high: Above0 = 1000.0,
    ) -> Array:
        """Return one image.

        Args:
            params: of the network.
            stats: unused.
            key: the image is a function of it.
            label: int32 scalar below `classes`; None draws from all classes.
            steps: between noise levels. T of ddim with eta 1 are the ancestral sampler, algorithm 2
                of Ho et al.
            eta: of ddim, from 0, deterministic after the first noise, to 1.
            clip: clip the estimate of x_0 to [-1, 1] at every step.
            variance: of ddim's added noise, "posterior" (β̃) or "beta".
            name: of a sampler in `diffusion.samplers.SAMPLERS`.
            guidance, guidance_low, guidance_high: see `diffusion.guidance.guide`.
        """
        image, _ = self.walk(
            params,
            key,
            label,
            steps=steps,
            eta=eta,
            clip=clip,
            variance=variance,
            name=name,
            guidance=guidance,
            guidance_low=guidance_low,
            guidance_high=guidance_high,
        )
        return image

    def trace(
        self, params: Params, stats: Stats, key: Array, label: Array | None = None, **sampler: Any
    ) -> Array:
        """Return nine estimates of x_0 from the first step to the last; options as in `sample`."""
        return samplers.select_estimates(self.walk(params, key, label, **sampler)[1], 9)

    def walk(
        self, params: Params, key: Array, label: Array | None, **sampler: Any
    ) -> tuple[Array, Array]:
        """Return x_0 and the estimate of it at every step, [H, W, C] and [steps, H, W, C]."""
        o = SimpleNamespace(**options.fill(self.sample, "sampler", sampler))
        levels = self.process.levels(o.steps)

        def predict(x: Array, level: Levels, label: Array | None) -> Array:
            return self.predict_noise(params, x, jnp.broadcast_to(level.t, len(x)), label)

        interval = o.guidance_low, o.guidance_high
        guided = guide(predict, self.classes, label, o.guidance, interval)

        def denoise(x: Array, level: Levels) -> Estimate:
            estimate = estimate_from_noise(x, guided(x, level), level)
            return clip_image(x, estimate, level) if o.clip else estimate

        x = random.normal(random.fold_in(key, 0), self.shape)
        walk = samplers.choose_sampler(o.name)
        return walk(denoise, x, levels, key, eta=o.eta, variance=o.variance)


Method = DDPM
