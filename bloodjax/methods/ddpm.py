"""Denoising diffusion: DDPM of Ho et al. (2020), sampled so or as DDIM of Song et al. (2021)."""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from bloodjax.methods import Batch, Loss, Metrics, Params, Stats
from bloodjax.nets import course_unet
from bloodjax.nets.unet import UNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """ε-prediction by a U-Net, linear β.

    Attributes:
        shape: (H, W, C) of the images.
        timesteps: T.
        beta_first, beta_last: β_1 and β_T, linear in between.
        widths, blocks, patch: see `nets.unet.UNet` and `nets.course.CourseUNet`, whose patch is 1.
        net: "residual", the first of these, or "course", the second.
        dtype: of the networks' activations.
    """

    shape: tuple[int, int, int]
    timesteps: int
    beta_first: float
    beta_last: float
    widths: Sequence[int]
    blocks: int
    patch: int
    net: str = "residual"
    dtype: str = "float32"

    trace_title = "denoising"

    def __post_init__(self) -> None:
        if self.net == "course":
            course_unet.check(self.shape, self.widths, self.blocks, self.patch)
        elif self.net != "residual":
            raise ValueError(f"method.net={self.net!r}: expected residual or course")
        elif not self.widths or any(width % 8 or width < 8 for width in self.widths):
            raise ValueError(f"method.widths={self.widths}: expected multiples of 8")

    @property
    def network(self) -> nn.Module:
        if self.net == "course":
            return course_unet.CourseUNet(tuple(self.widths), self.blocks, self.dtype)
        return UNet(tuple(self.widths), self.blocks, self.patch, self.dtype)

    @property
    def alpha_bar(self) -> np.ndarray:
        """ᾱ_0 = 1 to ᾱ_T, float64 [T + 1]: products of 1 - β, on the host for accuracy."""
        betas = np.linspace(self.beta_first, self.beta_last, self.timesteps, dtype=np.float64)
        return np.concatenate([[1.0], np.cumprod(1.0 - betas)])

    @property
    def losses(self) -> Mapping[str, Loss]:
        return {"ddpm": self.loss}

    def init(self, key: Array) -> tuple[Params, Stats]:
        variables = self.network.init(key, jnp.zeros((1, *self.shape)), jnp.zeros((1,)))
        return {"ddpm": variables["params"]}, {}

    def noise(self, params: Params, x: Array, t: Array) -> Array:
        """The predicted ε: x float [B, H, W, C], t float [B] in 1..T -> float [B, H, W, C]."""
        return self.network.apply({"params": params["ddpm"]}, x, t)

    def corrupt(self, images: Array, t: Array, noise: Array) -> Array:
        """x_t ~ q(x_t | x_0), eq. 4 of Ho et al.; t int [B] in 1..T, noise ~ N(0, 1)."""
        signal = jnp.asarray(np.sqrt(self.alpha_bar), jnp.float32)[t][:, None, None, None]
        scale = jnp.asarray(np.sqrt(1 - self.alpha_bar), jnp.float32)[t][:, None, None, None]
        return signal * images + scale * noise

    def loss(
        self, params: Params, stats: Stats, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Stats]]:
        """Mean squared error of ε at t uniform on 1..T: L_simple, eq. 14 of Ho et al."""
        images, _ = batch
        key_t, key_noise = random.split(key)
        t = random.randint(key_t, (len(images),), 1, self.timesteps + 1)
        noise = random.normal(key_noise, images.shape)
        predicted = self.noise(params, self.corrupt(images, t, noise), t.astype(jnp.float32))
        return jnp.mean((predicted - noise) ** 2), ({}, stats)

    def schedule(self, steps: int, eta: float, variance: str) -> dict[str, Array]:
        """What each of the `steps` steps from t to the next time s needs, float32 [steps] each.

        Steps sit at equal distances in 1..T. With ᾱ_0 = 1, σ² = η² (1 - ᾱ_s) / (1 - ᾱ_t)
        (1 - ᾱ_t / ᾱ_s), eq. 16 of Song et al.; at η = 1 over all T steps that is the posterior
        variance β̃_t of Ho et al. "beta" adds noise of the larger variance 1 - ᾱ_t / ᾱ_s, β_t over
        all steps (σ̂ there), and leaves the mean alone. The last step adds none.
        """
        times = np.round(np.linspace(0, self.timesteps, steps + 1)).astype(int)[::-1]
        now, then = self.alpha_bar[times[:-1]], self.alpha_bar[times[1:]]
        sigma = eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
        added = sigma if variance == "posterior" else np.sqrt(1 - now / then)
        values = {
            "t": times[:-1],
            "signal": np.sqrt(now),
            "scale": np.sqrt(1 - now),
            "next_signal": np.sqrt(then),
            "next_scale": np.sqrt(np.maximum(1 - then - sigma**2, 0.0)),
            "added": np.where(times[1:] == 0, 0.0, added),
        }
        return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}

    def denoise(
        self,
        params: Params,
        key: Array,
        *,
        steps: int,
        eta: float,
        clip: bool,
        variance: str,
        keep: int = 1,
    ) -> Array:
        """Walk one image from x_T to x_0; `keep` estimates of x_0 on the way, [keep, H, W, C]."""
        known = variance in ("posterior", "beta")
        if not 1 <= steps <= self.timesteps or not 0 <= eta <= 1 or not known:
            raise ValueError(
                f"sampler.steps={steps}, sampler.eta={eta}, sampler.variance={variance!r}: expected "
                f"1 to {self.timesteps} (T) steps, 0 <= eta <= 1, and 'posterior' or 'beta'"
            )

        def step(x: Array, at: dict[str, Array]) -> tuple[Array, Array]:
            epsilon = self.noise(params, x[None], at["t"][None])[0]
            x0 = (x - at["scale"] * epsilon) / at["signal"]
            if clip:
                x0 = jnp.clip(x0, -1.0, 1.0)
                epsilon = (x - at["signal"] * x0) / at["scale"]
            y = at["next_signal"] * x0 + at["next_scale"] * epsilon
            if eta > 0 or variance == "beta":  # else all of it would be multiplied by 0
                noise = random.normal(random.fold_in(key, at["t"].astype(jnp.int32)), x.shape)
                y = y + at["added"] * noise
            return y, x0

        x = random.normal(random.fold_in(key, 0), self.shape)
        schedule = self.schedule(steps, eta, variance)
        if keep == 1:
            return lax.scan(lambda x, at: (step(x, at)[0], None), x, schedule)[0][None]
        _, estimates = lax.scan(step, x, schedule)
        return estimates[np.round(np.linspace(0, steps - 1, keep)).astype(int)]

    def sample(
        self,
        params: Params,
        stats: Stats,
        key: Array,
        label: Array | None = None,
        *,
        steps: int,
        eta: float,
        clip: bool,
        variance: str,
    ) -> Array:
        """One image by `steps` network calls.

        Args:
            steps: T with eta 1 is the ancestral sampler, algorithm 2 of Ho et al.; fewer steps, or
                another eta, is DDIM.
            eta: 0 (deterministic after the first noise) to 1.
            clip: clip the estimate of x_0 to [-1, 1] at every step.
            variance: of the added noise, "posterior" (β̃) or "beta".
        """
        return self.denoise(params, key, steps=steps, eta=eta, clip=clip, variance=variance)[0]

    def trace(self, params: Params, stats: Stats, key: Array, **options: object) -> Array:
        """Nine estimates of x_0 from the first step to the last, with `sample`'s options."""
        return self.denoise(params, key, **options, keep=9)
