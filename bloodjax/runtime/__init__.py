"""The base of a process: commands, other processes, compilation, files."""
