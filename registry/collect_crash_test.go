package registry_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/denia-paas/denia/registry"
)

// Set, these make this test binary a process that works on the yard in a
// directory and kills itself when it comes to a failpoint for the n-th time.
const (
	crashDirEnv = "DENIA_REGISTRY_CRASH_DIR"
	crashAtEnv  = "DENIA_REGISTRY_CRASH_AT"
)

// TestCrashingProcess is not a test but the process that is killed.
func TestCrashingProcess(*testing.T) {
	dir := os.Getenv(crashDirEnv)
	if dir == "" {
		return
	}
	if err := workAndCrash(dir, os.Getenv(crashAtEnv)); err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	fmt.Println("finished")
	os.Exit(0) // without the words of a test
}

func workAndCrash(dir, at string) error {
	y := &yard{dir: dir}
	if err := y.open(context.Background(), registry.Options{}); err != nil {
		return err
	}
	step, nth, _ := strings.Cut(at, "#")
	left, err := strconv.Atoi(nth)
	if err != nil {
		return err
	}
	y.onStep(func(name string) {
		if name != step {
			return
		}
		if left--; left > 0 {
			return
		}
		// Nothing of this process goes on, not even to its deferred calls.
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	})
	p := y.client()
	for _, act := range crashScript(y) {
		fmt.Println("begins", act.name)
		if err := act.do(p); err != nil {
			return fmt.Errorf("%s: %w", act.name, err)
		}
		fmt.Println("ended", act.name)
	}
	return nil
}

// act is one thing the process does, and what is to be found afterwards: the
// image under a tag, nil for none.
type act struct {
	name string
	do   func(p *pusher) error
	tag  string // repository:tag
	then *testImage
}

// crashScript comes by every failpoint, most of them in several ways: first
// pushes, pushes of what is there, a mount, a tag that moves, an upload that is
// never finished, collections, and pushes of what was collected.
func crashScript(y *yard) []act {
	base, top := layerOf("base", 5000), layerOf("top", 3000)
	one, two, three := buildImage("one", base), buildImage("two", base, top), buildImage("three", top)
	index := buildIndex(one, two)
	push := func(repo, tag string, i testImage) act {
		return act{"push " + repo + ":" + tag, func(p *pusher) error { return p.push(repo, tag, i) }, repo + ":" + tag, &i}
	}
	collect := act{"collect", func(*pusher) error {
		y.later(2 * yardLease)
		_, err := y.Collect(context.Background(), false)
		return err
	}, "", nil}
	acts := []act{
		push("p/a", "one", one),
		push("p/a", "moving", one),
		push("p/a", "moving", two),
		{"push again", func(p *pusher) error { return p.send("p/a", base) }, "", nil},
		{"leave an upload", func(p *pusher) error {
			location, err := p.begin("p/a")
			if err != nil {
				return err
			}
			_, err = p.want("PATCH", location, base, 202)
			return err
		}, "", nil},
		{"mount", func(p *pusher) error {
			for _, blob := range three.blobs {
				if err := p.mount("p/a", "p/b", blob); err != nil {
					return err
				}
			}
			return p.put("p/b", "three", three.manifest)
		}, "p/b:three", &three},
		{"delete", func(p *pusher) error { return p.remove("p/a", "one") }, "p/a:one", nil},
		{"delete moving", func(p *pusher) error { return p.remove("p/a", "moving") }, "p/a:moving", nil},
		collect,
		push("p/a", "moving", two),
		push("p/a", two.digest().String(), two),
		push("p/a", one.digest().String(), one),
		push("p/a", "index", index),
		{"delete three", func(p *pusher) error { return p.remove("p/b", "three") }, "p/b:three", nil},
		{"delete index", func(p *pusher) error { return p.remove("p/a", "index") }, "p/a:index", nil},
		collect,
		push("p/b", "three", three),
	}
	for i := range acts {
		acts[i].name = fmt.Sprintf("%d %s", i, acts[i].name)
	}
	return acts
}

