"""The Python ops: allocate outputs in the caller's array library, then fill them in C++."""
