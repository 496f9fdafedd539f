"""The rules of `filter:`: which records of a dataset are kept, by their texts, their fields and their images."""
