"""Vision encoders, one file per kind."""
