"""The comparison with PyTorch: the only folder that may import torch, and nothing needs it."""
