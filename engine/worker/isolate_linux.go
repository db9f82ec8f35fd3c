package worker

import (
	"os/exec"
	"syscall"
)

// isolate keeps signals of our terminal from the worker.
func isolate(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
