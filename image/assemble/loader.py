"""Puts the boot loader on the boot partition."""
import os
import shutil
import subprocess

from .slot import EPOCH


def u_boot(fat, image_dir):
    """The boot script of U-Boot, which itself lies before the partitions."""
    subprocess.run(["mkimage", "-A", "arm", "-T", "script", "-C", "none", "-n", "spoke", "-d", str(image_dir / "u-boot/boot.cmd"), str(fat / "boot.scr")],
                   check=True, stdout=subprocess.DEVNULL, env=dict(os.environ, SOURCE_DATE_EPOCH=str(EPOCH)))


def systemd_boot(board, fat, efi, image_dir, programs):
    """systemd-boot, and in the place where firmware looks a program that starts it and restarts the machine when it returns:
    systemd-boot returns to the firmware if a kernel cannot be loaded, and most firmware then waits for a person."""
    (fat / "EFI/BOOT").mkdir(parents=True, exist_ok=True)
    (fat / "EFI/systemd").mkdir(parents=True, exist_ok=True)
    (fat / "loader").mkdir(exist_ok=True)
    shutil.copy2(programs / f"restart-{board.efi}.efi", fat / "EFI/BOOT" / board.default_loader)
    shutil.copy2(efi / f"systemd-boot{board.efi}.efi", fat / "EFI/systemd" / f"systemd-boot{board.efi}.efi")
    shutil.copy2(image_dir / "systemd-boot/loader.conf", fat / "loader/loader.conf")
