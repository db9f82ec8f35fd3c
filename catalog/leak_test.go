package catalog

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is also the child of TestKill: a node that deploys until it is
// killed. It looks for goroutines that were left behind.
func TestMain(m *testing.M) {
	if dir := os.Getenv("CATALOG_TEST_DEPLOYS"); dir != "" {
		if err := deployForEver(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}
