"""Networks in flax linen, NHWC, float32: what the methods are made of."""
