"""Diffusion in pieces: the process that adds noise, and the samplers that remove it."""
