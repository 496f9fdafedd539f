"""Multi-modal causal attention (MMCA, https://arxiv.org/abs/2309.14327) and the layout of a batch that it reads."""
