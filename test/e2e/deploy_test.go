package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The newcomer's way: upload, deploy, change, deploy again, roll back.
func TestDeployChangeAndRollBack(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.service("hello", nil)
	if status, _ := s.get("hello.localhost", "/"); status != http.StatusServiceUnavailable {
		t.Errorf("before the first deployment: %d, want 503", status)
	}
	first := s.deployFiles(id, appContext("one"))
	s.healthy(first)
	s.answers("hello.localhost", "one")

	s.healthy(s.deployFiles(id, appContext("two")))
	s.answers("hello.localhost", "two")

	s.healthy(s.deploy(id, object{"type": "redeploy", "deployment_id": first}))
	s.answers("hello.localhost", "one")

	var list []object
	s.expect(http.StatusOK, "GET", "/v1/services/"+id+"/deployments", nil, &list)
	var got []string
	for _, d := range list {
		got = append(got, d.str("number")+" "+d.str("status")+" "+d.str("trigger"))
	}
	if want := "3 healthy rollback,2 inactive api,1 inactive api"; strings.Join(got, ",") != want {
		t.Errorf("deployments are %q, want %q", strings.Join(got, ","), want)
	}
	var service object
	s.eventually(5*time.Second, "the service runs", func() bool {
		s.expect(http.StatusOK, "GET", "/v1/services/"+id, nil, &service)
		return service.str("state") == "running"
	})
	if service.str("replicas.ready") != "1" || service.str("source.type") != "upload" {
		t.Errorf("service reads %v", service)
	}
	s.eventually(30*time.Second, "only the active release's container is left", func() bool { return len(s.containers()) == 1 })
}

// Whose host is it? An application's own /v1 reaches the application.
func TestHostsDecide(t *testing.T) {
	t.Parallel()
	s := start(t, "control_domain denia.test")
	client := s.client()
	defer client.CloseIdleConnections()
	ask := func(host, path string) int {
		t.Helper()
		reply, err := client.Get("http://" + host + path)
		if err != nil {
			t.Fatal(err)
		}
		defer reply.Body.Close()
		return reply.StatusCode
	}
	for _, c := range []struct {
		host, path string
		want       int
	}{
		{"denia.test", "/healthz", http.StatusOK},
		{"denia.test", "/v1/me", http.StatusUnauthorized},
		{"denia.test", "/v1/nothing", http.StatusNotFound},
		{"DENIA.test:80", "/healthz", http.StatusOK},
		{"nobody.test", "/", http.StatusNotFound},
		{"nobody.test", "/v1/me", http.StatusNotFound},
		{"nobody.localhost", "/healthz", http.StatusNotFound},
	} {
		if got := ask(c.host, c.path); got != c.want {
			t.Errorf("http://%s%s answers %d, want %d", c.host, c.path, got, c.want)
		}
	}
	s.running("app", "mine", nil)
	if status, text := s.get("app.localhost", "/v1/me"); status != http.StatusOK || text != "the application's own /v1" {
		t.Errorf("the application's /v1/me answers %d %q", status, text)
	}
}

