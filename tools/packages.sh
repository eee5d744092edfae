# Sourced by ./quickstart and ./check: what Debian 12 must bring.

build_packages="gcc libc6-dev meson ninja-build pkg-config curl
    libuv1-dev libmicrohttpd-dev libcjson-dev libpng-dev libjemalloc-dev libdnnl-dev libutf8proc-dev
    libinih-dev libsystemd-dev"
test_packages="libcmocka-dev python3 python3-venv libasan8 libubsan1 libtsan2 clang libclang-rt-14-dev"

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# Installs those of the named packages that are missing: apt-get, with sudo when not root.
need_packages() {
    local missing=() package as_root=()
    if ! command -v apt-get >/dev/null; then
        say "No apt-get here: these Debian packages, or what your system calls them, must be there:" "$@"
        return
    fi
    for package in "$@"; do
        [[ $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) == *' installed' ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((EUID)); then
        command -v sudo >/dev/null || die "Missing, and there is no sudo: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "Installing ${missing[*]}"
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    # The lists of a fresh machine are empty, or name packages that have gone.
    "${as_root[@]}" "${get[@]}" update >&2 || say "apt-get update failed; trying with the lists that are there"
    "${as_root[@]}" "${get[@]}" install --no-install-recommends "${missing[@]}" >&2 ||
        die "apt-get could not install ${missing[*]}"
}

# configure FOLDER [OPTION...]: meson setup where it was not done, or was done with other options.
configure() {
    local folder=$1 wanted
    shift
    wanted="$* $(cksum meson_options.txt)"
    if [[ ! -f $folder/build.ninja || $(cat "$folder/.configured" 2>/dev/null) != "$wanted" ]]; then
        local again=()
        [[ -f $folder/build.ninja ]] && again=(--reconfigure)
        mkdir -p "$folder"
        meson setup "${again[@]}" "$folder" "$@" >"$folder/setup.log" 2>&1 || {
            tail -n 30 "$folder/setup.log" >&2
            die "meson setup $folder failed"
        }
        printf '%s\n' "$wanted" >"$folder/.configured"
    fi
}

# compile FOLDER [TARGET...]: quiet unless it fails.
compile() {
    local folder=$1 log=$1/build.log
    shift
    ninja -C "$folder" "$@" >"$log" 2>&1 || {
        tail -n 60 "$log" >&2
        die "The build in $folder failed."
    }
}
