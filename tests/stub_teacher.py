"""The NumPy teacher, also at the place that scripts of before name: `python:tests.stub_teacher:make`."""

from tests.corpora.stub_teacher import make

__all__ = ["make"]
