"""How far two sets of images are apart, on any (N, d) features: numpy float64, no network here."""

from dataclasses import dataclass

import numpy as np


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
        if not (np.isfinite(self.mean).all() and np.isfinite(self.m2).all()):
            raise ValueError(
                f"the features of {self.n} images hold NaN, infinite or overflowing values; "
                "look at the images and at the extractor's weights"
            )

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """The moments of features, any float [n >= 1, d]."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features have shape {features.shape}: expected (n >= 1, d)")
        with np.errstate(over="ignore", invalid="ignore"):  # refused with a message, above
            x = features.astype(np.float64)
            mean = x.mean(axis=0)
            x -= mean
            return cls(n=len(x), mean=mean, m2=x.T @ x)

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


def frechet(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians: Dowson and Landau (1982), eq. 4; Heusel et al.
    (2017), eq. 6: |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    With S_a = A A^T the last trace is the sum of the roots of the eigenvalues of A^T S_b A, which
    is symmetric: no sqrtm, no imaginary parts, nothing added to a diagonal. Fewer images than
    features are fine: n images span n - 1 dimensions, and A is cut to those. Equal sets give
    zero to rounding, which may be negative; the value is returned as it is.

    Raises:
        ValueError: the feature spaces differ in size, or a set has fewer than 2 images.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"{len(a.mean)} features against {len(b.mean)}: expected the same space")
    if a.n > b.n:
        a, b = b, a
    cov_a, cov_b = a.cov, b.cov
    rank = min(a.n - 1, len(a.mean))
    w, v = np.linalg.eigh(cov_a)
    root = v[:, -rank:] * np.sqrt(np.maximum(w[-rank:], 0))
    cross = np.maximum(np.linalg.eigvalsh(root.T @ cov_b @ root), 0)
    delta = a.mean - b.mean
    return float(delta @ delta + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross).sum())


def floor(features: np.ndarray, n: int, seed: int) -> float:
    """What real images score against real images: `frechet` of two disjoint random subsets.

    Args:
        features: of real images, float [N, d].
        n: size of each subset; N // 2 where that is less.
        seed: of the draw.
    """
    n = min(n, len(features) // 2)
    order = np.random.default_rng(seed).permutation(len(features))
    return frechet(Moments.of(features[order[:n]]), Moments.of(features[order[n : 2 * n]]))
