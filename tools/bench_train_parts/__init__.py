"""What tools/bench_train.py measures, a module for each kind of thing."""
