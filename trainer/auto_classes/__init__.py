"""The classes with which transformers' Auto classes open exports that are not LLaVA folders."""
