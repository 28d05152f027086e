"""The tiny transformers models, also at the place that scripts of before name."""

from tests.corpora.tiny_hf import make_tiny_hf

__all__ = ["make_tiny_hf"]
