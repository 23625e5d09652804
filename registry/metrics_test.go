package registry_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetrics(t *testing.T) {
	t.Parallel()
	s := newService(t)
	metrics := prometheus.NewPedanticRegistry()
	for _, c := range s.Collectors() {
		if err := metrics.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	image := s.image()
	d := s.push("latest", image)
	s.do(http.MethodHead, manifests+"latest", nil)
	s.get(manifests + "latest")
	s.get(manifests + string(d))
	s.do(http.MethodDelete, manifests+"latest", nil)

	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "denia_registry_") {
			t.Errorf("a metric %s", family.GetName())
		}
		for _, m := range family.GetMetric() {
			name := strings.TrimPrefix(family.GetName(), "denia_registry_")
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			got[name] = m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"pushes_total manifest":  1,
		"pulls_total manifest":   2,
		"deletes_total manifest": 1,
		"received_bytes_total":   float64(len(image)),
		"sent_bytes_total":       float64(2 * len(image)),
	} {
		if got[name] != want {
			t.Errorf("%s is %g, want %g", name, got[name], want)
		}
	}
}
