"""One adapter for each family of datasets."""
