# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC2054 # variables shared with boot-test; QEMU's own commas
# Starting an image in QEMU, pulling its plug, reading its serial console. One machine at a time.

qemu=${QEMU:-qemu-system-aarch64}
qemu_pid=''
serial=''
ssh_port=''

# partition_offset IMAGE NUMBER : in bytes, from the image's own table.
partition_offset() {
  local start
  start=$(sfdisk --json "$1" 2>/dev/null | python3 -c 'import json,sys; print(json.load(sys.stdin)["partitiontable"]["partitions"][int(sys.argv[1]) - 1]["start"])' "$2")
  echo $((start * 512))
}

# working_copy IMAGE COPY MIB : a copy to write to, as large as the card it lies on.
working_copy() {
  cp --sparse=always -- "$1" "$2"
  truncate --size="${3}M" "$2"
}

# settings IMAGE KEY=VALUE… : appends to edge-infer.conf on the boot partition, as a user would.
settings() {
  local image=$1 offset file
  shift
  offset=$(partition_offset "$image" 1)
  file=$(mktemp)
  cleanup_paths+=("$file")
  mcopy -o -i "$image@@$offset" ::/edge-infer.conf "$file"
  printf '%s\r\n' "$@" >>"$file" # as Windows writes it
  mcopy -o -i "$image@@$offset" "$file" ::/edge-infer.conf
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# start_qemu MACHINE IMAGE LOG
start_qemu() {
  local machine=$1 image=$2
  serial=$3
  : >"$serial"
  ssh_port=$(free_port)
  local arguments=(-display none -monitor none -no-reboot)
  local network="user,id=net,hostfwd=tcp:127.0.0.1:$ssh_port-:22"
  case $machine in
    virt)
      # The A76 is a Raspberry Pi 5's processor.
      arguments+=(-M virt -cpu cortex-a76 -smp 2 -m 1024 -bios /usr/share/qemu-efi-aarch64/QEMU_EFI.fd
        -drive "if=none,id=disk,format=raw,file=$image" -device virtio-blk-pci,drive=disk
        -netdev "$network" -device virtio-net-pci,netdev=net,romfile= -device virtio-rng-pci -serial "file:$serial")
      ;;
    raspi3b | raspi4b)
      # QEMU has no boot ROM of a Raspberry Pi: it is given what that would find on the card.
      local dir offset slot dtb
      dir=$(mktemp -d)
      cleanup_paths+=("$dir")
      offset=$(partition_offset "$image" 1)
      mcopy -i "$image@@$offset" ::/config.txt "$dir/"
      slot=$(sed -n 's/^os_prefix=\([ab]\)\/$/\1/p' "$dir/config.txt")
      [[ $machine == raspi3b ]] && dtb=bcm2710-rpi-3-b.dtb || dtb=bcm2711-rpi-4-b.dtb
      mcopy -i "$image@@$offset" "::/$slot/vmlinuz" "::/$slot/initrd.img" "::/$slot/$dtb" "::/$slot/cmdline.txt" "$dir/"
      # Its watchdog resets at once, however long it was told to wait.
      local extra=systemd.watchdog_sec=off
      if [[ $machine == raspi4b ]]; then
        # HDMI's interrupt controller, its bus and some clocks are not there, and touching them is a fault.
        extra+=" initcall_blacklist=brcmstb_l2_driver_init,brcmstb_i2c_driver_init clk_ignore_unused"
        # The card sits where a Raspberry Pi 4 has its Wi-Fi chip.
        fdtput -r "$dir/$dtb" /soc/mmc@7e300000/wifi@1
        fdtput -d "$dir/$dtb" /soc/mmc@7e300000 mmc-pwrseq non-removable
      fi
      arguments+=(-M "$machine" -kernel "$dir/vmlinuz" -initrd "$dir/initrd.img" -dtb "$dir/$dtb"
        -append "$(cat "$dir/cmdline.txt") $extra"
        -drive "if=sd,format=raw,file=$image" -serial null -serial "file:$serial")
      ;;
    *) die "no such machine: $machine" ;;
  esac
  nice -n 10 "$qemu" "${arguments[@]}" >"$serial.qemu" 2>&1 &
  qemu_pid=$!
}

# pull_plug : the machine is gone from one instruction to the next.
pull_plug() {
  [[ -n $qemu_pid ]] || return 0
  kill -KILL "$qemu_pid" 2>/dev/null || true
  wait "$qemu_pid" 2>/dev/null || true
  qemu_pid=''
}

# wait_for PATTERN SECONDS : until the console shows it; fails when the machine ends or says that it cannot go on.
wait_for() {
  local pattern=$1 end=$((SECONDS + $2))
  until grep -aqE -- "$pattern" "$serial"; do
    if grep -aqE 'Kernel panic|emergency mode|\(initramfs\)|Give root password' "$serial"; then
      tail -n 30 "$serial" >&2
      die "the machine cannot go on while waiting for '$pattern' ($serial)"
    fi
    if ! kill -0 "$qemu_pid" 2>/dev/null; then
      tail -n 30 "$serial" "$serial.qemu" >&2
      die "QEMU ended while waiting for '$pattern' ($serial)"
    fi
    if ((SECONDS >= end)); then
      tail -n 30 "$serial" >&2
      die "no '$pattern' on the console within $2 s ($serial)"
    fi
    sleep 1
  done
}

# on_device COMMAND… : over ssh, as the account that edge-infer.conf names.
on_device() {
  ssh -i "$ssh_key" -p "$ssh_port" -o BatchMode=yes -o ConnectTimeout=20 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o LogLevel=ERROR tester@127.0.0.1 "$@"
}

# wait_for_ssh SECONDS
wait_for_ssh() {
  local end=$((SECONDS + $1))
  until on_device true 2>/dev/null; do
    kill -0 "$qemu_pid" 2>/dev/null || die "QEMU ended ($serial)"
    ((SECONDS < end)) || die "no ssh within $1 s ($serial)"
    sleep 2
  done
}
