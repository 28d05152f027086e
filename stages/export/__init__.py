"""A trained student as other programs want it: a model folder, and an open_clip pair."""
