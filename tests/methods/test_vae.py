"""The VAE computes what its paper prints."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import KEY, batch, random_state
from helpers.nets import jit
from jax import random
from scipy import integrate
from scipy.stats import norm

from bloodjax.methods import vae
from bloodjax.methods.vae import VAE


def a_vae(shape=(8, 8, 1), **changes):
    return VAE(**{"shape": shape, "latent": 3, "width": 4, "sigma": 0.3} | changes)


@pytest.fixture(scope="module")
def vae_terms():
    """(method, params, images, codes, z, decoded images) of one batch with the loss's own noise."""
    method = a_vae()
    params, _ = random_state(method)
    images, _ = batch(method.shape)
    code = jit(method.encoder.apply)({"params": params["vae"]["encoder"]}, images, True)
    mean, log_var = np.split(np.float64(code), 2, axis=1)
    z = mean + np.exp(log_var / 2) * random.normal(KEY, mean.shape)
    return method, params, images, (mean, log_var), jit(method.decode)(params, jnp.float32(z))


def gaussian_kl(m1, s1, m2=0.0, s2=1.0):
    return np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (0.7, 0.2), (-3.0, 2.5)])
def test_kl_is_the_integral(mean, deviation):
    p = norm(mean, deviation)
    integral, _ = integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - norm.logpdf(x)),
        mean - 12 * deviation,
        mean + 12 * deviation,
    )
    actual = vae.kl_to_standard_normal(jnp.float32(mean), jnp.float32(2 * math.log(deviation)))
    assert actual == pytest.approx(integral, rel=1e-5, abs=1e-6)
    assert gaussian_kl(mean, deviation) == pytest.approx(integral, rel=1e-6, abs=1e-9)


def test_vae_loss_is_the_negative_evidence_lower_bound(vae_terms):
    method, params, images, (mean, log_var), decoded = vae_terms
    density = norm.logpdf(np.float64(images), np.float64(decoded), method.sigma)
    reconstruction = -density.sum((1, 2, 3)).mean()
    kl = gaussian_kl(mean, np.exp(log_var / 2)).sum(1).mean()
    loss, (metrics, _) = jit(method.loss)(params, {}, (images, None), KEY)
    assert loss == pytest.approx(reconstruction + kl, rel=1e-5)
    assert metrics["reconstruction_nats"] == pytest.approx(reconstruction, rel=1e-5)
    assert metrics["reconstruction_per_dim"] == pytest.approx(reconstruction / 64, rel=1e-5)
    assert metrics["kl_nats"] == pytest.approx(kl, rel=1e-5)
    assert metrics["kl_per_dim"] == pytest.approx(kl / 3, rel=1e-5)


def test_vae_gradient_is_that_of_squared_error_and_weighted_kl(vae_terms):
    """The docstring's second form of sigma, and the gradient through z into the encoder."""
    method, params, images, _, _ = vae_terms
    noise = random.normal(KEY, (len(images), method.latent))

    def objective(params):
        code = method.encoder.apply({"params": params["vae"]["encoder"]}, images, True)
        mean, log_var = code[:, :3], code[:, 3:]
        decoded = method.decode(params, mean + jnp.exp(log_var / 2) * noise)
        kl = (jnp.exp(log_var) + mean**2 - 1 - log_var).sum() / 2
        return (((images - decoded) ** 2).sum() + 2 * method.sigma**2 * kl) / len(images)

    ours = jit(jax.grad(lambda p: method.loss(p, {}, (images, None), KEY)[0]))(params)
    for a, b in zip(*map(jax.tree.leaves, (ours, jit(jax.grad(objective))(params))), strict=True):
        scale = np.abs(b).max()
        assert scale > 0
        np.testing.assert_allclose(2 * method.sigma**2 * a, b, rtol=0, atol=2e-5 * scale)


def test_vae_sample_and_trace_decode_standard_normals(vae_terms):
    method, params = vae_terms[:2]
    decode = jit(functools.partial(method.decode, params))
    one = jit(functools.partial(method.sample, params, {}))(KEY)
    np.testing.assert_allclose(one, decode(random.normal(KEY, (1, 3)))[0], atol=1e-6)
    strip = jit(functools.partial(method.trace, params, {}))(KEY)
    ends = decode(random.normal(KEY, (2, 3)))
    np.testing.assert_allclose(strip[np.array([0, -1])], ends, atol=1e-5)
