# The static program alone. The context has an unpacked musl archive of each platform: amd64/lowrank, arm64/lowrank.
FROM scratch
ARG TARGETARCH
COPY ${TARGETARCH}/lowrank /lowrank
ENV HOME=/work TMPDIR=/work
WORKDIR /work
ENTRYPOINT ["/lowrank"]
