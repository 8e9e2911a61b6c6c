package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const defaultConfig = "/etc/muster/signer.toml"

// configured gives flags that were not on the command line their values from the configuration
// file. Its keys are the flags' names, so that there is one list of them; a key that no command
// has is an error.
func configured(cmd *cobra.Command, _ []string) error { return configure(cmd, cmd.Flags()) }

// configure is configured for a set of cmd's flags.
func configure(cmd *cobra.Command, flags *pflag.FlagSet) error {
	path, err := flags.GetString("config")
	if err != nil {
		return err
	}
	explicit := path != ""
	if !explicit {
		path = defaultConfig
	}
	values := map[string]any{}
	_, err = toml.DecodeFile(path, &values)
	var bad toml.ParseError
	switch {
	case errors.Is(err, fs.ErrNotExist) && !explicit:
		return nil
	case errors.As(err, &bad):
		return fail(exitUsage, "mend "+path, "%s:%d: %s", path, bad.Position.Line, bad.Message)
	case err != nil:
		return fail(exitUsage, "give --config a file that can be read", "configuration: %v", err)
	}
	known := allFlags(cmd.Root())
	for key, value := range values {
		if !known[key] {
			return fail(exitUsage, "muster serve --help lists the names", "%s: unknown setting %q", path, key)
		}
		flag := flags.Lookup(key)
		if flag == nil || flag.Changed {
			continue
		}
		if err := setFlag(flags, key, value); err != nil {
			return fail(exitUsage, cmd.CommandPath()+" --help", "%s: %s: %q is no %s", path, key, fmt.Sprint(value), flag.Value.Type())
		}
	}
	return nil
}

func setFlag(flags *pflag.FlagSet, key string, value any) error {
	if list, ok := value.([]any); ok {
		for _, v := range list {
			if err := flags.Set(key, fmt.Sprint(v)); err != nil {
				return err
			}
		}
		return nil
	}
	return flags.Set(key, fmt.Sprint(value))
}

// allFlags are the names of the flags that daemon-wide commands have.
func allFlags(root *cobra.Command) map[string]bool {
	names := map[string]bool{}
	for _, c := range append(root.Commands(), root) {
		if c != root && c.Name() != "init" && c.Name() != "serve" {
			continue
		}
		for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			set.VisitAll(func(f *pflag.Flag) { names[f.Name] = true })
		}
	}
	delete(names, "config")
	return names
}

// shortHostname names a cluster for which no better name was given.
func shortHostname() string {
	name, _, _ := strings.Cut(hostname(), ".")
	return name
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "head"
	}
	return name
}
