#!/usr/bin/env bash
# Runs everything: formatting, lints, all tests of all crates, simulated clusters, the NVMe driver in
# guests, and end-to-end tests with real guests.
#
# Installs what is missing of what tests need (apt, as root; components of rustup). Ends with a line
# "N passed, N failed", and with a status other than 0 when something failed.
#
#   scripts/test.sh [--only checks|crates|simulator|nvme|e2e] [-- OPTIONS OF scripts/e2e]

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

only=all
while [ $# -gt 0 ]; do
    case $1 in
        --only) only=${2:-}; shift 2 || die "--only needs checks, crates, simulator, nvme or e2e" ;;
        --) shift; break ;;
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown option $1" ;;
    esac
done
case $only in
    all | checks | crates | simulator | nvme | e2e) ;;
    *) die "--only takes checks, crates, simulator, nvme or e2e" ;;
esac

passed=0
failed=0
failures=()
logs=$ROOT/target/test-logs

# Runs one thing that passes or fails as a whole.
single() {
    local name=$1 log
    shift
    log=$logs/${name//[^a-z0-9]/-}.log
    say "$name"
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "$name ... ok"
    else
        failed=$((failed + 1))
        failures+=("$name")
        tail -n 40 "$log"
        echo "$name ... FAILED (all of it is in $log)"
        return 1
    fi
}

# All tests of all crates: each one counts. What does not compile is one failure.
crates() {
    local log=$logs/crates.log status=0 counted
    say "tests of all crates"
    cargo test --workspace --locked --no-fail-fast >"$log" 2>&1 || status=$?
    counted=$(awk '/^test result: /{ p += $4; f += $6 } END { print p + 0, f + 0 }' "$log")
    local good=${counted% *} bad=${counted#* }
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        # It did not compile, or a test program ended without a report.
        bad=1
        failures+=("cargo test ended with $status")
        tail -n 60 "$log"
    fi
    while read -r name; do failures+=("$name"); done < <(awk '/^test .* \.\.\. FAILED$/{ print $2 }' "$log")
    if [ "$bad" != 0 ]; then
        awk '/^failures:$/{ on = 1 } on { print } /^test result: /{ on = 0 }' "$log" | sed -n 1,200p
    fi
    passed=$((passed + good))
    failed=$((failed + bad))
    echo "crates: $good passed, $bad failed"
}

# Simulated clusters, until the budget of a change is met; says what was done.
simulated_clusters() {
    local log=$logs/simulated-clusters.log
    if single "simulated clusters" target/release/cleave-simulator --budget ci; then
        sed -n '/^faults, and/,$p' "$log"
    fi
}

# The judges are judged: every planted bug must be found, by the seed that found it last if it still does;
# and some of them by seeds that nobody tried. Which ones follows from the number of commits.
planted_bugs() {
    local judge=(target/release/cleave-simulator --judge-the-judges) turn
    turn=$(git rev-list --count HEAD 2>/dev/null || date +%j)
    if single "planted bugs" "${judge[@]}" recorded; then
        tail -n 1 "$logs/planted-bugs.log"
    fi
    if single "planted bugs in turn" "${judge[@]}" rotation --turn "$turn"; then
        cat "$logs/planted-bugs-in-turn.log"
    fi
}

# Runs scenarios of a folder of scripts/, which prints "FOLDER: N passed, N failed": each one counts.
scenarios() {
    local folder=$1 title=$2 log=$logs/$1.log counted
    shift 2
    say "$title"
    python3 "scripts/$folder" "$@" 2>&1 | tee "$log" || true
    counted=$(sed -n "s/^$folder: \\([0-9]*\\) passed, \\([0-9]*\\) failed\$/\\1 \\2/p" "$log" | tail -n 1)
    if [ -z "$counted" ]; then
        failed=$((failed + 1))
        failures+=("$title ended without a report")
        return
    fi
    passed=$((passed + ${counted% *}))
    failed=$((failed + ${counted#* }))
    while read -r name; do failures+=("$name"); done < <(sed -n 's/^failed: //p' "$log")
}

start=$SECONDS
install_packages "${BUILD_PACKAGES[@]}" "${GUEST_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
require_cargo
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
mkdir -p "$logs"

if [ "$only" = all ] || [ "$only" = checks ]; then
    single "formatting" cargo fmt --all --check || true
    single "lints" cargo clippy --workspace --all-targets --locked -- -D warnings || true
fi
if [ "$only" = all ] || [ "$only" = crates ]; then
    crates
fi
if [ "$only" = all ] || [ "$only" = simulator ]; then
    if single "build of the simulator" cargo build --release --locked -q -p cleave-simulator --features planted-bugs; then
        simulated_clusters
        planted_bugs
    fi
fi
if [ "$only" = all ] || [ "$only" = nvme ] || [ "$only" = e2e ]; then
    # Older programs would say nothing about this tree.
    if single "release build" build_programs -p cleave-verify -p cleave-perf; then
        if [ "$only" != nvme ]; then
            single "instructions a block" target/release/cleave-perf guard || true
        fi
        if [ "$only" != e2e ] &&
            single "build of the nvme exercise" cargo build --locked -q -p cleave-nvme --example exercise; then
            scenarios nvme "nvme in guests"
        fi
        if [ "$only" != nvme ]; then
            scenarios e2e "end-to-end tests" "$@"
        fi
    fi
fi

say "$((SECONDS - start)) s"
for failure in "${failures[@]}"; do echo "failed: $failure"; done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
