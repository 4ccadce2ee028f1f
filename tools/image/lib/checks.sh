# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # variables of boot-test; scripts that the device expands
# What a running device is asked over ssh, and what its disk is asked when it is off.

check_system() {
  wait_for_ssh "$timeout"
  say "ssh with the key of edge-infer.conf"
  local failed data_mib
  failed=$(on_device systemctl list-units --failed --plain --no-legend)
  [[ -z $failed ]] || die "failed units: $failed"
  on_device 'touch /usr/x 2>/dev/null' && die "the system is writable"
  data_mib=$(on_device "findmnt -n -b -o SIZE /data")
  ((data_mib / 1048576 > disk_mib / 4)) || die "the data partition did not grow: $data_mib bytes"
  say "read-only system; data partition grew to $((data_mib / 1048576)) MiB"
  on_device 'sudo -n edge-update --show' || die "no sudo edge-update for the account of edge-infer.conf"
  on_device 'sudo -n true' 2>/dev/null && die "the account of edge-infer.conf may do everything without a password"
  on_device 'touch /data/models/probe && rm /data/models/probe' || die "the account of edge-infer.conf cannot store models"
  if on_device 'systemctl is-enabled --quiet edge-infer.service'; then
    on_device 'systemctl is-active --quiet edge-infer.service' || die "edge-infer.service is not running"
    on_device 'exec 3<>/dev/tcp/127.0.0.1/8080; printf "GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n" >&3; head -n 1 <&3' | grep ' 200 ' \
      || die "edge-infer.service does not answer"
    say "the service is up and answers"
  else
    say "the service is not enabled in this image"
  fi
}

# leave poweroff|reboot : QEMU ends in both cases (-no-reboot).
leave() {
  on_device "sudo systemctl $1" 2>/dev/null || true
  local end=$((SECONDS + 180))
  while kill -0 "$qemu_pid" 2>/dev/null; do
    ((SECONDS < end)) || die "no $1 within 180 s"
    sleep 1
  done
  wait "$qemu_pid" 2>/dev/null || true
  qemu_pid=''
}

# check_update : into the other slot, started from there, confirmed by its self-test, and the same way back.
check_update() {
  local slot
  for slot in b a; do
    say "update into slot $slot"
    on_device 'sudo edge-update -' <"$update" || die "edge-update failed"
    leave reboot
    start_qemu "$machine" "$disk" "$logs/$machine-update-$slot.log"
    wait_for "slot $slot passed its self-test and stays" "$timeout"
    wait_for_ssh "$timeout"
    on_device 'sudo edge-update --show' | grep "slot $slot," || die "slot $slot does not run"
  done
}

# check_data_offline : the data partition's file system, after its journal was replayed as a start would, has no error.
check_data_offline() {
  local offset part=$work/data.part code=0
  offset=$(partition_offset "$disk" 4)
  dd if="$disk" of="$part" bs=1M iflag=skip_bytes skip="$offset" conv=sparse status=none
  # Only the journal: -E journal_only says so; what is wrong after that is an error.
  e2fsck -y -E journal_only "$part" >"$work/fsck.log" 2>&1 || true
  e2fsck -f -n "$part" >>"$work/fsck.log" 2>&1 || code=$?
  ((code == 0)) || { cat "$work/fsck.log" >&2 && die "the data partition has errors"; }
  rm -f "$part"
}

# The writer: numbered files whose content says whether they are whole, each safe on the disk before it is acknowledged. The
# newest forty stay; numbers have leading zeros, so that they are those that `ls` names last.
writer='set -eu; mkdir -p plug; cd plug; n=$(ls | sed -n "s/^f0*//p" | sort -n | tail -n 1); n=${n:-0}
while :; do n=$((n + 1)); { head -c $((RANDOM * 8)) /dev/urandom | base64; } >new; sha256sum <new >>new; sync new; mv new "$(printf f%06d "$n")"; sync .; echo "$n"; ls | grep ^f | head -n -40 | xargs -r rm; done'

# Every file is whole, and the last acknowledged one is there.
verifier='cd plug; for f in f*; do [ "$(head -n -1 "$f" | sha256sum)" = "$(tail -n 1 "$f")" ] || { echo "damaged: $f"; exit 1; }; done; ls | sed -n "s/^f0*//p" | sort -n | tail -n 1'

check_plug_pulls() {
  local pull acknowledged=0 last after errors
  settings "$disk" SELFTEST=no # only the time it takes
  for ((pull = 1; pull <= pulls + 1; pull++)); do
    start_qemu "$machine" "$disk" "$logs/$machine-plug-$pull.log"
    wait_for_ssh "$timeout"
    errors=$(on_device 'sudo dmesg | grep -iE "ext4-fs (error|warning)|I/O error|squashfs error" || true')
    [[ -z $errors ]] || die "after pull $((pull - 1)): $errors"
    [[ -z $(on_device 'findmnt -n -O ro /data || true') ]] || die "after pull $((pull - 1)): /data is read-only"
    if ((pull > 1)); then
      last=$(on_device "bash -c '$verifier'") || die "after pull $((pull - 1)): $last"
      ((last >= acknowledged)) || die "after pull $((pull - 1)): file $acknowledged was acknowledged, $last is the last one there"
    fi
    ((pull <= pulls)) || break
    on_device "exec bash -c '$writer'" >"$work/acknowledged" 2>/dev/null &
    local client=$!
    after=$((2000 + RANDOM % 12000))
    sleep "$((after / 1000)).$(printf '%03d' $((after % 1000)))"
    pull_plug
    kill "$client" 2>/dev/null || true
    wait "$client" 2>/dev/null || true
    last=$(tail -n 1 "$work/acknowledged")
    [[ -z $last ]] || acknowledged=$last
    check_data_offline
    say "plug pulled $pull of $pulls, after $after ms of writing, $acknowledged files acknowledged: no error"
  done
  leave poweroff
  check_data_offline
  say "pulled $pulls times; every acknowledged file is there and whole, no file system error"
}
