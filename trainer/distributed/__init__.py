"""The processes of a run: launching, ranks, DeepSpeed's engine, signals and the lock of a run's folder."""
