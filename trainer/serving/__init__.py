"""Serving a model to many clients: the engine that answers them together, and the HTTP side."""
