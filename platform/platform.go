// Package platform holds Denia's nouns and rules: what a project, a service, a
// deployment and a release are, who may do what, and which states may follow
// which. It does no I/O, starts no goroutine and reads no clock, so that every
// rule in it can be read and tested by itself.
//
// Values are plain data. Nothing here is safe for concurrent mutation; copies
// are.
package platform

// ID names a row for ever. It is a lower-case UUIDv7 (RFC 9562 §5.7), made by
// the store. The zero ID means "none" or, in a filter, "any".
type ID string
