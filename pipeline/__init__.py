"""The command line, the configuration, the executors and what is printed. The work itself is in `stages`."""
