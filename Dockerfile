# The service as a container image: one binary on a base that holds nothing else.
#
#   docker build --tag evergrant:0.1.0 .

# Rust and a C compiler, for SQLite and the cryptography under TLS; neither cmake nor clang is needed on x86-64 and arm64.
# The same Debian as below, so that the binary finds the C library it was built with.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# What was fetched and compiled is kept between builds, outside of every layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --profile dist --package evergrant-cli \
    && install -D target/dist/evergrant /out/evergrant \
    && install -d -m 0700 /out/state

# C library, libgcc and certificate authorities; no shell, no package manager, nothing to run but the service. Against
# debian:bookworm-slim that is a quarter of the size, and nothing in it needs updates on its own account but those three.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="Evergrant" \
      org.opencontainers.image.description="Keeps OAuth grants alive" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.source="https://github.com/evergrant/evergrant" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# A new named volume takes over the owner of the folder that it is mounted on.
COPY --from=build --chown=65532:65532 /out/state /var/lib/evergrant
COPY --from=build /out/evergrant /usr/local/bin/evergrant

# By number, so that `runAsNonRoot` can tell; it is the base's `nonroot`.
USER 65532:65532
# Store, key and lifeboat are looked for here where the configuration names no other place. There is no VOLUME on purpose: an
# anonymous volume would take them in silently, and be gone with the container. With a read-only root a start without a
# volume fails, and says what it cannot write.
WORKDIR /var/lib/evergrant
EXPOSE 8484
STOPSIGNAL SIGTERM
# There is no HEALTHCHECK on purpose: it would need a second program in here, nothing in Docker acts on what it says, and
# those that act (Kubernetes, a load balancer) ask /healthz and /readyz from outside. A service that cannot go on ends.
ENTRYPOINT ["/usr/local/bin/evergrant"]
CMD ["serve"]
