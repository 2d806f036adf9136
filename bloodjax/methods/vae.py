"""Variational autoencoder: Kingma and Welling, Auto-Encoding Variational Bayes (2014)."""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array, random

from bloodjax.methods import Batch, Loss, Metrics, Params, Stats
from bloodjax.nets.conv import Decoder, Encoder


def kl_to_standard_normal(mean: Array, log_var: Array) -> Array:
    """KL(N(mean, exp(log_var)) || N(0, 1)) in nats, element by element: appendix B there."""
    return 0.5 * (jnp.exp(log_var) + mean**2 - 1.0 - log_var)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Convolutional VAE with a Gaussian latent and a Gaussian decoder of fixed standard deviation.

    Attributes:
        shape: (H, W, C) of the images.
        latent: dimensions of z.
        width: channels at the finest resolution of encoder and decoder.
        sigma: the decoder's standard deviation, in units of the [-1, 1] image. It is the weight of
            the KL term by another name: squared error + 2 sigma² KL is the same objective.
        dtype: of the networks' activations.
    """

    shape: tuple[int, int, int]
    latent: int
    width: int
    sigma: float
    dtype: str = "float32"

    trace_title = "interpolation"

    @property
    def encoder(self) -> Encoder:
        return Encoder(2 * self.latent, self.width, norm=False, dtype=self.dtype)

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.shape, self.width, norm=False, dtype=self.dtype)

    @property
    def losses(self) -> Mapping[str, Loss]:
        return {"vae": self.loss}

    def init(self, key: Array) -> tuple[Params, Stats]:
        encoder, decoder = random.split(key)
        return {
            "vae": {
                "encoder": self.encoder.init(encoder, jnp.zeros((1, *self.shape)), True)["params"],
                "decoder": self.decoder.init(decoder, jnp.zeros((1, self.latent)), True)["params"],
            }
        }, {}

    def decode(self, params: Params, z: Array) -> Array:
        """Z [B, latent] -> the mean image [B, H, W, C]."""
        return self.decoder.apply({"params": params["vae"]["decoder"]}, z, False)

    def loss(
        self, params: Params, stats: Stats, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """The negative evidence lower bound in nats per image, averaged over the batch.

        It is a density over [-1, 1] pixels, so it can be negative. `*_per_dim` is nats per pixel
        and channel for the reconstruction, per latent dimension for the KL.
        """
        images, _ = batch
        code = self.encoder.apply({"params": params["vae"]["encoder"]}, images, True)
        mean, log_var = jnp.split(code, 2, axis=-1)
        z = mean + jnp.exp(0.5 * log_var) * random.normal(key, mean.shape)
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
        """The decoder's mean at z ~ N(0, 1), as the paper shows it."""
        return self.decode(params, random.normal(key, (1, self.latent)))[0]

    def trace(self, params: Params, stats: Stats, key: Array) -> Array:
        """Nine images on the arc between two latents."""
        return self.decode(params, arc(random.normal(key, (2, self.latent)), 9))


def arc(ends: Array, count: int) -> Array:
    """[2, Z] -> [count, Z], end to end; cos² + sin² = 1, so all are N(0, 1) as the ends are."""
    angle = jnp.linspace(0.0, jnp.pi / 2, count)[:, None]
    return jnp.cos(angle) * ends[0] + jnp.sin(angle) * ends[1]
