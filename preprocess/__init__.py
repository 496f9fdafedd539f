"""The data half: adapters, image stores, the compiler and its engines, and the command line `dsvl-prep`."""

from preprocess.errors import ConfigError, DataError, DsvlError

__all__ = ["ConfigError", "DataError", "DsvlError"]
