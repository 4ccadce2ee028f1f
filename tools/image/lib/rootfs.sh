# shellcheck shell=bash
# shellcheck disable=SC2016 # mmdebstrap's hooks expand $1 themselves
# The system: Debian, edge-infer and the overlay, as one tar archive without needing root where the host allows it.

DEBIAN_SUITE=trixie

# rootfs_mode : how mmdebstrap can work here. fakechroot cannot run arm64 programs on another processor.
rootfs_mode() {
  if ((EUID == 0)); then
    echo root
  elif unshare --user --map-root-user true 2>/dev/null && grep -q "^$(id -un):" /etc/subuid 2>/dev/null; then
    echo unshare
  else
    die "an unprivileged build needs user namespaces and an entry in /etc/subuid (sudo apt-get install -y uidmap; sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)); or run this as root"
  fi
}

# apt_sources MIRROR SNAPSHOT : where packages come from. The kernel is that of backports: in Debian 13's own (6.12) a
# Raspberry Pi 5 has neither USB nor Ethernet.
apt_sources() {
  local main=$1 security=$2 suite components="main non-free-firmware"
  for suite in "$DEBIAN_SUITE" "$DEBIAN_SUITE-updates" "$DEBIAN_SUITE-backports"; do
    echo "deb $main $suite $components"
  done
  echo "deb $security $DEBIAN_SUITE-security $components"
}

# stage_overlay DIR DEB REPOSITORY HERE KEYS : everything that does not come from Debian, with its final modes.
stage_overlay() {
  local into=$1 deb=$2 repo=$3 here=$4 keys=$5
  cp -R --preserve=mode -- "$here/overlay/." "$into/"
  install -m 644 "$deb" "$into/edge-infer.deb"
  install -D -m 644 "$repo/docs/flash.md" "$into/usr/share/doc/edge-infer/flash.md"
  install -d -m 755 "$into/data" "$into/boot/firmware" "$into/usr/lib/edge-image/layers" "$into/var/log/journal"
  chmod 440 "$into/etc/sudoers.d/edge"
  trusted "$keys" >"$into/usr/lib/edge-image/update-keys"
}

# build_rootfs STAGE OUT.tar BOOT.tar HERE CACHE MIRROR SECURITY LOG : the system, and apart from it what the boot partitions
# need.
build_rootfs() {
  local stage=$1 out=$2 boot=$3 here=$4 cache=$5 mirror=$6 security=$7 log=$8
  local include excludes=() includes=() pattern mode
  mode=$(rootfs_mode)
  include=$(lines "$here/packages/install" | sort -u | paste -sd,)
  while IFS= read -r pattern; do excludes+=(--dpkgopt="path-exclude=$pattern"); done < <(lines "$here/packages/exclude")
  # The firmware package's hooks would write a boot partition of their own, so `true` stands in for them; the initramfs is made once, at the end.
  for pattern in /etc/kernel/postinst.d/z50-raspi-firmware /etc/kernel/postrm.d/z50-raspi-firmware /etc/initramfs/post-update.d/z50-raspi-firmware \
    /etc/kernel/postinst.d/initramfs-tools; do
    excludes+=(--dpkgopt="path-exclude=$pattern")
  done
  while IFS= read -r pattern; do includes+=(--dpkgopt="path-include=$pattern"); done < <(lines "$here/packages/include")

  mkdir -p "$cache"
  tar --create --file="$stage.tar" --directory="$stage" --owner=0 --group=0 --numeric-owner --sort=name \
    --mtime="@$SOURCE_DATE_EPOCH" .

  apt_sources "$mirror" "$security" | mmdebstrap --verbose --mode="$mode" --variant=essential --architectures=arm64 --format=tar \
    --include="$include" "${excludes[@]}" "${includes[@]}" \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "5"' --aptopt='Acquire::Languages "none"' \
    --skip=download/empty --skip=essential/unlink \
    --setup-hook='mkdir -p "$1/etc/apt/preferences.d" "$1/var/cache/apt/archives/"' \
    --setup-hook="copy-in '$here/lib/kernel.pref' /etc/apt/preferences.d/" \
    --setup-hook="sync-in '$cache' /var/cache/apt/archives/" \
    --essential-hook='mkdir -p "$1/etc/kernel/postinst.d" && ln -s /bin/true "$1/etc/kernel/postinst.d/z50-raspi-firmware"' \
    --customize-hook="sync-out /var/cache/apt/archives '$cache'" \
    --customize-hook="tar-in '$stage.tar' /" \
    --customize-hook="'$here/lib/customize' \"\$1\"" \
    --customize-hook="tar-out /edge-boot '$boot'" \
    --customize-hook='rm -rf "$1/edge-boot"' \
    "$DEBIAN_SUITE" "$out" - >"$log" 2>&1 || { tail -n 30 "$log" >&2 && die "Debian could not be installed; all messages: $log"; }
}

# pack_squashfs TAR OUT : the archive as a read-only file system. tar2sqfs, since squashfs-tools' sqfstar gives other bytes
# every time.
pack_squashfs() {
  # Without attributes: squashfs has none for the access lists of /var/log/journal, and nothing here has capabilities.
  tar2sqfs --quiet --no-skip --no-xattr --compressor zstd --comp-extra level=15 --block-size 262144 --defaults "mtime=$SOURCE_DATE_EPOCH" "$2" <"$1" >&2
}
