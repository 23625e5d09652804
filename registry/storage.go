package registry

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// Storage keeps the bytes of blobs. It knows nothing of repositories; who may
// see a blob is Metadata's business. All methods may be called concurrently,
// except that one upload has one writer at a time, and that the caller
// serialises Commit and Trash of one digest.
type Storage interface {
	// Create makes an empty upload. The id is a file name.
	Create(ctx context.Context, id string) (Upload, error)

	// Resume opens an upload for appending at offset, and cuts off what lies
	// behind. It fails with fs.ErrNotExist when there is no such upload, or
	// fewer bytes: after a power loss uploads are gone.
	Resume(ctx context.Context, id string, offset int64) (Upload, error)

	// ReadUpload opens an upload for reading from its start.
	ReadUpload(ctx context.Context, id string) (io.ReadCloser, error)

	// SaveState keeps a small document beside an upload, LoadState returns
	// it. Replacing it is atomic.
	SaveState(ctx context.Context, id string, state []byte) error
	LoadState(ctx context.Context, id string) ([]byte, error)

	// Abort removes an upload. One that does not exist is no error.
	Abort(ctx context.Context, id string) error

	// Uploads lists the uploads with the time of their last write.
	Uploads(ctx context.Context) ([]UploadInfo, error)

	// Commit turns the upload into the content of d, replacing what is there.
	// When it returns nil the content survives a power loss; when it fails
	// there is no content of d, and the upload is gone too.
	Commit(ctx context.Context, id string, d digest.Digest) error

	// Open opens content for reading. It fails with fs.ErrNotExist when there
	// is none. What is open stays readable after a Trash.
	Open(ctx context.Context, d digest.Digest) (Content, error)

	// Size tells how long the content is, or fails as Open does.
	Size(ctx context.Context, d digest.Digest) (int64, error)

	// Trash puts the content of d aside, where Commit of the same digest
	// cannot meet it; EmptyTrash removes all that was put aside and returns
	// how many bytes that freed. Trash of what does not exist is no error.
	Trash(ctx context.Context, d digest.Digest, gen int64) error
	EmptyTrash(ctx context.Context) (int64, error)

	// Walk calls fn for each digest that has content, in no order, until fn
	// fails.
	Walk(ctx context.Context, fn func(digest.Digest) error) error

	// Free tells how many bytes can still be written.
	Free(ctx context.Context) (int64, error)
}

// Upload is an upload open for appending.
type Upload interface {
	io.Writer
	io.Closer
}

// UploadInfo describes an upload that is not yet content.
type UploadInfo struct {
	ID    string
	Size  int64
	Since time.Time // of the last write
}

// Content is open content. On local disk it also is an *os.File behind the
// interface, so that the kernel can send it by itself.
type Content interface {
	io.ReadSeekCloser
	io.ReaderAt
}
