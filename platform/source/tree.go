package source

import (
	"errors"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/denia-paas/denia/platform"
)

const (
	maxComponent = 255
	maxPath      = 2048
	maxDepth     = 128
	maxTarget    = 4096 // PATH_MAX: longer ones cannot be made
	maxLinks     = 40   // the kernel's own bound on links in one path

	// maxText bounds the names and link targets held in memory for one
	// archive, whatever its number of entries.
	maxText = 32 << 20

	// stepsPerEntry bounds the work of following paths: an honest archive
	// needs about the depth of its tree for each entry.
	stepsPerEntry = 100
	stepsAtLeast  = 100_000
)

type kind uint8

const (
	dir kind = iota
	file
	symlink
	hardlink // of an entry; the node it makes is a file
)

// node is a name in the tree an archive describes.
type node struct {
	parent   *node
	name     string
	kind     kind
	target   string // of a symlink
	children map[string]*node
	depth    int
	length   int // of the path

	// Of a directory: what its own entry says, if it has one.
	perm  uint32
	mtime time.Time
}

// path is relative to the root and goes through no link.
func (n *node) path() string {
	if n.parent == nil {
		return "."
	}
	parts := make([]string, n.depth)
	for at := n; at.parent != nil; at = at.parent {
		parts[at.depth-1] = at.name
	}
	return strings.Join(parts, "/")
}

// tree is what an archive has described so far. It answers where a path leads
// without touching a file system, so that an upload can be checked while it
// streams and an extraction never follows a link.
type tree struct {
	root     *node
	symlinks []*node

	entries, maxEntries int
	text                int
	steps, maxSteps     int
}

func newTree(maxEntries int) *tree {
	return &tree{
		root:       &node{kind: dir, children: map[string]*node{}},
		maxEntries: maxEntries,
		maxSteps:   max(stepsAtLeast, stepsPerEntry*maxEntries),
	}
}

var (
	errEscapes = errors.New("leads out of the root")
	errLoop    = errors.New("goes in a circle or through more than 40 links")
)

func (t *tree) count() error {
	if t.entries++; t.entries > t.maxEntries {
		return platform.Errorf(platform.TooLarge, "too_many_entries",
			"the archive has more than %d entries; leave out what the build does not need", t.maxEntries)
	}
	return nil
}

func (t *tree) step(n int) error {
	if t.steps += n; t.steps > t.maxSteps {
		return platform.Errorf(platform.TooLarge, "too_many_entries",
			"the paths and links of the archive take too long to follow; make its tree flatter")
	}
	return nil
}

func (t *tree) remember(text string) (string, error) {
	if t.text += len(text); t.text > maxText {
		return "", platform.Errorf(platform.TooLarge, "too_many_entries",
			"the names in the archive are more than %s together; leave out what the build does not need", size(maxText))
	}
	return strings.Clone(text), nil
}

// components splits the name of an entry, or of a hard link's target, and
// refuses whatever does not belong into an archive. The root has none.
func components(name string) ([]string, error) {
	switch {
	case name == "":
		return nil, badName(name, "has no name")
	case len(name) > maxPath:
		return nil, badName(name, "has a name of %d bytes; %d are allowed", len(name), maxPath)
	case !utf8.ValidString(name):
		return nil, badName(name, "has a name that is not valid UTF-8; rename it")
	case strings.ContainsRune(name, 0):
		return nil, badName(name, "has a NUL byte in its name")
	case path.IsAbs(name):
		return nil, outside(name, "is an absolute path; pack relative to the context's directory, as tar -C <dir> . does")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, outside(name, `has ".." in its path; pack from the context's directory`)
		case len(part) > maxComponent:
			return nil, badName(name, "has a name of %d bytes between slashes; %d are allowed", len(part), maxComponent)
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return nil, badName(name, "is %d directories deep; %d are allowed", len(parts), maxDepth)
	}
	return parts, nil
}

// child adds a name to a directory.
func (t *tree) child(parent *node, name string, k kind, entry string) (*node, error) {
	n := &node{parent: parent, kind: k, depth: parent.depth + 1, length: parent.length + len(name) + 1}
	if n.depth > maxDepth || n.length > maxPath {
		return nil, badName(entry, "comes to lie too deep: %d directories and %d bytes are allowed", maxDepth, maxPath)
	}
	var err error
	if n.name, err = t.remember(name); err != nil {
		return nil, err
	}
	if parent.children == nil {
		parent.children = map[string]*node{}
	}
	parent.children[n.name] = n
	return n, nil
}

// descend returns the directory that parts name, following links. With create
// it makes the directories that are missing.
func (t *tree) descend(parts []string, create bool, entry string) (*node, error) {
	at := t.root
	for i, part := range parts {
		if err := t.step(1); err != nil {
			return nil, err
		}
		next := at.children[part]
		switch {
		case next == nil && !create:
			return nil, nil
		case next == nil:
			if err := t.count(); err != nil {
				return nil, err
			}
			var err error
			if next, err = t.child(at, part, dir, entry); err != nil {
				return nil, err
			}
		case next.kind == symlink:
			found, err := t.lookup(at, part)
			if err != nil {
				return nil, linkError(entry, err)
			}
			next = found
		}
		if next == nil || next.kind != dir {
			return nil, platform.Errorf(platform.Invalid, "entry_conflict",
				"entry %s lies in %s, which is not a directory in this archive", quote(entry), quote(strings.Join(parts[:i+1], "/")))
		}
		at = next
	}
	return at, nil
}

