"""Checks against a Keras model: files that any converter made, exports that may be out of date."""
