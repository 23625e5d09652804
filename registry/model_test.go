package registry_test

import (
	"fmt"
	"strings"
	"testing"
)

// The collector's argument, checked by exploring it: one blob, the
// repositories A and B, a pusher in A, a mounter from A into B, somebody who
// deletes manifests, two rounds of the collector, leases that run out, and one
// power loss with the recovery after it, in every interleaving of their steps.
//
// It must hold always: a live row has its file, whole and durable; a link has
// a live row; a manifest has its link (S). Who was told that the blob is there
// can put a manifest that needs it, while the lease lasts (L). And when nobody
// needs the blob any more, nothing of it stays (R).

// weakness is one thing the design must not do without.
type weakness int

const (
	asDesigned weakness = iota
	syncAfterRename
	m1MarkAndSweep
	m2HeadWithoutLease
	m3NoSecondLook
	m3bNoLock
	m4RowFirst
	m5CheckThenInsert
	m6RowThenLink
	m7MountWithoutLease
	m8NoSync
	m9NoDirectorySync
)

var weaknesses = map[weakness]string{
	m1MarkAndSweep:      "M1: mark, then sweep what was not marked",
	m2HeadWithoutLease:  "M2: HEAD gives no lease",
	m3NoSecondLook:      "M3: the file is deleted without a second look under the lock",
	m3bNoLock:           "M3b: no lock for each digest",
	m4RowFirst:          "M4: the row is deleted before the file",
	m5CheckThenInsert:   "M5: a manifest is checked in one transaction, inserted in another",
	m6RowThenLink:       "M6: row and link of a blob are two transactions",
	m7MountWithoutLease: "M7: a mount gives no lease",
	m8NoSync:            "M8: a row for bytes that were never synced",
	m9NoDirectorySync:   "M9: a row for a name that was never synced",
}

// The parts of a state are small, so that it can be the key of a map.
type (
	modelRow  uint8
	modelFile uint8
	modelLock uint8
	modelStep uint8 // how far a process is
)

const (
	rowNone modelRow = iota
	rowLive
	rowCondemned
)

const (
	fileNone     modelFile = iota
	fileGood               // durable
	fileUnnamed            // bytes durable, the name only in memory
	fileUnsynced           // a power loss tears it
	fileTorn
)

const (
	nobody modelLock = iota
	heldByA
	heldByB
	heldByCollector
)

// What a client is at. From atStart and atTold it can lose the server and go on;
// in between, its request fails and it starts over.
const (
	atStart modelStep = iota
	atUploaded
	atLocked
	atRenamed
	atSynced
	atRow // M6 only
	atCommitted
	atTold // the blob is there: 200 or 201
	atChecked
	atEnd
)

// What the collector is at.
const (
	reviewingA modelStep = iota
	reviewingB
	condemning
	locking
	looking
	trashing
	forgetting
	unlocking
	emptying
	sweeping // M1 only
	removing // M4 only
)

type modelClient struct {
	at       modelStep
	promised bool // it was told that the blob is there, and the lease lasts
}

// modelSide is what one repository knows of the blob.
type modelSide struct {
	link, leased bool
	review       bool // the link is on the list
	old          bool // a manifest that was there from the start
	pushed       bool // the client's manifest
}

func (s modelSide) needed() bool { return s.old || s.pushed }

// modelWorld is a state of everything.
type modelWorld struct {
	row       modelRow
	gen       uint8
	file      modelFile
	trash     bool
	review    bool // the blob is on the list
	lock      modelLock
	sides     [2]modelSide
	clients   [2]modelClient
	collector modelStep
	doomed    uint8 // generation the collector condemned; M1: whether it marked nothing
	rounds    uint8
	deletes   uint8
	crashed   bool
	broken    string // a promise that was not kept
}

// modelMove is one atomic step and what comes of it.
type modelMove struct {
	name string
	to   modelWorld
}

var modelRepos = [2]string{"A", "B"}

