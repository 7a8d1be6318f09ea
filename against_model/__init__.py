"""Checks against a Keras model: files of any converter, and exports that may be out of date."""
