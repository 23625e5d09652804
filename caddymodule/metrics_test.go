package caddymodule

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
)

// A registry that checks what it is given takes the metrics of services with
// and without traffic, and of one that has the name of another just deleted.
func TestTrafficMetrics(t *testing.T) {
	in := ingress.New(ingress.Options{})
	defer in.Close()
	in.SetRoutes([]ingress.Route{{Host: "a.test", ServiceID: "a"}, {Host: "b.test", ServiceID: "b"}, {Host: "c.test", ServiceID: "c"}})
	for _, id := range []platform.ID{"a", "b", "c"} {
		in.Configure(ingress.PoolSpec{ServiceID: id, Name: "web", Project: "shop", Stopped: true})
	}
	for _, host := range []string{"a.test", "a.test", "b.test", "nobody.test"} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		in.ServeHTTP(httptest.NewRecorder(), r)
	}
	in.Remove("b")
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(traffic{in})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += l.GetName() + "=" + l.GetValue() + " "
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if h := m.GetHistogram(); h != nil {
				value = float64(h.GetSampleCount())
			}
			got[family.GetName()] += fmt.Sprint(labels, value, "\n")
		}
	}
	for name, want := range map[string]string{
		"denia_ingress_requests_total":              "class=5xx project=shop release= service=web 2\n",
		"denia_ingress_request_duration_seconds":    "project=shop release= service=web 2\n",
		"denia_ingress_requests_waiting":            "project=shop service=web 0\n",
		"denia_ingress_unknown_host_requests_total": "1\n",
		"denia_ingress_access_entries_lost_total":   "0\n",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}
