"""Random numbers as a function of a key: purpose, seed, epoch, step and row.

Each can be computed without those before it, on any rank and in any worker. They come from the raw output of
numpy's bit generators, which numpy promises to keep; its distributions may change, and only the shares of
mixed images use one (Beta).
"""

import zlib
from dataclasses import dataclass

import numpy as np


def permutation(length: int, purpose: str, *key: int) -> np.ndarray:
    """Return the numbers from 0 to ``length``, exclusive, in an order drawn from the key; int64."""
    return np.argsort(_bits(length, 0, purpose, *key), kind="stable")


def below(limit: int, purpose: str, *key: int) -> int:
    """Return a number from 0 to ``limit``, exclusive."""
    return int(_bits(1, 0, purpose, *key)[0]) % limit


def _bits(count: int, skipped: int, purpose: str, *key: int) -> np.ndarray:
    """Return numbers of 64 random bits, (count,), after the first ``skipped`` ones of the key's stream."""
    source = np.random.PCG64([zlib.crc32(purpose.encode()), *key])
    source.advance(skipped)
    return source.random_raw(count)


@dataclass(frozen=True)
class BatchRng:
    """Random numbers for rows ``first`` to ``first + rows`` (exclusive) of one global batch.

    The numbers of a row do not depend on the other rows. view: number of the augmented view, from 0.
    """

    seed: int
    epoch: int
    step: int
    first: int
    rows: int
    view: int = 0

    def of_rows(self, purpose: str, columns: int) -> np.ndarray:
        """Return uniform numbers in [0, 1), (rows, columns)."""
        bits = _bits(self.rows * columns, self.first * columns, purpose, *self._key)
        return _uniform(bits).reshape(self.rows, columns)

    def of_batch(self, purpose: str, columns: int) -> np.ndarray:
        """Return uniform numbers in [0, 1), (columns,), which all rows of the global batch share."""
        return _uniform(_bits(columns, 0, purpose, *self._key))

    def beta_of_batch(self, purpose: str, alpha: float) -> float:
        """Return a number in [0, 1] of the distribution Beta(alpha, alpha), shared likewise."""
        source = np.random.PCG64([zlib.crc32(purpose.encode()), *self._key])
        return float(np.random.Generator(source).beta(alpha, alpha))

    def seeds_of_rows(self, purpose: str) -> list[int]:
        """Return a seed for each row, from 0 to 2**63, exclusive."""
        return (_bits(self.rows, self.first, purpose, *self._key) >> np.uint64(1)).tolist()

    @property
    def _key(self) -> tuple[int, ...]:
        # The first view is what a batch of one view is.
        return (self.seed, self.epoch, self.step, *([self.view] if self.view else []))


def _uniform(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)) * 2.0**-53
