"""Files of integers, evaluated to the bit under every known rule of rounding.

Sums of integer products are exact in any order. Runtimes differ only in how they bring the sum to
the steps of the result. `reference.rounding` holds those rules, and each operator its integer form
(`Operator.integer`). The modules here read the operators of a .tflite or .onnx file.
"""
