"""What can go wrong in training; configuration errors are dst's ConfigError, data errors shards' ShardError."""


class TrainError(Exception):
    """A run that failed, in words a user can act on; exit code 1."""
