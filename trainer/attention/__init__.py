"""Multi-modal causal attention (MMCA, https://arxiv.org/abs/2309.14327) and the batch layout that it reads."""
