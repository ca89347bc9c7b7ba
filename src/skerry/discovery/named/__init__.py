"""Units that are named by the user rather than found: residual blocks, and experts of mixtures."""
