"""One setting, one place: its words, bounds and default, from which its flag, check and record are made."""
