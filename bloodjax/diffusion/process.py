"""Noise levels of a diffusion process, corruption by them, and the parametrisation of the network.

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


def estimate_from_image(x: Array, image: Array, level: Levels) -> Estimate:
    """Return the estimates of a network that predicts x_0."""
    return Estimate(image, (x - level.alpha * image) / level.sigma)


def clip_image(x: Array, estimate: Estimate, level: Levels) -> Estimate:
    """Clip the image to [-1, 1], and let the noise explain the rest of x_t."""
    return estimate_from_image(x, jnp.clip(estimate.image, -1.0, 1.0), level)


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
            ValueError: there are fewer than `steps` levels, or none is wanted, or α_T is 0 in
                float32, so that x_T tells nothing of the image.
        """
        if not 1 <= steps <= self.timesteps:
            raise ValueError(
                f"sampler.steps={steps}: expected 1 to {self.timesteps} (method.timesteps)"
            )
        t = np.round(np.linspace(0, self.timesteps, steps + 1)).astype(int)[::-1]
        alpha_bar = self.alpha_bar[t]
        if np.sqrt(alpha_bar[0]) < np.finfo(np.float32).tiny:
            raise ValueError(
                f"method.beta_last={self.beta_last}: α is 0 in float32 after {self.timesteps} "
                "steps; expected a smaller beta_last, or fewer method.timesteps"
            )
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


@dataclasses.dataclass(frozen=True)
class KarrasLevels:
    """The process of Karras et al. (2022): α = 1, and levels σ at equal distances in σ^(1 / ρ).

    Attributes:
        sigma_min, sigma_max: σ of the last level before the image, and of the first.
        rho: ρ, the larger, the closer the levels near σ_min.
    """

    sigma_min: float
    sigma_max: float
    rho: float

    def levels(self, steps: int) -> Levels:
        """Return `steps` + 1 levels, eq. 5 of Karras et al., with σ = 0 as the last.

        Raises:
            ValueError: σ does not fall.
        """
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sampler.sigma_min={self.sigma_min}: expected less than {self.sigma_max} "
                "(sampler.sigma_max)"
            )
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigma = (first + np.linspace(0.0, 1.0, steps) * (last - first)) ** self.rho
        t = np.arange(steps, -1, -1)
        return Levels(t, np.ones(steps + 1), np.append(sigma, 0.0))


class Preconditioning(NamedTuple):
    """Factors around the network F: D(x; σ) = c_skip x + c_out F(c_in x; c_noise)."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def precondition(sigma: Array, sigma_data: float) -> Preconditioning:
    """Return the factors of Karras et al. (2022), table 1, for σ float32 [B].

    The input and the target of F then have variance 1 for data of standard deviation `sigma_data`.
    c_noise is 80 (ln σ + 6.5) instead of ln σ / 4: σ from 0.002 to 80 becomes 23 to 871, the range
    of times that the sinusoids of the networks resolve.
    """
    total = jnp.sqrt(sigma**2 + sigma_data**2)
    c_noise = 80.0 * (jnp.log(sigma) + 6.5)
    return Preconditioning(
        sigma_data**2 / total**2, sigma * sigma_data / total, 1.0 / total, c_noise
    )
