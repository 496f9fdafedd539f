"""A run from configuration to last checkpoint: preflight checks, assembly, the loop, metrics."""
