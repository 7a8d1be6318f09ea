"""Writes the folded Keras network as `network.npz`, node by node."""