// TestCrash_EveryFailpoint kills the process wherever it can be, and looks at
// what is left.
func TestCrash_EveryFailpoint(t *testing.T) {
	for _, step := range []string{
		"upload.synced", "upload.locked", "upload.renamed", "upload.txn", "upload.replied", "manifest.txn", "manifest.pushed",
		"gc.manifest", "gc.unlinked", "gc.condemned", "gc.locked", "gc.trashed", "gc.forgotten", "gc.emptied",
	} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir() // everything is got rid of again each time
			for nth := 1; ; nth++ {
				y := &yard{dir: dir}
				said := y.crash(t, fmt.Sprintf("%s#%d", step, nth))
				finished := said[len(said)-1] == "finished"
				if finished && nth == 1 {
					t.Fatalf("the process never came to %s", step)
				}
				y.checkAfterCrash(t, said)
				if t.Failed() {
					t.Fatalf("killed the %d. time at %s, in %q", nth, step, said[len(said)-1])
				}
				if finished {
					t.Logf("killed %d times", nth-1)
					return
				}
			}
		})
	}
}

// crash runs the process until it is killed, and returns what it said.
func (y *yard) crash(t *testing.T, at string) (said []string) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestCrashingProcess$")
	child.Env = append(os.Environ(), crashDirEnv+"="+y.dir, crashAtEnv+"="+at)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	mustDo(t, err)
	mustDo(t, child.Start())
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
	}
	_ = child.Wait() // killed
	if len(said) == 0 || strings.HasPrefix(said[len(said)-1], "failed") {
		t.Fatalf("the process said %q", said)
	}
	return said
}

// checkAfterCrash opens what a killed process left, checks that it is sound and
// that everything acknowledged is there, and that it can all be got rid of.
func (y *yard) checkAfterCrash(t *testing.T, said []string) {
	t.Helper()
	mustDo(t, y.open(context.Background(), registry.Options{}))
	defer func() { mustDo(t, y.close()) }()
	y.check(t, true)

	acts := crashScript(y)
	tags := map[string][]*testImage{} // what may be found under each
	for _, act := range acts {
		if act.tag == "" {
			continue
		}
		switch {
		case contains(said, "ended "+act.name):
			tags[act.tag] = []*testImage{act.then}
		case contains(said, "begins "+act.name):
			before := tags[act.tag]
			if before == nil {
				before = []*testImage{nil}
			}
			tags[act.tag] = append(before, act.then)
		}
	}
	p := y.client()
	for name, possible := range tags {
		repo, tag, _ := strings.Cut(name, ":")
		content, err := p.pull(repo, tag)
		fits := false
		for _, i := range possible {
			if i == nil {
				fits = fits || notFound(err)
			} else {
				fits = fits || err == nil && string(content) == string(i.manifest)
			}
		}
		collected := strings.HasPrefix(tag, "sha256:") && notFound(err) // it has no tag
		if !fits && !collected {
			t.Errorf("%s is %s, %v", name, content, err)
		}
	}
	for name := range tags {
		// What was pushed by digest goes by itself, after the index that lists it.
		if repo, tag, _ := strings.Cut(name, ":"); !strings.Contains(tag, ":") {
			mustDo(t, p.remove(repo, tag))
		}
	}
	// What the process was at can be done again.
	i := buildImage("after", layerOf("base", 5000), layerOf("top", 3000))
	mustDo(t, p.push("p/a", "after", i))
	if _, err := p.pull("p/a", "after"); err != nil {
		t.Error(err)
	}
	mustDo(t, p.remove("p/a", "after"))
	y.later(48 * time.Hour)
	y.collect(t)
	y.check(t, true)
	y.checkEmpty(t)
}

func notFound(err error) bool {
	failed, ok := err.(*pushError)
	return ok && failed.status == 404
}

func contains(list []string, s string) bool {
	for _, one := range list {
		if one == s {
			return true
		}
	}
	return false
}
