package vm_test

import (
	"context"
	"testing"

	"muster/initramfs/vm"
)

// TestPowerCuts: the plug is pulled at five moments of a first boot, from machine and chip at once. The
// next boot ends enrolled, for the one key that the node made.
func TestPowerCuts(t *testing.T) {
	for name, moment := range map[string]func(context.Context, *rig, *vm.Boot) error{
		"drivers loaded": func(ctx context.Context, _ *rig, b *vm.Boot) error { return b.WaitFor(ctx, `muster: drivers: `) },
		"network up":     func(ctx context.Context, _ *rig, b *vm.Boot) error { return b.WaitFor(ctx, `muster: network: `) },
		"challenged":     func(ctx context.Context, r *rig, _ *vm.Boot) error { return r.head.Asked(ctx, "/v1/challenge") },
		"issued":         func(ctx context.Context, r *rig, _ *vm.Boot) error { return r.head.Asked(ctx, "/v1/enroll") },
		"in use":         func(ctx context.Context, r *rig, _ *vm.Boot) error { return r.head.Asked(ctx, "/v1/self") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.enable()
			ctx := within(t)
			b := r.power(ctx, "")
			if err := moment(ctx, r, b); err != nil {
				t.Fatal(err)
			}
			b.Cut()
			before, err := r.head.Node("n0")
			if err != nil {
				t.Fatal(err)
			}
			b = r.boot("")
			r.says(b, `n0: (enrolled at|certificate .* confirmed by)`)
			after := r.is("active")
			if before.Key != "" && (after.Key != before.Key || after.Serial != before.Serial) {
				t.Errorf("another key or certificate after the cut: %+v, %+v", before, after)
			}
		})
	}
}
