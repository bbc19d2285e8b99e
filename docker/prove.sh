#!/usr/bin/env bash
# Carry the Dockerfile's instructions out without a container engine, and run what comes of it as an
# engine would: as a user without rights, on a read-only root, with a /tmp and a volume of its own,
# without a network; then ask its health check, draw a picture, and stop it.
#   docker/prove.sh DIRECTORY [TARGET]
# Needs root, debootstrap and about 4 GB. The base image is a minimal Debian with its own Python
# instead of python:*-slim: this is what the proof leaves out. pip is configured as on this machine;
# BIND names folders that its configuration refers to, mounted at the same places.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
directory=${1:?usage: docker/prove.sh DIRECTORY [TARGET]}
target=${2:-cpu}
suite=${SUITE:-bookworm}
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)

declare -A entrypoint health
user=0 environment=() workdir=/
mounts=()
finish() {
    for place in "${mounts[@]}"; do umount --lazy "$place"; done
}
trap finish EXIT

mount_at() { # mount_at PLACE OPTION...
    local place=$1
    shift
    mkdir -p "$place"
    mount "$@" "$place"
    mounts=("$place" "${mounts[@]}")
}

base_root() { # the image that every stage begins with
    if [ ! -e "$directory/base/usr/bin/python3" ]; then
        rm -rf "$directory/base"
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
            "$suite" "$directory/base" ${MIRROR:-} > "$directory/debootstrap.log"
        ln -s python3 "$directory/base/usr/bin/python"
    fi
    echo "$directory/base"
}

run_in() { # run_in ROOT COMMAND: what a RUN does, with this machine's way to the packages
    local root=$1 command=$2 variables=() name folder
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    for file in /etc/pip.conf /etc/xdg/pip/pip.conf ~/.config/pip/pip.conf ~/.pip/pip.conf; do
        if [ -e "$file" ]; then variables+=("PIP_CONFIG_FILE=$file"); install -D "$file" "$root$file"; fi
    done
    while IFS='=' read -r name _; do
        if [[ $name == PIP_* ]]; then variables+=("$name=${!name}"); fi
    done < <(env)
    for folder in ${BIND:-}; do mount_at "$root$folder" --bind -o ro "$folder"; done
    mount_at "$root/proc" -t proc proc
    mount_at "$root/dev" --bind /dev
    chroot "$root" /usr/bin/env -i HOME=/root DEBIAN_FRONTEND=noninteractive "${variables[@]}" \
        "${environment[@]}" /bin/sh -c "cd $workdir && $command" < /dev/null
    finish
    mounts=()
    for folder in ${BIND:-}; do rmdir --parents "$root$folder" 2> /dev/null || true; done
}

words_of() { # ["a", "b"] as a b
    tr -d '[]",' <<< "$1"
}

build() { # build STAGE: its root is $directory/STAGE afterwards
    local stage=$1 current="" root="" instruction rest parent name default
    environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
    workdir=/
    while read -r instruction rest; do
        if [ "$instruction" = FROM ]; then
            current=${rest##* AS }
            if [ "$current" != "$stage" ]; then continue; fi
            parent=${rest%% AS *}
            echo "== stage $stage, from $parent"
            rm -rf "${directory:?}/$stage"
            if [[ $parent == python:* ]]; then
                cp -a "$(base_root)" "$directory/$stage"
            else
                build "$parent"
                cp -a "$directory/$parent" "$directory/$stage"
                entrypoint[$stage]=${entrypoint[$parent]:-}
                health[$stage]=${health[$parent]:-}
                current=$stage
            fi
            root=$directory/$stage
            continue
        fi
        if [ "$current" != "$stage" ] || [ -z "$instruction" ]; then continue; fi
        if [ "$instruction" != ARG ]; then echo "   $instruction ${rest:0:90}"; fi
        case $instruction in
            ARG)
                name=${rest%%=*} default=$(tr -d '"' <<< "${rest#*=}")
                environment+=("$name=${!name:-$default}")
                ;;
            WORKDIR) workdir=$rest && mkdir -p "$root$workdir" ;;
            COPY) copy "$root" $rest ;;
            RUN) run_in "$root" "$(sed -E 's/--mount=[^ ]+ //g' <<< "$rest")" ;;
            ENV) for word in $rest; do environment+=("$word"); done ;;
            USER) user=$rest ;;
            ENTRYPOINT) entrypoint[$stage]=$(words_of "$rest") ;;
            CMD) entrypoint[$stage]+=" $(words_of "$rest")" ;;
            HEALTHCHECK) health[$stage]=$(words_of "${rest#*CMD }") ;;
            LABEL | VOLUME | EXPOSE | STOPSIGNAL) ;;
            *) echo "prove.sh does not know $instruction" >&2 && exit 2 ;;
        esac
    done < <(grep -v '^#' "$source/Dockerfile" | sed -e ':a' -e '/\\$/N; s/\\\n *//; ta')
}

