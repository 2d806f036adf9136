"""What a process runs on: other processes, signals, compilation, files."""
