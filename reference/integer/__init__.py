"""Evaluates integer files exactly under every known rounding rule.

Sums of integer products are exact in any order. Runtimes differ only in how they requantize the
sum. `reference.rounding` contains these rules, and `Operator.integer` the integer form of each
operator. The modules here read the operators of a .tflite or .onnx file.
"""
