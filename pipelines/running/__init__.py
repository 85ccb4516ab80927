"""Command lines, devices, processes, run folders."""
