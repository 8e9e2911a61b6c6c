module muster/initramfs

go 1.26.0

replace muster => ../

require muster v0.0.0-00010101000000-000000000000

require (
	github.com/klauspost/compress v1.18.0
	github.com/ulikunitz/xz v0.5.15
	golang.org/x/sys v0.49.0
)
