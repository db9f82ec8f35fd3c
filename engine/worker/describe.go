package worker

import (
	"context"

	"lode"
	"lode/engine"
)

// Describe implements engine.Describer where the inner driver does; else the
// error of kind Damaged makes the engine compile again.
func (d *Driver) Describe(ctx context.Context, module, code []byte, l lode.Limits) (*engine.Info, error) {
	if in, ok := d.c.Inner.(engine.Describer); ok {
		return in.Describe(ctx, module, code, l)
	}
	return nil, lode.Errorf(lode.Damaged, "the driver cannot describe compiled code")
}

var _ engine.Describer = (*Driver)(nil)
