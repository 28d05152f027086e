"""What every job over the parts of a cache shares."""
