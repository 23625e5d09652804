package registry

import (
	"container/list"
	"context"
	"crypto/rand"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/denia-paas/denia/registry/oci"
)

const (
	// sessionsInMemory is how many idle sessions are remembered; what is more
	// lives on disk only.
	sessionsInMemory = 4096

	// sessionPatience is how long a request waits for another one that holds
	// its session. It is for a client that lost its connection and came back
	// before the registry had noticed.
	sessionPatience = 500 * time.Millisecond

	sessionIDBytes = 26 // of rand.Text

	// How many uploads may be open, in memory or on disk: of one subject, and
	// of all together. A client has a handful.
	maxSessionsOfSubject = 200
	maxSessions          = 4096

	// retryUploads is what a client is told to wait when there are too many.
	retryUploads = time.Minute
)

var (
	errUploadUnknown = errors.New("there is no such upload: it was finished, cancelled, or idle for too long")
	errUploadBusy    = errors.New("another request is writing to this upload")
	errUploadsYours  = fmt.Errorf("%d uploads of yours are open; finish or cancel some, or wait until they are dropped", maxSessionsOfSubject)
	errUploadsAll    = fmt.Errorf("%d uploads are open on this registry, which is all it keeps; try again later", maxSessions)
)

// sessions are the uploads under way. What is needed to go on after a restart
// lies beside each upload in the storage; memory holds the sessions used last,
// and those that have no byte yet, which therefore cost no file. When it is
// full, one of these that is idle for long is forgotten.
type sessions struct {
	storage Storage
	now     func() time.Time
	count   prometheus.Gauge

	mu    sync.Mutex
	known map[string]*session
	open  map[string]string // id of each session, in memory or on disk, to its subject
	by    map[string]int    // how many of these a subject has
	idle  list.List         // of *session in known that nobody holds, longest idle first
}

// session is one upload. Whoever holds its turn may use it, alone.
type session struct {
	id   string
	repo string
	by   string        // subject that began it
	turn chan struct{} // full while held

	size      atomic.Int64     // bytes received; read by anybody
	algorithm digest.Algorithm // by which hash was made
	hash      hash.Hash        // of all bytes received
	stored    bool             // Storage has the upload
	saved     bool             // Storage has the state as it is

	// Guarded by sessions.mu.
	active time.Time     // when it was last released
	place  *list.Element // in sessions.idle, unless held
	gone   bool
}

// sessionState is the document beside an upload.
type sessionState struct {
	Repo      string           `json:"repo"`
	Subject   string           `json:"subject"`
	Algorithm digest.Algorithm `json:"algorithm"`
	Size      int64            `json:"size"`
	Hash      []byte           `json:"hash"` // marshalled, of the first Size bytes
	Active    time.Time        `json:"active"`
}

func newSessions(storage Storage, now func() time.Time, count prometheus.Gauge) *sessions {
	return &sessions{
		storage: storage, now: now, count: count,
		known: map[string]*session{}, open: map[string]string{}, by: map[string]int{},
	}
}

// create begins an upload to a repository and holds it. It fails with
// errUploadsYours or errUploadsAll.
func (u *sessions) create(repo, subject string, a digest.Algorithm) (*session, error) {
	s := &session{id: rand.Text(), repo: repo, by: subject, turn: make(chan struct{}, 1)}
	s.restart(a)
	s.turn <- struct{}{}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.by[subject] >= maxSessionsOfSubject:
		return nil, errUploadsYours
	case len(u.open) >= maxSessions:
		return nil, errUploadsAll
	}
	u.known[s.id] = s
	u.noteOpen(s.id, subject)
	u.count.Inc()
	return s, nil
}

// noteOpen counts a session that is open, noteEnd no longer; each may be told
// twice. u.mu must be held.
func (u *sessions) noteOpen(id, subject string) {
	if _, open := u.open[id]; !open {
		u.open[id] = subject
		u.by[subject]++
	}
}

func (u *sessions) noteEnd(id string) {
	subject, open := u.open[id]
	if !open {
		return
	}
	delete(u.open, id)
	if u.by[subject]--; u.by[subject] == 0 {
		delete(u.by, subject)
	}
}

// restart makes an upload without a byte be hashed by another algorithm.
func (s *session) restart(a digest.Algorithm) {
	if s.algorithm != a {
		s.algorithm, s.hash = a, a.Hash()
	}
}

