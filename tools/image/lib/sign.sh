# shellcheck shell=bash
# Signatures of updates: Ed25519 by OpenSSH (`ssh-keygen -Y`), which every image has. Two keys are trusted: `current` signs,
# `next` takes its place when the keys are rolled.

SIGNER=edge-infer
NAMESPACE=edge-infer-update

# need_keys DIR : makes what is not there. Whoever loses both keys has to flash every card anew.
need_keys() {
  local dir=$1 name
  install -d -m 700 "$dir"
  for name in current next; do
    [[ -f $dir/$name ]] && continue
    ssh-keygen -q -t ed25519 -N '' -C "edge-infer $name $(date +%F)" -f "$dir/$name"
    say "made $dir/$name: keep a copy of this folder where nobody else gets at it"
  done
}

# trusted DIR : both public keys, in the form that ssh-keygen wants for `verify`.
trusted() {
  local name
  for name in current next; do
    printf '%s namespaces="%s" %s\n' "$SIGNER" "$NAMESPACE" "$(cut -d' ' -f1,2 "$1/$name.pub")"
  done
}

# sign DIR FILE : writes FILE.sig.
sign() { ssh-keygen -q -Y sign -f "$1/current" -n "$NAMESPACE" "$2" 2>/dev/null || die "$1/current cannot sign"; }

# roll DIR : from the next build on `next` signs, which devices already trust; a new one stands behind it.
roll() {
  [[ -f $1/next ]] || die "no keys in $1"
  local old
  old=$1/retired-$(date +%Y%m%d%H%M%S)
  mv "$1/current" "$old"
  mv "$1/current.pub" "$old.pub"
  mv "$1/next" "$1/current"
  mv "$1/next.pub" "$1/current.pub"
  need_keys "$1"
}
