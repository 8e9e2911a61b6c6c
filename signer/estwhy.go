package signer

import (
	"fmt"
	"time"
)

// explainHost is explain for an EST client.
func explainHost(s *slot, last *sighting, now time.Time) (sentence, hint string) {
	name, enable := s.Node, "muster certs enable --password -i "+s.Node
	if last != nil && last.Reason != "" {
		if sentence, hint, ok := explainHostRefusal(s, last, now); ok {
			return sentence, hint
		}
	}
	switch s.state(now) {
	case StateRevoked:
		return name + " is revoked", "to let it enrol again, with another key: " + enable + " --again"
	case StateActive, StateIssued:
		return fmt.Sprintf("%s is an EST client: it got certificate %.8s… on %s, good until %s",
			name, s.Cert.Serial, day(s.Cert.Issued), day(s.Cert.NotAfter)), ""
	case StateExpired:
		return fmt.Sprintf("the certificate of %s was over on %s, and it had not renewed it", name, day(s.Cert.NotAfter)), enable
	case StateOpen:
		return fmt.Sprintf("%s, an EST client, may enrol with its password until %s", name, day(s.Grant.Until)),
			"if the password is lost: " + enable
	}
	switch {
	case s.Disabled:
		return name + " was disabled", enable
	case s.Grant == nil: // a restore closes what was not used
		return name + " is not enabled", enable
	}
	return fmt.Sprintf("the window of %s was over on %s, and its password had not been used", name, day(s.Grant.Until)), enable
}

// explainHostRefusal has a sentence for each reason that can stand for an EST client; ok is false where the record
// has moved on since.
func explainHostRefusal(s *slot, last *sighting, now time.Time) (sentence, hint string, ok bool) {
	name, enable := s.Node, "muster certs enable --password -i "+s.Node
	asked := fmt.Sprintf("somebody asked to be %s %s%s", name, times(last.Count), from(last.Addr, last.At))
	switch last.Reason {
	case whyPassword:
		return asked + ", with a wrong password or none", "if it was " + name + ": " + enable, true
	case whyOtherKey:
		if s.open(now) {
			return "", "", false
		}
		return asked + ", with the right password and another key than the one that it was used with",
			"if it was " + name + ", which has lost its key: " + enable + "; else: muster certs revoke -i " + name, true
	case whyNotOnRecord, whyClass:
		return asked + ", with a certificate that does not count: " + last.Detail, enable, true
	case whyForm, whyCSR, whyTooLarge:
		return asked + ", with a request that cannot be used: " + last.Detail, "look at the client's settings", true
	case whyTooOften:
		return asked + ", and was refused: " + last.Detail, "look at the client's settings", true
	case whyKeyTaken, whyKeyBarred:
		return asked + ", and was refused: " + last.Detail, "let the client make another key", true
	case whyStore, whySigning, whyOverload, whyClock:
		return asked + ", and this head could not serve: " + last.Detail, "journalctl -u muster", true
	case whyDisabled, whyWindowOver, whyExpired, whyCAEnded:
		if s.open(now) {
			return "", "", false
		}
		return asked + ", and was refused: " + last.Detail, enable, true
	}
	return "", "", false
}
