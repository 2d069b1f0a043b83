# CUDA, where it is asked for: -DT6_CUDA=ON, or a compiler given as CMAKE_CUDA_COMPILER. nvcc comes from build/cuda-venv,
# where `./bootstrap --cuda` has put it, else from PATH. The build without it does not notice this file.
if(CMAKE_CUDA_COMPILER)
  set(T6_CUDA_DEFAULT ON)
else()
  set(T6_CUDA_DEFAULT OFF)
endif()
option(T6_CUDA "Build the CUDA device" ${T6_CUDA_DEFAULT})
# 90a is the chip that everything was tested on. "80;90a" adds the portable kernels for other chips.
set(T6_CUDA_ARCHITECTURES 90a CACHE STRING "Chips to compile CUDA code for")
if("90" IN_LIST T6_CUDA_ARCHITECTURES)
  message(FATAL_ERROR "T6_CUDA_ARCHITECTURES: 90 lacks what the kernels need of Hopper; use 90a")
endif()

if(T6_CUDA)
  file(GLOB T6_CUDA_WHEELS ${PROJECT_SOURCE_DIR}/build/cuda-venv/lib/python3*/site-packages/nvidia/cu13)
  if(NOT CMAKE_CUDA_COMPILER AND T6_CUDA_WHEELS)
    set(CMAKE_CUDA_COMPILER ${T6_CUDA_WHEELS}/bin/nvcc)
    set(CUDAToolkit_ROOT ${T6_CUDA_WHEELS})
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${T6_CUDA_ARCHITECTURES})
  if(T6_CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${T6_CCACHE})
  endif()
  enable_language(CUDA)
  # CMake 3.25 knows no C++20 of nvcc's.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  # CMake 3.25 looks for NVTX, which CUDA 13 no longer has.
  if(NOT TARGET CUDA::nvToolsExt)
    add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
  endif()
  find_package(CUDAToolkit 12.8 REQUIRED)
  if(NOT TARGET CUDA::cudart_static)
    message(FATAL_ERROR "T6_CUDA: libcudart_static.a not found beside ${CMAKE_CUDA_COMPILER}")
  endif()
endif()

# Everything of CUDA, as one target: cmake --build build/cuda --target cuda.
if(T6_CUDA)
  add_custom_target(cuda)
endif()
function(t6_cuda_programs)
  add_dependencies(cuda ${ARGN})
endfunction()

# The options of the C++ rooms mean nothing to nvcc: gives each language of a target its own.
function(t6_cuda_options target)
  get_target_property(options ${target} COMPILE_OPTIONS)
  set_target_properties(${target} PROPERTIES COMPILE_OPTIONS
    "$<$<COMPILE_LANGUAGE:CXX>:${options}>;$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall>")
endfunction()
