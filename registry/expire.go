package registry

import (
	"context"
	"fmt"
)

// expireUploads drops the uploads nobody wrote to for Options.UploadTTL. One
// that a request is writing to is never dropped, however slow it is.
func (c *collector) expireUploads(ctx context.Context, run *Collection) error {
	n, err := c.g.sessions.expire(ctx, run.StartedAt.Add(-c.g.cfg.UploadTTL))
	run.Uploads += n
	if err != nil {
		return fmt.Errorf("dropping idle uploads: %w", err)
	}
	return nil
}
