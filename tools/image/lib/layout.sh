# shellcheck shell=bash
# shellcheck disable=SC2034 # used by whoever sources this
# The disk: one table of sizes and names, used by everything that builds, starts or updates the image.
#
#   1  EDGE-BOOT  FAT32     boot files of both slots, and edge-infer.conf, the user's settings
#   2  slot a     squashfs  the system, read-only
#   3  slot b     squashfs  empty until the first update
#   4  edge-data  ext4      everything that is written; grows to the end of the card on first boot
#
# Raspberry Pi: MBR, since a Pi 3 reads nothing else. UEFI: GPT.

MIB=$((1024 * 1024))
ALIGN_MIB=4 # the erase block of most cards
BOOT_MIB=160
SLOT_MIB=176
DATA_MIB=32
IMAGE_MIB=$((ALIGN_MIB + BOOT_MIB + 2 * SLOT_MIB + DATA_MIB + ALIGN_MIB))
IMAGE_LIMIT=600000000 # bytes; what the project promises

BOOT_START=$ALIGN_MIB
SLOT_A_START=$((BOOT_START + BOOT_MIB))
SLOT_B_START=$((SLOT_A_START + SLOT_MIB))
DATA_START=$((SLOT_B_START + SLOT_MIB))

# Fixed, so that two builds are the same file. Two such cards in one machine need `sfdisk --disk-id` on one of them.
MBR_ID=ed6e1f0a
FAT_ID=ed6e1f01
GPT_ID=6f2c1d1e-70b5-4a57-9d8a-ed6e1f0a0000
GPT_BOOT=6f2c1d1e-70b5-4a57-9d8a-ed6e1f0a0001
GPT_SLOT_A=6f2c1d1e-70b5-4a57-9d8a-ed6e1f0a0002
GPT_SLOT_B=6f2c1d1e-70b5-4a57-9d8a-ed6e1f0a0003
GPT_DATA=6f2c1d1e-70b5-4a57-9d8a-ed6e1f0a0004
DATA_UUID=6f2c1d1e-70b5-4a57-9d8a-ed6e1f0a0104

# root_of BOARD SLOT : how the kernel is told its root partition.
root_of() {
  case $1-$2 in
    pi-a) echo "PARTUUID=$MBR_ID-02" ;;
    pi-b) echo "PARTUUID=$MBR_ID-03" ;;
    uefi-a) echo "PARTUUID=$GPT_SLOT_A" ;;
    uefi-b) echo "PARTUUID=$GPT_SLOT_B" ;;
  esac
}

# kernel_arguments BOARD SLOT : no console= here: the device tree or the firmware names the serial port of each board.
kernel_arguments() {
  echo "root=$(root_of "$1" "$2") rootfstype=squashfs ro rootwait edge.slot=$2 edge.board=$1 panic=10 fsck.repair=yes quiet loglevel=4"
}

# partition_table BOARD : input for sfdisk.
partition_table() {
  local s=$((MIB / 512))
  if [[ $1 == pi ]]; then
    printf 'label: dos\nlabel-id: 0x%s\nunit: sectors\n' "$MBR_ID"
    printf 'start=%d, size=%d, type=c, bootable\n' $((BOOT_START * s)) $((BOOT_MIB * s))
    printf 'start=%d, size=%d, type=83\n' $((SLOT_A_START * s)) $((SLOT_MIB * s)) $((SLOT_B_START * s)) $((SLOT_MIB * s)) \
      $((DATA_START * s)) $((DATA_MIB * s))
  else
    printf 'label: gpt\nlabel-id: %s\nunit: sectors\n' "$GPT_ID"
    printf 'start=%d, size=%d, type=U, uuid=%s, name=edge-boot\n' $((BOOT_START * s)) $((BOOT_MIB * s)) "$GPT_BOOT"
    printf 'start=%d, size=%d, type=L, uuid=%s, name=%s\n' \
      $((SLOT_A_START * s)) $((SLOT_MIB * s)) "$GPT_SLOT_A" edge-slot-a \
      $((SLOT_B_START * s)) $((SLOT_MIB * s)) "$GPT_SLOT_B" edge-slot-b \
      $((DATA_START * s)) $((DATA_MIB * s)) "$GPT_DATA" edge-data
  fi
}
