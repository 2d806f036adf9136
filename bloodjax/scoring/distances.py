"""How far two sets of images are apart, on any (N, d) features: numpy float64, no network here."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BLOCK = 2**22  # numbers held as float64 at a time: 32 MB, where a copy of all may be 164


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
    """Refuse to compare vectors of d features with vectors of another number of them."""
    if d != other:
        raise ValueError(f"{d} features against {other}: expected the same space")


def check_finite(n: int, *arrays: np.ndarray) -> None:
    """Refuse NaN and infinity in the features of n images, or in what came of them."""
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError(
            f"the features of {n} images hold NaN, infinite or overflowing values; "
            "look at the images and at the extractor's weights"
        )


def blocks(n: int, size: int) -> Iterator[slice]:
    """0 .. n in slices of `size`; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and scatter of a set of feature vectors, which merge without loss.

    Attributes:
        n: vectors seen. Where only a covariance is known, any n > d will do.
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
        """The moments of features, any float [n >= 1, d], in two passes over blocks of rows."""
        check_features(features)
        n, d = features.shape
        m2 = np.zeros((d, d))
        with np.errstate(over="ignore", invalid="ignore"):  # refused with a message, above
            mean = features.mean(axis=0, dtype=np.float64)
            for rows in blocks(n, max(BLOCK // d, 1)):
                x = features[rows] - mean
                m2 += x.T @ x
            return cls(n=n, mean=mean, m2=m2)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together: Chan, Golub and LeVeque (1979), eq. 2.1."""
        n = self.n + other.n
        delta = other.mean - self.mean
        return Moments(
            n=n,
            mean=self.mean + delta * (other.n / n),
            m2=self.m2 + other.m2 + np.outer(delta, delta) * (self.n * other.n / n),
        )

    @property
    def cov(self) -> np.ndarray:
        """The unbiased covariance (ddof = 1), float64 [d, d]."""
        if self.n < 2:
            raise ValueError(f"{self.n} image has no covariance: expected at least 2")
        return self.m2 / (self.n - 1)

    @cached_property
    def root(self) -> np.ndarray:
        """A with A A^T = m2, float64 [d, min(n - 1, d)]: n images span n - 1 dimensions."""
        if self.n > len(self.mean):
            with suppress(np.linalg.LinAlgError):  # a feature that never varies, say
                return np.linalg.cholesky(self.m2)  # in a twentieth of the time
        w, v = np.linalg.eigh(self.m2)
        rank = min(self.n - 1, len(w))
        return v[:, -rank:] * np.sqrt(np.maximum(w[-rank:], 0))


def frechet(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians: Dowson and Landau (1982), eq. 4; Heusel et al.
    (2017), eq. 6: |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    With S_a = A A^T the last trace is the sum of the roots of the eigenvalues of A^T S_b A, which
    is symmetric: no sqrtm, no imaginary parts, nothing added to a diagonal. Fewer images than
    features are fine: only as many eigenvalues are counted as the images can span. Equal sets
    give zero to rounding, which may be negative; the value is returned as it is.

    The root of `a` is computed once and kept: where one set meets many, put it first.

    Raises:
        ValueError: the feature spaces differ in size, or a set has fewer than 2 images.
    """
    check_space(len(a.mean), len(b.mean))
    return frechet_by_root(a, a.root, b)


def frechet_by_root(a: Moments, root: np.ndarray, b: Moments) -> float:
    """`frechet`, with any A of A A^T = a.m2, float64 [d, r]."""
    delta, spread = a.mean - b.mean, np.trace(a.cov) + np.trace(b.cov)
    rank = min(a.n - 1, b.n - 1, len(delta))
    cross = np.linalg.eigvalsh(root.T @ b.m2 @ root)[-rank:] / ((a.n - 1) * (b.n - 1))
    return float(delta @ delta + spread - 2 * np.sqrt(np.maximum(cross, 0)).sum())


def frechet_from_features(x: np.ndarray, y: np.ndarray) -> float:
    """`frechet` of two sets of features, any float [n, d] and [m, d].

    Where one has no more images than features, those images, centred, are themselves the root of
    their scatter and nothing is factored: Mathiasen and Hvilshøj (2020, arXiv:2009.14075). Exact
    as well, and several times faster at a few hundred images of 2048 features.
    """
    check_features(x, y)
    if len(x) > len(y):
        x, y = y, x
    a, b = Moments.of(x), Moments.of(y)
    if a.n > len(a.mean):
        return frechet(a, b)
    return frechet_by_root(a, (x - a.mean).T, b)


def floor(features: np.ndarray, n: int, seed: int) -> float:
    """What real images score against real images: `distance` of two disjoint random subsets.

    Args:
        features: of real images, float [N, d].
        n: size of each subset; N // 2 where that is less.
        seed: of the draw.
    """
    n = min(n, len(features) // 2)
    order = np.random.default_rng(seed).permutation(len(features))
    return frechet_from_features(features[order[:n]], features[order[n : 2 * n]])


def infinity(
    real: Moments, fake: np.ndarray, value: float, points: int = 15, seed: int = 0
) -> float:
    """`frechet` extrapolated to infinitely many fakes: Chong and Forsyth (2020, arXiv:1911.07023).

    The distance of N fakes is too large by about a constant over N, and the constant differs
    between models. So: the distances of random subsets of several sizes, a straight line through
    them in 1 / N by least squares, and its value at 1 / N = 0. The smallest subset is the paper's
    5,000, or N // 2 where that is less. What the finite number of real images adds stays in: two
    sets of N equally distributed images keep about half of their distance. Noise may carry the
    value below 0. Subsets are drawn by position: another order of the fakes is another draw.

    Args:
        real: moments of the real images.
        fake: features, any float [N >= 4, d].
        value: their `frechet`, the last point of the line.
        points: how many sizes, evenly spaced up to N.
        seed: of the draws.
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
    """Kernel Inception distance, in any feature space: Bińkowski et al. (2018, arXiv:1801.01401).

    `mmd2` of random subsets, each drawn without replacement: unbiased at any number of images, so
    that equal distributions score about 0, and below it as often as above.

    Args:
        real, fake: features, any float [n >= 2, d] and [m >= 2, d].
        subsets: pairs of subsets drawn.
        size: images in each; n or m where that is less.
        seed: of the draws.

    Returns:
        Mean and population standard deviation over the subsets; 0 where they take in all images.
    """
    check_features(real, fake)
    size = min(size, len(real), len(fake))
    if size < 2 or subsets < 1:
        raise ValueError(
            f"{subsets} subsets of {size} images: expected at least 1, of at least 2 images"
        )
    if size == max(len(real), len(fake)):
        subsets = 1  # each would be the sets themselves
    rng = np.random.default_rng(seed)

    def draw(x: np.ndarray) -> np.ndarray:
        return x[rng.choice(len(x), size, replace=False)].astype(np.float64)

    values = [mmd2(draw(real), draw(fake)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3: the unbiased estimate,
    Gretton et al. (2012), eq. 3. Float64 [n, d] and [m, d].
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def between_others(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return between_others(x) + between_others(y) - 2 * kernel(x, y).mean()
