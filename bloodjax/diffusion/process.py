"""Noise levels of a diffusion, corruption by them, and the parametrisation of the network.

x_t = α_t x_0 + σ_t ε with ε ~ N(0, 1) for all processes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Levels(NamedTuple):
    """Noise levels in the order of sampling, from the noisiest to the image, or one of them.

    Attributes:
        t: number of each level, from T down to 0; the key of its noise depends on it.
        alpha: factor of the image.
        sigma: standard deviation of the noise; 0 at the last level.
    """

    t: Any  # [steps + 1], float64 on the host where samplers derive their coefficients
    alpha: Any
    sigma: Any


class Estimate(NamedTuple):
    """Estimates from x_t: the image x_0 and the noise ε, both of the shape of x_t."""

    image: Array
    noise: Array


def estimate_from_noise(x: Array, noise: Array, level: Levels) -> Estimate:
    """Return the estimates of a network that predicts ε."""
    return Estimate((x - level.sigma * noise) / level.alpha, noise)


def clip_image(x: Array, estimate: Estimate, level: Levels) -> Estimate:
    """Clip the image to [-1, 1], and let the noise explain the rest of x_t."""
    image = jnp.clip(estimate.image, -1.0, 1.0)
    return Estimate(image, (x - level.alpha * image) / level.sigma)


@dataclasses.dataclass(frozen=True)
class LinearBeta:
    """The process of Ho et al. (2020): α² + σ² = 1, with T steps of linear β.

    Attributes:
        timesteps: T.
        beta_first, beta_last: β_1 and β_T, linear in between.
    """

    timesteps: int
    beta_first: float
    beta_last: float

    @property
    def alpha_bar(self) -> np.ndarray:
        """ᾱ_0 = 1 to ᾱ_T, float64 [T + 1]: products of 1 - β, on the host for accuracy."""
        betas = np.linspace(self.beta_first, self.beta_last, self.timesteps, dtype=np.float64)
        return np.concatenate([[1.0], np.cumprod(1.0 - betas)])

    def levels(self, steps: int) -> Levels:
        """Return `steps` + 1 levels at equal distances from T to 0.

        Raises:
            ValueError: there are fewer than `steps` levels, or none is wanted.
        """
        if not 1 <= steps <= self.timesteps:
            raise ValueError(
                f"sampler.steps={steps}: expected 1 to {self.timesteps} (method.timesteps)"
            )
        t = np.round(np.linspace(0, self.timesteps, steps + 1)).astype(int)[::-1]
        alpha_bar = self.alpha_bar[t]
        return Levels(t, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))

    def corrupt(self, images: Array, t: Array, noise: Array) -> Array:
        """Return x_t ~ q(x_t | x_0), eq. 4 of Ho et al.

        Args:
            images: x_0, float32 [B, H, W, C].
            t: int [B] in 1..T.
            noise: N(0, 1), float32 [B, H, W, C].
        """
        alpha = jnp.asarray(np.sqrt(self.alpha_bar), jnp.float32)[t][:, None, None, None]
        sigma = jnp.asarray(np.sqrt(1 - self.alpha_bar), jnp.float32)[t][:, None, None, None]
        return alpha * images + sigma * noise
