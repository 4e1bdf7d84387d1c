# The coordinator and the command line, without LibTorch. See images/README.md.
ARG BASE=debian:bookworm
FROM ${BASE} AS build
WORKDIR /src
COPY . .
RUN tools/setup.sh
RUN cmake --preset image -DCOX_WITH_TORCH=OFF && cmake --build build/image --target cox cox-coordinator
# The file system is made by the same script that needs no container daemon.
RUN images/build.py coordinator --bin build/image/bin --out /out --no-oci

FROM scratch
COPY --from=build /out/rootfs /
ENV PATH=/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/opt/coxswain/lib
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/usr/local/bin/cox"]
