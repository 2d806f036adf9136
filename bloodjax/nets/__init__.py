"""Networks in flax linen, NHWC: what the methods are made of.

Their `dtype` is that of activations, so of what products are made of. Inputs, outputs, parameters
and BatchNorm's statistics are float32 whatever it is, and so is what would suffer from less: sums
over pixels (mean, variance, the gradient of a bias), softmax, sinusoids of the time.
"""
