"""Code in C++ for the CPU: compiled when it is first used, called through ctypes. Each stage brings its own sources."""