// moves lists every step possible in w.
func (w modelWorld) moves(weak weakness) []modelMove {
	var all []modelMove
	add := func(name string, to modelWorld) { all = append(all, modelMove{name, to}) }
	for i := range w.clients {
		w.moveClient(weak, i, add)
	}
	w.moveCollector(weak, add)
	for i := range w.sides {
		for _, old := range []bool{true, false} {
			to := w
			s := &to.sides[i]
			if w.deletes == 0 || old && !s.old || !old && !s.pushed {
				continue
			}
			if old {
				s.old = false
			} else {
				s.pushed = false
			}
			s.review = true
			to.deletes--
			add("a manifest is deleted in "+modelRepos[i], to)
		}
	}
	if w.sides[0].leased || w.sides[1].leased {
		to := w
		to.expire()
		add("leases run out", to)
	}
	if !w.crashed {
		w.crash(add)
	}
	return all
}

func (w *modelWorld) expire() {
	for i := range w.sides {
		w.sides[i].leased = false
		w.clients[i].promised = false
	}
}

// grant links the blob in a repository.
func (w *modelWorld) grant(i int, lease bool) {
	s := &w.sides[i]
	s.link, s.leased, s.review = true, s.leased || lease, true
}

func (w modelWorld) moveClient(weak weakness, i int, add func(string, modelWorld)) {
	me, who := w.clients[i], fmt.Sprintf("P%d ", i+1)
	mine := modelLock(i + 1)
	next := func(name string, at modelStep, change func(to *modelWorld)) {
		to := w
		to.clients[i].at = at
		if change != nil {
			change(&to)
		}
		add(who+name, to)
	}
	unlock := func(to *modelWorld) {
		if to.lock == mine {
			to.lock = nobody
		}
	}
	tell := func(to *modelWorld) { to.clients[i].promised = true }
	switch me.at {
	case atStart:
		next("uploads, synced", atUploaded, nil) // without asking, or after a 404
		there := w.sides[0].link && w.row == rowLive
		switch {
		case i == 0 && there:
			next("HEAD: 200", atTold, func(to *modelWorld) {
				if weak != m2HeadWithoutLease {
					to.grant(0, true)
				}
				tell(to)
			})
		case i == 1 && there:
			next("mounts: 201", atTold, func(to *modelWorld) { to.grant(1, weak != m7MountWithoutLease); tell(to) })
		}
	case atUploaded:
		if weak == m3bNoLock {
			next("goes on without lock", atLocked, nil)
		} else if w.lock == nobody {
			next("locks", atLocked, func(to *modelWorld) { to.lock = mine })
		}
	case atLocked:
		if w.row == rowLive && w.file != fileNone && weak != m8NoSync {
			next("drops the upload: it is there", atSynced, nil)
			return
		}
		next("renames", atRenamed, func(to *modelWorld) {
			to.file = fileUnnamed
			if weak == m8NoSync || weak == syncAfterRename {
				to.file = fileUnsynced
			}
		})
	case atRenamed:
		next("syncs file and directory", atSynced, func(to *modelWorld) {
			if weak != m8NoSync && weak != m9NoDirectorySync && to.file != fileNone {
				to.file = fileGood
			}
		})
	case atSynced:
		if weak == m6RowThenLink {
			next("commits the row", atRow, func(to *modelWorld) { to.row = rowLive })
			return
		}
		next("commits row, link and lease", atCommitted, func(to *modelWorld) { to.row = rowLive; to.grant(i, true) })
	case atRow:
		next("commits link and lease", atCommitted, func(to *modelWorld) { to.grant(i, true) })
	case atCommitted:
		// The lease counts from the transaction, not from the answer.
		next("unlocks: 201", atTold, func(to *modelWorld) { unlock(to); to.clients[i].promised = to.sides[i].leased })
	case atTold:
		there := w.sides[i].link && w.row == rowLive
		switch {
		case !there:
			next("PUT manifest: 400", atEnd, func(to *modelWorld) {
				if me.promised {
					to.broken = "L: a manifest is refused for a blob that was promised"
				}
			})
		case weak == m5CheckThenInsert:
			next("PUT manifest: checks", atChecked, nil)
		default:
			next("PUT manifest: 201", atEnd, func(to *modelWorld) { to.sides[i].pushed = true })
		}
	case atChecked:
		next("PUT manifest: inserts, 201", atEnd, func(to *modelWorld) { to.sides[i].pushed = true })
	}
}

