package ekroots

import (
	"encoding/asn1"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

// maxShown bounds what is quoted of a name, in bytes.
const maxShown = 64

// issuerName is a name for people: its values, the last first, quoted. Anybody may have written it.
func issuerName(der []byte) string {
	var values []string
	s := cryptobyte.String(der)
	var names cryptobyte.String
	if !s.ReadASN1(&names, tag.SEQUENCE) {
		return `""`
	}
	for !names.Empty() {
		var set, pair, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var kind tag.Tag
		if !names.ReadASN1(&set, tag.SET) || !set.ReadASN1(&pair, tag.SEQUENCE) || !pair.ReadASN1ObjectIdentifier(&oid) ||
			!pair.ReadAnyASN1(&value, &kind) {
			break
		}
		values = append([]string{string(value)}, values...)
	}
	text := strings.ToValidUTF8(strings.Join(values, ", "), "?")
	for len(text) > maxShown {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return fmt.Sprintf("%+q", text)
}
