# Compiler settings shared by every room.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(T6_CCACHE ccache)
if(T6_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${T6_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${T6_CCACHE})
endif()

find_program(T6_LLD ld.lld)
if(T6_LLD)
  add_link_options(-fuse-ld=lld)
endif()

# -ffp-contract=off: a result must not depend on which expressions the compiler happens to fuse;
# kernels that want a fused multiply-add say so.
add_compile_options(-Wall -Wextra -Wno-unused-parameter -ffp-contract=off)
if(T6_WERROR)
  add_compile_options(-Werror)
endif()

if(T6_SANITIZE)
  add_compile_options(-fsanitize=${T6_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g)
  add_link_options(-fsanitize=${T6_SANITIZE})
endif()
