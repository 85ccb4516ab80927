"""C++ code for the CPU: compiled when it is first used, called through ctypes. Each stage has its own sources."""
