#!/bin/sh
# Build the image and run its main job, the study on the demonstration data, in it:
#   tools/container.sh [cpu|gpu] [FOLDER]
# Where buildah builds it, the image is looked into as well: its user, labels, health check, and that no compiler,
# no password of the checkout and no cache of its tools is left.
# With Docker where an engine runs. Elsewhere, as root on Debian, with buildah (no daemon, chroot isolation) on a base that
# debootstrap makes: apt install buildah debootstrap. FOLDER (new; a temporary one by default) holds the clone that the study
# runs in. BUILD_OPTIONS go to the build, as --volume for a proxy's certificates; MIRROR is debootstrap's.
# The study runs twice: with the project's folder as the volume, and with data, cache, mlruns and reports alone.
set -eu

target=${1:-cpu}
folder=$(realpath "${2:-$(mktemp --directory)}")
project=$(realpath "$(dirname "$0")/..")
image=medtransfer:$target

if PATH=$project/.venv/bin:$PATH command -v hadolint > /dev/null; then
    PATH=$project/.venv/bin:$PATH hadolint "$project/Dockerfile"
else
    echo "hadolint is not installed (make install): the Dockerfile is not linted" >&2
fi
git clone --quiet "$project" "$folder/study"
# The second time only these are the machine's; all else is the image's.
mkdir "$folder/parts"
mkdir "$folder/parts/data" "$folder/parts/cache" "$folder/parts/mlruns" "$folder/parts/reports"
set -- --volume "$folder/parts/data:/study/data" --volume "$folder/parts/cache:/study/.dvc/cache" \
    --volume "$folder/parts/mlruns:/study/mlruns" --volume "$folder/parts/reports:/study/reports"

if docker info > /dev/null 2>&1; then
    # shellcheck disable=SC2086
    docker build ${BUILD_OPTIONS:-} --target "$target" --tag "$image" "$project"
    if [ "$target" = gpu ]; then gpus="--gpus all"; else gpus=; fi
    # shellcheck disable=SC2086
    docker run --rm $gpus --user "$(id -u):$(id -g)" --volume "$folder/study:/study" "$image"
    # shellcheck disable=SC2086
    docker run --rm $gpus --user "$(id -u):$(id -g)" "$@" "$image"
    owner=$(id -u)
else
    export BUILDAH_ISOLATION=chroot
    if ! buildah inspect --type image localhost/debian-python > /dev/null 2>&1; then
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder/base" ${MIRROR:+"$MIRROR"}
        base=$(buildah from scratch)
        buildah copy --quiet "$base" "$folder/base" /
        buildah commit --quiet "$base" localhost/debian-python
        buildah rm "$base" > /dev/null
        rm --recursive --force "$folder/base"
    fi
    # shellcheck disable=SC2086
    # OCI's format would drop the health check.
    buildah build ${BUILD_OPTIONS:-} --format docker --build-arg BASE=localhost/debian-python --target "$target" --tag "$image" "$project"
    look='{{.Docker.Config.User}} {{index .Docker.Config.Labels "org.opencontainers.image.title"}} {{.Docker.Config.Healthcheck.Test}}'
    found=$(buildah inspect --type image --format "$look" "localhost/$image")
    if [ "$found" != "1000:1000 medtransfer [CMD medtransfer check]" ]; then
        echo "$image: user, title and health check are: $found" >&2
        exit 1
    fi
    owner=4321 # as with docker run --user: one that the image does not know
    chown --recursive $owner:$owner "$folder"
    container=$(buildah from "localhost/$image")
    trap 'buildah rm "$container" > /dev/null' EXIT
    tools=$(buildah run "$container" -- sh -c 'for tool in gcc cc make; do command -v $tool; done; true')
    if [ "$tools" ]; then
        echo "$image: holds build tools: $tools" >&2
        exit 1
    fi
    left=$(buildah run "$container" -- sh -c 'ls -d .git/config .git/logs .env .dvc/config.local .*_cache .hypothesis 2> /dev/null; true')
    if [ "$left" ]; then
        echo "$image: holds passwords or caches of this checkout: $left" >&2
        exit 1
    fi
    # shellcheck disable=SC2086
    buildah run ${RUN_OPTIONS:-} --user $owner:$owner --volume "$folder/study:/study" "$container" -- medtransfer study
    # shellcheck disable=SC2086
    buildah run ${RUN_OPTIONS:-} --user $owner:$owner "$@" "$container" -- medtransfer study
fi

test -s "$folder/study/reports/results.md"
test -s "$folder/parts/reports/results.md"
test -s "$folder/parts/mlruns/mlflow.db"
other=$(find "$folder/study" "$folder/parts" ! -uid "$owner" -print -quit)
if [ "$other" ]; then
    echo "$other: belongs to another user than $owner" >&2
    exit 1
fi
echo "the study ran in $image: $folder/study/reports/results.md"
