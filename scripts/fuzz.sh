#!/usr/bin/env bash
# Fuzzes everything that reads bytes of others: all targets one after another, MINUTES in all.
#
# With a nightly toolchain and a C++ compiler it is led by coverage (libFuzzer), with the address sanitizer;
# with a C++ compiler alone, by coverage without the sanitizer; else, or when told so, inputs of
# the corpora are changed at random. What finds new ways through the code stays in target/fuzz/corpus, from
# where --keep takes the smallest set that does into scripts/fuzz/corpus. What breaks something goes to
# target/fuzz/crashes; replay it with: cargo run -p cleave-fuzz -- replay TARGET FILE
#
#   scripts/fuzz.sh MINUTES [--target NAME] [--random] [--stable] [--keep] [--seed N]

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

minutes=
only=
mode=
keep=
seed=$RANDOM
while [ $# -gt 0 ]; do
    case $1 in
        --target) only=${2:-}; shift 2 || die "--target needs a name" ;;
        --seed) seed=${2:-}; shift 2 || die "--seed needs a number" ;;
        --random) mode=random; shift ;;
        --stable) mode=stable; shift ;;
        --keep) keep=yes; shift ;;
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) die "unknown option $1" ;;
        *) minutes=$1; shift ;;
    esac
done
[[ $minutes =~ ^[0-9]+$ ]] && [ "$minutes" -gt 0 ] || die "say for how many minutes"
[[ $seed =~ ^[0-9]+$ ]] || die "--seed takes a number"

require_cargo
compiler=$(command -v "${CXX:-c++}" || true)
if [ -z "$mode" ]; then
    if [ -z "$compiler" ]; then
        say "no C++ compiler (apt-get install g++): random changes, not led by coverage"
        mode=random
    elif command -v rustup >/dev/null && rustup toolchain list | grep -q '^nightly'; then
        mode=nightly
    else
        say "no nightly toolchain (rustup toolchain install nightly): no address sanitizer"
        mode=stable
    fi
fi

# The mutator itself is an ordinary program.
cargo build -q --locked -p cleave-fuzz
program=$CARGO_TARGET_DIR/debug/cleave-fuzz
mapfile -t targets < <("$program" list)
if [ -n "$only" ]; then
    printf '%s\n' "${targets[@]}" | grep -qx -- "$only" || die "there is no target $only: ${targets[*]}"
    targets=("$only")
fi
seconds=$((minutes * 60 / ${#targets[@]}))
[ "$seconds" -gt 0 ] || seconds=1
work=$ROOT/target/fuzz
crashes=$work/crashes
mkdir -p "$crashes"
failed=()

if [ "$mode" = random ]; then
    for target in "${targets[@]}"; do
        "$program" random --seconds "$seconds" --target "$target" --seed "$seed" --crashes "$crashes" ||
            failed+=("$target")
    done
else
    # What libFuzzer needs of the compiler. Another target folder: nothing else is built like this.
    flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
    flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
    flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1"
    toolchain=()
    if [ "$mode" = nightly ]; then
        toolchain=(+nightly)
        flags+=" -Zsanitizer=address"
    fi
    host=$(cargo "${toolchain[@]}" -vV | sed -n 's/^host: //p')
    say "building, led by coverage ($mode)"
    # The named target keeps the flags away from build scripts.
    RUSTFLAGS=$flags CARGO_TARGET_DIR=$work/$mode cargo "${toolchain[@]}" build --locked --release \
        --target "$host" -p cleave-fuzz --features guided --bin cleave-fuzz-guided
    program=$work/$mode/$host/release/cleave-fuzz-guided
    # Panics are caught on purpose in places, and redb keeps its cache: neither is a leak.
    export ASAN_OPTIONS=detect_leaks=0
    for target in "${targets[@]}"; do
        found=$work/corpus/$target
        kept=$ROOT/scripts/fuzz/corpus/$target
        mkdir -p "$found" "$kept"
        say "$target, $seconds s"
        CLEAVE_FUZZ_TARGET=$target "$program" "$found" "$kept" -max_total_time="$seconds" -timeout=20 \
            -rss_limit_mb=2048 -max_len=16384 -seed="$seed" -print_final_stats=1 -verbosity=1 \
            -artifact_prefix="$crashes/$target-" >"$work/$target.log" 2>&1 || failed+=("$target")
        grep -E '^stat::number_of_executed_units|^stat::new_units_added|^SUMMARY' "$work/$target.log" || true
        if [ -n "$keep" ]; then
            # The smallest inputs that go all known ways, beside what is kept already.
            CLEAVE_FUZZ_TARGET=$target "$program" -set_cover_merge=1 -max_len=2048 "$kept" "$found" \
                >>"$work/$target.log" 2>&1 || failed+=("$target: merging")
        fi
    done
fi

for target in "${failed[@]}"; do echo "failed: $target"; done
say "${#targets[@]} targets, ${#failed[@]} failed; seed $seed"
[ "${#failed[@]}" = 0 ]
