# U-Boot's half of the A/B scheme (the other half is src/update/uboot.rs): counts a start and runs the slot's kernel.
# Variables: two copies in the partition "bootenv", each 4 KiB with a checksum; the one with the higher spoke_seq (hexadecimal) is
# current. A first copy without spoke_seq was written by an older release, which knows no other: it is current. Both are written, the
# older one first. With neither, slot a counts as good.
# spoke_a, spoke_b: "ok" (committed), or the starts left of a trial. spoke_la, spoke_lb: the starts left of a committed slot, which its
# own first process sets back; absent under a release that does not.
setenv spoke_vars spoke_order spoke_a spoke_b spoke_la spoke_lb spoke_seq
setenv spoke_order "a b"
setenv spoke_a ok
setenv spoke_b 0
setenv spoke_la
setenv spoke_lb
setenv spoke_seq
setenv spoke_current none
part start ${devtype} ${devnum} bootenv spoke_at1
setexpr spoke_at2 ${spoke_at1} + 100
if ${devtype} read ${ramdisk_addr_r} ${spoke_at1} 8; then
  if env import -c ${ramdisk_addr_r} 0x1000 ${spoke_vars}; then
    setenv spoke_current 1
  fi
fi
if test "${spoke_current}" != 1 -o -n "${spoke_seq}"; then
  setenv spoke_seq1 ${spoke_seq}
  setenv spoke_seq
  if ${devtype} read ${ramdisk_addr_r} ${spoke_at2} 8; then
    if env import -c ${ramdisk_addr_r} 0x1000 spoke_seq; then
      setenv spoke_second yes
      if test "${spoke_current}" = 1; then
        if test 0x${spoke_seq} -le 0x${spoke_seq1}; then setenv spoke_second no; fi
      fi
      if test "${spoke_second}" = yes; then
        env import -c ${ramdisk_addr_r} 0x1000 ${spoke_vars}
        setenv spoke_current 2
      fi
    fi
  fi
  if test "${spoke_current}" = 1; then setenv spoke_seq ${spoke_seq1}; fi
fi
if test -z "${spoke_seq}"; then setenv spoke_seq 0; fi
setenv spoke_write1 '${devtype} write ${ramdisk_addr_r} ${spoke_at1} 8'
setenv spoke_write2 '${devtype} write ${ramdisk_addr_r} ${spoke_at2} 8'
setenv spoke_export 'setexpr spoke_seq ${spoke_seq} + 1; env export -c -s 0x1000 ${ramdisk_addr_r} ${spoke_vars}'
setenv spoke_save 'run spoke_export; if test "${spoke_current}" = 2; then run spoke_write1; run spoke_write2; else run spoke_write2; run spoke_write1; fi'
# Reads are repeated: a card may fail once. bootefi returns only if the kernel was refused.
setenv spoke_load 'load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} EFI/Linux/spoke-${s}.efi'
setenv spoke_boot 'if run spoke_load || run spoke_load || run spoke_load; then bootefi ${kernel_addr_r} ${fdtcontroladdr}; fi'
for s in ${spoke_order}; do
  if test "${s}" = a; then setenv trust ${spoke_a}; setenv left ${spoke_la}; else setenv trust ${spoke_b}; setenv left ${spoke_lb}; fi
  setenv spoke_start no
  setenv spoke_counted no
  if test "${trust}" = ok; then
    if test -z "${left}"; then
      setenv spoke_start yes
    elif test 0x${left} -gt 0; then
      setenv spoke_start yes
      setenv spoke_counted yes
      setexpr left ${left} - 1
      if test "${s}" = a; then setenv spoke_la ${left}; else setenv spoke_lb ${left}; fi
    fi
  elif test 0x${trust} -gt 0; then
    setenv spoke_start yes
    setenv spoke_counted yes
    setexpr trust ${trust} - 1
    if test "${s}" = a; then setenv spoke_a ${trust}; else setenv spoke_b ${trust}; fi
  fi
  if test "${spoke_start}" = yes; then
    if test "${spoke_counted}" = yes; then run spoke_save; fi
    echo "spoke: slot ${s} (a ${spoke_a} ${spoke_la}, b ${spoke_b} ${spoke_lb}, order ${spoke_order})"
    run spoke_boot
    echo "spoke: the kernel of slot ${s} cannot be started"
    # Not tried again by itself: the other slot's updater decides.
    if test "${trust}" = ok; then
      if test "${s}" = a; then setenv spoke_la 0; else setenv spoke_lb 0; fi
    else
      if test "${s}" = a; then setenv spoke_a 0; else setenv spoke_b 0; fi
    fi
    run spoke_save
  fi
done
# No slot has starts left: any that starts, whose first process has the rescue console.
for s in ${spoke_order}; do
  echo "spoke: no slot has starts left, trying slot ${s}"
  run spoke_boot
done
echo "spoke: neither kernel can be started; write the image to the disk again (spoke-image flash --keep-state)"
sleep 60
reset
