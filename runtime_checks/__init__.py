"""PROVE: run artifacts on the runtime that will serve them and compare with float64 truth."""
