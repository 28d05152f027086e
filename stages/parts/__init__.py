"""The common part of all jobs over the parts of a cache: lock, tasks, reports and failures."""
