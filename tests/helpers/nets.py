"""Networks against references."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def jit(function, **options):
    """Compile without optimization: these programs run once or twice."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def shapes(module, *args):
    """Output and variables as shapes: nothing is computed."""
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *args))


def draw_leaves(tree):
    """Values for shapes: nowhere zero, of the size that keeps activations near 1."""

    def draw(seed, leaf):
        fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
        return jnp.asarray(normal(*leaf.shape, seed=seed) / np.float32(np.sqrt(fan_in)))

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [draw(*x) for x in enumerate(leaves)])


def random_variables(module, *args):
    """Variables that are nowhere zero."""
    variables = shapes(module, *args)[1]
    stats = jax.tree.map(lambda x: 0.5 + np.abs(normal(*x.shape)), variables.get("batch_stats", {}))
    return {"params": draw_leaves(variables["params"]), "batch_stats": stats}


def assert_near(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)
