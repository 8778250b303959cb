# The CPU kernels: one loop source, compiled once per instruction set.
set(CHIPMUNK_ISA_SOURCES cpp/src/cpu/kernels/isa_baseline.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND CHIPMUNK_ISA_SOURCES cpp/src/cpu/kernels/isa_avx2.cpp
    cpp/src/cpu/kernels/isa_avx512.cpp cpp/src/cpu/kernels/isa_avx512_bf16.cpp)
  set_source_files_properties(cpp/src/cpu/kernels/isa_avx2.cpp PROPERTIES COMPILE_OPTIONS
    "-mavx2;-mfma;-mf16c;-mbmi2")
  set(CHIPMUNK_AVX512_OPTIONS
    -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mbmi2 -mprefer-vector-width=512)
  set_source_files_properties(cpp/src/cpu/kernels/isa_avx512.cpp PROPERTIES COMPILE_OPTIONS
    "${CHIPMUNK_AVX512_OPTIONS}")
  set_source_files_properties(cpp/src/cpu/kernels/isa_avx512_bf16.cpp PROPERTIES COMPILE_OPTIONS
    "${CHIPMUNK_AVX512_OPTIONS};-mavx512bf16")
endif()
# Under sanitizers GCC takes twelve times as long over these at -O3 -g as at -O2 -g1.
set(CHIPMUNK_ISA_OPTIMISATION -O3)
if(CHIPMUNK_SANITIZE)
  set(CHIPMUNK_ISA_OPTIMISATION -O2 -g1)
endif()
set_property(SOURCE ${CHIPMUNK_ISA_SOURCES} APPEND PROPERTY COMPILE_OPTIONS
  ${CHIPMUNK_ISA_OPTIMISATION} -fno-math-errno -fno-trapping-math)
