"""DCGAN: Radford et al. (2016), trained by algorithm 1 of Goodfellow et al. (2014) with k = 1."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array, nn, random

from bloodjax import nets, options
from bloodjax.methods import Batch, Dtype, Loss, Metrics, Params, Shape, Stats
from bloodjax.nets.conv import Decoder, Encoder
from bloodjax.options import PositiveInt
from bloodjax.randomness import interpolate_normals, normal_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class DCGAN:
    """Two players with BatchNorm and LeakyReLU, binary cross-entropy on logits.

    As in Goodfellow's algorithm, each update draws its own noise. The generator maximises
    log D(G(z)) (section 3) instead of minimising log(1 - D(G(z))). Every forward pass in training
    normalises by the statistics of its own batch, real or generated, and moves the averages that
    sampling uses.

    Attributes:
        shape, dtype: see `Method`.
        latent: dimensions of z.
        width: the generator's channels at half the resolution; they double with each halving.
        discriminator_width: the discriminator's channels after its first convolution.
    """

    shape: Shape
    latent: PositiveInt
    width: PositiveInt
    discriminator_width: PositiveInt
    dtype: Dtype = "float32"

    classes = 0
    trace_title = "interpolation"

    def __post_init__(self) -> None:
        options.check(type(self), "method", vars(self))

    @property
    def generator(self) -> Decoder:
        """Latent -> image."""
        return Decoder(self.shape, self.width, norm=True, dtype=self.dtype)

    @property
    def discriminator(self) -> Encoder:
        """Image -> logit of being real."""
        return Encoder(1, self.discriminator_width, norm=True, dtype=self.dtype)

    @property
    def losses(self) -> Mapping[str, Loss]:
        """Two players, the discriminator first."""
        return {"discriminator": self.discriminator_loss, "generator": self.generator_loss}

    def init(self, key: Array) -> tuple[Params, Stats]:
        """Return parameters and BatchNorm statistics of both players."""
        keys = random.split(key)
        variables = {
            "discriminator": self.discriminator.init(keys[0], jnp.zeros((1, *self.shape)), True),
            "generator": self.generator.init(keys[1], jnp.zeros((1, self.latent)), True),
        }
        return (
            {player: v["params"] for player, v in variables.items()},
            {player: v.get("batch_stats", {}) for player, v in variables.items()},
        )

    def play(self, player: str, params: Params, stats: Stats, x: Array) -> tuple[Array, Stats]:
        """Run a player's forward pass in training.

        Returns:
            Its output, and the statistics of all players, with those of this player moved.
        """
        network = self.discriminator if player == "discriminator" else self.generator
        variables = {"params": params[player], "batch_stats": stats[player]}
        y, moved = network.apply(variables, x, True, mutable=["batch_stats"])
        return y, {**stats, player: moved.get("batch_stats", {})}

    def discriminator_loss(
        self, params: Params, stats: Stats, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """Return -log D(x) - log(1 - D(G(z))), averaged over the batch, in nats."""
        images, _ = batch
        z = normal_batch(key, (len(images), self.latent))
        fakes, stats = self.play("generator", params, stats, z)
        real, stats = self.play("discriminator", params, stats, images)
        fake, stats = self.play("discriminator", params, stats, fakes)
        loss = nn.softplus(-real).mean() + nn.softplus(fake).mean()
        metrics = {"real_score": nn.sigmoid(real).mean(), "fake_score": nn.sigmoid(fake).mean()}
        return loss, (metrics, stats)

    def generator_loss(
        self, params: Params, stats: Stats, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """Return -log D(G(z)), averaged over the batch, in nats."""
        z = normal_batch(key, (len(batch[0]), self.latent))
        fakes, stats = self.play("generator", params, stats, z)
        fake, stats = self.play("discriminator", params, stats, fakes)
        return nn.softplus(-fake).mean(), ({}, stats)

    def generate(self, params: Params, stats: Stats, z: Array) -> Array:
        """Return images [B, H, W, C] of z [B, latent], by the moving averages."""
        variables = {"params": params["generator"], "batch_stats": stats["generator"]}
        return nets.apply(self.generator, variables, z, False)

    def sample(self, params: Params, stats: Stats, key: Array, label: Array | None = None) -> Array:
        """Return G(z), z ~ N(0, 1)."""
        return self.generate(params, stats, random.normal(key, (1, self.latent)))[0]

    def trace(self, params: Params, stats: Stats, key: Array, label: Array | None = None) -> Array:
        """Return nine images on the arc between two latents."""
        ends = random.normal(key, (2, self.latent))
        return self.generate(params, stats, interpolate_normals(ends, 9))


Method = DCGAN
