"""Web pages: one file each, everything inside, no scripts and no requests."""
