package choose

import (
	"reflect"
	"strings"
	"testing"
)

// format is the inverse of parseInfo.
func format(info Info) []byte {
	var b strings.Builder
	put := func(key, value string) { b.WriteString(key + "=" + value + "\x00") }
	put("license", "GPL")
	for _, a := range info.Aliases {
		put("alias", a)
	}
	for _, f := range info.Firmware {
		put("firmware", f)
	}
	for _, s := range info.Pre {
		put("softdep", "pre: "+s)
	}
	for _, s := range info.Post {
		put("softdep", "post: "+s)
	}
	put("depends", strings.Join(info.Depends, ","))
	put("vermagic", info.Vermagic)
	return []byte(b.String())
}

func TestParseInfo(t *testing.T) {
	section := "license=GPL\x00alias=pci:v1d*\x00alias=fs-x\x00softdep=pre: crc32c b post: c\x00softdep=gcm\x00" +
		"firmware=a/b.bin\x00\x00\x00depends=i2c-algo-bit,dca\x00retpoline=Y\x00vermagic=6.1.0 SMP \x00lonely\x00"
	want := Info{
		Depends: []string{"i2c_algo_bit", "dca"}, Pre: []string{"crc32c", "b"}, Post: []string{"c"},
		Aliases: []string{"pci:v1d*", "fs-x"}, Firmware: []string{"a/b.bin"}, Vermagic: "6.1.0 SMP ",
	}
	if got, err := parseInfo([]byte(section)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := parseInfo([]byte("depends=a,b")); err == nil || !reflect.DeepEqual(got, Info{}) {
		t.Errorf("cut short: %+v, %v", got, err)
	}
	if got, err := parseInfo(nil); err != nil || !reflect.DeepEqual(got, Info{}) {
		t.Errorf("empty: %+v, %v", got, err)
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add([]byte("alias=a\x00depends=b-c,d\x00softdep=pre: e f post: g\x00firmware=h\x00vermagic=6.1\x00"))
	f.Add([]byte("depends=,\x00"))
	f.Fuzz(func(t *testing.T, section []byte) {
		info, err := parseInfo(section)
		if err != nil {
			if !reflect.DeepEqual(info, Info{}) {
				t.Fatalf("%+v with %v", info, err)
			}
			return
		}
		if again, err := parseInfo(format(info)); err != nil || !reflect.DeepEqual(again, info) {
			t.Fatalf("%+v, %v, want %+v", again, err, info)
		}
	})
}

// FuzzModinfo: no file that claims to be a module does harm.
func FuzzModinfo(f *testing.F) {
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if section, err := modinfo(file); err != nil && section != nil {
			t.Fatalf("%q with %v", section, err)
		}
	})
}
