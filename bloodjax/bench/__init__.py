"""The comparison with PyTorch, the only room that may import torch; no other room needs it."""
