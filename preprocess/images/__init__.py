"""A dataset's images: the stores that hold them, the indexes of archives, checks and resizing."""