copy() { # copy ROOT [--from=STAGE] SOURCE... PLACE
    local root=$1 from=$source place
    shift
    if [[ $1 == --from=* ]]; then
        local stage=${1#--from=} saved=("${environment[@]}")
        (build "$stage")
        environment=("${saved[@]}")
        from=$directory/$stage
        shift
    fi
    place=${!#}
    if [[ $place != /* ]]; then place=$workdir/$place; fi
    for each in "${@:1:$#-1}"; do
        if [ -d "$from/$each" ]; then
            mkdir -p "$root$place" && cp -a "$from/$each/." "$root$place"
        else
            cp "$from/$each" "$root$place"
        fi
    done
    # What .dockerignore keeps out of an engine's sight.
    if [ "$from" = "$source" ]; then
        find "$root$place" -name __pycache__ -prune -exec rm -rf {} + -o -name '_kernels.so*' -exec rm {} +
    fi
}

run() { # as `docker run --read-only --tmpfs /tmp --network none`, and the checks
    local root=$directory/$target
    mount_at "$root" --bind "$root"
    mount -o remount,bind,ro "$root"
    mount_at "$root/tmp" -t tmpfs tmpfs
    mount_at "$root/models" -t tmpfs -o uid=1000 tmpfs
    mount_at "$root/proc" -t proc proc
    mount_at "$root/dev" --bind /dev
    ip link set lo up
    inside=(chroot --userspec="$user:$user" "$root" /usr/bin/env -i HOME=/home/janus "${environment[@]}")
    if "${inside[@]}" touch /app/written 2> /dev/null; then
        echo "The root can be written." >&2 && exit 1
    fi
    # shellcheck disable=SC2086 # the words of the entrypoint
    "${inside[@]}" ${entrypoint[$target]} &
    server=$!
    for second in $(seq 120); do
        # shellcheck disable=SC2086
        if "${inside[@]}" ${health[$target]}; then break; fi
        if ! kill -0 $server || [ "$second" = 120 ]; then
            echo "The server did not become healthy." >&2 && exit 1
        fi
        sleep 1
    done
    echo "healthy"
    "${inside[@]}" python - << 'PYTHON'
import json, os, urllib.request
assert os.getuid() == 1000, "not the user of the image"
request = urllib.request.Request(
    "http://127.0.0.1:8000/v1/images/generations",
    json.dumps({"prompt": "a large red circle", "seed": 7}).encode(),
    {"content-type": "application/json"},
)
picture = json.load(urllib.request.urlopen(request, timeout=120))["data"][0]["b64_json"]
version = json.load(urllib.request.urlopen("http://127.0.0.1:8000/version", timeout=10))
print("drawn,", len(picture), "characters of base64, by", version)
PYTHON
    kill -TERM $server
    wait $server
    echo "stopped with 0"
}

if [ "${INSIDE:-}" != yes ]; then
    # Mounts and the network of its own go away with this process.
    exec unshare --mount env INSIDE=yes "$0" "$directory" "$target"
fi
build "$target"
export -f run mount_at finish
environment_words=$(printf '%q ' "${environment[@]}")
unshare --net --mount bash -euo pipefail -c "
    declare -A entrypoint health
    mounts=() directory=$directory target=$target user=$user environment=($environment_words)
    entrypoint[$target]='${entrypoint[$target]}' health[$target]='${health[$target]}'
    trap finish EXIT
    run"
echo "proved: $target"
