# Target helpers: one call per coherent group of files, sources listed.
#
#   cox_library(NAME x SOURCES a.cc HEADERS a.h DEPS cox_base absl::status)
#   cox_torch_library(...)   same; alone links LibTorch, PRIVATE
#   cox_binary(NAME cox-actor SOURCES main.cc DEPS ...)
#   cox_test(NAME algo_gae_test SOURCES gae_test.cc DEPS cox_algo)
#   cox_torch_test(...)      a test that includes LibTorch itself

set(COX_WARNINGS -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
  -Werror)

function(_cox_common target)
  target_include_directories(${target} PUBLIC "${CMAKE_SOURCE_DIR}")
  target_compile_options(${target} PRIVATE ${COX_WARNINGS})
endfunction()

function(cox_library)
  cmake_parse_arguments(A "" "NAME" "SOURCES;HEADERS;DEPS;PRIVATE_DEPS" ${ARGN})
  if(A_SOURCES)
    add_library(${A_NAME} STATIC ${A_SOURCES} ${A_HEADERS})
    _cox_common(${A_NAME})
    target_link_libraries(${A_NAME} PUBLIC ${A_DEPS} PRIVATE ${A_PRIVATE_DEPS})
  else()
    add_library(${A_NAME} INTERFACE)
    target_include_directories(${A_NAME} INTERFACE "${CMAKE_SOURCE_DIR}")
    target_link_libraries(${A_NAME} INTERFACE ${A_DEPS})
  endif()
endfunction()

function(cox_torch_library)
  cmake_parse_arguments(A "" "NAME" "SOURCES;HEADERS;DEPS;PRIVATE_DEPS" ${ARGN})
  if(NOT COX_WITH_TORCH)
    return()
  endif()
  cox_library(NAME ${A_NAME} SOURCES ${A_SOURCES} HEADERS ${A_HEADERS}
    DEPS ${A_DEPS} PRIVATE_DEPS ${A_PRIVATE_DEPS} LibTorch::cpu)
endfunction()

function(cox_binary)
  cmake_parse_arguments(A "" "NAME" "SOURCES;DEPS" ${ARGN})
  add_executable(${A_NAME} ${A_SOURCES})
  _cox_common(${A_NAME})
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPS})
endfunction()

function(cox_test)
  cmake_parse_arguments(A "" "NAME;TIMEOUT" "SOURCES;DEPS;ARGS;ENV" ${ARGN})
  add_executable(${A_NAME} ${A_SOURCES})
  _cox_common(${A_NAME})
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPS} GTest::gmock GTest::gtest
    GTest::gtest_main)
  add_test(NAME ${A_NAME} COMMAND ${A_NAME} ${A_ARGS})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  set_tests_properties(${A_NAME} PROPERTIES TIMEOUT ${A_TIMEOUT}
    ENVIRONMENT "COX_BIN_DIR=${CMAKE_BINARY_DIR}/bin;COX_SOURCE_DIR=${CMAKE_SOURCE_DIR};${A_ENV}")
endfunction()

function(cox_torch_test)
  cmake_parse_arguments(A "" "NAME;TIMEOUT" "SOURCES;DEPS;ARGS;ENV" ${ARGN})
  if(NOT COX_WITH_TORCH)
    return()
  endif()
  cox_test(NAME ${A_NAME} TIMEOUT ${A_TIMEOUT} SOURCES ${A_SOURCES}
    DEPS ${A_DEPS} LibTorch::cpu ARGS ${A_ARGS} ENV ${A_ENV})
endfunction()

# cox_proto(NAME cox_proto PROTOS a.proto b.proto [GRPC])
# Paths are relative to proto/; generated headers are included as
# "cox/v1/a.pb.h". Generated code is exempt from our warnings.
function(cox_proto)
  cmake_parse_arguments(A "GRPC" "NAME;ROOT" "PROTOS;DEPS" ${ARGN})
  set(out "${CMAKE_BINARY_DIR}/generated")
  file(MAKE_DIRECTORY "${out}")
  set(sources)
  foreach(proto IN LISTS A_PROTOS)
    string(REGEX REPLACE "\\.proto$" "" stem "${proto}")
    set(outputs "${out}/${stem}.pb.cc" "${out}/${stem}.pb.h")
    set(flags "--cpp_out=${out}")
    if(A_GRPC)
      list(APPEND outputs "${out}/${stem}.grpc.pb.cc" "${out}/${stem}.grpc.pb.h")
      list(APPEND flags "--grpc_out=${out}"
        "--plugin=protoc-gen-grpc=${COX_GRPC_CPP_PLUGIN}")
    endif()
    add_custom_command(OUTPUT ${outputs}
      COMMAND protobuf::protoc ${flags} -I "${A_ROOT}" "${A_ROOT}/${proto}"
      DEPENDS "${A_ROOT}/${proto}" COMMENT "protoc ${proto}" VERBATIM)
    list(APPEND sources "${out}/${stem}.pb.cc")
    if(A_GRPC)
      list(APPEND sources "${out}/${stem}.grpc.pb.cc")
    endif()
  endforeach()
  add_library(${A_NAME} STATIC ${sources})
  target_include_directories(${A_NAME} SYSTEM PUBLIC "${out}")
  target_compile_options(${A_NAME} PRIVATE -w)
  target_link_libraries(${A_NAME} PUBLIC protobuf::libprotobuf ${A_DEPS})
  if(A_GRPC)
    target_link_libraries(${A_NAME} PUBLIC PkgConfig::GRPCPP)
  endif()
endfunction()
