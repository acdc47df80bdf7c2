#!/usr/bin/env bash
# Tortures real processes: SIGKILL, SIGSTOP, partitions, failing drives, with every byte checked throughout.
#
# Installs what is missing (apt, as root), builds the programs, runs them in network namespaces of their own.
# Prints the seed, every fault, and figures; keeps all logs of a round that failed.
#
#   scripts/torture.sh MINUTES [--seed N]

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
    "" | -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
install_packages "${BUILD_PACKAGES[@]}" "${GUEST_PACKAGES[@]}" "${TORTURE_PACKAGES[@]}"
require_cargo
say "release build"
build_programs -p cleave-verify
exec python3 scripts/torture "$@"
