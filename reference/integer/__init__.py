"""Integer arithmetic to the bit: which rounding rule a runtime follows, and does every op obey it.

Sums of integer products are exact in any order. What differs from runtime to runtime is only how
the sum is brought to the steps of the result. There are few ways to do that; each is written out in
`arithmetic`, and the one that a runtime follows is found by trying all (`recognition`).
"""
