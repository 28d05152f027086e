"""A distillation run on disk, for whoever names one: its folder, its record and its checkpoints."""
