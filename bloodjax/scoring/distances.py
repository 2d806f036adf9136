"""Distances between two sets of features: Fréchet distance and kernel distance, in float64."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 2**22  # numbers copied to float64 at a time: 32 MB instead of 164 for all


def check_features(*sets: np.ndarray) -> None:
    """Refuse features that cannot be compared.

    Raises:
        ValueError: a set is not (n >= 1, d >= 1), holds NaN or infinity, or d differs.
    """
    for x in sets:
        if x.ndim != 2 or not x.size:
            raise ValueError(f"features have shape {x.shape}: expected (n >= 1, d)")
        check_space(sets[0].shape[1], x.shape[1])
        check_finite(len(x), x)


def check_space(d: int, other: int) -> None:
    """Refuse to compare vectors of different numbers of features."""
    if d != other:
        raise ValueError(f"{d} features against {other}: expected the same space")


def check_finite(n: int, *arrays: np.ndarray) -> None:
    """Refuse NaN and infinity in the features of n images, or in results computed from them."""
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError(
            f"the features of {n} images hold NaN, infinite or overflowing values; "
            "look at the images and at the extractor's weights"
        )


def blocks(n: int, size: int) -> Iterator[slice]:
    """Return slices of `size` that cover 0 .. n; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a b^T of float64 [n, d] and [m, d] in float64, from the GPU if there is one."""
    if jax.default_backend() != "gpu":
        return a @ b.T
    with jax.enable_x64(True):
        return np.asarray(jnp.matmul(a, b.T))


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and scatter matrix of a set of feature vectors.

    Attributes:
        n: number of vectors. If only a covariance is known, any n > d will do.
        mean: float64 [d].
        m2: float64 [d, d], the sum of (x - mean)(x - mean)^T.

    Raises:
        ValueError: a value is NaN or infinite.
    """

    n: int
    mean: np.ndarray
    m2: np.ndarray

    def __post_init__(self) -> None:
        check_finite(self.n, self.mean, self.m2)

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Return the moments of features, float [n >= 1, d], in two passes over blocks of rows."""
        check_features(features)
        n, d = features.shape
        m2 = np.zeros((d, d))
        with np.errstate(over="ignore", invalid="ignore"):  # __post_init__ refuses the result
            mean = features.mean(axis=0, dtype=np.float64)
            for rows in blocks(n, max(BLOCK // d, 1)):
                x = features[rows] - mean
                m2 += x.T @ x
            return cls(n=n, mean=mean, m2=m2)

    @property
    def cov(self) -> np.ndarray:
        """The unbiased covariance (ddof = 1), float64 [d, d]."""
        if self.n < 2:
            raise ValueError(f"{self.n} image has no covariance: expected at least 2")
        return self.m2 / (self.n - 1)

    @cached_property
    def root(self) -> np.ndarray:
        """A with A A^T = m2, float64 [d, min(n - 1, d)]: n images span at most n - 1 dimensions."""
        if self.n > len(self.mean):
            with suppress(np.linalg.LinAlgError):  # singular, e.g. if a feature is constant
                return np.linalg.cholesky(self.m2)  # 20 times faster than eigh
        w, v = np.linalg.eigh(self.m2)
        rank = min(self.n - 1, len(w))
        return v[:, -rank:] * np.sqrt(np.maximum(w[-rank:], 0))


def frechet(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet distance of two Gaussians.

    Dowson and Landau (1982), eq. 4; Heusel et al. (2017), eq. 6:
    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    With S_a = A A^T the last trace is the sum of the roots of the eigenvalues of A^T S_b A. That
    matrix is symmetric: there is no sqrtm, no imaginary part, and nothing is added to a diagonal.
    Fewer images than features are allowed: only the eigenvalues of the subspace that the images
    span are counted. Equal sets give zero up to rounding, which may be negative.

    The root of `a` is computed once and kept: pass a set that meets many others first.

    Raises:
        ValueError: the feature spaces differ in size, or a set has fewer than 2 images.
    """
    check_space(len(a.mean), len(b.mean))
    return frechet_by_root(a, a.root, b)


