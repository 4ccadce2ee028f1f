# shellcheck shell=bash
# Messages, and the check of what the host has. Sourced by build and boot-test.

say() { printf '[%4d s] %s\n' "$SECONDS" "$*" >&2; }
die() {
  printf 'tools/image: %s\n' "$*" >&2
  exit 1
}

# need_commands COMMAND=PACKAGE… : exits with the one line that installs everything missing.
need_commands() {
  local pair missing=() packages=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null 2>&1 && continue
    missing+=("${pair%%=*}")
    packages+=("${pair#*=}")
  done
  ((${#missing[@]} == 0)) && return
  printf 'tools/image: missing here: %s\n' "${missing[*]}" >&2
  printf '  sudo apt-get install -y %s\n' "$(printf '%s\n' "${packages[@]}" | sort -u | tr '\n' ' ')" >&2
  exit 1
}

# The image's packages run their set-up scripts, which are arm64 programs.
need_arm64() {
  [[ $(uname -m) == aarch64 ]] && return
  arch-test arm64 >/dev/null 2>&1 && return
  cat >&2 <<'TEXT'
tools/image: this machine cannot run arm64 programs yet. On Debian or Ubuntu:
  sudo apt-get install -y qemu-user-static binfmt-support
In a container (or where systemd-binfmt does not run), as root, once after each start of the machine:
  mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
  sed -n 1p /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register
TEXT
  exit 1
}

# Removes what lies behind each argument when the script ends, however it ends.
cleanup_paths=()
cleanup() { ((${#cleanup_paths[@]} == 0)) || rm -rf -- "${cleanup_paths[@]}"; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# lines FILE… : the entries of package and pattern lists, without comments.
lines() { sed -e 's/[[:space:]]*#.*//' -e '/^[[:space:]]*$/d' -- "$@"; }
