"""Between the stages: indexes, mined neighbours and duplicates, from features to rows."""
