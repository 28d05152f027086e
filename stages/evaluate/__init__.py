"""Measures models on labelled pictures, and a student against its teacher."""