func (w modelWorld) moveCollector(weak weakness, add func(string, modelWorld)) {
	if w.rounds == 0 {
		return
	}
	next := func(name string, at modelStep, change func(to *modelWorld)) {
		to := w
		to.collector = at
		if change != nil {
			change(&to)
		}
		if at == reviewingA {
			to.rounds--
			to.doomed = 0
		}
		add("collector "+name, to)
	}
	switch w.collector {
	case reviewingA:
		if weak == m1MarkAndSweep {
			next("marks", sweeping, func(to *modelWorld) {
				if !w.sides[0].needed() && !w.sides[1].needed() {
					to.doomed = 1
				}
			})
			return
		}
		w.reviewLink(0, reviewingB, next)
	case reviewingB:
		w.reviewLink(1, condemning, next)
	case condemning:
		if !w.review || w.row != rowLive || w.sides[0].link || w.sides[1].link {
			next("condemns nothing", reviewingA, func(to *modelWorld) { to.review = false })
			return
		}
		next("condemns", locking, func(to *modelWorld) {
			to.row, to.gen, to.review = rowCondemned, w.gen+1, false
			to.doomed = to.gen
		})
	case locking:
		switch {
		case weak == m3bNoLock:
			next("goes on without lock", looking, nil)
		case w.lock == nobody:
			next("locks", looking, func(to *modelWorld) { to.lock = heldByCollector })
		}
	case looking:
		first := trashing
		if weak == m4RowFirst {
			first = forgetting
		}
		switch {
		case weak == m3NoSecondLook || w.row == rowCondemned && w.gen == w.doomed:
			next("looks: still condemned", first, nil)
		default:
			next("looks: committed again", unlocking, func(to *modelWorld) { to.doomed = 0 })
		}
	case trashing:
		next("moves the file to the trash", forgetting, func(to *modelWorld) { to.toTrash() })
	case forgetting:
		next("deletes the row", unlocking, func(to *modelWorld) { to.forget() })
	case unlocking:
		after := emptying
		if weak == m4RowFirst && w.doomed != 0 {
			after = removing
		}
		next("unlocks", after, func(to *modelWorld) {
			if to.lock == heldByCollector {
				to.lock = nobody
			}
		})
	case removing:
		next("moves the file to the trash", emptying, func(to *modelWorld) { to.toTrash() })
	case emptying:
		next("empties the trash", reviewingA, func(to *modelWorld) { to.trash = false })
	case sweeping:
		next("sweeps", reviewingA, func(to *modelWorld) {
			if w.doomed == 1 {
				to.row, to.file = rowNone, fileNone
				to.sides[0].link, to.sides[1].link = false, false
			}
		})
	}
}

func (w modelWorld) reviewLink(i int, after modelStep, next func(string, modelStep, func(*modelWorld))) {
	s := w.sides[i]
	switch {
	case !s.review || !s.link || s.needed():
		next("leaves link "+modelRepos[i], after, func(to *modelWorld) { to.sides[i].review = false })
	case s.leased:
		next("puts off link "+modelRepos[i], after, nil)
	default:
		next("unlinks "+modelRepos[i], after, func(to *modelWorld) {
			to.sides[i].link, to.sides[i].review, to.review = false, false, true
		})
	}
}

func (w *modelWorld) toTrash() {
	if w.file != fileNone {
		w.file, w.trash = fileNone, true
	}
}

func (w *modelWorld) forget() {
	if w.row == rowCondemned && w.gen == w.doomed {
		w.row = rowNone
	}
}

// crash adds what a power loss may leave, after recovery.
func (w modelWorld) crash(add func(string, modelWorld)) {
	w.crashed = true
	w.lock = nobody
	w.collector, w.doomed = reviewingA, 0
	for i := range w.clients {
		if at := w.clients[i].at; at != atTold && at != atEnd {
			w.clients[i].at = atStart
		}
	}
	left := []modelFile{w.file}
	switch w.file {
	case fileUnnamed:
		left = []modelFile{fileGood, fileNone}
	case fileUnsynced:
		left = []modelFile{fileGood, fileNone, fileTorn}
	}
	for _, file := range left {
		to := w
		to.file = file
		to.recover()
		add("CRASH and recovery", to)
	}
}

