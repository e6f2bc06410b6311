# Outrigger as an image: the program, the libraries it is linked with, and nothing else; no shell, no package manager.
#
#   docker build -t outrigger .
#   docker run --read-only --tmpfs /run/outrigger:uid=65532 -v data:/var/lib/outrigger outrigger
#
# Needs BuildKit (the default of Docker 23; before, DOCKER_BUILDKIT=1). From a mirror:
#
#   docker build --build-arg BUILDER=mirror.example/rust:1.95-slim-bookworm .
#
# Behind a proxy with a CA of its own, or with another source of crates, hand the build what cargo has on the host; a secret
# stays out of every layer:
#
#   docker build --secret id=ca,src=ca-certificates.crt --secret id=cargo,src="$HOME/.cargo/config.toml" .

# Any image with Rust 1.95 or later, a C compiler and glibc.
ARG BUILDER=rust:1.95-slim-bookworm
# What the final image starts from. The program's libraries come along, so nothing will do.
ARG RUNTIME=scratch

FROM ${BUILDER} AS build
# "dev" builds in a fraction of the time, for trying things out.
ARG PROFILE=release
ENV CARGO_TARGET_DIR=/target CARGO_PROFILE_RELEASE_STRIP=true CARGO_PROFILE_DEV_STRIP=true
# A step whose first half fails has failed.
SHELL ["/bin/bash", "-e", "-o", "pipefail", "-c"]
WORKDIR /build

# The dependencies, in a layer of their own: it stays as long as the two files do. The targets that Cargo.toml names must be
# there, whatever is in them.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=secret,id=ca --mount=type=secret,id=cargo \
    mkdir -p src benches tests/sim \
 && echo 'fn main() {}' | tee build.rs src/main.rs tests/sim/main.rs > /dev/null \
 && touch src/lib.rs \
 && sed -n '/^\[\[bench\]\]/,/^name/s/^name = "\(.*\)"/benches\/\1.rs/p' Cargo.toml | xargs touch \
 && if [ -e /run/secrets/ca ]; then export CARGO_HTTP_CAINFO=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi \
 && if [ -e /run/secrets/cargo ]; then set -- --config /run/secrets/cargo; fi \
 && cargo build "$@" --locked --profile "$PROFILE" \
 && rm -rf src build.rs

COPY build.rs ./
COPY src src
# Cargo goes by the files' times, and these may be older than the empty ones above.
RUN find src build.rs -exec touch {} + \
 && cargo build --offline --locked --profile "$PROFILE" --bin outrigger \
 && folder="$(echo "$PROFILE" | sed 's/^dev$/debug/')" \
 && install -D "/target/$folder/outrigger" /root-fs/usr/bin/outrigger

# Its file system: the program and what it is linked with, a user, where names are looked up, and its two directories.
RUN ldd /root-fs/usr/bin/outrigger | sed -n 's/^[^/]*\(\/[^ ]*\) (.*/\1/p' | xargs -I{} install -D {} /root-fs{} \
 && mkdir -p /root-fs/etc /root-fs/tmp \
 && echo 'outrigger:x:65532:65532::/var/lib/outrigger:/nonexistent' > /root-fs/etc/passwd \
 && echo 'outrigger:x:65532:' > /root-fs/etc/group \
 && echo 'hosts: files dns' > /root-fs/etc/nsswitch.conf \
 && chmod 1777 /root-fs/tmp \
 && install -d -o 65532 -g 65532 -m 0750 /root-fs/var/lib/outrigger /root-fs/run/outrigger
COPY LICENSE /root-fs/usr/share/doc/outrigger/LICENSE

FROM ${RUNTIME}
COPY --from=build /root-fs/ /
ENV OUTRIGGER__NODE__DATA_DIR=/var/lib/outrigger \
    OUTRIGGER__SOCKET__PATH=/run/outrigger/outrigger.sock \
    OUTRIGGER_SOCKET=/run/outrigger/outrigger.sock
# By number: Kubernetes' runAsNonRoot goes by nothing else.
USER 65532:65532
WORKDIR /var/lib/outrigger
VOLUME /var/lib/outrigger
EXPOSE 7117/udp 9464/tcp
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/bin/outrigger", "health"]
ENTRYPOINT ["/usr/bin/outrigger"]
CMD ["serve"]
