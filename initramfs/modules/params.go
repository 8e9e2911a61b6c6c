package modules

import "strings"

// params takes the parameters of modules from a kernel command line, by module. Blanks between double quotes
// end no word; the quotes stay, as the kernel reads parameters by the same rule.
func params(cmdline string) map[string]string {
	found := map[string]string{}
	quoted := false
	words := strings.FieldsFunc(cmdline, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && strings.ContainsRune(" \t\n", r)
	})
	for _, word := range words {
		key, _, _ := strings.Cut(word, "=")
		module, _, ok := strings.Cut(key, ".")
		if !ok || module == "" {
			continue
		}
		param := word[len(module)+1:]
		if strings.HasPrefix(word, `"`) { // "module.parameter=a b" as one quoted word
			module, param = module[1:], `"`+param
		}
		module = strings.ReplaceAll(module, "-", "_")
		found[module] = strings.TrimPrefix(found[module]+" "+param, " ")
	}
	return found
}
