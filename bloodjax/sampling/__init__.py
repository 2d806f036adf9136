"""Sampling: images by index, samples.npz, and images for other programs."""
