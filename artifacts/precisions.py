"""Number formats: the constants of IEEE arithmetic that limits and noise are derived from."""

from __future__ import annotations

# Unit roundoff: half the distance from 1 to the next number (Higham, Accuracy and Stability, 2.1).
UNIT_ROUNDOFF = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}

# Runtimes may flush denormals to zero, which changes a float32 result by at most this much.
SMALLEST_NORMAL = 2.0**-126
