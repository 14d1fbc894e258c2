# U-Boot's half of the A/B scheme (the other half is src/update/uboot.rs): counts a try and starts the slot's kernel.
# Counters: the first 4 KiB of the partition "bootenv", with a checksum. If that is wrong, slot a counts as good.
setenv spoke_order "a b"
setenv spoke_a ok
setenv spoke_b 0
part start ${devtype} ${devnum} bootenv spoke_at
if ${devtype} read ${ramdisk_addr_r} ${spoke_at} 8; then
  env import -c ${ramdisk_addr_r} 0x1000 spoke_order spoke_a spoke_b
fi
setenv spoke_slot
for s in ${spoke_order}; do
  if test -z "${spoke_slot}"; then
    if test "${s}" = a; then setenv left ${spoke_a}; else setenv left ${spoke_b}; fi
    if test "${left}" = ok; then
      setenv spoke_slot ${s}
    elif test ${left} -gt 0; then
      setexpr left ${left} - 1
      if test "${s}" = a; then setenv spoke_a ${left}; else setenv spoke_b ${left}; fi
      setenv spoke_slot ${s}
      env export -c -s 0x1000 ${ramdisk_addr_r} spoke_order spoke_a spoke_b
      ${devtype} write ${ramdisk_addr_r} ${spoke_at} 8
    fi
  fi
done
# No slot has tries left: slot a, whose init has the rescue console.
if test -z "${spoke_slot}"; then setenv spoke_slot a; fi
echo "spoke: slot ${spoke_slot} (a ${spoke_a}, b ${spoke_b}, order ${spoke_order})"
if load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} EFI/Linux/spoke-${spoke_slot}.efi; then
  bootefi ${kernel_addr_r} ${fdtcontroladdr}
fi
# A kernel that cannot be loaded uses up its tries too.
reset
