# Finds the CUTLASS headers (CuTe) of the pinned nvidia-cutlass package: CUTLASS_PATH, else an installed package.
set(CHIPMUNK_CUTLASS_VERSION 4.2.0)
set(CUTLASS_PATH "$ENV{CUTLASS_PATH}" CACHE PATH "Folder that holds cutlass/cutlass.h (or its include/)")
find_path(CHIPMUNK_CUTLASS_INCLUDE cutlass/cutlass.h
  HINTS "${CUTLASS_PATH}" "${CUTLASS_PATH}/include"
        "${CUTLASS_PATH}/cutlass_library/source/include" NO_DEFAULT_PATH)
if(NOT CHIPMUNK_CUTLASS_INCLUDE)
  find_package(Python COMPONENTS Interpreter QUIET)
  if(Python_FOUND)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -c
        "import importlib.util as u; s = u.find_spec('cutlass_library'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE _cutlass_package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    find_path(CHIPMUNK_CUTLASS_INCLUDE cutlass/cutlass.h HINTS "${_cutlass_package}/source/include" NO_DEFAULT_PATH)
  endif()
endif()
if(NOT CHIPMUNK_CUTLASS_INCLUDE)
  message(FATAL_ERROR "CUDA kernels need the CUTLASS headers: `pip install --no-deps nvidia-cutlass==${CHIPMUNK_CUTLASS_VERSION}.0`, "
    "or set CUTLASS_PATH to a folder that holds cutlass/cutlass.h, or leave CUDA out with -DCHIPMUNK_CUDA=OFF")
endif()
file(STRINGS "${CHIPMUNK_CUTLASS_INCLUDE}/cutlass/version.h" _cutlass_version REGEX "#define CUTLASS_(MAJOR|MINOR|PATCH) ")
string(REGEX REPLACE "[^0-9;]+" "" _cutlass_version "${_cutlass_version}")
string(REPLACE ";" "." _cutlass_version "${_cutlass_version}")
if(_cutlass_version VERSION_LESS CHIPMUNK_CUTLASS_VERSION)
  message(FATAL_ERROR "CUTLASS ${_cutlass_version} at ${CHIPMUNK_CUTLASS_INCLUDE} is older than ${CHIPMUNK_CUTLASS_VERSION}")
endif()