// take holds the session of that id and repository. It fails with
// errUploadUnknown, or with errUploadBusy.
func (u *sessions) take(ctx context.Context, id, repo string) (*session, error) {
	for {
		s, err := u.find(ctx, id)
		if err != nil {
			return nil, err
		}
		if s.repo != repo {
			return nil, errUploadUnknown
		}
		if held, err := u.hold(ctx, s); held || err != nil {
			return s, err
		}
	}
}

// received tells how many bytes of an upload are there, even while another
// request is writing to it.
func (u *sessions) received(ctx context.Context, id, repo string) (int64, error) {
	s, err := u.find(ctx, id)
	if err != nil {
		return 0, err
	}
	if s.repo != repo {
		return 0, errUploadUnknown
	}
	return s.size.Load(), nil
}

// find returns the session from memory, or from the storage.
func (u *sessions) find(ctx context.Context, id string) (*session, error) {
	if !validSessionID(id) {
		return nil, errUploadUnknown
	}
	u.mu.Lock()
	s := u.known[id]
	u.mu.Unlock()
	if s != nil {
		return s, nil
	}
	loaded, err := u.load(ctx, id)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.known[id]; s != nil {
		return s, nil
	}
	u.known[id] = loaded
	u.noteOpen(id, loaded.by)
	u.count.Inc()
	loaded.place = u.idle.PushBack(loaded)
	return loaded, nil
}

