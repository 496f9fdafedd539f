"""Whether training is exact with every causal language model of the installed transformers."""
