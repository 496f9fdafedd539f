"""Vision encoders, a file for each kind."""
