#!/bin/sh
# Installs the `lowrank` command of version @VERSION@ for this machine: the archive is downloaded, its checksum compared, and
# the program, its manual pages and its completions copied.
#
#   LOWRANK_PREFIX  where to: PREFIX/bin, PREFIX/share [default: ~/.local]
#   LOWRANK_TARGET  which build [default: this machine's]
#   LOWRANK_URL     where from [default: the release]
set -eu

version='@VERSION@'
url=${LOWRANK_URL:-'@URL@/releases/download/v@VERSION@'}
prefix=${LOWRANK_PREFIX:-$HOME/.local}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

machine() {
    case $(uname -m) in
        x86_64 | amd64) cpu=x86_64 ;;
        aarch64 | arm64) cpu=aarch64 ;;
        *) fail "there is no build for $(uname -m); build it with: cargo install lowrank" ;;
    esac
    case $(uname -s) in
        Darwin) echo "$cpu-apple-darwin" ;;
        # The one with glibc where there is a recent glibc, or else the static one.
        Linux)
            glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc 2\.\([0-9]*\).*/\1/p')
            if [ "${glibc:-0}" -ge 35 ]; then echo "$cpu-unknown-linux-gnu"; else echo "$cpu-unknown-linux-musl"; fi
            ;;
        *) fail "there is no build for $(uname -s); on Windows use install.ps1" ;;
    esac
}

target=${LOWRANK_TARGET:-$(machine)}
case $target in
    x86_64-unknown-linux-gnu) sha256='@SHA256:x86_64-unknown-linux-gnu@' ;;
    x86_64-unknown-linux-musl) sha256='@SHA256:x86_64-unknown-linux-musl@' ;;
    aarch64-unknown-linux-gnu) sha256='@SHA256:aarch64-unknown-linux-gnu@' ;;
    aarch64-unknown-linux-musl) sha256='@SHA256:aarch64-unknown-linux-musl@' ;;
    x86_64-apple-darwin) sha256='@SHA256:x86_64-apple-darwin@' ;;
    aarch64-apple-darwin) sha256='@SHA256:aarch64-apple-darwin@' ;;
    *) sha256='' ;;
esac
[ -n "$sha256" ] || fail "version $version has no build for $target; build it with: cargo install lowrank"

name=lowrank-$version-$target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if command -v curl >/dev/null; then
    curl -fsSL "$url/$name.tar.gz" -o "$work/archive" || fail "cannot download $url/$name.tar.gz"
else
    wget -q "$url/$name.tar.gz" -O "$work/archive" || fail "cannot download $url/$name.tar.gz"
fi
if command -v sha256sum >/dev/null; then got=$(sha256sum "$work/archive"); else got=$(shasum -a 256 "$work/archive"); fi
[ "${got%% *}" = "$sha256" ] || fail "$url/$name.tar.gz: its SHA-256 is ${got%% *}, not $sha256; nothing was installed"
tar -xzf "$work/archive" -C "$work"

share=$prefix/share
mkdir -p "$prefix/bin" "$share/man/man1" "$share/bash-completion/completions" "$share/zsh/site-functions" \
    "$share/fish/vendor_completions.d"
cp "$work/$name"/man/*.1 "$share/man/man1/"
cp "$work/$name/completions/lowrank.bash" "$share/bash-completion/completions/lowrank"
cp "$work/$name/completions/_lowrank" "$share/zsh/site-functions/"
cp "$work/$name/completions/lowrank.fish" "$share/fish/vendor_completions.d/"
# A program that runs cannot be written to, but can be replaced.
cp "$work/$name/lowrank" "$prefix/bin/.lowrank.new"
mv -f "$prefix/bin/.lowrank.new" "$prefix/bin/lowrank"
echo "installed $("$prefix/bin/lowrank" --version) to $prefix/bin/lowrank"
case :$PATH: in
    *:"$prefix/bin":*) ;;
    *) echo "add $prefix/bin to PATH to run it by its name" ;;
esac
