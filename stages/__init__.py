"""The work, as plain functions of values: read sources, encode with a teacher, index, mine, distil, evaluate, export.

Everything here runs in an ordinary process and never imports ray, click or `pipeline`. Sources, decoding and
preprocessing need no torch, so that decode workers stay small; a teacher or a student brings it in.
"""
