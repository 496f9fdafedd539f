"""The training half. It reads a build folder and nothing of the data half's code: the folder is their contract."""

__all__: list[str] = []
