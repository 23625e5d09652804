//go:build !linux

package caddymodule

// machineMemory is not known here.
func machineMemory() int64 { return 0 }
