"""What is wrong with a build folder: always the file, and the sample where there is one."""


class ShardError(Exception):
    """A build, shard or index that is damaged, incomplete, or of another version. Never raised for sound data."""
