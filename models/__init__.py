"""Reference networks and their training recipes on real data.

Each file is one network: ``build(norm)`` makes it with any norm layer or, with ``None``, without
norms; those that have real data at hand also ``train(...)``.
"""

RECIPES = {
    "batchnorm_dense": "MLP for 8 x 8 handwritten digits: BatchNormalization before every Dense",
    "digits": "CNN for 8 x 8 handwritten digits: conv, depthwise-separable and dense blocks",
}
