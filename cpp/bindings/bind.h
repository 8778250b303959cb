// One function per public header: adds its ops to the module. Every op is an out-variant on arrays:
// inputs, options, outputs, then `cpu_threads` (0: all) and `stream` (None: the array library's).
#pragma once

#include <pybind11/pybind11.h>

namespace chipmunk::python {

void bind_attention(pybind11::module_& module);
void bind_columns(pybind11::module_& module);
void bind_mlp(pybind11::module_& module);
// HostBuffer: memory of our own that other libraries take in through DLPack.
void bind_host_buffer(pybind11::module_& module);

}  // namespace chipmunk::python
