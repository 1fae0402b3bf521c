#!/usr/bin/env bash
# Installs what a fresh Debian lacks for building and testing Bombus. Does nothing, quickly, where nothing is missing.
#   scripts/setup.sh [--tests] [PROGRAM...]     these programs too, each from the Debian package of its name
# With --tests also what some tests need, if it can be had: without it they are skipped.
#
# Each need is looked for by itself, not by its Debian package, so that a compiler or a Python from elsewhere counts too.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

for_tests=false
if [ "${1:-}" = --tests ]; then for_tests=true && shift; fi

rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  as_root=(sudo)
  [ -t 0 ] || as_root=(sudo -n)
fi
can_install() { have apt-get && { [ "$(id -u)" -eq 0 ] || have sudo; }; }

lists_are_fresh=false
refresh_lists() {
  if [ "$lists_are_fresh" = true ]; then return; fi
  "${as_root[@]}" apt-get update -qq >&2 || return
  lists_are_fresh=true
}

#   add_packages PACKAGE...
add_packages() {
  say "setup: installing $* with apt-get${as_root:+ (through sudo)}"
  export DEBIAN_FRONTEND=noninteractive
  refresh_lists
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}

# Says whether the distribution has each of these packages in this version or a newer one.
#   packaged VERSION PACKAGE...
packaged() {
  local version=$1 package candidate
  shift
  for package in "$@"; do
    candidate=$(LC_ALL=C apt-cache policy "$package" | sed -n 's/^ *Candidate: //p')
    case $candidate in '' | '(none)') return 1 ;; esac
    dpkg --compare-versions "$candidate" ge "$version" || return 1
  done
}

# Installs Rust from the distribution, where it has one that is new enough: a compiler, else rustup, which fetches one.
install_rust() {
  can_install || return 0
  refresh_lists || return 0
  local packages
  # Debian's own Rust stays as it was released; that for web browsers follows them.
  for packages in 'rustc-web cargo-web rust-web-clippy rustfmt-web' 'rustc cargo rust-clippy rustfmt'; do
    # shellcheck disable=SC2086 # several words
    if packaged "$rust_needed" $packages; then
      add_packages $packages
      return
    fi
  done
  if packaged 1.0 rustup; then
    add_packages rustup ca-certificates
    rustup toolchain install "$rust_needed" --profile minimal --component rustfmt --component clippy >&2
    rustup default "$rust_needed" >&2
  fi
}

# Rust first: nothing else is worth installing without it.
if ! have cargo; then install_rust; fi
have cargo || die "cargo is missing. Bombus needs Rust $rust_needed or newer: install it from https://rustup.rs, then run this again."
rust_here=$(rustc --version | awk '{ print $2 }')
if [ "$(printf '%s\n' "$rust_needed" "$rust_here" | sort -V | head -n 1)" != "$rust_needed" ]; then
  if have rustup; then die "Rust $rust_here is here, but $rust_needed or newer is needed: run \`rustup update stable\`."; fi
  die "Rust $rust_here is here, but $rust_needed or newer is needed: install it from https://rustup.rs."
fi
for component in rustfmt clippy; do
  "cargo-${component/rust/}" --version > /dev/null 2>&1 && continue
  if have rustup; then rustup component add "$component" >&2; else say "note: $component is missing; \`make check\` needs it"; fi
done

# bindgen loads libclang at build time: a shared library, found by the loader, in LLVM's own folder, or where LIBCLANG_PATH points;
# and the headers that come with it, or others that BINDGEN_EXTRA_CLANG_ARGS names.
has_libclang() {
  local file found=false
  for file in "${LIBCLANG_PATH:-/nonexistent}"/libclang*.so* /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib64/libclang*.so*; do
    case $file in *libclang-cpp*) continue ;; esac
    [ -e "$file" ] && found=true && break
  done
  $found || return 1
  [ -n "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] && return 0
  for file in /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib*/clang/*/include/stddef.h; do
    [ -e "$file" ] && return 0
  done
  return 1
}

has_c_headers() { echo '#include <stdio.h>' | cc -E -x c - > /dev/null 2>&1; }

packages=()
want() { packages+=("$1"); }

{ have cc && have c++ && have make && has_c_headers; } || want build-essential
have cmake || want cmake
has_libclang || want libclang-dev
have git || want git
have curl || want curl
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki ] || want ca-certificates
have python3 || want python3
python3 -c 'import ensurepip, venv' 2> /dev/null || want python3-venv
python3 -c 'import pip' 2> /dev/null || want python3-pip

# Tests of the mesh make several machines of network namespaces, put routers between them, and set clocks wrong.
wishes=()
if [ "$for_tests" = true ] && [ "$(uname)" = Linux ]; then
  have_for_root() { have "$1" || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }
  have_for_root ip || wishes+=(iproute2)
  have_for_root nft || wishes+=(nftables)
  have unshare || wishes+=(util-linux)
  compgen -G '/usr/lib/*/faketime/libfaketime.so.1' > /dev/null || wishes+=(faketime)
fi
if [ ${#wishes[@]} -gt 0 ]; then
  if can_install; then
    packages+=("${wishes[@]}")
  else
    say "note: missing here: ${wishes[*]} (Debian's names). Tests that need them are skipped."
  fi
fi

for program in "$@"; do have "$program" || want "$program"; done

if [ ${#packages[@]} -gt 0 ]; then
  if ! have apt-get; then
    say "error: missing here: ${packages[*]} (Debian's names), and there is no apt-get to install them with."
    say "Install them with this system's package manager, then run \`make setup\` again."
    say "Where that is not possible, CONTRIBUTING.md shows how cmake and libclang can be had from Python packages."
    exit 1
  fi
  can_install || die "missing here: ${packages[*]}. Run as root: apt-get install ${packages[*]}"
  add_packages "${packages[@]}"
fi

if [ "$lists_are_fresh" = true ]; then say "setup: done"; else say "setup: nothing is missing"; fi
