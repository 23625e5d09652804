package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/denia-paas/denia/test/bench"
)

// Between a proxy and a container is the engine's bridge, and what the kernel
// does there for each packet is charged to who sends it. The same for all
// proxies, and so more, in relation, for those that do little themselves. To
// see them without it, the replica's address is taken onto the machine's
// loopback, where nginx answers the kinds of load as it does in the container.

// takeOver has nginx on loopback answer in place of the replicas, for all
// proxies, until giveBack, which it always returns, has been called. It takes
// root.
func (b *run) takeOver(ctx context.Context) (giveBack func(), err error) {
	var taken []string
	giveBack = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		for _, host := range taken {
			if _, err := command(ctx, "ip", "address", "del", host, "dev", "lo"); err != nil {
				bench.Say("loopback still has a replica's address: %v", err)
			}
		}
	}
	files := b.file("files")
	if err := os.Mkdir(files, 0o755); err != nil {
		return giveBack, err
	}
	for name, content := range replicaAnswers() {
		if err := os.WriteFile(filepath.Join(files, name), content, 0o644); err != nil {
			return giveBack, err
		}
	}
	servers := ""
	for _, s := range b.made {
		host, _, err := net.SplitHostPort(s.address)
		if err != nil {
			return giveBack, err
		}
		if _, err := command(ctx, "ip", "address", "add", host+"/32", "dev", "lo"); err != nil {
			return giveBack, err
		}
		taken = append(taken, host+"/32")
		servers += replicaServer(s.address, files)
	}
	_, err = b.servers.Nginx(ctx, bench.Command{Name: "replica on loopback", Address: b.replica}, servers)
	return giveBack, err
}
