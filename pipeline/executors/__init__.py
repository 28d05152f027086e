"""Who runs a worker over tasks: this process, or a pool of Ray actors."""
