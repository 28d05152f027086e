"""Executors run a worker over tasks: in this process, or in a pool of Ray actors."""
