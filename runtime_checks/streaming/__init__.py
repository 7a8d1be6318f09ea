"""Checks on more samples than fit into memory: judged part by part, in one or several processes."""
