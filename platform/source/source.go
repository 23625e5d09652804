// Package source takes build contexts in: archives that users upload. It
// stores them, checks them while they arrive, and unpacks them for a build.
//
// One set of rules holds for both ways, because one walk over the archive
// serves both: an archive that Receive took is one that Unpack unpacks, short
// of a full disk. The rules:
//
//   - tar, plain or packed with zstd (window up to 32 MiB: level 20 and below,
//     without --long) or gzip, complete with its end marker, nothing after it;
//   - regular files, directories, symbolic links, and hard links to regular
//     files that came before; nothing else;
//   - names are relative, valid UTF-8, without "..", at most 255 bytes a
//     component, 2048 bytes and 128 directories in all;
//   - a symbolic link leads to somewhere inside the root, whatever the links on
//     its way, both when it is met and once the archive is complete;
//   - a name that comes twice is the last one's, as with tar, but a directory
//     is never replaced by something else nor the other way round;
//   - Limits hold at every moment of the stream, so that what breaks them is
//     turned away without being read to its end.
//
// Errors a user can do something about are *platform.Error: kind TooLarge with
// packed_too_large, unpacked_too_large, ratio_exceeded or too_many_entries;
// kind Invalid with entry_outside_root, entry_not_allowed, entry_conflict,
// bad_name, link_target_missing, link_loop, truncated, trailing_data,
// bad_archive, window_too_large, empty_archive or digest_mismatch; kind
// Unsupported with unsupported_media_type; kind Malformed with bad_digest; kind
// Unavailable with disk_full.
package source

// Limits bound an archive. A zero field takes its value from DefaultLimits.
type Limits struct {
	PackedBytes   int64 // as sent
	UnpackedBytes int64 // of the tar stream, and of the files in it with their holes filled
	Entries       int   // headers, and directories that only follow from a path

	// Ratio bounds unpacked to packed bytes. It does not hold below
	// RatioGraceBytes, so that a small context of repetitive files passes.
	Ratio int
}

// RatioGraceBytes is how much any archive may unpack to whatever its ratio.
const RatioGraceBytes = 64 << 20

// DefaultLimits hold where a field of Limits is zero.
var DefaultLimits = Limits{PackedBytes: 1 << 30, UnpackedBytes: 4 << 30, Entries: 200_000, Ratio: 200}

func (l Limits) orDefault() Limits {
	if l.PackedBytes == 0 {
		l.PackedBytes = DefaultLimits.PackedBytes
	}
	if l.UnpackedBytes == 0 {
		l.UnpackedBytes = DefaultLimits.UnpackedBytes
	}
	if l.Entries == 0 {
		l.Entries = DefaultLimits.Entries
	}
	if l.Ratio == 0 {
		l.Ratio = DefaultLimits.Ratio
	}
	return l
}
