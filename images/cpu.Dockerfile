# All roles, for CPUs. See images/README.md.
ARG BASE=debian:bookworm
FROM ${BASE} AS build
WORKDIR /src
COPY . .
RUN tools/setup.sh
RUN cmake --preset image -DCOX_WITH_TORCH=ON && cmake --build build/image
# The file system is made by the same script that needs no container daemon.
RUN images/build.py cpu --bin build/image/bin --out /out --no-oci

FROM scratch
COPY --from=build /out/rootfs /
ENV PATH=/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/opt/coxswain/lib
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/usr/local/bin/cox"]
