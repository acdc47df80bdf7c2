# shellcheck shell=bash disable=SC2034
# Common parts of this project's scripts: sourced, not run. Needs bash.
#
# Scripts stand at the repository's root afterwards, and stop at the first error.

set -euo pipefail
# Programs print the same everywhere.
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive CARGO_TERM_COLOR=never PYTHONDONTWRITEBYTECODE=1
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
export CARGO_TARGET_DIR=$ROOT/target

# What the build needs beside Rust.
BUILD_PACKAGES=(gcc libc6-dev protobuf-compiler libprotobuf-dev)
# What guests need: the hypervisor, what runs in them, and the unpacking of a kernel.
GUEST_PACKAGES=(python3 qemu-system-x86 qemu-utils busybox-static fio e2fsprogs)
# What torture does to networks and drives.
TORTURE_PACKAGES=(iproute2 nftables util-linux e2fsprogs)
# What the store of several machines is tested with.
STORE_PACKAGES=(etcd-server etcd-client)
# What tests need beside: measurements that guard against regressions.
TEST_PACKAGES=(valgrind strace binutils "${STORE_PACKAGES[@]}" "${TORTURE_PACKAGES[@]}")

say() {
    printf '\n== %s\n' "$*"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Those of the named packages that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            printf '%s\n' "$package"
    done
}

# Installs what is missing of the named packages.
install_packages() {
    local missing round
    for round in 1 2 3; do
        mapfile -t missing < <(missing_packages "$@")
        [ "${#missing[@]}" -eq 0 ] && return
        [ "$(id -u)" = 0 ] || die "these packages are missing, and installing them needs root: ${missing[*]}"
        # A package of another release may give way to one of ours, and comes back in the release of ours.
        [ "$round" -le 2 ] || break
        say "installing ${missing[*]}"
        apt-get update -q >/dev/null || die "apt-get update failed"
        apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null ||
            die "apt-get could not install ${missing[*]}"
    done
    die "these packages do not go together with others that are installed: ${missing[*]}"
}

# Finds cargo, also where rustup has put it without a new login.
require_cargo() {
    if ! command -v cargo >/dev/null && [ -r "${CARGO_HOME:-$HOME/.cargo}/env" ]; then
        # shellcheck disable=SC1091
        . "${CARGO_HOME:-$HOME/.cargo}/env"
    fi
    command -v cargo >/dev/null || die "there is no cargo; install Rust from https://rustup.rs"
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
        die "cargo is $have, and $wanted or newer is needed: rustup update"
}

# The programs of a cluster, optimised.
build_programs() {
    cargo build --release --locked -q "$@" -p cleave -p cleave-host -p cleave-datanode
}

# Free bytes where the path lies.
free_bytes() {
    df --output=avail -B1 "$1" | tail -n 1
}
