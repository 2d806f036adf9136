"""The comparison with PyTorch: the only package that imports torch."""
