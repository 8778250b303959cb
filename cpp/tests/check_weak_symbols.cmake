# cmake -DNM=nm -DOBJECTS=a.o;b.o -P check_weak_symbols.cmake
# Each instruction set's object file may define one global symbol, its kernel table. Anything else,
# above all a weak copy of an inline function, could be linked in place of everybody's own copy and
# run on machines that lack the instructions.
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "/isa_[a-z0-9_]+\\.cpp")
    continue()
  endif()
  list(APPEND checked ${object})
  execute_process(COMMAND ${NM} --defined-only --extern-only ${object}
    OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]+" lines "${output}")
  # Data that the sanitizers' builds add; no code.
  list(FILTER lines EXCLUDE REGEX "__odr_asan|DW\\.ref\\.")
  list(LENGTH lines count)
  if(NOT count EQUAL 1 OR NOT lines MATCHES "^[0-9a-f]+ [DR] [A-Za-z0-9_]*kKernelTable[A-Za-z0-9]+$")
    string(REPLACE ";" "\n  " lines "${lines}")
    message(SEND_ERROR "${object}: expected one global symbol, the kernel table, got\n  ${lines}")
  endif()
endforeach()
if(NOT checked)
  message(SEND_ERROR "no isa_*.cpp object among: ${OBJECTS}")
endif()
