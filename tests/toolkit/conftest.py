"""The oracle of the layer's tests: algorithm 1 in float64 NumPy, with no code of the layer."""

from __future__ import annotations

import numpy as np
import pytest


class PaperRenorm:
    """Algorithm 1 of arXiv:1702.03275, channel axis last, with gradients derived by hand.

    With ``warm_up`` the moving statistics start as the mean over all batches so far.
    """

    def __init__(
        self,
        channels,
        *,
        momentum=0.99,
        epsilon=1e-3,
        r_max=np.inf,
        d_max=np.inf,
        warm_up=False,
    ):
        self.mu = np.zeros(channels)
        self.var = np.ones(channels)
        self.gamma = np.ones(channels)
        self.beta = np.zeros(channels)
        self.momentum, self.warm_up = momentum, warm_up
        self.epsilon = epsilon
        self.r_max, self.d_max = r_max, d_max
        self.steps = 0

    @property
    def alpha(self):
        """Weight of the next batch in the moving statistics."""
        counted = self.steps + 1  # batches, with the next one
        return max(1 - self.momentum, 1 / counted) if self.warm_up else 1 - self.momentum

    def train(self, x, mask=None):
        """Return y for one training step; ``mask`` is boolean over all axes but the last."""
        x = np.asarray(x, np.float64)
        rows = x.reshape(-1, x.shape[-1]) if mask is None else x[np.asarray(mask, bool)]
        mu_b = rows.mean(0)
        sigma_b = np.sqrt(self.epsilon + ((rows - mu_b) ** 2).mean(0))
        sigma = np.sqrt(self.var + self.epsilon)
        r_max = self.r_max(self.steps) if callable(self.r_max) else self.r_max
        d_max = self.d_max(self.steps) if callable(self.d_max) else self.d_max
        self.r = np.clip(sigma_b / sigma, 1 / r_max, r_max)
        self.d = np.clip((mu_b - self.mu) / sigma, -d_max, d_max)
        self.x_hat, self.sigma_b = (x - mu_b) / sigma_b, sigma_b
        alpha = self.alpha
        self.mu = self.mu + alpha * (mu_b - self.mu)
        new_sigma = sigma + alpha * (sigma_b - sigma)
        self.var = new_sigma**2 - self.epsilon
        self.steps += 1
        return self.gamma * (self.x_hat * self.r + self.d) + self.beta

    def gradients(self, dy):
        """Return (dx, dgamma, dbeta) of the last step, from the paper's section 3."""
        dy = np.asarray(dy, np.float64)
        axes = tuple(range(dy.ndim - 1))
        m = dy.size // dy.shape[-1]
        dx_hat = dy * self.gamma * self.r
        d_sigma = -(dx_hat * self.x_hat).sum(axes) / self.sigma_b
        d_mu = -dx_hat.sum(axes) / self.sigma_b
        dx = dx_hat / self.sigma_b + d_sigma * self.x_hat / m + d_mu / m
        return dx, (dy * (self.x_hat * self.r + self.d)).sum(axes), dy.sum(axes)

    def infer(self, x):
        """Return y of inference."""
        scale = self.gamma / np.sqrt(self.var + self.epsilon)
        return np.asarray(x, np.float64) * scale + (self.beta - self.mu * scale)


@pytest.fixture(params=["fused", "reference"])
def kernel(request, monkeypatch):
    """Run the test on TensorFlow's fused kernels and on the plain reference."""
    from renormlite.toolkit import fused_tensorflow, kernels

    if request.param == "reference":
        monkeypatch.setattr(kernels, "fused_kernels", lambda x: None)
    else:
        monkeypatch.setattr(fused_tensorflow, "SMALLEST_TENSOR", 0)
    return request.param


@pytest.fixture
def paper_renorm() -> type[PaperRenorm]:
    """The oracle's class."""
    return PaperRenorm
