// The Python extension chipmunk_kernels._core.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <string_view>

#include "bindings/def_op.h"
#include "chipmunk_kernels/error.h"
#include "chipmunk_kernels/info.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  const chipmunk::BuildInfo info = chipmunk::build_info();
  py::list gpus;
  for (const chipmunk::GpuInfo& gpu : info.gpus) {
    py::dict entry;
    entry["name"] = gpu.name;
    entry["compute_capability"] =
        py::make_tuple(gpu.compute_capability_major, gpu.compute_capability_minor);
    entry["multiprocessors"] = gpu.multiprocessors;
    entry["memory_bytes"] = gpu.memory_bytes;
    gpus.append(std::move(entry));
  }
  py::dict out;
  out["version"] = info.version;
  out["cpu_isa"] = info.cpu_isa;
  out["cpu_isas"] = py::tuple(py::cast(info.cpu_isas));
  out["cpu_threads"] = info.cpu_threads;
  out["cuda_compiled"] = info.cuda_compiled;
  out["cuda_toolkit"] = info.cuda_toolkit;
  out["gpus"] = py::tuple(gpus);
  return out;
}

// Read at every call, so that it can be switched on in a running process.
bool checks_enabled() {
  const char* value = std::getenv("CHIPMUNK_CHECK");
  return value != nullptr && std::string_view(value) == "1";
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  // InvalidArgument is a std::invalid_argument, which pybind11 turns into ValueError.
  py::register_exception<chipmunk::Unsupported>(m, "UnsupportedError", PyExc_NotImplementedError);
  py::register_exception<chipmunk::CudaError>(m, "CudaError", PyExc_RuntimeError);
  m.attr("UnsupportedError").attr("__module__") = "chipmunk_kernels";
  m.attr("CudaError").attr("__module__") = "chipmunk_kernels";
  m.attr("UnsupportedError").attr("__doc__") =
      "A valid request that this build or this machine cannot serve.";
  m.attr("CudaError").attr("__doc__") = "A CUDA call failed; the text names it.";
  m.def("build_info", &build_info);
  m.def("checks_enabled", &checks_enabled);
  chipmunk::python::bind_shape_only(m);
  chipmunk::python::bind_attention(m);
  chipmunk::python::bind_columns(m);
  chipmunk::python::bind_host_buffer(m);
  chipmunk::python::bind_mlp(m);
}
