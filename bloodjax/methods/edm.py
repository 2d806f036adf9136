"""EDM: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, random

from bloodjax import nets, options
from bloodjax.diffusion import samplers
from bloodjax.diffusion.guidance import drop_labels, guide
from bloodjax.diffusion.process import KarrasLevels, Levels, estimate_from_image, precondition
from bloodjax.methods import Batch, Dtype, Loss, Metrics, Params, Shape, Stats
from bloodjax.options import Count, Interval, NonNegative, PositiveFloat, PositiveInt, UnitInterval
from bloodjax.randomness import normal_batch

Rate = Annotated[float, Interval(0, 1, open_high=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM:
    """A preconditioned denoiser, trained at log-normal noise levels.

    Attributes:
        shape, classes, dtype: see `Method`.
        sigma_data: standard deviation of the data in [-1, 1].
        p_mean, p_std: mean and standard deviation of ln σ in training.
        widths, blocks, patch: of the network, see `nets.unet.UNet`.
        net: a file in bloodjax/nets.
        dropout: rate in the network in training.
        label_drop: probability of training without the label, which guidance needs.
    """

    shape: Shape
    sigma_data: PositiveFloat
    p_mean: float
    p_std: PositiveFloat
    widths: tuple[PositiveInt, ...]
    blocks: PositiveInt
    patch: PositiveInt
    net: str = "unet"
    dropout: Rate = 0.0
    classes: Count = 0
    label_drop: UnitInterval = 0.1
    dtype: Dtype = "float32"

    trace_title = "denoising"

    def __post_init__(self) -> None:
        options.check(type(self), "method", vars(self))
        _ = self.network  # which checks its own hyper-parameters

    @property
    def network(self) -> nn.Module:
        """The network F inside the denoiser."""
        return nets.make_denoiser(self)

    @property
    def losses(self) -> Mapping[str, Loss]:
        """One player, the network."""
        return {"edm": self.loss}

    def init(self, key: Array) -> tuple[Params, Stats]:
        """Return the parameters of the network; there are no statistics."""
        return {"edm": nets.init(self.network, key, self.shape)}, {}

    def denoise(
        self,
        params: Params,
        x: Array,
        sigma: Array,
        label: Array | None,
        rngs: dict[str, Array] | None = None,
    ) -> Array:
        """Return D(x; σ), the expected images, float32 [B, H, W, C]; eq. 7 of the paper.

        Args:
            params: of the network.
            x: images plus noise, float32 [B, H, W, C].
            sigma: standard deviation of the noise, float32 [B].
            label: int32 [B]; `classes` or None stand for an unknown class.
            rngs: a key for "dropout" in training.
        """
        c = precondition(sigma, self.sigma_data)
        c_skip, c_out, c_in = (factor[:, None, None, None] for factor in c[:3])
        inputs = (c_in * x, c.c_noise, *([label] if self.classes else []))
        variables = {"params": params["edm"]}
        return c_skip * x + c_out * nets.apply(self.network, variables, *inputs, rngs=rngs)

    def loss(
        self, params: Params, stats: Stats, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """Return the weighted squared error of D at log-normal σ: eq. 2, with table 1's λ(σ).

        λ c_out² = 1, so that the error of the network counts alike at all noise levels.
        """
        images, labels = batch
        key_sigma, key_noise, key_label, key_dropout = random.split(key, 4)
        sigma = jnp.exp(self.p_mean + self.p_std * normal_batch(key_sigma, (len(images),)))
        noise = normal_batch(key_noise, images.shape)
        if self.classes:
            labels = drop_labels(key_label, labels, self.classes, self.label_drop)
        x = images + sigma[:, None, None, None] * noise
        denoised = self.denoise(params, x, sigma, labels, {"dropout": key_dropout})
        weight = 1.0 / precondition(sigma, self.sigma_data).c_out ** 2
        return jnp.mean(weight[:, None, None, None] * (denoised - images) ** 2), ({}, stats)

    def sample(
        self,
        params: Params,
        stats: Stats,
        key: Array,
        label: Array | None = None,
        pictures: int = 0,
        *,
        steps: PositiveInt,
        name: str = "heun",
        eta: UnitInterval = 0.0,
        clip: bool = False,
        sigma_min: PositiveFloat = 0.002,
        sigma_max: PositiveFloat = 80.0,
        rho: PositiveFloat = 7.0,
        guidance: NonNegative = 1.0,
        guidance_low: NonNegative = 0.0,
        guidance_high: PositiveFloat = 1000.0,
    ) -> Array:
        """Return one image, or `pictures` estimates of it, clipped to [-1, 1].

        Args:
            params, stats, key, label: see `Method`.
            pictures: estimates from the first step to the last; 0 for the image; not an option.
            steps: between noise levels; heun calls the network 2 × steps - 1 times.
            name: of a sampler in `diffusion.samplers.SAMPLERS`.
            eta: of ddim; see there.
            clip: clip the estimate of the image to [-1, 1] at every step.
            sigma_min, sigma_max, rho: of the noise levels, see `KarrasLevels`.
            guidance, guidance_low, guidance_high: see `diffusion.guidance.guide`.
        """

        def predict(x: Array, level: Levels, label: Array | None) -> Array:
            return self.denoise(params, x, jnp.broadcast_to(level.sigma, len(x)), label)

        levels = KarrasLevels(sigma_min, sigma_max, rho).levels(steps)
        interval = guidance_low, guidance_high
        guided = guide(predict, self.classes, label, guidance, interval, levels)
        x = levels.sigma[0] * random.normal(random.fold_in(key, 0), self.shape)
        walk = (name, guided, estimate_from_image, x, levels, key)
        return jnp.clip(samplers.draw(*walk, clip=clip, pictures=pictures, eta=eta), -1.0, 1.0)

    def trace(
        self, params: Params, stats: Stats, key: Array, label: Array | None = None, **sampler: Any
    ) -> Array:
        """Return nine estimates of the image from the first step to the last, as in `sample`."""
        return self.sample(params, stats, key, label, 9, **sampler)


Method = EDM