// lookup follows target from the directory at, as the kernel would, and
// returns nil when it names nothing. What is missing counts as a directory, so
// that a path which would escape once somebody made it escapes already.
func (t *tree) lookup(at *node, target string) (*node, error) {
	if path.IsAbs(target) {
		return nil, errEscapes
	}
	links, missing := 0, 0
	for rest := target; rest != ""; {
		if err := t.step(1); err != nil {
			return nil, err
		}
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch {
		case part == "" || part == ".":
			continue
		case part == ".." && missing > 0:
			missing--
			continue
		case part == "..":
			if at.parent == nil {
				return nil, errEscapes
			}
			at = at.parent
			continue
		case missing > 0:
			missing++
			continue
		}
		next := at.children[part]
		switch {
		case next == nil:
			missing = 1
		case next.kind == dir:
			at = next
		case next.kind == symlink:
			if links++; links > maxLinks {
				return nil, errLoop
			}
			rest = next.target + "/" + rest
			if err := t.step(len(rest) / 64); err != nil {
				return nil, err
			}
		case strings.Trim(rest, "/") == "":
			return next, nil
		default:
			missing = 1 // a file with something below it
		}
	}
	if missing > 0 {
		return nil, nil
	}
	return at, nil
}

// add puts an entry into the tree. replaced tells that a file or link of that
// name was there. For a hard link, to is the file it names.
func (t *tree) add(name string, k kind, target string) (n *node, replaced bool, to *node, err error) {
	if err := t.count(); err != nil {
		return nil, false, nil, err
	}
	parts, err := components(name)
	if err != nil {
		return nil, false, nil, err
	}
	if len(parts) == 0 {
		if k != dir {
			return nil, false, nil, conflict(name, "would replace the root")
		}
		return t.root, true, nil, nil
	}
	last := len(parts) - 1
	if k != dir && strings.HasSuffix(name, "/") {
		return nil, false, nil, badName(name, "ends in a slash but is not a directory")
	}
	parent, err := t.descend(parts[:last], true, name)
	if err != nil {
		return nil, false, nil, err
	}
	n = parent.children[parts[last]]
	replaced = n != nil
	if replaced && (n.kind == dir) != (k == dir) {
		return nil, false, nil, conflict(name, "is a directory in one place of the archive and something else in another")
	}
	if k == hardlink {
		if to, err = t.linkTarget(name, target, n); err != nil {
			return nil, false, nil, err
		}
		k = file
	}
	if !replaced {
		if n, err = t.child(parent, parts[last], k, name); err != nil {
			return nil, false, nil, err
		}
	}
	n.kind, n.target = k, ""
	if k == symlink {
		if err := t.setTarget(n, name, target); err != nil {
			return nil, false, nil, err
		}
	}
	return n, replaced, to, nil
}

func (t *tree) linkTarget(name, target string, self *node) (*node, error) {
	parts, err := components(target)
	if err != nil {
		// The error names the target; what is wrong is the entry.
		return nil, platform.Errorf(platform.KindOf(err), platform.CodeOf(err), "the target of entry %s: %v", quote(name), err)
	}
	var to *node
	if len(parts) > 0 {
		last := len(parts) - 1
		parent, err := t.descend(parts[:last], false, name)
		if err != nil {
			return nil, err
		}
		if parent != nil {
			to = parent.children[parts[last]]
		}
	}
	switch {
	case to == nil && len(parts) > 0:
		return nil, platform.Errorf(platform.Invalid, "link_target_missing",
			"entry %s is a hard link to %s, which has not come before it", quote(name), quote(target))
	case to == nil || to.kind != file || to == self:
		return nil, notAllowed(name, "is a hard link to %s; only another regular file can be linked so", quote(target))
	}
	return to, nil
}

func (t *tree) setTarget(n *node, name, target string) error {
	switch {
	case target == "" || len(target) > maxTarget:
		return badName(name, "is a symbolic link with a target of %d bytes; 1 to %d are allowed", len(target), maxTarget)
	case !utf8.ValidString(target) || strings.ContainsRune(target, 0):
		return badName(name, "is a symbolic link whose target is not valid UTF-8 without NUL")
	}
	if _, err := t.lookup(n.parent, target); err != nil {
		return linkError(name, err)
	}
	var err error
	if n.target, err = t.remember(target); err != nil {
		return err
	}
	t.symlinks = append(t.symlinks, n)
	return nil
}

// finish checks what can only be known at the end: entries that came after a
// link may have changed where it leads.
func (t *tree) finish() error {
	if len(t.root.children) == 0 {
		return platform.Errorf(platform.Invalid, "empty_archive", "the archive has nothing in it; pack the directory that holds the Dockerfile")
	}
	for _, n := range t.symlinks {
		if n.kind != symlink {
			continue
		}
		if _, err := t.lookup(n.parent, n.target); err != nil {
			return linkError(n.path(), err)
		}
	}
	return nil
}

func linkError(name string, err error) error {
	switch {
	case errors.Is(err, errEscapes):
		return outside(name, "leads out of the root over a symbolic link; links must stay inside the context")
	case errors.Is(err, errLoop):
		return platform.Errorf(platform.Invalid, "link_loop", "entry %s %v", quote(name), err)
	}
	return err
}