// A change of what runs is a rollout; stop, start, restart, scale and delete
// do what they say.
func TestLifeOfAService(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.running("app", "hello", object{"env": object{"COLOR": "red"}, "secret_env": object{"KEY": "s3cret-value"}})
	if _, text := s.get("app.localhost", "/env?key=COLOR"); text != "red" {
		t.Fatalf("COLOR is %q", text)
	}
	var service object
	s.expect(http.StatusOK, "GET", "/v1/services/"+id, nil, &service)
	if service.str("secret_env.KEY") != "***" {
		t.Errorf("secret_env reads %q", service.str("secret_env.KEY"))
	}

	// What was read is written back, with one change: the secret stays.
	update := object{}
	for _, field := range []string{"name", "source", "port", "health_check", "env", "secret_env", "scale"} {
		update[field] = service[field]
	}
	update["env"] = object{"COLOR": "blue"}
	s.expect(http.StatusOK, "PUT", "/v1/services/"+id, update, nil)
	s.eventually(30*time.Second, "the new configuration runs", func() bool {
		_, text := s.get("app.localhost", "/env?key=COLOR")
		return text == "blue"
	})
	if _, text := s.get("app.localhost", "/env?key=KEY"); text != "s3cret-value" {
		t.Errorf("the secret is %q after a write-back of what was read", text)
	}

	_, before := s.get("app.localhost", "/host")
	var restart object
	s.expect(http.StatusAccepted, "POST", "/v1/services/"+id+"/restart", nil, &restart)
	s.healthy(restart.str("id"))
	if _, after := s.get("app.localhost", "/host"); after == before {
		t.Error("after a restart the same container serves")
	}

	s.expect(http.StatusAccepted, "POST", "/v1/services/"+id+"/scale", object{"min": 3, "max": 3}, nil)
	s.eventually(30*time.Second, "three replicas are ready", func() bool {
		s.expect(http.StatusOK, "GET", "/v1/services/"+id, nil, &service)
		return service.str("replicas.ready") == "3" && len(s.containers()) == 3
	})
	s.expect(http.StatusAccepted, "POST", "/v1/services/"+id+"/scale", object{"min": 1, "max": 1}, nil)
	s.eventually(30*time.Second, "one replica is left", func() bool { return len(s.containers()) == 1 })

	s.expect(http.StatusAccepted, "POST", "/v1/services/"+id+"/stop", nil, nil)
	s.eventually(30*time.Second, "no container is left", func() bool { return len(s.containers()) == 0 })
	if status, text := s.get("app.localhost", "/"); status != http.StatusServiceUnavailable || !strings.Contains(text, "stopped") {
		t.Errorf("a stopped service answers %d %q", status, text)
	}
	s.expect(http.StatusAccepted, "POST", "/v1/services/"+id+"/start", nil, nil)
	s.answers("app.localhost", "hello")

	s.expect(http.StatusNoContent, "DELETE", "/v1/services/"+id, nil, nil)
	if status, _ := s.get("app.localhost", "/"); status != http.StatusNotFound {
		t.Errorf("a deleted service answers %d", status)
	}
	s.expect(http.StatusNotFound, "DELETE", "/v1/services/"+id, nil, nil)
	s.eventually(30*time.Second, "no container is left", func() bool { return len(s.containers()) == 0 })
}

// Cancel ends a build's processes, then the queue moves on.
func TestCancelABuild(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.service("app", nil)
	hanging := s.deployFiles(id, hangingBuild(t))
	var d object
	s.eventually(60*time.Second, "the build hangs", func() bool {
		s.expect(http.StatusOK, "GET", "/v1/deployments/"+hanging, nil, &d)
		return d.str("status") == "building" && s.logHas("/v1/deployments/"+hanging, "RUN")
	})
	next := s.deployFiles(id, appContext("next"))
	s.expect(http.StatusAccepted, "POST", "/v1/deployments/"+hanging+"/cancel", nil, nil)
	began := time.Now()
	d = s.finished(hanging)
	if d.str("status") != "canceled" || d.str("error.code") != "canceled" {
		t.Errorf("it ended %s, %v", d.str("status"), d["error"])
	}
	t.Logf("canceled after %s", time.Since(began).Round(time.Millisecond))
	s.healthy(next)
	s.answers("app.localhost", "next")
}

// A newer pending deployment takes the place of an older pending one.
func TestSupersede(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.service("app", nil)
	hanging := s.deployFiles(id, hangingBuild(t))
	older := s.deployFiles(id, appContext("older"))
	newer := s.deployFiles(id, appContext("newer"))
	if d := s.finished(older); d.str("status") != "canceled" || d.str("error.code") != "superseded" {
		t.Errorf("the older one is %s, %v", d.str("status"), d["error"])
	}
	s.expect(http.StatusAccepted, "POST", "/v1/deployments/"+hanging+"/cancel", nil, nil)
	s.healthy(newer)
	s.answers("app.localhost", "newer")
}

// The same path on PostgreSQL, and through a restart of Denia.
func TestPostgres(t *testing.T) {
	t.Parallel()
	s := start(t, "database "+postgres(t))
	id := s.running("app", "on postgres", nil)
	s.stop()
	s.run()
	s.answers("app.localhost", "on postgres")
	s.healthy(s.deployFiles(id, appContext("again")))
	s.answers("app.localhost", "again")
}

// A reload that would need a restart is refused, and nothing is changed.
func TestReloadRefusesWhatNeedsARestart(t *testing.T) {
	s := start(t)
	s.running("app", "before", nil)
	s.writeCaddyfile("base_domain example.test")
	out, err := s.reload()
	if err == nil || !strings.Contains(out, "base_domain") {
		t.Errorf("a reload that needs a restart: %v, %s", err, out)
	}
	s.answers("app.localhost", "before")
}
