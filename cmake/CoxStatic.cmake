# COX_STATIC: gRPC, protobuf, Abseil and the small libraries inside the binary,
# for container images and for machines without Debian's packages. What stays
# shared: glibc, libstdc++, LibTorch; cpp-httplib, which Debian has only as a
# shared library (images install it and what it needs); and OpenSSL, because
# cpp-httplib brings it and a process shall have it once.

# A package's targets name lib<x>.so*; beside it lies lib<x>.a.
function(_cox_archive_of path out)
  string(REGEX REPLACE "\\.so[.0-9]*$" ".a" archive "${path}")
  if(NOT archive STREQUAL path AND EXISTS "${archive}")
    set(${out} "${archive}" PARENT_SCOPE)
  else()
    set(${out} "${path}" PARENT_SCOPE)
  endif()
endfunction()

function(cox_link_statically)
  get_directory_property(targets IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "INTERFACE_LIBRARY" OR type STREQUAL "EXECUTABLE" OR
       target MATCHES "^OpenSSL::|^GTest::|^LibTorch::")
      continue()
    endif()
    foreach(property IMPORTED_LOCATION IMPORTED_LOCATION_NONE
            IMPORTED_LOCATION_RELEASE)
      get_target_property(path ${target} ${property})
      if(path)
        _cox_archive_of("${path}" archive)
        set_target_properties(${target} PROPERTIES ${property} "${archive}")
      endif()
    endforeach()
  endforeach()
  # pkg-config knows the order and the system libraries.
  foreach(package grpc++ protobuf)
    execute_process(COMMAND ${PKG_CONFIG_EXECUTABLE} --static --libs ${package}
      OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE
      COMMAND_ERROR_IS_FATAL ANY)
    string(REPLACE " " ";" flags "${flags}")
    list(APPEND all ${flags})
  endforeach()
  # systemd's socket activation is not ours to use; the C library stays shared.
  list(FILTER all EXCLUDE REGEX "^-lsystemd$|^-pthread$|^-ldl$|^-lrt$|^-lm$|^-lssl$|^-lcrypto$")
  list(FILTER all INCLUDE REGEX "^-l")
  list(REMOVE_DUPLICATES all)
  list(JOIN all "," joined)
  # One option, so that nothing is moved or left out between its ends.
  set_target_properties(PkgConfig::GRPCPP PROPERTIES INTERFACE_LINK_LIBRARIES
    "-Wl,-Bstatic,--start-group,${joined},--end-group,-Bdynamic;OpenSSL::SSL;OpenSSL::Crypto;Threads::Threads;dl")
  foreach(package XXHASH ZSTD)
    get_target_property(libraries PkgConfig::${package}
      INTERFACE_LINK_LIBRARIES)
    set(replaced)
    foreach(path IN LISTS libraries)
      _cox_archive_of("${path}" archive)
      list(APPEND replaced "${archive}")
    endforeach()
    set_target_properties(PkgConfig::${package} PROPERTIES
      INTERFACE_LINK_LIBRARIES "${replaced}")
  endforeach()
endfunction()
