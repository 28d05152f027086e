"""Stage two: students train from cached features; the teacher is not loaded."""