// recover is what Open does. A live row without file is not repaired here: it
// is the damage to be found.
func (w *modelWorld) recover() {
	if w.row == rowCondemned {
		w.row = rowNone
	}
	if w.row == rowNone {
		w.file = fileNone
	}
	w.trash = false
}

// damage tells what is wrong in w, if anything.
func (w modelWorld) damage() string {
	if w.broken != "" {
		return w.broken
	}
	if w.row == rowLive && (w.file == fileNone || w.file == fileTorn) {
		return "S: a live row without its file"
	}
	for i, s := range w.sides {
		if s.link && w.row != rowLive {
			return "S: a link in " + modelRepos[i] + " to a blob that is not live"
		}
		if s.needed() && !s.link {
			return "S: a manifest in " + modelRepos[i] + " without its link"
		}
	}
	return ""
}

// quiet tells whether all clients came to an end.
func (w modelWorld) quiet() bool { return w.clients[0].at == atEnd && w.clients[1].at == atEnd }

// settled lets the collector work alone, with all leases over, until it has
// nothing to do, and tells what is wrong then.
func (w modelWorld) settled() string {
	w.expire()
	w.rounds += 3
	for w.rounds > 0 {
		var moves []modelMove
		w.moveCollector(asDesigned, func(name string, to modelWorld) { moves = append(moves, modelMove{name, to}) })
		w = moves[0].to
	}
	needed := w.sides[0].needed() || w.sides[1].needed()
	switch {
	case needed && (w.row != rowLive || w.file != fileGood):
		return "R: a blob that is needed was collected"
	case !needed && (w.row != rowNone || w.file != fileNone || w.trash || w.sides[0].link || w.sides[1].link):
		return "R: a blob nobody needs is never collected"
	}
	return ""
}

// exploreModel visits every state that can be reached, nearest first, and returns
// their number, and the shortest way to damage.
func exploreModel(weak weakness) (states int, damage string, trace []string) {
	blank := modelWorld{rounds: 2, deletes: 2}
	tagged := blank
	tagged.row, tagged.file = rowLive, fileGood
	tagged.sides[0] = modelSide{link: true, old: true}
	uploadedOnly := blank
	uploadedOnly.row, uploadedOnly.file = rowLive, fileGood
	uploadedOnly.sides[0] = modelSide{link: true, leased: true, review: true}

	type origin struct {
		from modelWorld
		name string
	}
	seen := map[modelWorld]origin{}
	queue := []modelWorld{tagged, blank, uploadedOnly}
	for _, w := range queue {
		seen[w] = origin{}
	}
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		damage := w.damage()
		if damage == "" && (weak == asDesigned || weak == syncAfterRename) && w.quiet() {
			damage = w.settled()
		}
		if damage != "" {
			for at := w; seen[at].name != ""; at = seen[at].from {
				trace = append([]string{seen[at].name}, trace...)
			}
			return len(seen), damage, trace
		}
		for _, m := range w.moves(weak) {
			if _, ok := seen[m.to]; !ok {
				seen[m.to] = origin{w, m.name}
				queue = append(queue, m.to)
			}
		}
	}
	return len(seen), "", nil
}

func TestModel_HoldsInEveryInterleaving(t *testing.T) {
	for name, order := range map[string]weakness{"sync, then rename": asDesigned, "rename, then sync": syncAfterRename} {
		states, damage, trace := exploreModel(order)
		t.Logf("%s: %d states", name, states)
		if damage != "" {
			t.Errorf("%s: %s:\n\t%s", name, damage, strings.Join(trace, "\n\t"))
		}
		if states < 10_000 {
			t.Errorf("%s: only %d states: the model does not move", name, states)
		}
	}
}

func TestModel_CatchesEachWeakness(t *testing.T) {
	for weak, name := range weaknesses {
		short, _, _ := strings.Cut(name, ":")
		t.Run(short, func(t *testing.T) {
			states, damage, trace := exploreModel(weak)
			if damage == "" {
				t.Fatalf("%s: not caught in %d states", name, states)
			}
			t.Logf("%s\n\t%s\nbreaks %s", name, strings.Join(trace, "\n\t"), damage)
		})
	}
}
