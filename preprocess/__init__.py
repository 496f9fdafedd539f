"""The data half: adapters, image stores, the compiler and its engines, and the command line `dsvl-prep`."""

__all__: list[str] = []
