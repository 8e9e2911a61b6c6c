package bolt

import (
	"fmt"

	"go.etcd.io/bbolt"

	"muster/signer/store"
)

// upgrades has, under each older schema, what makes the next one of it.
var upgrades = map[uint32]func(*bbolt.Tx) error{
	// Records and journal stay as they are. The number alone keeps a release away that knows no witness: it
	// would use a store that was set back.
	1: func(*bbolt.Tx) error { return nil },
}

// upgrade brings a store to Schema, in one transaction: after a crash it is of the old schema or of
// the new one. To a store that is of it already, nothing is written.
func (s *Store) upgrade() error {
	old := identity{schema: Schema}
	err := s.db.View(func(tx *bbolt.Tx) (err error) {
		if tx.Bucket([]byte(metaBucket)) == nil {
			return fmt.Errorf("%w: no bucket %q", store.ErrDamaged, metaBucket)
		}
		old, err = readIdentity(tx)
		return err
	})
	if err != nil || old.schema == Schema {
		return err
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		for ; old.schema < Schema; old.schema++ {
			if err := upgrades[old.schema](tx); err != nil {
				return fmt.Errorf("from schema %d: %w", old.schema, err)
			}
		}
		return old.put(tx)
	})
}
