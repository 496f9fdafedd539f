"""Models as folders: reading and writing weights, configuration and processor."""
