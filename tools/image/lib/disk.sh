# shellcheck shell=bash
# Boot partition, data partition, partition table: the disk, put together from files, without mounts or loop devices.

# slot_files BOARD SLOT BOOT INTO : what one slot needs on the boot partition.
slot_files() {
  local board=$1 slot=$2 boot=$3 into=$4 dtb name
  install -d "$into"
  if [[ $board == pi ]]; then
    # The Pi's firmware unpacks gzip; UEFI does not.
    gzip --no-name -9 <"$boot/vmlinuz" >"$into/vmlinuz"
    for dtb in "$boot"/dtb/*.dtb; do
      name=${dtb##*/}
      install -m 644 "$dtb" "$into/$name"
      # The firmware asks for some boards by the names of the vendor's kernel.
      case $name in
        bcm2837-rpi-*) install -m 644 "$dtb" "$into/bcm2710-${name#bcm2837-}" ;;
        bcm2712-d-rpi-5-b.dtb) install -m 644 "$dtb" "$into/bcm2712d0-rpi-5-b.dtb" ;;
      esac
    done
    kernel_arguments "$board" "$slot" >"$into/cmdline.txt"
  else
    install -m 644 "$boot/vmlinuz" "$into/vmlinuz"
    loader_entry "$slot" "$(kernel_arguments "$board" "$slot")" 1 >"$into/entry.conf"
  fi
  install -m 644 "$boot/initrd.img" "$into/initrd.img"
}

# loader_entry SLOT ARGUMENTS VERSION : an entry of systemd-boot; of several, the highest version starts.
loader_entry() {
  printf 'title edge-infer, slot %s\nsort-key edge-infer\nversion %s\nlinux /%s/vmlinuz\ninitrd /%s/initrd.img\noptions %s\n' "$1" "$3" "$1" "$1" "$2"
}

# build_boot BOARD BOOT OUT HERE : the FAT partition.
build_boot() {
  local board=$1 boot=$2 out=$3 here=$4 tree=$3.tree
  install -d "$tree"
  slot_files "$board" a "$boot" "$tree/a"
  if [[ $board == pi ]]; then
    install -m 644 "$boot"/firmware/* "$here/boot/pi/config.txt" "$tree/"
  else
    install -D -m 644 "$boot/systemd-bootaa64.efi" "$tree/EFI/BOOT/BOOTAA64.EFI"
    install -D -m 644 "$here/boot/uefi/loader.conf" "$tree/loader/loader.conf"
    install -d "$tree/loader/entries"
    mv "$tree/a/entry.conf" "$tree/loader/entries/edge-infer-a.conf"
  fi
  install -m 644 "$here/boot/edge-infer.conf" "$tree/"
  find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

  truncate --size=$((BOOT_MIB * MIB)) "$out"
  mkfs.vfat -F 32 -n EDGE-BOOT --invariant -i "$FAT_ID" "$out" >/dev/null
  # In sorted order, one by one: the order of creation is the order on the disk.
  local path
  (cd "$tree" && find . -mindepth 1 -printf '%P\t%y\n' | LC_ALL=C sort) | while IFS=$'\t' read -r path kind; do
    if [[ $kind == d ]]; then
      TZ=UTC mmd -i "$out" "::/$path"
    else
      TZ=UTC mcopy -m -i "$out" "$tree/$path" "::/$path"
    fi
  done
}

# build_data OUT : the data partition, with its folders (owners: usr/lib/tmpfiles.d/edge.conf). 4 KiB blocks and reserved group
# descriptors, so that it can grow to 1 TiB in place.
build_data() {
  truncate --size=$((DATA_MIB * MIB)) "$1"
  E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -L edge-data -U "$DATA_UUID" -b 4096 -i 16384 -m 1 -J size=8 \
    -E "hash_seed=$DATA_UUID,resize=$((1 << 28)),lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0" -O ^metadata_csum_seed "$1"
  # Not `mke2fs -d`: it would write today's ctime.
  printf 'mkdir %s\n' journal ssh home models | E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH debugfs -w -f - "$1" >/dev/null 2>&1
}

# assemble BOARD BOOT ROOT DATA OUT
assemble() {
  local board=$1 boot=$2 root=$3 data=$4 out=$5 size
  size=$(stat --format=%s "$root")
  ((size <= SLOT_MIB * MIB)) || die "the system has $size bytes, a slot $((SLOT_MIB * MIB)): extend packages/exclude, or SLOT_MIB in lib/layout.sh"
  truncate --size=$((IMAGE_MIB * MIB)) "$out"
  partition_table "$board" | sfdisk --quiet "$out"
  place() { dd if="$1" of="$out" bs=1M seek="$2" conv=sparse,notrunc status=none; }
  place "$boot" "$BOOT_START"
  place "$root" "$SLOT_A_START"
  place "$data" "$DATA_START"
}

# build_update BOARD BOOT ROOT KEYS OUT : a slot's contents for edge-update on a running device, which knows its own arguments;
# signed.
build_update() {
  local board=$1 boot=$2 root=$3 keys=$4 out=$5 tree=$5.tree
  slot_files "$board" a "$boot" "$tree/boot"
  rm -f "$tree"/boot/{cmdline.txt,entry.conf}
  ln "$root" "$tree/root.squashfs"
  echo "$board $SOURCE_DATE_EPOCH" >"$tree/version"
  # shellcheck disable=SC2094 # SHA256SUMS is not among what is read
  (cd "$tree" && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS)
  sign "$keys" "$tree/SHA256SUMS"
  tar --create --file="$out" --directory="$tree" --owner=0 --group=0 --numeric-owner --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
    SHA256SUMS SHA256SUMS.sig version boot root.squashfs
  rm -rf "$tree"
}
