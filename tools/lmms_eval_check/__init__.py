"""What tools/check_lmms_eval.py runs and expects."""
