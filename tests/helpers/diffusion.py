"""The formulas of Ho et al. (2020) and Song et al. (2021), by loops in float64."""

import math

import jax.numpy as jnp
import numpy as np
from jax import random

from bloodjax.diffusion.process import LinearBeta
from helpers.methods import KEY

PAPER = LinearBeta(1000, 1e-4, 0.02)
SHORT = LinearBeta(20, 0.01, 0.4)  # ends in noise after 20 steps


def linear_schedule(process):
    """β, α and ᾱ with indices 1..T as in the paper; ᾱ[0] = 1."""
    t = process.timesteps
    slope = (process.beta_last - process.beta_first) / (t - 1)
    beta = [math.nan] + [process.beta_first + slope * i for i in range(t)]
    alpha_bar = [1.0]
    for b in beta[1:]:
        alpha_bar.append(alpha_bar[-1] * (1 - b))
    return np.array(beta), 1 - np.array(beta), np.array(alpha_bar)


def fake_noise(x, t, lib=np):
    """In place of a network: smooth, neither 0 nor linear."""
    return 0.8 * lib.tanh(1.5 * x) + 0.3 * lib.sin(t)


def record_noise(calls):
    """`fake_noise` as a network that appends (x_t, t) of every call of one image to `calls`."""

    def predict(x, t):
        calls.append((np.asarray(x[0]), float(t[0])))
        return fake_noise(x, t[:, None, None, None], jnp)

    return predict


def injected(shape, t):
    """The noise that the step from time t adds; at t = 0 x_T itself."""
    return np.float64(random.normal(random.fold_in(KEY, t), shape))


def algorithm_2(process, shape, clip, variance):
    """x_T to x_0 of Ho et al.'s algorithm 2; with clipping, its mean in the form of eq. 7."""
    beta, alpha, abar = linear_schedule(process)
    xs = [injected(shape, 0)]
    for t in range(process.timesteps, 0, -1):
        x = xs[-1]
        epsilon = fake_noise(x, t)
        if clip:
            x0 = np.clip((x - np.sqrt(1 - abar[t]) * epsilon) / np.sqrt(abar[t]), -1, 1)
            mean = (np.sqrt(abar[t - 1]) * beta[t] * x0) / (1 - abar[t])
            mean += np.sqrt(alpha[t]) * (1 - abar[t - 1]) / (1 - abar[t]) * x
        else:
            mean = (x - beta[t] / np.sqrt(1 - abar[t]) * epsilon) / np.sqrt(alpha[t])
        smaller = (1 - abar[t - 1]) / (1 - abar[t]) * beta[t]
        z = injected(shape, t) if t > 1 else 0.0
        xs.append(mean + np.sqrt({"posterior": smaller, "beta": beta[t]}[variance]) * z)
    return xs


def song_12(process, shape, times, eta, clip):
    """x_T to x_0 by eq. 12 of Song et al. with σ of eq. 16, through `times` down to 0."""
    abar = linear_schedule(process)[2]
    xs = [injected(shape, 0)]
    for t, s in zip(times, [*times[1:], 0], strict=True):
        x, alpha_t, alpha_s = xs[-1], abar[t], abar[s]
        sigma = eta * np.sqrt((1 - alpha_s) / (1 - alpha_t)) * np.sqrt(1 - alpha_t / alpha_s)
        epsilon = fake_noise(x, t)
        x0 = (x - np.sqrt(1 - alpha_t) * epsilon) / np.sqrt(alpha_t)
        if clip:
            x0 = np.clip(x0, -1, 1)
            epsilon = (x - np.sqrt(alpha_t) * x0) / np.sqrt(1 - alpha_t)
        z = injected(shape, t)
        xs.append(np.sqrt(alpha_s) * x0 + np.sqrt(1 - alpha_s - sigma**2) * epsilon + sigma * z)
    return xs
