"""A run from configuration to last checkpoint: preflight, assembly, the loop, metrics."""
