#!/usr/bin/env bash
# Shows Cleave at work: a whole cluster on this machine, and a QEMU guest that runs fio with
# verification on a Cleave disk.
#
# For Debian 12 with Rust (rustup), as root. Leaves nothing but the installed packages and target/.
#
#   scripts/quickstart.sh [--yes] [--keep]
#
#   --yes    do not ask before installing
#   --keep   keep the cluster's directory, and say how to start it again

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

yes=
keep=
for option in "$@"; do
    case $option in
        --yes) yes=1 ;;
        --keep) keep=1 ;;
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown option $option" ;;
    esac
done

SPACE_NEEDED=$((6 << 30))
DISK=256M

mapfile -t missing < <(missing_packages "${BUILD_PACKAGES[@]}" "${GUEST_PACKAGES[@]}")
cat <<TEXT
This builds Cleave, starts a cluster of one host engine and two controllers over 12 sparse drive files,
boots a QEMU guest on a $DISK disk of it, and runs fio with verification there.

  packages to install: ${missing[*]:-none}
  also fetched:        Rust crates; a Debian kernel package, unpacked below target/guest, not installed
  space:               about $((SPACE_NEEDED >> 30)) GiB below $ROOT/target and /var/tmp
  memory:              about 2 GiB
  left behind:         the packages and $ROOT/target${keep:+, and the cluster (--keep)}
TEXT
if [ -z "$yes" ] && [ "${#missing[@]}" -gt 0 ]; then
    read -r -p "Go on? [y/N] " answer || answer=
    case $answer in y | Y | yes) ;; *) die "nothing was done" ;; esac
fi
[ "$(free_bytes "$ROOT")" -ge "$SPACE_NEEDED" ] || die "too little free space at $ROOT"

install_packages "${BUILD_PACKAGES[@]}" "${GUEST_PACKAGES[@]}"
require_cargo
say "building"
build_programs

folder=$(mktemp -d /var/tmp/cleave-XXXXXX)
supervisor=
finish() {
    local status=$?
    if [ -n "$supervisor" ] && kill -TERM "$supervisor" 2>/dev/null; then
        wait "$supervisor" || status=1
    fi
    if [ -n "$keep" ] && [ -e "$folder/c/dev.toml" ]; then
        echo "The cluster is kept. Start it again with: $ROOT/target/release/cleave dev --dir $folder/c"
    else
        rm -rf "$folder"
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "starting a cluster"
cleave=$ROOT/target/release/cleave
# In its own process group, so that Ctrl-C lets this script stop it in order.
setsid "$cleave" dev --dir "$folder/c" --vdisk "demo:$DISK" >"$folder/out" 2>"$folder/errors" &
supervisor=$!
until grep -qx ready "$folder/out"; do
    if ! kill -0 "$supervisor" 2>/dev/null; then
        supervisor=
        die "the cluster did not start: $(cat "$folder/errors")"
    fi
    sleep 0.1
done
"$cleave" --dir "$folder/c" status

say "booting a guest; fio writes 64 MiB in pieces of 4 to 64 KiB, reads them back and checks them"
python3 scripts/guest --disk "$folder/c/vhost/demo.sock" --program /usr/bin/fio --seconds 1200 -- \
    'fio --name=demo --filename=/dev/vda --direct=1 --ioengine=io_uring --iodepth=16 --size=64m \
         --rw=randwrite --bsrange=4k-64k --verify=crc32c --verify_fatal=1' ||
    die "fio in the guest failed"

say "what Cleave did with it"
"$cleave" --dir "$folder/c" stats
say "done: everything that fio read back was what it had written"
