package journal

// Event is something on which an administrator may have to act. Its name is the journal's field
// MUSTER_EVENT; names and identifiers are stable.
type Event string

// Events of the head.
const (
	ServeFailed    Event = "serve-failed"    // muster serve ended with an error
	CALocked       Event = "ca-locked"       // the passphrase of the CA's key is missing or wrong
	NotSigning     Event = "not-signing"     // this head signs nothing for now
	Upkeep         Event = "upkeep-failed"   // CRL, server certificate or epoch key could not be renewed
	Unrecorded     Event = "unrecorded"      // something that happened could not be written down
	Hangs          Event = "hangs"           // a listener takes connections and does not answer
	JournalDamaged Event = "journal-damaged" // the last entry of the head's own journal is not sound
	ReloadFailed   Event = "reload-failed"   // the configuration was read again, and is not good
	SettingIgnored Event = "setting-ignored" // a setting that has no effect here
)

// Events of the node.
const (
	NoTPM         Event = "no-tpm"        // exit status 69
	TryAgain      Event = "try-again"     // 75
	Refused       Event = "refused"       // 77
	Configuration Event = "configuration" // 78
	Stranger      Event = "stranger"      // what answers is not a head of this cluster
	NotKept       Event = "not-kept"      // the certificate is not in the TPM
	ClockNotSet   Event = "clock-not-set" // the clock is wrong and cannot be set
	NotRenewed    Event = "not-renewed"   // the certificate is due, and run could not renew it
)

// ID returns the event's MESSAGE_ID, under which the catalogue has its remedy; "" for no such event.
func (e Event) ID() string {
	switch e {
	case ServeFailed:
		return "8c38b0a47fbd4fb78180429f56c35dd2"
	case CALocked:
		return "cec15e6e44584875aa1adb45cb2cc8db"
	case NotSigning:
		return "8ca1ed2a68fa478db63d31f7c0b5e1a9"
	case Upkeep:
		return "a4a86ecdb7034cc1b84da2885ace9390"
	case Unrecorded:
		return "aeefccde5c5f4099a9603c249e65e064"
	case Hangs:
		return "3c750fbcfbd542b7a17994e0af2295f3"
	case JournalDamaged:
		return "595b0013ca784c06a1a2e1d9de006883"
	case ReloadFailed:
		return "bd2060072e704244b1fbb193403824e6"
	case SettingIgnored:
		return "0667ee7381ac484496b59c1e621a2a64"
	case NoTPM:
		return "111c16985bf145708ed51fe2c8f27653"
	case TryAgain:
		return "6556a50f09664b99b26481ad7a80e7b1"
	case Refused:
		return "7f817263e6494b1fadd2a920b42b3baa"
	case Configuration:
		return "bc8bee58e887491a9ef8b78ade5a26f1"
	case Stranger:
		return "07f44876bd324314808701667de454d8"
	case NotKept:
		return "c6088636e8414f15b41a7864ab8943a7"
	case ClockNotSet:
		return "651737174eec432ab3916dce855dc32e"
	case NotRenewed:
		return "36d2fd006b5f485bbb9a7aac9a4c387b"
	}
	return ""
}
