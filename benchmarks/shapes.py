"""Named matrices of real layers, with spectra like theirs; one seed, one matrix."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """Matrices [*stack, m, n] to be cut to a rank."""

    name: str
    shape: tuple[int, int]
    rank: int
    stack: int = 1
    quick: bool = False

    @property
    def label(self) -> str:
        """Shape and rank in one word."""
        stack = f"{self.stack}x" if self.stack > 1 else ""
        return f"{stack}{self.shape[0]}x{self.shape[1]} r={self.rank}"


TRUNCATED = (
    Case("attention, BERT base", (768, 768), 64, quick=True),
    Case("feed-forward, BERT base", (3072, 768), 64, quick=True),
    Case("feed-forward, BERT base", (3072, 768), 192),
    Case("attention, 7B", (4096, 4096), 64),
    Case("attention, 7B", (4096, 4096), 1024),
    Case("attention, all of BERT base: 12 layers of q, k, v, o", (768, 768), 64, stack=48),
)

WEIGHTED = (
    Case("attention, BERT base", (768, 768), 192, quick=True),
    Case("attention, 1B", (2048, 2048), 512),
)


def matrices(case: Case, decay: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [*stack, m, n] in float32 with singular values j^-decay, and those values.

    Trained weights decay like j^-0.3 to j^-0.7 over most of their spectrum.
    """
    rng = np.random.default_rng(seed)
    (m, n), k = case.shape, min(case.shape)
    s = np.arange(1, k + 1.0) ** -decay
    made = [
        (orthonormal(rng, m, k) * s.astype(np.float32)) @ orthonormal(rng, n, k).T
        for _ in range(case.stack)
    ]
    return (np.stack(made) if case.stack > 1 else made[0]), s


def gram(size: int, condition: float = 5e4, seed: int = 1) -> np.ndarray:
    """A second moment [size, size] of that condition, eigenvalues falling as a power."""
    rng = np.random.default_rng(seed)
    values = np.arange(1, size + 1.0) ** (-math.log(condition) / math.log(size))
    q = orthonormal(rng, size, size).astype(np.float64)
    return ((q * values) @ q.T).astype(np.float32)


def orthonormal(rng: np.random.Generator, m: int, k: int) -> np.ndarray:
    """Random orthonormal columns [m, k]."""
    return np.linalg.qr(rng.standard_normal((m, k), np.float32))[0]
