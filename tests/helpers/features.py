"""Features of known distributions, and reference distances."""

import importlib

import numpy as np
import pytest
from scipy.linalg import sqrtm

from helpers.tiny import torch_with_torchvision


def torch_fidelity(module):
    """torch, and a module of torch-fidelity."""
    torch = torch_with_torchvision()
    pytest.importorskip("torch_fidelity", reason="the reference is torch-fidelity")
    return torch, importlib.import_module(f"torch_fidelity.{module}")


def rng(*seed):
    return np.random.default_rng(seed)


def skewed(n, d, seed):
    """Features like a network's: correlated, not negative, of very different sizes."""
    mix = rng(seed, 1).normal(size=(d, d)) * np.logspace(0, -2, d)
    return np.maximum(rng(seed, 2).normal(size=(n, d)) @ mix + 0.1, 0)


def by_sqrtm(x, y):
    """The formula as printed in Heusel et al. (2017), eq. 6."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    delta = x.mean(0) - y.mean(0)
    return delta @ delta + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real
