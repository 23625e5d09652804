package oci

import "errors"

// ErrInUse says that a manifest still needs what was to be removed.
var ErrInUse = errors.New("a manifest of the repository needs it")

// ErrRenewed says that the lease of what was to be removed was extended
// meanwhile: somebody was just promised that it stays.
var ErrRenewed = errors.New("somebody has just begun to use it")

// What keeps Metadata from working, and may pass.
var (
	ErrNoSpace     = errors.New("the disk of the metadata is full")
	ErrUnavailable = errors.New("the metadata cannot be reached")
)