// hold waits for the turn of a session, not for long. False: the session has
// left the memory meanwhile.
func (u *sessions) hold(ctx context.Context, s *session) (bool, error) {
	select {
	case s.turn <- struct{}{}:
	default:
		patience := time.NewTimer(sessionPatience)
		defer patience.Stop()
		select {
		case s.turn <- struct{}{}:
		case <-patience.C:
			return false, errUploadBusy
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.gone {
		<-s.turn
		return false, nil
	}
	if s.place != nil {
		u.idle.Remove(s.place)
		s.place = nil
	}
	return true, nil
}

func validSessionID(id string) bool {
	if len(id) != sessionIDBytes {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

func (u *sessions) load(ctx context.Context, id string) (*session, error) {
	document, err := u.storage.LoadState(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errUploadUnknown
	}
	if err != nil {
		return nil, fmt.Errorf("loading the state of upload %s: %w", id, err)
	}
	var state sessionState
	if err := json.Unmarshal(document, &state); err != nil {
		return nil, fmt.Errorf("reading the state of upload %s: %w", id, err)
	}
	a, err := oci.ParseAlgorithm(state.Algorithm.String())
	if err != nil {
		return nil, fmt.Errorf("reading the state of upload %s: %w", id, err)
	}
	s := &session{
		id: id, repo: state.Repo, by: state.Subject, turn: make(chan struct{}, 1),
		stored: state.Size > 0, saved: true, active: state.Active,
	}
	s.restart(a)
	s.size.Store(state.Size)
	if err := s.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(state.Hash); err != nil {
		return nil, fmt.Errorf("reading the state of upload %s: %w", id, err)
	}
	return s, nil
}

// save writes the state beside the upload, so that it can be gone on with after
// the process has died.
func (u *sessions) save(ctx context.Context, s *session, active time.Time) error {
	if s.saved {
		return nil
	}
	sum, err := s.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return fmt.Errorf("saving the hash of upload %s: %w", s.id, err)
	}
	document, err := json.Marshal(sessionState{
		Repo: s.repo, Subject: s.by, Algorithm: s.algorithm, Size: s.size.Load(), Hash: sum, Active: active,
	})
	if err != nil {
		return fmt.Errorf("saving the state of upload %s: %w", s.id, err)
	}
	if err := u.storage.SaveState(ctx, s.id, document); err != nil {
		return fmt.Errorf("saving the state of upload %s: %w", s.id, err)
	}
	s.saved = true
	return nil
}

// release ends the hold of a session that is to go on.
func (u *sessions) release(ctx context.Context, s *session) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.active = u.now()
	s.place = u.idle.PushBack(s)
	<-s.turn
	for u.idle.Len() > sessionsInMemory {
		// Saving under the mutex is rare and takes microseconds, and nobody
		// can take the session meanwhile.
		longest := u.idle.Front().Value.(*session)
		select {
		case longest.turn <- struct{}{}:
		default:
			return nil // it is being taken
		}
		var err error
		if longest.stored {
			err = u.save(ctx, longest, longest.active)
		} else {
			u.noteEnd(longest.id)
		}
		if err == nil {
			u.remove(longest)
		}
		<-longest.turn
		if err != nil {
			return err
		}
	}
	return nil
}

// remove takes a session out of memory. Who waits for it finds it gone, and
// u.mu must be held.
func (u *sessions) remove(s *session) {
	s.gone = true
	delete(u.known, s.id)
	u.count.Dec()
	if s.place != nil {
		u.idle.Remove(s.place)
		s.place = nil
	}
}

// forget ends a held session whose upload the storage no longer has.
func (u *sessions) forget(s *session) {
	u.mu.Lock()
	u.remove(s)
	u.noteEnd(s.id)
	u.mu.Unlock()
	<-s.turn
}

// drop ends a held session and removes its upload.
func (u *sessions) drop(ctx context.Context, s *session) error {
	defer u.forget(s)
	if !s.stored && !s.saved {
		return nil
	}
	// A client that has gone is one more reason to clean up.
	if err := u.storage.Abort(context.WithoutCancel(ctx), s.id); err != nil {
		return fmt.Errorf("removing upload %s: %w", s.id, err)
	}
	return nil
}

// expire drops the sessions that nobody has used since then, and returns how
// many there were. One that is held is in use.
func (u *sessions) expire(ctx context.Context, since time.Time) (int, error) {
	uploads, err := u.storage.Uploads(ctx)
	if err != nil {
		return 0, fmt.Errorf("listing uploads: %w", err)
	}
	u.mu.Lock()
	var ids []string
	for e := u.idle.Front(); e != nil; e = e.Next() {
		ids = append(ids, e.Value.(*session).id)
	}
	stored := make(map[string]bool, len(uploads))
	onDisk := uploads[:0]
	for _, info := range uploads {
		stored[info.ID] = true
		if u.known[info.ID] == nil {
			onDisk = append(onDisk, info)
		}
	}
	for id := range u.open {
		if u.known[id] == nil && !stored[id] {
			u.noteEnd(id) // ended while it was counted below
		}
	}
	u.mu.Unlock()

	dropped := 0
	for _, info := range onDisk {
		s, err := u.load(ctx, info.ID)
		switch {
		case err == nil:
			// One of an earlier process is not counted yet.
			u.mu.Lock()
			u.noteOpen(s.id, s.by)
			u.mu.Unlock()
			if s.active.Before(since) {
				ids = append(ids, info.ID)
			}
		case info.Since.Before(since):
			// Its state is not there or cannot be read: nobody can go on with
			// it.
			if err := u.storage.Abort(ctx, info.ID); err != nil {
				return dropped, fmt.Errorf("removing upload %s: %w", info.ID, err)
			}
			dropped++
		}
	}
	for _, id := range ids {
		gone, err := u.expireOne(ctx, id, since)
		if err != nil {
			return dropped, err
		}
		if gone {
			dropped++
		}
	}
	return dropped, nil
}

func (u *sessions) expireOne(ctx context.Context, id string, since time.Time) (bool, error) {
	s, err := u.find(ctx, id)
	if errors.Is(err, errUploadUnknown) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	u.mu.Lock()
	if s.place == nil || !s.active.Before(since) {
		u.mu.Unlock()
		return false, nil
	}
	select {
	case s.turn <- struct{}{}:
		u.idle.Remove(s.place)
		s.place = nil
	default: // it is just being taken
		u.mu.Unlock()
		return false, nil
	}
	u.mu.Unlock()
	return true, u.drop(ctx, s)
}

// matches tells whether the upload's bytes have that digest. The bytes are read
// again only where they were hashed by another algorithm on arrival, because
// the client did not say in time which one it wanted.
func (u *sessions) matches(ctx context.Context, s *session, d digest.Digest) (bool, error) {
	if d.Algorithm() == s.algorithm {
		return digest.NewDigest(s.algorithm, s.hash) == d, nil
	}
	r, err := u.storage.ReadUpload(ctx, s.id)
	if err != nil {
		return false, fmt.Errorf("reading upload %s again: %w", s.id, err)
	}
	defer r.Close()
	h := d.Algorithm().Hash()
	buf := takeBuffer()
	defer giveBuffer(buf)
	if _, err := io.CopyBuffer(h, onlyReader{r}, *buf); err != nil {
		return false, fmt.Errorf("reading upload %s again: %w", s.id, err)
	}
	return digest.NewDigest(d.Algorithm(), h) == d, nil
}
