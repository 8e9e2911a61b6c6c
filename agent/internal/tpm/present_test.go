package tpm

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLook(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  Presence
	}{
		"no sysfs":                     {nil, Unknown},
		"sysfs without the firmware's": {map[string]string{"class/net/lo/address": ""}, Unknown},
		"no TPM":                       {map[string]string{"firmware/acpi/tables/DSDT": "", "class/tpm/keep": ""}, Absent},
		"ACPI":                         {map[string]string{"firmware/acpi/tables/TPM2": ""}, Announced},
		"ACPI, 1.2":                    {map[string]string{"firmware/acpi/tables/TCPA": ""}, Old},
		"ACPI, both tables":            {map[string]string{"firmware/acpi/tables/TCPA": "", "firmware/acpi/tables/TPM2": ""}, Announced},
		"driver":                       {map[string]string{"firmware/memmap/0/type": "", "class/tpm/tpm0/tpm_version_major": "2\n"}, Announced},
		"driver, 1.2":                  {map[string]string{"firmware/acpi/tables/TPM2": "", "class/tpm/tpm0/tpm_version_major": "1\n"}, Old},
		"driver, 1.2, without a table": {map[string]string{"class/tpm/tpm0/tpm_version_major": "1\n"}, Old},
		"driver of an old kernel":      {map[string]string{"class/tpm/tpm0/dev": "10:224\n"}, Announced},
		"device tree": {map[string]string{
			"firmware/devicetree/base/soc/spi@1f000/tpm@0/compatible": "infineon,slb9670\x00tcg,tpm_tis-spi\x00"}, Announced},
		"device tree, enabled": {map[string]string{
			"firmware/devicetree/base/tpm/compatible": "x\x00", "firmware/devicetree/base/tpm/status": "okay\x00"}, Announced},
		"device tree, POWER": {map[string]string{"firmware/devicetree/base/vdevice/vtpm@30000003/compatible": "IBM,vtpm20\x00"}, Announced},
		"device tree, disabled": {map[string]string{
			"firmware/devicetree/base/spi/tpm@0/compatible": "x\x00", "firmware/devicetree/base/spi/tpm@0/status": "disabled\x00",
			"firmware/devicetree/base/model": "x\x00"}, Absent},
		"device tree without": {map[string]string{"firmware/devicetree/base/soc/ethernet@0/compatible": "x\x00",
			"firmware/devicetree/base/soc/tpm-notes": "a file\x00"}, Absent},
	} {
		t.Run(name, func(t *testing.T) {
			sys := t.TempDir()
			for path, text := range c.files {
				path = filepath.Join(sys, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := Look(sys); got != c.want {
				t.Errorf("Look = %d, %d expected", got, c.want)
			}
		})
	}
}
