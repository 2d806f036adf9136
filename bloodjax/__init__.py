"""VAE, DCGAN and DDPM on BloodMNIST in JAX: train, sample, score and compare."""

__version__ = "0.1.0"
