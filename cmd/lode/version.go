package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"lode/api"
	"lode/sdk/abi"
)

// version is the product's; a release build sets it with -ldflags
// "-X main.version=...".
var version = "0.1.0"

func productVersion() string { return version }

// commit is the revision that the binary was built from, or "".
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return ""
}

func (c *cli) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of the command and of the node", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := struct {
				Command api.Version  `json:"command"`
				Node    *api.Version `json:"node,omitempty"`
			}{Command: api.Version{Version: version, Commit: commit(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, ABI: abi.Version}}
			t := &table{}
			t.add("command", version, dash(commit()), runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
			if client, err := c.api(); err == nil {
				ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
				defer cancel()
				if v, err := client.Version(ctx); err == nil {
					out.Node = &v
					t.add("node "+v.Node, v.Version, dash(v.Commit), v.Go, fmt.Sprintf("%s/%s", v.OS, v.Arch))
				}
			}
			return c.show(out, t)
		},
	}
}
