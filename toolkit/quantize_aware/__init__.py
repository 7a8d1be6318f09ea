"""Quantization-aware training: each layer computes what one operator of the integer file computes.

Every quantized value travels as a pair: the numbers themselves, multiples of a step, and its
*grid*, a vector of the step and the zero point. `steps` has the formulas of steps and integers,
`rounding` the arithmetic of the runtimes; the layers are thin shells over both.
"""
