package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/store"
)

// Each makes this test binary a process that is there to be killed.
const (
	rolloutEnv = "DENIA_STORE_CRASH_ROLLOUT_DSN"
	pushEnv    = "DENIA_STORE_CRASH_PUSH_DSN"
)

// rolloutForEver deploys as fast as it can and prints a line for each release.
func rolloutForEver(dsn string) {
	fatal := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	s, err := store.Open(ctx, dsn, options())
	fatal(err)
	services, err := s.AllServices(ctx)
	fatal(err)
	web := services[0].ID
	// What the process before was at comes to an end first.
	unfinished, err := s.UnfinishedOf(ctx, web)
	fatal(err)
	for _, d := range unfinished {
		_, err := s.Advance(ctx, d.ID, d.Status, platform.Failed, nil)
		fatal(err)
	}
	for {
		u := platform.Upload{ID: store.NewID(), ServiceID: web, ExpiresAt: time.Now().Add(time.Hour)}
		fatal(s.CreateUpload(ctx, u))
		wanted := pending(web)
		wanted.Source = platform.Source{Type: platform.SourceUpload, UploadID: u.ID}
		_, _, err := s.CreateDeployment(ctx, wanted)
		fatal(err)
		d, _, err := s.ClaimBuild(ctx)
		fatal(err)
		_, err = s.Advance(ctx, d.ID, platform.Building, platform.Starting, func(d *platform.Deployment) {
			d.Artifact = &platform.Artifact{Image: "denia/default/web:1", Digest: "sha256:00"}
		})
		fatal(err)
		d, _, err = s.Promote(ctx, d.ID)
		fatal(err)
		fmt.Println(d.Number)
	}
}

func TestStore_SurvivesKill(t *testing.T) {
	onEachDSN(t, func(t *testing.T, dsn string) {
		setup := get(store.Open(t.Context(), dsn, options())).or(t)
		web := anyService(t, setup).ID
		ok(t, setup.Close())
		random := rand.New(rand.NewPCG(1, 2))
		for range 8 {
			acknowledged := killAfter(t, rolloutEnv, dsn, 1+random.IntN(8), time.Duration(random.IntN(4000))*time.Microsecond)
			s := get(store.Open(t.Context(), dsn, options())).or(t)
			active := get(s.Service(t.Context(), web)).or(t).ActiveDeploymentID
			list, _ := get2(s.Deployments(t.Context(), web, store.Page{Limit: 10_000})).or(t)
			healthy, used := 0, 0
			for i, d := range list {
				equal(t, "number", d.Number, len(list)-i)
				if d.Status == platform.Healthy {
					healthy++
					equal(t, "active deployment", active, d.ID)
				}
				if d.Number == acknowledged && d.Status != platform.Healthy && d.Status != platform.Inactive {
					t.Errorf("deployment %d was healthy and is %s", d.Number, d.Status)
				}
				if get(s.Upload(t.Context(), d.Source.UploadID)).or(t).DeploymentID == d.ID {
					used++
				}
			}
			equal(t, "healthy deployments", healthy, 1)
			equal(t, "used uploads", used, len(list))
			ok(t, s.Close())
		}
	})
}

// killAfter starts the process, waits for n lines of it and a little more, kills
// it, and returns the number on the last line.
func killAfter(t *testing.T, env, dsn string, n int, more time.Duration) (acknowledged int) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), env+"="+dsn)
	child.Stderr = os.Stderr
	out := get(child.StdoutPipe()).or(t)
	ok(t, child.Start())
	lines := bufio.NewScanner(out)
	for range n {
		if !lines.Scan() {
			t.Fatalf("the process ended by itself: %v", child.Wait())
		}
	}
	<-time.After(more)
	ok(t, child.Process.Kill())
	last := lines.Text()
	for lines.Scan() {
		last = lines.Text()
	}
	_ = child.Wait() // killed
	_, err := fmt.Sscan(last, &acknowledged)
	ok(t, err)
	return acknowledged
}
