"""FOLD and WRITE: from a trained Keras model to artifacts, manifest and golden set."""
