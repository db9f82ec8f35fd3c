//go:build !linux

package owner

import "time"

var began = time.Now()

// now is a time that nobody can set. It may stand still while the machine
// sleeps: nodes that must not are on Linux.
func now() time.Duration { return time.Since(began) + 1 }
