package lode

import "lode/sdk/abi"

// errorOf turns a completion's status and result into an error.
func errorOf(status abi.Status, m message) error {
	e := &Error{Kind: Kind(status.Kind()), Detail: m.get(":detail"), Hint: m.get(":hint")}
	if k := m.get(":error"); k != "" {
		e.Kind = Kind(k)
	}
	return e
}
