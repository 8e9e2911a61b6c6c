#!/bin/sh
# Makes a UKI, one file that UEFI firmware boots: systemd's stub, the kernel, the boot image, and the kernel command
# line. The same parts give the same bytes.
#
#   uki.sh KERNEL IMAGE CMDLINE FILE [STUB]
#
# It needs objcopy (binutils) and, unless STUB is given, systemd-boot's stub for this processor.
set -eu
if [ $# -lt 4 ]; then
	printf 'usage: uki.sh KERNEL IMAGE CMDLINE FILE [STUB]\nhint: make uki\n' >&2
	exit 2
fi
kernel=$1 image=$2 cmdline=$3 file=$4
case $(uname -m) in
aarch64) machine=aa64 ;;
*) machine=x64 ;;
esac
stub=${5:-/usr/lib/systemd/boot/efi/linux$machine.efi.stub}

wrong() { # WHAT HINT
	printf 'make uki: %s\nhint: %s\n' "$1" "$2" >&2
	exit 2
}
part() { # NAME FILE HINT
	[ -n "$2" ] || wrong "no $1 is named" "$3"
	if [ ! -f "$2" ] || [ ! -r "$2" ]; then
		wrong "$1 $2: there is no such file, or it may not be read" "$3"
	fi
}
part kernel "$kernel" 'KERNEL_IMAGE=/boot/vmlinuz-RELEASE'
part 'boot image' "$image" 'make initramfs, with the same IMAGE='
part stub "$stub" 'apt install systemd-boot-efi'
command -v objcopy >/dev/null || wrong 'there is no objcopy' 'apt install binutils'
# A kernel that UEFI can start is a program of its (PE): MZ.
[ "$(head -c 2 "$kernel" | tr -d '\0')" = MZ ] || wrong "$kernel is no kernel that UEFI can start" 'KERNEL_IMAGE=/boot/vmlinuz-RELEASE'
[ -n "$cmdline" ] || echo "note: the kernel command line is empty: CMDLINE='…'" >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%s\0' "$cmdline" >"$work/cmdline"
printf 'ID=muster\nPRETTY_NAME="Muster boot image"\n' >"$work/osrel"

# Sections go behind the stub's own, one after the other; the kernel's is last, with room for it to unpack.
hex() { echo $((0x$1)); }
align=$(hex "$(objdump -p "$stub" | awk '$1 == "SectionAlignment" { print $2 }')")
[ "$align" -ge 4096 ] || align=4096
at=$(objdump -h "$stub" | awk '$1 ~ /^[0-9]+$/ { print $4, $3 }' | while read -r start size; do
	echo $((0x$start + 0x$size))
done | sort -n | tail -n 1)
set --
for section in ".osrel=$work/osrel" ".cmdline=$work/cmdline" ".initrd=$image" ".linux=$kernel"; do
	name=${section%%=*} from=${section#*=}
	at=$(((at + align - 1) / align * align))
	set -- "$@" --add-section "$section" --set-section-flags "$name=alloc,load,readonly,data" --change-section-vma "$name=$at"
	at=$((at + $(wc -c <"$from")))
done
objcopy "$@" "$stub" "$work/uki"

# Of the PE header the time of making and the checksum over it, which no firmware looks at.
header=$(od -A n -t u4 -j 60 -N 4 "$work/uki")
for field in 8 88; do
	printf '\0\0\0\0' | dd of="$work/uki" bs=1 seek=$((header + field)) conv=notrunc status=none
done
mv "$work/uki" "$file"
echo "$file: $(($(wc -c <"$file") / 1048576)) MiB, with the kernel command line: $cmdline"
