"""The three methods in PyTorch, trained and sampled as by bloodjax: the PyTorch twin.

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

Loss = tuple[Tensor, dict[str, Tensor]]  # the loss, further metrics


def make(name: str, shape: Shape, weights: Arrays, **options: object) -> Twin:
    """Return the twin of a method, with `weights` as its state.

    Args:
        name: "vae", "gan" or "ddpm".
        shape: (H, W, C) of the images.
        weights: one seed's State by the paths of its arrays, "params/vae/encoder/Conv_0/kernel".
        options: those of `Twin`, and the method's hyper-parameters, as in `bloodjax.methods`.

    Raises:
        ValueError: the method or network is unknown, or the weights belong to another network.
    """
    if name not in METHODS:
        raise ValueError(f"method.name={name!r}: the twin has {', '.join(METHODS)}")
    return METHODS[name](shape, weights, **options)


class Latents(Twin):
    """A method that decodes latents."""

    latent: int

    def normal(self, count: int) -> Tensor:
        """Draw latents."""
        return torch.randn(count, self.latent, device=self.device)

    def generate(self, draws: Iterator[Tensor]) -> Tensor:
        """Decode the first latents."""
        return self.call(next(draws))


class VAE(Latents):
    """The losses and samplers of `bloodjax.methods.vae`."""

    def build(self, *, latent: int, width: int, sigma: float) -> dict[str, nn.Module]:
        """Build encoder and decoder."""
        self.latent, self.sigma = latent, sigma
        encoder = Encoder(self.shape, 2 * latent, width, norm=False)
        decoder = Decoder(self.shape, latent, width, norm=False)
        return {"vae": nn.ModuleDict({"encoder": encoder, "decoder": decoder})}

    def noise(self, batch_size: int) -> Noise:
        """Draw the latents' noise."""
        return {"z": self.normal(batch_size)}

    def vae_loss(self, images: Tensor, noise: Noise) -> Loss:
        """Return the negative evidence lower bound."""
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
        """Decode latents."""
        return self.averages["vae"]["decoder"](z)


class DCGAN(Latents):
    """The losses and samplers of `bloodjax.methods.gan`."""

    def build(self, *, latent: int, width: int, discriminator_width: int) -> dict[str, nn.Module]:
        """Build both players, the discriminator first."""
        self.latent = latent
        return {
            "discriminator": Encoder(self.shape, 1, discriminator_width, norm=True),
            "generator": Decoder(self.shape, latent, width, norm=True),
        }

    def noise(self, batch_size: int) -> Noise:
        """Draw latents for each player's step."""
        return {player: self.normal(batch_size) for player in self.players}

    def discriminator_loss(self, images: Tensor, noise: Noise) -> Loss:
        """Return the cross-entropy of real and generated images."""
        # The generator is frozen here, except for the averages of its BatchNorm.
        fakes = self.players["generator"](noise["discriminator"])
        real = self.players["discriminator"](images).float()
        fake = self.players["discriminator"](fakes).float()
        metrics = {"real_score": real.sigmoid().mean(), "fake_score": fake.sigmoid().mean()}
        return F.softplus(-real).mean() + F.softplus(fake).mean(), metrics

    def generator_loss(self, images: Tensor, noise: Noise) -> Loss:
        """Return the non-saturating loss."""
        fakes = self.players["generator"](noise["generator"])
        return F.softplus(-self.players["discriminator"](fakes).float()).mean(), {}

    def evaluate(self, z: Tensor) -> Tensor:
        """Generate images from latents."""
        return self.averages["generator"](z)


class DDPM(Twin):
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
        net: str = "unet",
        conditional: bool = False,
        label_drop: float = 0.0,
    ) -> dict[str, nn.Module]:
        """Build the U-Net and the noise levels."""
        if net != "unet" or conditional:
            raise ValueError(
                f"method.net={net!r}, method.conditional={conditional}: the PyTorch twin has "
                "'unet' without classes only"
            )
        betas = np.linspace(beta_first, beta_last, timesteps, dtype=np.float64)
        self.timesteps = timesteps
        self.alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - betas)])
        self.signal, self.scale = (
            self.table(np.sqrt(a)) for a in (self.alpha_bar, 1 - self.alpha_bar)
        )
        return {"ddpm": UNet(self.shape[2], widths, blocks, patch)}

    def table(self, values: np.ndarray) -> Tensor:
        """Return float32 values on the device."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def normal(self, count: int) -> Tensor:
        """Draw images of noise."""
        height, width, channels = self.shape
        x = torch.empty(
            count, channels, height, width, device=self.device, memory_format=self.format
        )
        return x.normal_()

    def noise(self, batch_size: int) -> Noise:
        """Draw times 1..T and noise."""
        t = torch.randint(1, self.timesteps + 1, (batch_size,), device=self.device)
        return {"t": t, "epsilon": self.normal(batch_size)}

    def ddpm_loss(self, images: Tensor, noise: Noise) -> Loss:
        """Return the mean squared error of the predicted noise."""
        t, epsilon = noise["t"], noise["epsilon"]
        signal, scale = (a[t][:, None, None, None] for a in (self.signal, self.scale))
        predicted = self.players["ddpm"](signal * images + scale * epsilon, t.float())
        return F.mse_loss(predicted.float(), epsilon), {}

    def schedule(self, steps: int, eta: float, variance: str) -> Tensor:
        """Return the coefficients of each sampling step as bloodjax does, float32 [steps, 6]."""
        times = np.round(np.linspace(0, self.timesteps, steps + 1)).astype(int)[::-1]
        alpha_t, alpha_s = self.alpha_bar[times[:-1]], self.alpha_bar[times[1:]]
        sigma = eta * np.sqrt((1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s))
        added = sigma if variance == "posterior" else np.sqrt(1 - alpha_t / alpha_s)
        next_scale = np.sqrt(np.maximum(1 - alpha_s - sigma**2, 0.0))
        added = np.where(times[1:] == 0, 0.0, added)
        signal, scale = np.sqrt(alpha_t), np.sqrt(1 - alpha_t)
        columns = times[:-1], signal, scale, np.sqrt(alpha_s), next_scale, added
        return self.table(np.stack(columns, axis=1))

    def generate(
        self,
        draws: Iterator[Tensor],
        *,
        steps: int,
        eta: float,
        clip: bool,
        variance: str,
        name: str = "ddim",
        guidance: float = 1.0,
        **interval: float,
    ) -> Tensor:
        """Walk from noise to images by DDIM, or with eta 1 by ancestral sampling."""
        if name != "ddim" or guidance != 1:
            raise ValueError(
                f"sampler.name={name!r}, sampler.guidance={guidance}: the PyTorch twin has 'ddim' "
                "without guidance only"
            )
        x = next(draws)
        for step in self.schedule(steps, eta, variance):
            noise = next(draws) if eta or variance == "beta" else None
            x = self.call(x, step, noise, clip)
        return x

    def evaluate(self, x: Tensor, step: Tensor, noise: Tensor | None, clip: bool) -> Tensor:
        """Return x at the next time; `step` is a row of `schedule`."""
        t, signal, scale, next_signal, next_scale, added = step
        epsilon = self.averages["ddpm"](x, t.expand(len(x))).float()
        x0 = (x - scale * epsilon) / signal
        if clip:
            x0 = x0.clamp(-1.0, 1.0)
            epsilon = (x - signal * x0) / scale
        x = next_signal * x0 + next_scale * epsilon
        return x if noise is None else x + added * noise


METHODS = {"vae": VAE, "gan": DCGAN, "ddpm": DDPM}
