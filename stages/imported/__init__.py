"""Features that others computed become the arrays of a cache, without a teacher."""
