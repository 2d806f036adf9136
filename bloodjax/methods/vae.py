"""Variational autoencoder: Kingma and Welling, Auto-Encoding Variational Bayes (2014)."""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array, random

from bloodjax import nets, options
from bloodjax.methods import Batch, Dtype, Loss, Metrics, Params, Shape, Stats
from bloodjax.nets.conv import Decoder, Encoder
from bloodjax.options import PositiveFloat, PositiveInt
from bloodjax.randomness import interpolate_normals, normal_batch


def kl_to_standard_normal(mean: Array, log_var: Array) -> Array:
    """Return KL(N(mean, exp(log_var)) || N(0, 1)) in nats, element by element: appendix B."""
    return 0.5 * (jnp.exp(log_var) + mean**2 - 1.0 - log_var)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE:
    """Convolutional VAE with a Gaussian latent and a Gaussian decoder of fixed standard deviation.

    Attributes:
        shape, dtype: see `Method`.
        latent: dimensions of z.
        width: channels at the finest resolution of encoder and decoder.
        sigma: the decoder's standard deviation, in units of the [-1, 1] image. It is the weight of
            the KL term in another form: squared error + 2 sigma² KL is the same objective.
    """

    shape: Shape
    latent: PositiveInt
    width: PositiveInt
    sigma: PositiveFloat
    dtype: Dtype = "float32"

    classes = 0
    trace_title = "interpolation"

    def __post_init__(self) -> None:
        options.check(type(self), "method", vars(self))

    @property
    def encoder(self) -> Encoder:
        """Image -> mean and log variance of z, side by side."""
        return Encoder(2 * self.latent, self.width, norm=False, dtype=self.dtype)

    @property
    def decoder(self) -> Decoder:
        """Latent -> mean image."""
        return Decoder(self.shape, self.width, norm=False, dtype=self.dtype)

    @property
    def losses(self) -> Mapping[str, Loss]:
        """One player, encoder and decoder together."""
        return {"vae": self.loss}

    def init(self, key: Array) -> tuple[Params, Stats]:
        """Return the parameters of encoder and decoder; there are no statistics."""
        encoder, decoder = random.split(key)
        return {
            "vae": {
                "encoder": self.encoder.init(encoder, jnp.zeros((1, *self.shape)), True)["params"],
                "decoder": self.decoder.init(decoder, jnp.zeros((1, self.latent)), True)["params"],
            }
        }, {}

    def decode(self, params: Params, z: Array) -> Array:
        """Return the mean images [B, H, W, C] of z [B, latent]."""
        return nets.apply(self.decoder, {"params": params["vae"]["decoder"]}, z, False)

    def loss(
        self, params: Params, stats: Stats, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """Return the negative evidence lower bound in nats per image, averaged over the batch.

        The bound is on a density over [-1, 1] pixels, so the loss can be negative. `*_per_dim` is
        in nats per pixel and channel for the reconstruction, per latent dimension for the KL.
        """
        images, _ = batch
        code = nets.apply(self.encoder, {"params": params["vae"]["encoder"]}, images, True)
        mean, log_var = jnp.split(code, 2, axis=-1)
        z = mean + jnp.exp(0.5 * log_var) * normal_batch(key, mean.shape)
        error = jnp.sum((images - self.decode(params, z)) ** 2, axis=(1, 2, 3)).mean()
        dims = math.prod(self.shape)
        constant = 0.5 * dims * math.log(2 * math.pi * self.sigma**2)
        reconstruction = error / (2 * self.sigma**2) + constant
        kl = jnp.sum(kl_to_standard_normal(mean, log_var), axis=-1).mean()
        metrics = {
            "reconstruction_nats": reconstruction,
            "reconstruction_per_dim": reconstruction / dims,
            "kl_nats": kl,
            "kl_per_dim": kl / self.latent,
        }
        return reconstruction + kl, (metrics, stats)

    def sample(self, params: Params, stats: Stats, key: Array, label: Array | None = None) -> Array:
        """Return the decoder's mean at z ~ N(0, 1), as the paper shows it."""
        return self.decode(params, random.normal(key, (1, self.latent)))[0]

    def trace(self, params: Params, stats: Stats, key: Array, label: Array | None = None) -> Array:
        """Return nine images on the arc between two latents."""
        ends = random.normal(key, (2, self.latent))
        return self.decode(params, interpolate_normals(ends, 9))


Method = VAE
