"""Ghost batches: a batch split into small ones that are each normalized by their own statistics.

Every ghost has its own r and d, against the moving statistics from before the step; the moving
statistics then take one step towards the average of the ghosts' mu_B and sigma_B, as they would
with one replica per ghost.
"""

from __future__ import annotations

from keras import ops

from .renorm import Statistics, Tensor, sigma


class Ghosts:
    """The split of one batch.

    If the batch is not a multiple of ``size``, the last ghost is smaller: it is padded with rows of
    zeros, which a mask excludes from every statistic.

    Args:
        x: The batch; only its shape matters.
        size: Samples per ghost.
    """

    def __init__(self, x: Tensor, size: int) -> None:
        self.size = size
        self.samples = ops.shape(x)[0]  # an integer where it is static, else a scalar tensor
        self.count = -(-self.samples // size)
        self.missing = self.count * size - self.samples
        self._even = isinstance(self.missing, int) and self.missing == 0

    def split(self, x: Tensor) -> Tensor:
        """Return ``x`` of shape (samples, ...) as (ghosts, size, ...)."""
        if not self._even:
            x = ops.concatenate([x, ops.zeros((self.missing, *ops.shape(x)[1:]), x.dtype)])
        return ops.reshape(x, (self.count, self.size, *ops.shape(x)[1:]))

    def split_mask(self, mask: Tensor | None, rank: int) -> Tensor | None:
        """Return which elements of the split batch count, or None if all do.

        Args:
            mask: Booleans that broadcast to the whole batch, or None.
            rank: Rank of the whole batch.
        """
        if mask is None and self._even:
            return None
        present = ops.reshape(ops.arange(self.samples) >= 0, (-1, *(1,) * (rank - 1)))
        return self.split(present if mask is None else ops.logical_and(present, mask))

    def join(self, x: Tensor) -> Tensor:
        """Return (ghosts, size, ...) as (samples, ...): the inverse of `split`."""
        x = ops.reshape(x, (self.count * self.size, *ops.shape(x)[2:]))
        return x if self._even else x[: self.samples]


def average(ghosts: Statistics, weights: Tensor | None, *, epsilon: float) -> Statistics:
    """Return the average of mu_B and of sigma_B over the ghosts.

    The variance that belongs to the average sigma is the average variance less the spread of the
    sigmas; epsilon does not enter, so nothing cancels.

    Args:
        ghosts: Statistics of shape (ghosts, channels).
        weights: Weight of each ghost, of the same shape; None for equal weights.
        epsilon: Added to the variances.
    """
    if weights is None:
        share = 1.0 / ops.cast(ops.shape(ghosts.mean)[0], ghosts.mean.dtype)
    else:
        total = ops.sum(weights, 0, keepdims=True)
        # No element counts: every ghost holds the moving statistics, so any weights are right.
        weights = ops.where(total > 0, weights, ops.ones_like(weights))
        share = weights / ops.sum(weights, 0, keepdims=True)
    sigmas = sigma(ghosts.variance, epsilon)
    spread = ops.square(sigmas - ops.sum(share * sigmas, 0, keepdims=True))
    variance = ops.sum(share * (ghosts.variance - spread), 0)
    return Statistics(ops.sum(share * ghosts.mean, 0), ops.maximum(variance, 0.0))
