"""Models as folders on disk: reading and writing weights, configuration and processor."""
