"""Training: one step, the loop, and how seeds are spread over devices."""
