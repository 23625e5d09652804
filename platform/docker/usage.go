package docker

import (
	"context"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
)

// Usage is what the engine holds, of Denia's and of others.
type Usage struct {
	Version     string
	Containers  int   // running or not
	ImagesBytes int64 // layers that images share are counted for each
}

// Usage asks the engine what it holds.
func (e *Engine) Usage(ctx context.Context) (Usage, error) {
	info, err := e.Ping(ctx)
	if err != nil {
		return Usage{}, err
	}
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	c, err := e.api(ctx)
	if err != nil {
		return Usage{}, err
	}
	containers, err := c.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return Usage{}, e.fail(ctx, err, "listing containers")
	}
	images, err := c.ImageList(ctx, image.ListOptions{})
	if err != nil {
		return Usage{}, e.fail(ctx, err, "listing images")
	}
	usage := Usage{Version: info.Version, Containers: len(containers)}
	for _, i := range images {
		usage.ImagesBytes += i.Size
	}
	return usage, nil
}
