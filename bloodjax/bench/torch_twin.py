"""The three methods in PyTorch, trained and sampled as bloodjax does it: the other contestant.

Runs where there is no JAX: weights come as NumPy arrays under the paths of bloodjax's State.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloodjax.bench.torch_nets import Decoder, Encoder, Shape, UNet
from bloodjax.bench.torch_training import Noise, Twin
from bloodjax.bench.torch_weights import Arrays

Loss = tuple[Tensor, dict[str, Tensor]]  # what is differentiated, further metrics


def make(name: str, shape: Shape, weights: Arrays, **options: object) -> Twin:
    """The twin of a method in the state that `weights` hold.

    Args:
        name: "vae", "gan" or "ddpm".
        shape: (H, W, C) of the images.
        weights: one seed's State by the paths of its arrays, "params/vae/encoder/Conv_0/kernel".
        options: learning_rate, beta1, beta2, and optionally ema_decay, as in training;
            fused, Adam in one kernel; channels_last, the memory format; device; precision,
            "float32", "tf32" or "bfloat16" (autocast), process-wide; and the method's own
            hyper-parameters, as in `bloodjax.methods`.

    Raises:
        ValueError: there is no such method or network, or the weights are those of another network.
    """
    if name not in METHODS:
        raise ValueError(f"method.name={name!r}: the twin has {', '.join(METHODS)}")
    return METHODS[name](shape, weights, **options)


class Latents(Twin):
    """A method that decodes latents."""

    latent: int

    def normal(self, count: int) -> Tensor:
        return torch.randn(count, self.latent, device=self.device)

    def generate(self, draws: Iterator[Tensor]) -> Tensor:
        return self.call(next(draws))


class Vae(Latents):
    """The losses and samplers of `bloodjax.methods.vae`."""

    def build(self, *, latent: int, width: int, sigma: float) -> dict[str, nn.Module]:
        self.latent, self.sigma = latent, sigma
        encoder = Encoder(self.shape, 2 * latent, width, norm=False)
        decoder = Decoder(self.shape, latent, width, norm=False)
        return {"vae": nn.ModuleDict({"encoder": encoder, "decoder": decoder})}

    def noise(self, batch_size: int) -> Noise:
        return {"z": self.normal(batch_size)}

    def vae_loss(self, images: Tensor, noise: Noise) -> Loss:
        net, dims = self.players["vae"], math.prod(self.shape)
        mean, log_var = net["encoder"](images).float().chunk(2, dim=1)
        decoded = net["decoder"](mean + torch.exp(0.5 * log_var) * noise["z"]).float()
        error = F.mse_loss(decoded, images, reduction="sum") / len(images)
        constant = 0.5 * dims * math.log(2 * math.pi * self.sigma**2)
        reconstruction = error / (2 * self.sigma**2) + constant
        kl = 0.5 * (log_var.exp() + mean**2 - 1.0 - log_var).sum(dim=1).mean()
        metrics = {
            "reconstruction_nats": reconstruction,
            "reconstruction_per_dim": reconstruction / dims,
            "kl_nats": kl,
            "kl_per_dim": kl / self.latent,
        }
        return reconstruction + kl, metrics

    def evaluate(self, z: Tensor) -> Tensor:
        return self.averages["vae"]["decoder"](z)


class Gan(Latents):
    """The losses and samplers of `bloodjax.methods.gan`."""

    def build(self, *, latent: int, width: int, discriminator_width: int) -> dict[str, nn.Module]:
        self.latent = latent
        return {
            "discriminator": Encoder(self.shape, 1, discriminator_width, norm=True),
            "generator": Decoder(self.shape, latent, width, norm=True),
        }

    def noise(self, batch_size: int) -> Noise:
        return {player: self.normal(batch_size) for player in self.players}

    def discriminator_loss(self, images: Tensor, noise: Noise) -> Loss:
        # The generator is frozen here, but for the averages of its BatchNorm.
        fakes = self.players["generator"](noise["discriminator"])
        real = self.players["discriminator"](images).float()
        fake = self.players["discriminator"](fakes).float()
        metrics = {"real_score": real.sigmoid().mean(), "fake_score": fake.sigmoid().mean()}
        return F.softplus(-real).mean() + F.softplus(fake).mean(), metrics

    def generator_loss(self, images: Tensor, noise: Noise) -> Loss:
        fakes = self.players["generator"](noise["generator"])
        return F.softplus(-self.players["discriminator"](fakes).float()).mean(), {}

    def evaluate(self, z: Tensor) -> Tensor:
        return self.averages["generator"](z)


class Ddpm(Twin):
    """The losses and samplers of `bloodjax.methods.ddpm`."""

    def build(
        self,
        *,
        timesteps: int,
        beta_first: float,
        beta_last: float,
        widths: Sequence[int],
        blocks: int,
        patch: int,
        net: str = "residual",
    ) -> dict[str, nn.Module]:
        if net != "residual":
            raise ValueError(f"method.net={net!r}: the twin has the residual one")
        betas = np.linspace(beta_first, beta_last, timesteps, dtype=np.float64)
        self.timesteps = timesteps
        self.alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - betas)])
        self.signal, self.scale = (
            self.table(np.sqrt(a)) for a in (self.alpha_bar, 1 - self.alpha_bar)
        )
        return {"ddpm": UNet(self.shape[2], widths, blocks, patch)}

    def table(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def normal(self, count: int) -> Tensor:
        height, width, channels = self.shape
        x = torch.empty(
            count, channels, height, width, device=self.device, memory_format=self.format
        )
        return x.normal_()

    def noise(self, batch_size: int) -> Noise:
        t = torch.randint(1, self.timesteps + 1, (batch_size,), device=self.device)
        return {"t": t, "epsilon": self.normal(batch_size)}

    def ddpm_loss(self, images: Tensor, noise: Noise) -> Loss:
        t, epsilon = noise["t"], noise["epsilon"]
        signal, scale = (a[t][:, None, None, None] for a in (self.signal, self.scale))
        predicted = self.players["ddpm"](signal * images + scale * epsilon, t.float())
        return F.mse_loss(predicted.float(), epsilon), {}

    def schedule(self, steps: int, eta: float, variance: str) -> Tensor:
        """See `bloodjax.methods.ddpm.Method.schedule`: float32 [steps, 6]."""
        times = np.round(np.linspace(0, self.timesteps, steps + 1)).astype(int)[::-1]
        now, then = self.alpha_bar[times[:-1]], self.alpha_bar[times[1:]]
        sigma = eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
        added = sigma if variance == "posterior" else np.sqrt(1 - now / then)
        next_scale = np.sqrt(np.maximum(1 - then - sigma**2, 0.0))
        added = np.where(times[1:] == 0, 0.0, added)
        columns = times[:-1], np.sqrt(now), np.sqrt(1 - now), np.sqrt(then), next_scale, added
        return self.table(np.stack(columns, axis=1))

    def generate(
        self, draws: Iterator[Tensor], *, steps: int, eta: float, clip: bool, variance: str
    ) -> Tensor:
        x = next(draws)
        for at in self.schedule(steps, eta, variance):
            noise = next(draws) if eta or variance == "beta" else None
            x = self.call(x, at, noise, clip)
        return x

    def evaluate(self, x: Tensor, at: Tensor, noise: Tensor | None, clip: bool) -> Tensor:
        """X at the next time."""
        t, signal, scale, next_signal, next_scale, added = at
        epsilon = self.averages["ddpm"](x, t.expand(len(x))).float()
        x0 = (x - scale * epsilon) / signal
        if clip:
            x0 = x0.clamp(-1.0, 1.0)
            epsilon = (x - signal * x0) / scale
        x = next_signal * x0 + next_scale * epsilon
        return x if noise is None else x + added * noise


METHODS = {"vae": Vae, "gan": Gan, "ddpm": Ddpm}
