# Two images from one build, both from scratch: one static binary each, no shell, no root.
#
#     docker build -t wardkeep .                                     the supervisor and the command
#     docker build -t wardkeep-code-search --target code-search .    a node of the quickstart
#
# The builder is any Debian 12 with a current Rust, a C compiler and glibc's static library, which is
# what rust:1-bookworm is.
FROM rust:1-bookworm AS build
WORKDIR /build
COPY . .
# Statically linked with glibc, whose resolver knows the container engine's names. The target is named,
# though it is the host's own, so that the flag does not reach build scripts and macros.
RUN set -eu; \
    host=$(rustc -vV | sed -n 's/^host: //p'); \
    CARGO_INCREMENTAL=0 RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --release --locked --target "$host" --bin wardkeep --bin code-search; \
    mkdir -p /out/data /out/corpus; \
    mv "target/$host/release/wardkeep" "target/$host/release/code-search" /out/; \
    cp -R "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/. /out/corpus/; \
    chmod -R a+rX /out; \
    rm -rf target

# A node of the quickstart. It searches the sources of the crates that this very build was made of.
FROM scratch AS code-search
COPY --from=build /out/corpus /corpus
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build /out/wardkeep /out/code-search /
USER 65532:65532
VOLUME /data
EXPOSE 7500
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["/wardkeep", "health", "--address", "http://127.0.0.1:7500", "--timeout", "2s"]
ENTRYPOINT ["/code-search", "node", "--dir", "/data", "--corpus", "/corpus"]

# The supervisor, a node of process wards, or the command: whatever the arguments say.
FROM scratch AS wardkeep
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build /out/wardkeep /
USER 65532:65532
VOLUME /data
EXPOSE 7400 7500
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/wardkeep", "health", "--timeout", "2s"]
ENTRYPOINT ["/wardkeep"]
CMD ["serve", "supervisor", "--data-dir", "/data"]
