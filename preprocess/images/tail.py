"""The end of an image's bytes: with the size, it tells files apart that are not copies, without reading them whole."""

TAIL_BYTES = 4096
"""The same for every kind of store, so that copies are found across them"""
