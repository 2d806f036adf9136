"""Samplers of a diffusion model: from x_T to x_0 through a list of noise levels.

Each takes `denoise(x, level)`, which estimates image and noise from one x_t [H, W, C], and returns
x_0 with the estimate of the image at every step, [steps, H, W, C]. Coefficients are computed on the
host in float64; a step is the body of a `lax.scan`. A further sampler is a further function, and
its name in SAMPLERS.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from bloodjax.diffusion.process import Estimate, Levels, clip_image

Variance = Literal["posterior", "beta"]
Denoise = Callable[[Array, Levels], Estimate]


def ddim(
    denoise: Denoise,
    x: Array,
    levels: Levels,
    key: Array,
    *,
    eta: float = 0.0,
    variance: Variance = "posterior",
) -> tuple[Array, Array]:
    """Sample by eq. 12 of Song et al. (2021), from the time t to the next time s at every step.

    η = 1 over all T steps is ancestral sampling, algorithm 2 of Ho et al. (2020).

    Args:
        denoise: see the module.
        x: x_T, [H, W, C].
        levels: from T to 0.
        key: the noise of the step from t is a function of (key, t).
        eta: from 0, deterministic, to 1.
        variance: of the added noise, see `ddim_coefficients`.
    """
    noisy = eta > 0 or variance == "beta"  # otherwise the noise would be multiplied by 0

    def step(x: Array, row: tuple[Levels, Array, Array, Array]) -> tuple[Array, Array]:
        level, alpha, scale, added = row
        estimate = denoise(x, level)
        y = alpha * estimate.image + scale * estimate.noise
        if noisy:
            y += added * random.normal(random.fold_in(key, level.t.astype(jnp.int32)), x.shape)
        return y, estimate.image

    rows = (select(levels, np.s_[:-1]), *ddim_coefficients(levels, eta, variance))
    return lax.scan(step, x, jax.tree.map(jnp.float32, rows))


def ddim_coefficients(
    levels: Levels, eta: float, variance: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the factors of image, estimated noise and fresh noise in x_s, float64 [steps] each.

    σ = η (σ_s / σ_t) √(σ_t² - (α_t / α_s)² σ_s²), eq. 16 of Song et al. At η = 1 over all T steps
    σ² is the posterior variance β̃_t of Ho et al. The variance "beta" keeps the mean, but the fresh
    noise has the variance of q(x_t | x_s), which is β_t over all steps (section 3.2). The last step
    adds none.
    """
    t, s = select(levels, np.s_[:-1]), select(levels, np.s_[1:])
    forward = np.sqrt(t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2)
    sigma = eta * s.sigma / t.sigma * forward
    added = np.where(s.sigma == 0, 0.0, sigma if variance == "posterior" else forward)
    return s.alpha, np.sqrt(np.maximum(s.sigma**2 - sigma**2, 0.0)), added


def heun(
    denoise: Denoise, x: Array, levels: Levels, key: Array, **noise: Any
) -> tuple[Array, Array]:
    """Sample by Heun's method of second order: algorithm 1 of Karras et al. (2022).

    It solves dz/dr = ε for z = x / α and r = σ / α, which is their equation for every process of
    this form. The last step, to σ = 0, is one of Euler, which returns the estimate of the image; so
    there are 2 × steps - 1 network calls.
    """
    refuse_noise("heun", **noise)

    def step(x: Array, row: tuple[Levels, Levels]) -> tuple[Array, Array]:
        t, s = row
        change = s.sigma / s.alpha - t.sigma / t.alpha
        image, slope = denoise(x, t)
        y = s.alpha * (x / t.alpha + change * slope)
        slope = (slope + denoise(y, s).noise) / 2
        return s.alpha * (x / t.alpha + change * slope), image

    levels = jax.tree.map(jnp.float32, levels)
    x, images = lax.scan(step, x, (select(levels, np.s_[:-2]), select(levels, np.s_[1:-1])))
    image = denoise(x, select(levels, -2)).image
    return image, jnp.concatenate([images, image[None]])


def dpm_solver_pp_2m(
    denoise: Denoise, x: Array, levels: Levels, key: Array, **noise: Any
) -> tuple[Array, Array]:
    """Sample by DPM-Solver++(2M), algorithm 2 of Lu et al. (2022): second order, one call a step.

    Its first and its last step are of first order: the first has no previous estimate, and the last
    one has an infinite step of log(α / σ).
    """
    refuse_noise("dpm_solver_pp_2m", **noise)

    # Coefficients
    t, s = select(levels, np.s_[:-1]), select(levels, np.s_[1:])
    scale = s.sigma / t.sigma
    step_sizes = np.diff(np.log(levels.alpha[:-1] / levels.sigma[:-1]))  # h of all but the last
    past = np.zeros(len(scale))  # 1 / 2r, r the ratio of the step before to this one
    past[1:-1] = step_sizes[1:] / step_sizes[:-1] / 2

    def step(carry: tuple[Array, Array], row: tuple) -> tuple[tuple[Array, Array], Array]:
        x, previous = carry
        level, scale, factor, past = row
        image = denoise(x, level).image
        return (scale * x + factor * (image + past * (image - previous)), image), image

    rows = t, scale, s.alpha - t.alpha * scale, past
    (x, _), images = lax.scan(step, (x, jnp.zeros_like(x)), jax.tree.map(jnp.float32, rows))
    return x, images


def refuse_noise(name: str, eta: float = 0.0, variance: Variance = "posterior") -> None:
    """Refuse options that ask a sampler for noise that it does not add: ValueError."""
    reason = f"for sampler.name={name!r}, which adds no noise"
    if eta > 0:
        raise ValueError(f"sampler.eta={eta}: expected 0 {reason}")
    if variance == "beta":
        raise ValueError(f"sampler.variance={variance!r}: expected 'posterior' {reason}")


def select(levels: Levels, rows: slice | int) -> Levels:
    """Return some of the levels, or one."""
    return Levels(*(values[rows] for values in levels))


# name -> sampler(denoise, x, levels, key, eta=..., variance=...), for `sampler.name`
SAMPLERS: Mapping[str, Callable[..., tuple[Array, Array]]] = {
    "ddim": ddim,
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "heun": heun,
}


def draw(
    name: str,
    output: Callable[[Array, Levels], Array],
    estimate: Callable[[Array, Array, Levels], Estimate],
    x: Array,
    levels: Levels,
    key: Array,
    *,
    clip: bool,
    pictures: int,
    **noise: Any,
) -> Array:
    """Return x_0 by the sampler called `name`, float32 [H, W, C], or estimates of it.

    Args:
        name: a key of `SAMPLERS`.
        output: (x, level) -> the output of the network, see `guidance.guide`.
        estimate: (x, output, level) -> the estimates of image and noise.
        x, levels, key: see the samplers.
        clip: clip the estimates of x_0 to [-1, 1].
        pictures: number of estimates, from the first step to the last, to return instead of x_0,
            float32 [pictures, H, W, C]; 0 returns x_0.
        noise: eta and variance, see `ddim`.

    Raises:
        ValueError: there is no such sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler.name={name!r}: expected {' or '.join(SAMPLERS)}")

    def denoise(x: Array, level: Levels) -> Estimate:
        both = estimate(x, output(x, level), level)
        return clip_image(x, both, level) if clip else both

    x, images = SAMPLERS[name](denoise, x, levels, key, **noise)
    rows = np.round(np.linspace(0, len(images) - 1, pictures)).astype(int)
    return images[rows] if pictures else x
