"""VAE, DCGAN, DDPM and a class-conditional EDM on BloodMNIST in JAX: train, sample and score."""

__version__ = "0.1.0"