def frechet_by_root(a: Moments, root: np.ndarray, b: Moments) -> float:
    """Return `frechet`, given any A with A A^T = a.m2, float64 [d, r]."""
    delta, spread = a.mean - b.mean, np.trace(a.cov) + np.trace(b.cov)
    rank = min(a.n - 1, b.n - 1, len(delta))
    cross = np.linalg.eigvalsh(root.T @ b.m2 @ root)[-rank:] / ((a.n - 1) * (b.n - 1))
    return float(delta @ delta + spread - 2 * np.sqrt(np.maximum(cross, 0)).sum())


def frechet_from_features(x: np.ndarray, y: np.ndarray) -> float:
    """Return `frechet` of two sets of features, float [n, d] and [m, d].

    If a set has no more images than features, its centred images are a root of their scatter, and
    nothing is factored: Mathiasen and Hvilshøj (2020, arXiv:2009.14075). This is exact as well,
    and several times faster for a few hundred images of 2048 features.
    """
    check_features(x, y)
    if len(x) > len(y):
        x, y = y, x
    a, b = Moments.of(x), Moments.of(y)
    if a.n > len(a.mean):
        return frechet(a, b)
    return frechet_by_root(a, (x - a.mean).T, b)


def infinity(
    real: Moments, fake: np.ndarray, value: float, points: int = 15, seed: int = 0
) -> float:
    """Return `frechet` extrapolated to infinitely many fakes.

    Chong and Forsyth (2020, arXiv:1911.07023). The bias of the distance of N fakes is about a
    constant over N, and the constant depends on the model. A straight line in 1 / N is fitted by
    least squares to the distances of random subsets of several sizes; its value at 1 / N = 0 is
    the result. The smallest subset has 5,000 images as in the paper, or N // 2 if that is less.

    The bias of the finite number of real images remains: two sets of N images of one distribution
    keep about half of their distance. Noise may make the value negative. Subsets are drawn by
    position, so another order of the fakes gives another draw.

    Args:
        real: moments of the real images.
        fake: features, float [N >= 4, d].
        value: their `frechet`, the last point of the line.
        points: number of sizes, evenly spaced up to N.
        seed: of the draws.

    Raises:
        ValueError: fewer than 4 fakes or 2 points.
    """
    n = len(fake)
    if n < 4 or points < 2:
        raise ValueError(
            f"no line through {points} subsets of {n} images: expected 2 and 4 at least"
        )
    rng = np.random.default_rng(seed)
    sizes = np.linspace(min(5000, n // 2), n, points).astype(int)
    subsets = (fake[rng.permutation(n)[:size]] for size in sizes[:-1])
    values = [*(frechet(real, Moments.of(subset)) for subset in subsets), value]
    return float(np.polyfit(1 / sizes, values, deg=1)[1])


def kid(
    real: np.ndarray, fake: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel Inception distance in any feature space.

    Bińkowski et al. (2018, arXiv:1801.01401): `mmd2` of random subsets, each drawn without
    replacement. It is unbiased for any number of images: equal distributions score about 0, as
    often below as above.

    Args:
        real: features, float [n >= 2, d].
        fake: features, float [m >= 2, d].
        subsets: number of pairs of subsets.
        size: images in each subset; n or m if that is less.
        seed: of the draws.

    Returns:
        Mean and population standard deviation over the subsets; the latter is 0 if a subset holds
        all images.
    """
    check_features(real, fake)
    size = min(size, len(real), len(fake))
    if size < 2 or subsets < 1:
        raise ValueError(
            f"{subsets} subsets of {size} images: expected at least 1, of at least 2 images"
        )
    if size == max(len(real), len(fake)):
        subsets = 1  # every subset would hold all images
    rng = np.random.default_rng(seed)

    def draw(x: np.ndarray) -> np.ndarray:
        return x[rng.choice(len(x), size, replace=False)].astype(np.float64)

    values = [mmd2(draw(real), draw(fake)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Return the squared maximum mean discrepancy of float64 [n, d] and [m, d].

    The unbiased estimate of Gretton et al. (2012), eq. 3, with the kernel (x.y / d + 1)^3.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (multiply(a, b) / a.shape[1] + 1) ** 3

    def mean_off_diagonal(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return mean_off_diagonal(x) + mean_off_diagonal(y) - 2 * kernel(x, y).mean()
