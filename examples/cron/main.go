// Cron is a function that a schedule starts. One run at a time; a run that was
// missed because the node was down is made up for once.
package main

import (
	"context"
	"fmt"

	"lode/sdk/go"
)

func tick(ctx context.Context) error {
	me := lode.Self(ctx)
	fmt.Println("due", me.Due, "trigger", me.Trigger)
	return nil
}

func main() { lode.HandleNamed("tick", tick) }
