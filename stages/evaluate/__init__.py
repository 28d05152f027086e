"""How good a model is on labelled pictures, and how close a student is to its teacher."""
