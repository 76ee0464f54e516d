#!/usr/bin/env bash
# Makes every table of docs/speed.md that needs a GPU, and runs the tests that need one, from the root of a checkout:
#
#   scripts/gpu_tables.sh FOLDER [--device cpu] [PART ...]
#
# Each part has a limit of time; one that fails or is too slow leaves the others alone. FOLDER gets PART.log,
# PART/benchmark.md and .json, summary.tsv (part, exit code, seconds) and tables.md, which grows with each part.
# Without PART all run, those that matter most first. `--device cpu` tries the script with a tiny model, without a GPU.
# It needs what the model needs (torch, transformers, ...), and pytest for the tests; neither an installation of the
# package, nor datasets, nor plugins of pytest.
set -uo pipefail

if [ $# -lt 1 ] || [[ $1 == -* ]]; then
    echo "error: expected a folder for the results, found ${1:-none}; run scripts/gpu_tables.sh FOLDER" >&2
    exit 2
fi
folder=$1 device=cuda
shift
if [ "${1:-}" = --device ]; then
    device=${2:-}
    shift 2 || shift
fi
case $device in
    cuda | cpu) ;;
    *) echo "error: expected cuda or cpu for --device, found ${device:-none}; leave it out on a GPU" >&2; exit 2 ;;
esac
chosen=("$@")
mkdir -p "$folder" || exit 74
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
PARTS=(machine layers_bf16 profile_bf16 compiled_bf16 inference_bf16 nano_bf16 layers_float32 nano_float32
    profile_compiled_bf16 profile_nano_bf16 triton_tests gpu_tests)

for part in "${chosen[@]+"${chosen[@]}"}"; do
    if [[ " ${PARTS[*]} " != *" $part "* ]]; then
        echo "error: expected one of ${PARTS[*]}, found $part; name parts of this list" >&2
        exit 2
    fi
done

if [ "$device" = cuda ]; then
    large="--variant 31B --batch_size 32 --repeats 3"
    nano="--variant nano --image_size 96 --batch_size 32 --repeats 5"
    tests=() patience=1
else
    large="--variant tiny --image_size 32 --batch_size 2 --repeats 1" nano=$large
    tests=(-k "not interpreted")  # which take minutes
    patience=4
fi
failed=0

# part NAME SECONDS COMMAND...
part() {
    local name=$1 limit=$2 started=$SECONDS code
    shift 2
    if [ ${#chosen[@]} -gt 0 ] && [[ " ${chosen[*]} " != *" $name "* ]]; then
        return
    fi
    echo "$name: $*"
    timeout --kill-after 10 $((limit * patience)) "$@" > "$folder/$name.log" 2>&1
    code=$?
    printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - started)) | tee -a "$folder/summary.tsv"
    if [ "$code" -ne 0 ]; then
        failed=$((failed + 1))
        tail -n 5 "$folder/$name.log"
    elif [ -f "$folder/$name/benchmark.md" ]; then
        { echo "## $name"; echo; echo "\`$*\`"; echo; grep -v '^<!--' "$folder/$name/benchmark.md"; } >> "$folder/tables.md"
    fi
}

# table NAME SECONDS FLAGS...
table() {
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" python -m seedling_hf benchmark --device "$device" --output_dir "$folder/$name" "$@"
}

# run_tests NAME SECONDS FILE [FLAGS...]
run_tests() {
    local name=$1 limit=$2
    shift 2
    if python -c "import pytest_timeout, xdist" 2> /dev/null; then
        part "$name" "$limit" python -m pytest -q -n 0 -p no:cacheprovider "$@"
    else
        part "$name" "$limit" python -m pytest -q -c /dev/null --rootdir . -p no:cacheprovider "$@"
    fi
}

machine() {
    date -u
    git log -1 --format=%H 2> /dev/null
    nvidia-smi 2> /dev/null
    python - <<'PYTHON'
import importlib.metadata, platform
for name in ("torch", "triton", "transformers", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "not installed")
print("python", platform.python_version())
PYTHON
}
export -f machine

part machine 60 bash -c machine
# shellcheck disable=SC2086
{
    table layers_bf16 180 $large --parts layers,training --dtype bfloat16
    table profile_bf16 120 $large --parts profile --dtype bfloat16
    table compiled_bf16 300 $large --parts training --dtype bfloat16 --torch_compile_mode reduce-overhead
    table inference_bf16 120 $large --parts inference --dtype bfloat16
    table nano_bf16 240 $nano --parts training,inference --dtype bfloat16 --torch_compile_mode reduce-overhead
    table layers_float32 180 $large --parts layers,training --dtype float32
    table nano_float32 240 $nano --parts training,inference --dtype float32 --torch_compile_mode reduce-overhead
    table profile_compiled_bf16 300 $large --parts profile --dtype bfloat16 --torch_compile_mode reduce-overhead
    table profile_nano_bf16 120 $nano --parts profile --dtype bfloat16
}
run_tests triton_tests 240 tests/replknet/test_large_kernel_triton.py "${tests[@]+"${tests[@]}"}"
run_tests gpu_tests 300 tests/test_gpu.py

if [ "$failed" -gt 0 ]; then
    echo "error: expected every part to work, found $failed that did not; read $folder/summary.tsv and the logs" >&2
    exit 1
fi
echo "Written to $folder."
