"""What the check computes with: arrays of NumPy and JAX alike, floating-point formats, and noise of their size."""
