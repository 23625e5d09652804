package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"github.com/denia-paas/denia/platform"
)

// maxLine bounds one line of output. The engine hands over lines in pieces of
// 16 KiB; they are joined up to here, and what is longer becomes several lines.
const maxLine = 64 << 10

// maxFrame bounds what the engine may send as one piece: a piece of a line, its
// time and some room for engines with larger buffers.
const maxFrame = 1 << 20

// Logs opens the output of a replica; see platform.Runtime. It fails with
// NotFound when the replica is gone. A reader whose stream is cut because the
// engine goes away fails with engine_unavailable, not io.EOF.
func (e *Engine) Logs(ctx context.Context, replica string, opt platform.LogOptions) (platform.LogReader, error) {
	api, err := e.api(ctx)
	if err != nil {
		return nil, err
	}
	inspectCtx, cancelInspect := bounded(ctx, callTimeout)
	defer cancelInspect()
	c, err := api.ContainerInspect(inspectCtx, replica)
	if cerrdefs.IsNotFound(err) || err == nil && c.Config.Labels[labelInstance] != e.instance {
		return nil, platform.NotFoundf("there is no replica %s", replica)
	}
	if err != nil {
		return nil, e.fail(inspectCtx, err, "looking at container %s", replica)
	}
	options := container.LogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: opt.Follow}
	if !opt.Since.IsZero() {
		options.Since = opt.Since.UTC().Format(time.RFC3339Nano)
	}
	ctx, cancel := context.WithCancel(ctx)
	stopWithEngine := context.AfterFunc(e.ctx, cancel)
	body, err := api.ContainerLogs(ctx, replica, options)
	if err != nil {
		defer cancel()
		stopWithEngine()
		if cerrdefs.IsNotFound(err) {
			return nil, platform.NotFoundf("there is no replica %s", replica)
		}
		return nil, e.fail(ctx, err, "opening the output of container %s", replica)
	}
	r := &logReader{
		name:   replicaLabel(c.Config.Labels),
		body:   body,
		frames: bufio.NewReaderSize(body, 32<<10),
		fail:   func(err error) error { return e.fail(ctx, err, "reading the output of container %s", replica) },
	}
	if opt.Follow {
		r.ended = func() error { return e.outputEnded(ctx, replica) }
	}
	r.close = sync.OnceFunc(func() {
		stopWithEngine()
		cancel()
	})
	r.done = ctx.Done()
	return r, nil
}

// outputEnded tells why a followed stream ended: nil when the replica has
// exited, an error when the engine let go of one that runs on, which engines
// do when they shut down and leave containers alive.
func (e *Engine) outputEnded(ctx context.Context, replica string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	api, err := e.api(ctx)
	if err != nil {
		return err
	}
	c, err := api.ContainerInspect(ctx, replica)
	switch {
	case cerrdefs.IsNotFound(err):
		return nil
	case err != nil:
		return e.fail(ctx, err, "looking at container %s", replica)
	case c.State.Running:
		return e.unavailable(errors.New("the log stream of a running container ended"))
	}
	return nil
}

// logReader takes the engine's stream apart: frames of an eight-byte header
// (stream, length) and one piece of a line behind its time.
type logReader struct {
	name   string
	body   io.ReadCloser
	frames *bufio.Reader
	fail   func(error) error
	ended  func() error // nil: the end of the stream is the end
	close  func()
	done   <-chan struct{}

	pending [3]pendingLine // by stream number; stdout is 1, stderr 2
	queue   []platform.LogLine
	err     error // how the stream ended, once the queue is empty
}

// pendingLine is a line whose end has not come yet.
type pendingLine struct {
	ts   time.Time
	text []byte
	open bool
}

// systemError is the stream in which the engine tells why it cannot go on.
const systemError = 3

var streams = [3]string{platform.StreamStdout, platform.StreamStdout, platform.StreamStderr}

func (r *logReader) Next() (platform.LogLine, error) {
	for len(r.queue) == 0 {
		if r.err != nil {
			return platform.LogLine{}, r.err
		}
		if err := r.frame(); err != nil {
			r.err = r.end(err)
		}
	}
	line := r.queue[0]
	r.queue = r.queue[1:]
	return line, nil
}

// Close ends the stream. A Next that waits fails with os.ErrClosed.
func (r *logReader) Close() error {
	r.close()
	return r.body.Close()
}

// end decides what the end of the stream means, and lets go of the lines that
// have no end of their own.
func (r *logReader) end(err error) error {
	defer r.close()
	select {
	case <-r.done:
		return os.ErrClosed
	default:
	}
	if errors.Is(err, io.EOF) {
		if r.ended != nil {
			err = r.ended()
		} else {
			err = nil
		}
		if err == nil {
			for stream := range r.pending {
				r.flush(stream)
			}
			return io.EOF
		}
		return err
	}
	return r.fail(err)
}

// frame reads one piece and queues the line it completes, if any.
func (r *logReader) frame() error {
	var header [8]byte
	if _, err := io.ReadFull(r.frames, header[:]); err != nil {
		return err
	}
	stream, size := int(header[0]), binary.BigEndian.Uint32(header[4:])
	if stream > systemError || size > maxFrame {
		return fmt.Errorf("the stream of output is broken: frame of stream %d with %d bytes", stream, size)
	}
	piece := make([]byte, size)
	if _, err := io.ReadFull(r.frames, piece); err != nil {
		return io.ErrUnexpectedEOF
	}
	if stream == systemError {
		return fmt.Errorf("the engine reports: %s", engineWords(string(piece)))
	}
	stamp, text, found := bytes.Cut(piece, []byte(" "))
	ts, err := time.Parse(time.RFC3339Nano, string(stamp))
	if !found || err != nil {
		return fmt.Errorf("the stream of output is broken: no time in front of a line")
	}
	text, complete := bytes.CutSuffix(text, []byte("\n"))

	p := &r.pending[stream]
	if p.open && len(p.text)+len(text) > maxLine {
		r.flush(stream)
	}
	if !p.open {
		p.open, p.ts = true, ts.UTC()
	}
	p.text = append(p.text, text...)
	if complete {
		r.flush(stream)
	}
	return nil
}

// flush queues what has come of a line, if anything has.
func (r *logReader) flush(stream int) {
	p := &r.pending[stream]
	if !p.open {
		return
	}
	text := bytes.TrimSuffix(p.text, []byte("\r"))
	r.queue = append(r.queue, platform.LogLine{
		TS: p.ts, Stream: streams[stream], Replica: r.name,
		Line: strings.ToValidUTF8(string(text), "\uFFFD"),
	})
	*p = pendingLine{text: p.text[:0]}
}
