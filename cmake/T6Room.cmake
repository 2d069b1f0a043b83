# t6_room(NAME SOURCES ... DEPS ... [PRIVATE_DEPS ...]): the static library t6_NAME, alias t6::NAME.
# A room's DEPS are the rooms that house rules allow it to include (tools/lint/include_directions.py checks the includes).
function(t6_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(t6_${name} STATIC ${ARG_SOURCES})
    target_include_directories(t6_${name} PUBLIC ${PROJECT_SOURCE_DIR})
    target_link_libraries(t6_${name} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
  else()
    add_library(t6_${name} INTERFACE)
    target_include_directories(t6_${name} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(t6_${name} INTERFACE ${ARG_DEPS})
  endif()
  add_library(t6::${name} ALIAS t6_${name})
endfunction()

# Makes a program's tests known to ctest. The limit is for what hangs: a machine may be slow, or stand still for minutes.
function(t6_discover_tests name labels)
  gtest_discover_tests(${name} ${ARGN} NO_PRETTY_VALUES DISCOVERY_TIMEOUT 300 PROPERTIES TIMEOUT 900 LABELS "${labels}")
endfunction()

# t6_device_test(NAME SOURCES ... DEPS ...): tests named after the device that they run on. Those on "cuda" bear the
# label gpu and are known where CUDA is built.
function(t6_device_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  t6_discover_tests(${name} fast TEST_FILTER "-*cuda*")
  if(T6_CUDA)
    t6_discover_tests(${name} gpu TEST_FILTER "*cuda*")
    t6_cuda_programs(${name})
  endif()
endfunction()

# t6_test(NAME SOURCES ... DEPS ... [LABELS ...]): one GoogleTest program, each of its tests known to ctest.
function(t6_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE T6_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  t6_discover_tests(${name} "${ARG_LABELS}")
endfunction()
